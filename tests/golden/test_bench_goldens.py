"""``leanmoe bench goldens``: every case is found, and a number that is off is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from leanmoe.cli import main
from leanmoe_bench.goldens.golden_cases import cases_of

DATA = Path(__file__).parent / "data"


def test_every_tensor_of_the_sets_is_compared_but_what_pruning_does_not_dump():
    for folder in ("naee", "eep", "cdmoe", "moe_pruner"):
        held = set(load_file(DATA / folder / "results.safetensors"))
        compared = {
            name for case in cases_of(DATA) if case.folder == DATA / folder for name in case.tensors
        }
        left = {name.split(".")[0] for name in held - compared}
        assert left <= {"probe", "probe_logits", "calib", "unmodified", "doc0", "betas"}, left


def test_a_sound_set_passes_and_a_changed_number_is_named(tmp_path, capsys):
    shutil.copytree(DATA / "naee", tmp_path / "naee")
    for name in ("results.json", "results.safetensors"):
        (tmp_path / "naee" / name).chmod(0o644)
    facts = json.loads((tmp_path / "naee" / "results.json").read_text())
    only = {"layerwise_r6_batch1": facts["layerwise_r6_batch1"]}
    (tmp_path / "naee" / "results.json").write_text(json.dumps(only))
    assert main(["bench", "goldens", "--set", str(tmp_path), "--json"]) == 0
    [row] = json.loads(capsys.readouterr().out)["goldens"]
    assert (row["equal"], row["close"], row["wrong"]) == (2, 3, [])
    tensors = load_file(tmp_path / "naee" / "results.safetensors")
    tensors["layerwise_r6_batch1.losses"][1, 5] *= 1.001
    save_file(tensors, tmp_path / "naee" / "results.safetensors")
    assert main(["bench", "goldens", "--set", str(tmp_path)]) == 1
    assert "layerwise_r6_batch1.losses is off by 1.0e-03" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--set", "."]])
def test_no_set_is_refused(options, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["bench", "goldens", *options]) == 2
    assert capsys.readouterr().err.count("\n") == 1
