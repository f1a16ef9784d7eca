"""Starts that must fail at once with one sentence, before any engine is loaded."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from leanmoe.process.environment import engine_environment
from tests.forked import Forked
from tests.integration.live_server import serve_command


def serve(model: Path | str, *arguments: str, **environment: str) -> tuple[int, str]:
    """Exit code and the last line on stderr; only errors are expected."""
    done = subprocess.run(
        serve_command(Path(model), *arguments),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )
    return done.returncode, done.stderr.strip().splitlines()[-1]


def serve_forked(forked: type[Forked], model: Path, *arguments: str) -> tuple[int, str]:
    """The same for what is refused once vLLM is imported."""
    with forked(
        serve_command(model, *arguments),
        stderr=subprocess.PIPE,
        text=True,
        env=engine_environment(),
        start_new_session=True,
    ) as process:
        _, said = process.communicate(timeout=120)
    return process.returncode, said.strip().splitlines()[-1]


@pytest.fixture
def no_vllm(tmp_path: Path) -> str:
    """A PYTHONPATH on which whoever imports vLLM ends at once: what is refused did not need it."""
    package = tmp_path / "ending" / "vllm"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text('raise SystemExit("vLLM was imported")')
    given = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(package.parent), *([given] if given else [])])


@pytest.fixture
def copied_model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "copy"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--skip-level", "1.5"], "outside [0, 1]"),
        (["--skip-level", "high"], "invalid float value"),
        (["--skip-level", "0.5", "--max-kld", "0.1"], "not allowed with"),
    ],
)
def test_bad_arguments(tiny_model: Path, no_vllm: str, arguments: list[str], words: str) -> None:
    code, sentence = serve(tiny_model, *arguments, PYTHONPATH=no_vllm)
    assert (code, words in sentence) == (2, True), sentence


def test_what_is_refused_without_vllm_would_end_if_it_were_imported(
    tiny_model: Path, no_vllm: str
) -> None:
    assert serve(tiny_model, PYTHONPATH=no_vllm) == (1, "vLLM was imported")


def test_a_used_port(tiny_model: Path, no_vllm: str) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(1)
        port = other.getsockname()[1]
        listening = ("--host", "127.0.0.1", "--port", str(port))
        code, sentence = serve(tiny_model, *listening, PYTHONPATH=no_vllm)
    assert code == 2
    assert f"127.0.0.1:{port}" in sentence and "choose another --port" in sentence


def test_a_changed_weight_file(copied_model: Path, no_vllm: str) -> None:
    weights = copied_model / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    code, sentence = serve(copied_model, PYTHONPATH=no_vllm)
    assert code == 2
    assert "model.safetensors does not match the manifest" in sentence


def test_what_vllm_offers_and_we_cannot_take(tiny_model: Path, forked: type[Forked]) -> None:
    code, sentence = serve_forked(forked, tiny_model, "--enable-return-routed-experts")
    assert code == 2 and "cannot take --enable-return-routed-experts" in sentence


def test_a_tuned_table_where_no_kernel_reads_one(
    tiny_model: Path, forked: type[Forked], tmp_path: Path
) -> None:
    table = tmp_path / "E=8,N=256,device_name=NVIDIA_H200.json"
    blocks = {f"BLOCK_SIZE_{letter}": 64 for letter in "MNK"}
    table.write_text(
        json.dumps({"1": {**blocks, "GROUP_SIZE_M": 1, "num_warps": 4, "num_stages": 3}})
    )
    code, sentence = serve_forked(forked, tiny_model, "--tuned-table", str(table))
    assert code == 2 and "this engine reads no tables (it does not run on CUDA)" in sentence
