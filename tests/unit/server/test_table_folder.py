"""Which tuned tables an engine is given: vLLM's own files and names, a pruned checkpoint."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest
import vllm

from leanmoe.checkpoint import open_checkpoint
from leanmoe.errors import CheckpointError, InputError
from leanmoe.files.digest import file_digest
from leanmoe.manifest import Manifest, Source, check_files, read_manifest, write_manifest
from leanmoe.tuned_tables import FOLDER_VARIABLE, TableName, Tiles, put_table, read_table
from leanmoe_server.table_folder import EngineShape, read_sources, tables_for
from tests.tuned import RECORD

VLLM = Path(vllm.__file__).parent / "model_executor/layers/fused_moe/configs"
H200 = EngineShape("NVIDIA_H200", VLLM)
SOURCE = TableName(8, 14336, "NVIDIA_H200")
MINE = {
    1: Tiles(
        BLOCK_SIZE_M=16,
        BLOCK_SIZE_N=32,
        BLOCK_SIZE_K=256,
        GROUP_SIZE_M=1,
        num_warps=4,
        num_stages=3,
    )
}


def write_config(path: Path, *, experts: int = 5, ffn: int = 14336, layout=None) -> Path:
    path.mkdir(parents=True)
    config = {
        "architectures": ["MixtralForCausalLM"],
        "model_type": "mixtral",
        "vocab_size": 64,
        "hidden_size": 4096,
        "intermediate_size": ffn,
        "num_hidden_layers": 4,
        "num_attention_heads": 32,
        "rms_norm_eps": 1e-5,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rope_theta": 1e6,
        "hidden_act": "silu",
        "num_local_experts": experts,
        "num_experts_per_tok": 2,
    }
    if layout:
        layers = {str(i): {"n_experts": n, "top_k": min(n, 2)} for i, n in layout.items()}
        config["leanmoe"] = {"layers": layers}
    (path / "config.json").write_text(json.dumps(config))
    return path


def give_manifest(path: Path, source_experts: int | None, **settings) -> None:
    source = Source(name="source", files={}, experts=source_experts)
    files = {"config.json": file_digest(path / "config.json")}
    manifest = Manifest(
        family="mixtral", method="naee", source=source, files=files, settings=settings
    )
    write_manifest(path, manifest)


@pytest.fixture
def lean(tmp_path) -> Path:
    """Five of Mixtral's eight experts, as config and manifest tell it."""
    path = write_config(tmp_path / "lean")
    give_manifest(path, 8)
    return path


@pytest.fixture(autouse=True)
def no_folder_from_outside(monkeypatch):
    monkeypatch.delenv(FOLDER_VARIABLE, raising=False)


def sources(path: Path, *files: Path):
    return read_sources(open_checkpoint(path), files)


def folder_of(path: Path, engine: EngineShape | None = H200, *files: Path) -> dict[str, str]:
    """File name -> content of what the engine would read."""
    with tables_for(sources(path, *files), engine):
        set_to = os.environ.get(FOLDER_VARIABLE)
        held = {one.name: one.read_text() for one in Path(set_to).iterdir()} if set_to else {}
    assert FOLDER_VARIABLE not in os.environ
    assert set_to is None or not Path(set_to).exists()
    return held


def of_vllm(name: TableName) -> str:
    return (VLLM / name.file).read_text()


def test_the_table_of_the_source_is_handed_on_under_the_served_name(lean, caplog):
    caplog.set_level(logging.INFO)
    fp8 = replace(SOURCE, dtype="fp8_w8a8")
    assert folder_of(lean) == {
        SOURCE.of(5).file: of_vllm(SOURCE),
        fp8.of(5).file: of_vllm(fp8),
    }
    lines = [one.message for one in caplog.records if "tuned table" in one.message]
    assert len(lines) == 2 and all("vLLM's of 8 experts" in line for line in lines)


def test_vllm_itself_finds_what_was_handed_on(lean, monkeypatch, request):
    from vllm.model_executor.layers.fused_moe import fused_moe
    from vllm.platforms import current_platform
    from vllm.utils.platform_utils import get_device_name_as_file_name

    monkeypatch.setattr(current_platform, "get_device_name", lambda device_id=0: "NVIDIA H200 NVL")
    for forget in (get_device_name_as_file_name, fused_moe.get_moe_configs):
        forget.cache_clear()
        request.addfinalizer(forget.cache_clear)
    shapes = ((5, 2 * 14336, 4096), (5, 4096, 14336))
    with tables_for(sources(lean), H200):
        found = fused_moe.try_get_optimal_moe_config(*shapes, 2, None, 16)
    assert Tiles(**found) == read_table(VLLM / SOURCE.file)[16]
    fused_moe.get_moe_configs.cache_clear()
    assert found != fused_moe.try_get_optimal_moe_config(*shapes, 2, None, 16)


