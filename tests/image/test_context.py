"""What `docker build` is sent: the sources, and nothing that .dockerignore does not name."""

import subprocess
from pathlib import Path

import pytest

import rehearse
from recipe import copy_of, read_stages
from tests.image.conftest import ROOT


@pytest.fixture(scope="module")
def sent():
    return rehearse.context_files()


def test_weights_history_and_environments_stay_out(tmp_path, monkeypatch):
    """A project folder as it looks after work, by the project's own .dockerignore."""
    strangers = (
        ".git/config",
        ".venv/lib/torch.so",
        ".env",
        "model/model.safetensors",
        "core/model.safetensors",
        "core/leanmoe/weights.bin",
        "server/tls.key",
        "demo-work/stock/model.safetensors",
        "benchmarks/results/soak.json",
        "reference_model/leanmoe_reference/adapters.safetensors",
        "tests/golden/data/naee/inputs.safetensors",
    )
    kept = ("core/leanmoe/cli.py", "pruning_offline/leanmoe_pruning/data/texts/tokens.safetensors")
    for name in (*strangers, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / ".dockerignore").write_text((ROOT / ".dockerignore").read_text())
    monkeypatch.setattr(rehearse, "ROOT", tmp_path)
    found = [name for name in rehearse.context_files() if name != ".dockerignore"]
    assert sorted(found) == sorted(kept)


def test_everything_the_stages_copy_is_sent(sent):
    for stage in read_stages(ROOT / "Dockerfile", {}):
        for step in stage.steps:
            if step.keyword == "COPY" and (copy := copy_of(step.value)).stage is None:
                for name in copy.sources:
                    within = (one for one in sent if name == "." or Path(one).is_relative_to(name))
                    assert any(within), name


def test_every_file_of_the_wheel_s_packages_is_sent(sent):
    """The wheel built in the image is the wheel built here."""
    packages = ("core", "pruning_offline", "runtime_patches", "server", "loadtest", "demo")
    listed = subprocess.run(
        ["git", "ls-files", *(f"{p}/leanmoe*" for p in packages), "benchmarks/leanmoe_bench"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    names = {line for line in listed.stdout.splitlines() if (ROOT / line).exists()}
    assert names and names <= set(sent)


def test_the_context_is_small(sent):
    assert sum((ROOT / name).stat().st_size for name in sent) < 8e6
