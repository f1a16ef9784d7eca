"""The scripts in the pods do what they say: run here, on real files, the commands for real."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from leanmoe.manifest import read_manifest
from tests.chart.rendering import CHART, Document, containers, one, rendered_with, variables
from tests.tiny import write_tiny_mixtral

FILES = CHART / "files"
PATH = f"{Path(sys.executable).parent}:/usr/bin:/bin"


def _run(script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": PATH, "HOSTNAME": "pod-a", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        ["/bin/sh", str(FILES / script), *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**environment, **variables},
    )


@pytest.fixture
def store(tmp_path, monkeypatch) -> dict[str, str]:
    """An object store that is a folder, and an `rclone copy` that reads it."""
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "config.json").write_text("{}")
    (tmp_path / "store" / "model.safetensors").write_text("weights")
    program = tmp_path / "bin" / "rclone"
    program.parent.mkdir()
    # Its last two arguments are from and to, as the script passes them.
    program.write_text(
        '#!/bin/sh\nwhile [ $# -gt 2 ]; do shift; done\ncp -r "$1/." "$2"\n[ ! -e "$1/broken" ]\n'
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys.modules[__name__], "PATH", f"{program.parent}:{PATH}")
    return {
        "KIND": "objectStore",
        "ORIGIN": str(tmp_path / "store"),
        "TARGET": str(tmp_path / "model"),
    }


def test_a_model_is_fetched_once_and_whole(store):
    assert _run("fetch.sh", **store).returncode == 0
    target = Path(store["TARGET"])
    assert (target / "model.safetensors").read_text() == "weights"
    Path(store["ORIGIN"], "model.safetensors").write_text("changed")
    again = _run("fetch.sh", **store)
    assert "the model is at" in again.stdout
    assert (target / "model.safetensors").read_text() == "weights"
    assert [path.name for path in target.parent.glob("model*")] == ["model"]


def test_a_broken_transfer_leaves_no_model(store):
    Path(store["ORIGIN"], "broken").touch()
    assert _run("fetch.sh", **store).returncode != 0
    assert not Path(store["TARGET"]).exists()
    Path(store["ORIGIN"], "broken").unlink()
    assert _run("fetch.sh", **store).returncode == 0


def test_the_second_of_two_pods_throws_its_copy_away(store):
    """Between its look and its move the target appears, as another pod's move makes it."""
    first = Path(store["TARGET"])
    program = Path(store["TARGET"]).parent / "bin" / "rclone"
    program.write_text(
        program.read_text() + f'mkdir -p {first} && echo "{{}}" > {first}/config.json\n'
    )
    done = _run("fetch.sh", **store)
    assert done.returncode == 0, done.stderr
    assert "another pod brought" in done.stdout
    assert not list(first.parent.glob("model.partial*"))


def test_what_is_no_model_is_refused(store):
    Path(store["ORIGIN"], "config.json").unlink()
    done = _run("fetch.sh", **store)
    assert done.returncode == 2
    assert "no config.json at its top" in done.stderr
    assert not Path(store["TARGET"]).exists()


def test_the_source_need_not_come_back_once_the_cut_is_ready(store, tmp_path):
    (tmp_path / "lean").mkdir()
    assert _run("fetch.sh", **store, OUTPUT=str(tmp_path / "lean")).returncode == 0
    assert not Path(store["TARGET"]).exists()


def test_waiting_ends_with_the_checkpoint_or_a_signal(tmp_path):
    (tmp_path / "leanmoe.json").touch()
    assert _run("wait.sh", MODEL=str(tmp_path)).returncode == 0
    waiting = subprocess.Popen(
        ["/bin/sh", str(FILES / "wait.sh")],
        env={"PATH": PATH, "MODEL": str(tmp_path / "absent")},
        stdout=subprocess.PIPE,
    )
    assert waiting.stdout is not None
    waiting.stdout.readline()
    waiting.terminate()
    assert waiting.wait(timeout=30) == 143