@pytest.mark.parametrize(
    ("engine", "names"),
    [
        (replace(H200, tensor=2), {"E=5,N=7168"}),
        (replace(H200, tensor=8), {"E=5,N=1792"}),
        (replace(H200, card="NVIDIA_H100_80GB_HBM3"), {"E=5,N=14336"}),
    ],
)
def test_width_and_card_are_those_of_a_rank(lean, engine, names):
    held = folder_of(lean, engine)
    assert {name.partition(",device_name")[0] for name in held} == names
    assert all(f"device_name={engine.card}" in name for name in held)


def test_experts_shared_out_over_ranks_keep_their_width(tmp_path):
    path = write_config(tmp_path / "lean", experts=96, ffn=768)
    give_manifest(path, 256)
    # 96 over 2 are 48 of 128: vLLM has tables of 128 experts of width 768.
    held = folder_of(path, replace(H200, expert=2))
    assert TableName(48, 768, "NVIDIA_H200").file in held


def test_layers_that_differ_get_a_file_per_count(tmp_path):
    path = write_config(tmp_path / "lean", experts=6, layout={1: 5, 2: 3, 3: 5})
    give_manifest(path, 8)
    bf16 = [name for name in folder_of(path) if ",dtype" not in name]
    assert sorted(bf16) == [SOURCE.of(n).file for n in (3, 5, 6)]


def test_a_cut_of_a_cut_goes_back_to_the_first_source(tmp_path):
    first = write_config(tmp_path / "first", experts=6)
    give_manifest(first, 8)
    before = read_manifest(first).model_dump(mode="json", exclude={"curve", "files"})
    path = write_config(tmp_path / "second", experts=5)
    give_manifest(path, 6, before=before)
    assert folder_of(path)[SOURCE.of(5).file] == of_vllm(SOURCE)


def test_what_vllm_has_itself_is_left_to_it(tmp_path, caplog):
    path = write_config(tmp_path / "lean", experts=8)
    give_manifest(path, 16)
    assert folder_of(path) == {}
    assert not caplog.records


def test_what_nobody_has_is_told_once(tmp_path, caplog):
    path = write_config(tmp_path / "lean", ffn=14352)
    give_manifest(path, 8)
    assert folder_of(path) == {}
    (said,) = caplog.messages
    assert "5 experts of width 14352 of bf16 or fp16" in said and "the 8 of its source" in said
    assert "leanmoe bench tune" in said


@pytest.mark.parametrize(
    ("keys", "engine", "kind"),
    [
        # vLLM has a table of these eight experts for the H100 in fp8 alone.
        ({}, {}, "of bf16 or fp16"),
        ({}, {"dtype": "float32"}, "of float32"),
        (
            {"quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}},
            {},
            "of fp8_w8a8 in blocks of 128x128",
        ),
        ({}, {"quantization": "fp8"}, None),
        ({"quantization_config": {"quant_method": "fp8"}}, {}, None),
    ],
)
def test_a_table_of_other_weights_does_not_hide_that_one_is_missing(
    tmp_path, caplog, keys, engine, kind
):
    path = write_config(tmp_path / "lean")
    config = {**json.loads((path / "config.json").read_text()), **keys}
    (path / "config.json").write_text(json.dumps(config))
    give_manifest(path, 8)
    held = folder_of(path, replace(H200, card="NVIDIA_H100_80GB_HBM3", **engine))
    assert [",dtype=fp8_w8a8.json" in name for name in held] == [True]
    assert [kind in line for line in caplog.messages] == ([True] if kind else [])


def test_a_model_nobody_cut_is_left_alone(tmp_path, caplog):
    assert folder_of(write_config(tmp_path / "whole")) == {}
    assert not caplog.records


def test_the_checkpoint_s_own_table_comes_first_and_needs_no_manifest_entry(lean, caplog):
    caplog.set_level(logging.INFO)
    put_table(lean / "tuned", SOURCE.of(5), MINE, RECORD)
    check_files(lean, read_manifest(lean))
    held = folder_of(lean)
    assert json.loads(held[SOURCE.of(5).file]) == {"1": MINE[1].keys()}
    assert replace(SOURCE, dtype="fp8_w8a8").of(5).file in held
    assert "measured on 2026-11-27 under vLLM 0.32.0" in caplog.text


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            replace(SOURCE.of(5), card="NVIDIA_A100-SXM4-80GB"),
            "left alone: this card is NVIDIA_H200",
        ),
        (replace(SOURCE.of(5), width=7168), "left alone: a rank holds 5 experts of width 14336"),
    ],
)
def test_a_carried_table_that_does_not_fit_is_left_alone(lean, caplog, name, said):
    caplog.set_level(logging.INFO)
    put_table(lean / "tuned", name, MINE, RECORD)
    assert folder_of(lean)[SOURCE.of(5).file] == of_vllm(SOURCE)
    assert [line for line in caplog.messages if said in line and name.file in line]


