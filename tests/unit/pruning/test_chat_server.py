"""Addresses that are no server to be judged, each in one sentence."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from leanmoe.cli import main
from leanmoe.errors import InputError, LeanMoEError
from leanmoe.process.ports import free_port
from leanmoe_pruning.served.chat_server import base_of, message_of, refusal
from tests.tiny import write_tiny_mixtral

SUMS = ["--tasks", "builtin:sums:1"]


@pytest.fixture
def files(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """A server of files: real, and none of a model; its address and its folder."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", tmp_path
        server.shutdown()


def test_addresses():
    for url in ("http://h:8", "http://h:8/", "http://h:8/v1", "http://h:8/v1/"):
        assert base_of(url) == "http://h:8"
    for url in ("http://", "http://h:0", "http://h:x", "http://h:8?a=1", "https:///v1"):
        with pytest.raises(InputError, match="no address of a server"):
            base_of(url)


def test_nobody_there(capsys):
    assert main(["eval", f"http://127.0.0.1:{free_port()}", *SUMS]) == 2
    said = capsys.readouterr().err
    assert "does not answer" in said and "leanmoe serve" in said


def test_a_server_of_something_else(files, capsys):
    url, folder = files
    assert main(["eval", url, *SUMS]) == 2
    assert "answers 404" in capsys.readouterr().err
    (folder / "v1").mkdir()
    for content, words in (("<html>", "not JSON"), ('{"data": []}', "lists no model")):
        (folder / "v1" / "models").write_text(content)
        assert main(["eval", url, *SUMS]) == 2
        assert words in capsys.readouterr().err
    (folder / "v1" / "models").write_text('{"data": [{"id": "m"}]}')
    assert main(["eval", url, *SUMS, "--skip-level", "0.5"]) == 2
    assert "knows no levels" in capsys.readouterr().err


def test_what_refusals_mean():
    assert "OPENAI_API_KEY" in str(refusal("http://h", 401, "no"))
    assert "--chat-template FILE" in str(refusal("http://h", 400, "must provide a chat template"))
    assert isinstance(refusal("http://h", 400, "bad"), InputError)
    assert type(refusal("http://h", 503, "busy")) is LeanMoEError
    assert message_of('{"error": {"message": "a\\nb"}}') == "a b"
    assert message_of("[1]") == "[1]"


def test_the_words_of_a_missing_template_are_those_of_vllm():
    vllm = importlib.util.find_spec("vllm")
    assert vllm is not None and vllm.submodule_search_locations is not None
    source = Path(vllm.submodule_search_locations[0], "renderers", "hf.py").read_text("utf-8")
    told = "".join(line.strip().strip('"') for line in source.splitlines())
    assert "must provide a chat template" in told


def test_checkpoints_and_servers_are_not_compared(tmp_path, capsys):
    model = write_tiny_mixtral(tmp_path / "model", layers=1)
    assert main(["eval", str(model), *SUMS, "--against", "http://127.0.0.1:1"]) == 2
    assert "compare a server with a server" in capsys.readouterr().err
    assert main(["eval", str(model), *SUMS, "--max-kld", "0.1"]) == 2
    assert "needs a quality curve" in capsys.readouterr().err


def test_lm_eval_is_missing(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    for name in list(sys.modules):
        if name.startswith("lm_eval.") or name.endswith((".harness", ".chat_model")):
            monkeypatch.delitem(sys.modules, name)
    assert main(["eval", "http://127.0.0.1:1", *SUMS]) == 2
    assert "pip install 'leanmoe[tasks]'" in capsys.readouterr().err