def _job(models: Path) -> list[Document]:
    """The rendered Job's steps, with the volume at a folder of this machine."""
    documents = rendered_with(
        *("model.storage.existingClaim=models", "model.source.kind=none", "model.path=tiny"),
        *("prepare.enabled=true", "prepare.prune.keep=5", "prepare.curve.extraArgs={--levels,3}"),
        *(f"prepare.{step}.data=builtin:gen:2\\,builtin:c:2" for step in ("score", "curve")),
    )
    steps = containers(one(documents, "Job")["spec"]["template"])
    for step in steps:
        step["args"] = [one.replace("/models", str(models)) for one in step.get("args", [])]
        for entry in step["env"]:
            entry["value"] = entry["value"].replace("/models", str(models))
    return steps


def _run_step(step: Document) -> subprocess.CompletedProcess[str]:
    name = step["command"][-1]
    return _run("prepare.sh", name, *step["args"], **variables(step))


def test_the_job_leaves_a_lean_checkpoint_with_a_curve(tmp_path):
    write_tiny_mixtral(tmp_path / "tiny")
    steps = _job(tmp_path)
    output = Path(variables(steps[0])["OUTPUT"])
    assert [step["name"] for step in steps] == ["score", "prune", "curve", "publish"]
    for step in steps:
        assert not output.exists(), "nothing may be served before all steps are done"
        done = _run_step(step)
        assert done.returncode == 0, done.stderr
    manifest = read_manifest(output)
    assert manifest is not None
    assert manifest.method == "naee"
    assert manifest.curve is not None
    assert all(len(kept) == 5 for kept in manifest.kept.values())
    assert not list(tmp_path.glob("*.staged"))
    # Run again, as every upgrade of a hook does: nothing is done twice.
    assert all("is ready" in _run_step(step).stdout for step in steps)


class _Answers(BaseHTTPRequestHandler):
    """What a leanmoe server answers, or would if something were wrong with it."""

    faults: ClassVar[set[str]] = set()

    def do_GET(self):
        if self.path == "/ready" and "unready" in self.faults:
            return self._send(503, '{"ready": false, "reasons": ["layer 3 is not wrapped"]}')
        if self.path == "/v1/models" and self.headers.get("Authorization") != "Bearer user-key":
            return self._send(401, "no key")
        text = {
            "/v1/models": '{"data": [{"id": "tiny"}]}',
            "/metrics": "leanmoe_handshake_complete 1.0\nleanmoe_skip_level 0.4\n"
            'vllm:num_requests_waiting{engine="0"} 0.0\n',
        }
        return self._send(200, "" if "silent" in self.faults else text.get(self.path, "{}"))

    def do_POST(self):
        headers = {} if "stock" in self.faults else {"X-LeanMoE-Skip-Level": "0.4"}
        self._send(200, '{"choices": [{"text": " Paris"}]}', headers)

    def _send(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def check():
    """`helm test` in miniature: one of its checks against answers with a fault."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def run(name: str, fault: str = "") -> subprocess.CompletedProcess[str]:
        _Answers.faults = {fault}
        url = f"http://127.0.0.1:{server.server_port}"
        return subprocess.run(
            [sys.executable, FILES / "check.py", name],
            capture_output=True,
            text=True,
            check=False,
            env={"LEANMOE_URL": url, "LEANMOE_API_KEY": "user-key", "TIMEOUT_SECONDS": "5"},
        )

    yield run
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("name", ["ready", "answer", "metrics"])
def test_checks_pass_on_a_good_server(check, name):
    done = check(name)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("name", "fault", "said"),
    [
        ("ready", "unready", "layer 3 is not wrapped"),
        ("answer", "stock", "not leanmoe serve"),
        ("metrics", "silent", "leanmoe_skip_level"),
    ],
)
def test_checks_fail_on_a_bad_server_and_say_why(check, name, fault, said):
    done = check(name, fault)
    assert done.returncode == 1
    assert said in done.stderr
