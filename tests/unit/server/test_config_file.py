"""vLLM's configuration file: ours stand on the command line, and what is no file is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from leanmoe.cli import main
from leanmoe.errors import InputError
from leanmoe_server.command import _own_options
from leanmoe_server.config_file import check_config_files


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "vllm.yaml"


@pytest.mark.parametrize("spelled", ["{}=", "{} "])
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("skip-level: 1\nmax-model-len: 9\n", "has skip-level, and holds vLLM's arguments only"),
        ("max_kld: 0.1\n", "has max_kld, .*give --max-kld on the command line"),
        # vLLM would pass over these, for leanmoe serve gives it its own.
        ("port: 9000\nseed: 1\n", "has port, seed"),
        ("", "holds NoneType, expected YAML"),
        ("- a\n", "holds list, expected YAML"),
        ("a: [\n", "cannot be read: while parsing"),
        ("a: 2026-13-45\n", "cannot be read: month must be in"),
        ("a: " + "9" * 5_000, "cannot be read: Exceeds the limit"),
        ("[" * 50_000, "cannot be read: maximum recursion"),
        (None, "cannot be read: .*No such file"),
    ],
)
def test_what_a_file_may_not_hold(file: Path, spelled: str, text: str | None, words: str) -> None:
    if text is not None:
        file.write_text(text)
    argv = f"--max-num-seqs 8 {spelled.format('--config')}{file}".split()
    with pytest.raises(InputError, match=words):
        check_config_files(argv, _own_options())


def test_what_is_vllm_s_passes(file: Path) -> None:
    file.write_text("max-model-len: 4096\nhost: 127.0.0.1\nspeculative-config: {method: ngram}\n")
    check_config_files(["--config", str(file)], _own_options())
    check_config_files(["--configure", "x", "--config"], _own_options())


def test_it_is_said_before_the_model_is_looked_at(file: Path, tmp_path: Path, capsys) -> None:
    file.write_text("keys: keys.toml\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("leanmoe_server.command._enter_engine_environment", lambda: None)
        assert main(["serve", str(tmp_path), "--config", str(file)]) == 2
    assert "has keys, and holds vLLM's arguments only" in capsys.readouterr().err