def test_a_carried_table_that_was_changed_stops_the_start(lean):
    path = put_table(lean / "tuned", SOURCE.of(5), MINE, RECORD)
    path.write_text(path.read_text().replace("32", "64"))
    with pytest.raises(CheckpointError, match="does not match"):
        sources(lean)


def given(folder: Path, name: TableName, text: str | None = None) -> Path:
    path = folder / name.file
    path.write_text(json.dumps({"1": MINE[1].keys()}) if text is None else text)
    return path


def test_a_table_given_by_name_comes_before_the_checkpoint_s(lean, tmp_path):
    put_table(lean / "tuned", SOURCE.of(5), {1: MINE[1], 2: MINE[1]}, RECORD)
    file = given(tmp_path, SOURCE.of(5))
    assert list(json.loads(folder_of(lean, H200, file)[SOURCE.of(5).file])) == ["1"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        (SOURCE.of(5), "{", "is not one of vLLM's tuned tables"),
        (SOURCE.of(5), '{"1": {"tile_m": 1}}', "is not one of vLLM's tuned tables"),
        (SOURCE.of(9), None, "is for 9 experts"),
        (replace(SOURCE.of(5), width=768), None, "of width 768"),
        (replace(SOURCE.of(5), width=7168), None, "a rank of this engine holds 5 experts"),
        (SOURCE.of(4), None, "a rank of this engine holds 5 experts"),
        (replace(SOURCE.of(5), card="NVIDIA_A100-SXM4-80GB"), None, "this is NVIDIA_H200"),
    ],
)
def test_a_given_table_that_cannot_be_used_is_refused(lean, tmp_path, name, text, said):
    file = given(tmp_path, name, text)
    with pytest.raises(InputError) as refused:
        folder_of(lean, H200, file)
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert refused.value.exit_code == 2


def test_a_given_file_of_another_name_is_refused(lean, tmp_path):
    (tmp_path / "mine.json").write_text("{}")
    with pytest.raises(InputError, match="not named as vLLM names its tables"):
        sources(lean, tmp_path / "mine.json")


@pytest.mark.parametrize(
    ("engine", "said"),
    [(None, "does not run on CUDA"), (replace(H200, ignores="with --enable-lora"), "enable-lora")],
)
def test_engines_that_read_no_tables_get_none(lean, tmp_path, engine, said, caplog):
    caplog.set_level(logging.INFO)
    assert folder_of(lean, engine) == {}
    assert ("no tuned tables are handed to this engine" in caplog.text) == (engine is not None)
    with pytest.raises(InputError, match=said):
        folder_of(lean, engine, given(tmp_path, SOURCE.of(5)))


def test_a_folder_of_the_user_stays_and_what_it_lacks_is_told(lean, tmp_path, monkeypatch, caplog):
    own = tmp_path / "own"
    own.mkdir()
    given(own, SOURCE.of(5))
    monkeypatch.setenv(FOLDER_VARIABLE, str(own))
    with tables_for(sources(lean), H200):
        assert os.environ[FOLDER_VARIABLE] == str(own)
    assert os.environ[FOLDER_VARIABLE] == str(own) and len(list(own.iterdir())) == 1
    (said,) = caplog.messages
    fp8 = replace(SOURCE, dtype="fp8_w8a8")
    assert fp8.of(5).file in said and str(VLLM / fp8.file) in said
    with pytest.raises(InputError, match="vLLM reads one"):
        folder_of(lean, H200, given(tmp_path, SOURCE.of(5)))


def test_the_engine_s_shape_follows_vllm_s_arguments(monkeypatch):
    from leanmoe_server import refusals, vllm_engine

    def shape(*arguments: str) -> EngineShape | None:
        return vllm_engine.engine_shape(
            vllm_engine.parse_vllm_arguments(["--model", "m", *arguments])
        )

    assert shape() is None, "a CPU build"
    platform = vllm_engine.current_platform
    monkeypatch.setattr(platform, "is_cuda", lambda: True)
    # A build for CPUs refuses flags of expert parallelism.
    monkeypatch.setattr(refusals, "is_cpu_build", lambda: False)
    monkeypatch.setattr(platform, "get_device_name", lambda device_id=0: "NVIDIA H200 NVL")
    assert shape() == H200
    quantised = shape("--quantization", "fp8", "--dtype", "float16")
    assert quantised == replace(H200, quantization="fp8", dtype="float16")
    assert shape("--tensor-parallel-size", "4") == replace(H200, tensor=4)
    both = ("--tensor-parallel-size", "4", "--enable-expert-parallel")
    assert shape(*both) == replace(H200, expert=4)
    assert "adapters" in shape("--enable-lora").ignores
    assert "copies" in shape("--enable-expert-parallel", "--enable-eplb").ignores
