"""The scripts in the pods do what they say: run here, on real files, the commands for real."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import certifi
import pytest

from leanmoe.manifest import read_manifest
from tests.chart.rendering import CHART, Document, containers, one, rendered_with, variables
from tests.docs.forked import forked_leanmoe
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


def test_waiting_ends_with_the_checkpoint_or_a_signal(tmp_path):
    told = {"JOB": "prepare-1", "RETRIES": "3", "SECONDS_LEFT": "600"}
    (tmp_path / "leanmoe.json").touch()
    assert _run("wait.sh", MODEL=str(tmp_path), **told).returncode == 0
    waiting = subprocess.Popen(
        ["/bin/sh", str(FILES / "wait.sh")],
        env={"PATH": PATH, "MODEL": str(tmp_path / "absent"), **told},
        stdout=subprocess.PIPE,
    )
    assert waiting.stdout is not None
    waiting.stdout.readline()
    waiting.terminate()
    assert waiting.wait(timeout=30) == 143


@pytest.mark.parametrize(
    ("codes", "seconds", "said"),
    [
        # A command that refuses does so again; others are tried as often as the Job says.
        ([2], "600", "ended with exit code 2"),
        ([1, 137], "600", "ended with exit code 137"),
        ([1], "0", "past its deadline"),
    ],
)
def test_waiting_ends_when_the_job_has_given_up(codes, seconds, said, tmp_path):
    model = tmp_path / "lean"
    lines = [f"prune ended with exit code {code}\n" for code in codes]
    Path(f"{model}.failed-prepare-1").write_text("".join(lines))
    # What another Job left is of no interest.
    Path(f"{model}.failed-prepare-0").write_text("score ended with exit code 2\n")
    told = {"JOB": "prepare-1", "RETRIES": "1", "SECONDS_LEFT": seconds}
    done = _run("wait.sh", MODEL=str(model), **told)
    assert done.returncode == 1
    assert said in done.stderr


class _Cluster(BaseHTTPRequestHandler):
    """The part of a cluster's API that changes replicas."""

    asked: ClassVar[list[tuple[str, str, str]]] = []

    def do_PATCH(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.asked.append((self.path, self.headers["Authorization"], body))
        self.send_response(200 if self.path.endswith("/scale") else 403)
        self.end_headers()

    def log_message(self, *_: object) -> None: ...


@pytest.mark.parametrize(("path", "said"), [("/scale", "no GPU is held"), ("/other", "403")])
def test_a_pod_that_gives_up_may_scale_its_release_down(path, said, tmp_path, monkeypatch):
    monkeypatch.setattr(_Cluster, "asked", [])
    script = (FILES / "wait.sh").read_text().replace("/scripts", str(FILES))
    (tmp_path / "wait.sh").write_text(script)
    (tmp_path / "token").write_text("a-token\n")
    shutil.copy(certifi.where(), tmp_path / "ca.crt")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Cluster)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    told = {"JOB": "prepare-1", "RETRIES": "1", "SECONDS_LEFT": "0", "API_FOLDER": str(tmp_path)}
    told |= {"SCALE_URL": f"http://127.0.0.1:{server.server_port}{path}"}
    done = _run(str(tmp_path / "wait.sh"), MODEL=str(tmp_path / "lean"), **told)
    server.shutdown()
    server.server_close()
    assert done.returncode == 1
    assert said in done.stdout + done.stderr
    assert _Cluster.asked == [(path, "Bearer a-token", '{"spec": {"replicas": 0}}')]


def test_a_step_that_fails_leaves_word_for_the_pods_that_wait(tmp_path, monkeypatch):
    output, program = tmp_path / "lean", tmp_path / "bin" / "leanmoe"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexit 2\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys.modules[__name__], "PATH", f"{program.parent}:{PATH}")
    told = {"OUTPUT": str(output), "JOB": "prepare-1", "MODEL": str(tmp_path / "absent")}
    done = _run("prepare.sh", "score", SCORES=str(tmp_path / "scores"), **told)
    assert done.returncode == 2
    word = Path(f"{output}.failed-prepare-1").read_text()
    assert word == "score ended with exit code 2\n"


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
        step["env"] = [entry for entry in step["env"] if "value" in entry]
        for entry in step["env"]:
            entry["value"] = entry["value"].replace("/models", str(models))
    return steps


def _run_step(step: Document) -> subprocess.CompletedProcess[str]:
    name = step["command"][-1]
    return _run("prepare.sh", name, *step["args"], **variables(step), JOB="prepare-1")


@pytest.fixture
def forked_commands(tmp_path_factory, monkeypatch):
    """The ``leanmoe`` of the scripts, which would import torch and transformers step by step."""
    with forked_leanmoe(tmp_path_factory.mktemp("forked")) as folder:
        monkeypatch.setattr(sys.modules[__name__], "PATH", f"{folder}:{PATH}")
        yield


def test_the_job_leaves_a_lean_checkpoint_with_a_curve(forked_commands, tmp_path):
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
