"""Start an image's server from its tree as a cluster would, ask it, and stop it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Protocol

from leanmoe.process.ports import free_port
from tree import Mount, enter

START_SECONDS = 600.0
STOP_SECONDS = 120.0
# A user no image knows, of group 0, as OpenShift chooses one.
USER = "4242:0"
# All a container has to be given: docs/image.md.
WRITABLE = ("/home/leanmoe", "/tmp")
_FLAGS = ("--max-model-len", "1024", "--max-num-seqs", "4", "--kv-cache-memory-bytes", "100000000")


class ImageLike(Protocol):
    """What is needed of an image."""

    root: str
    env: dict[str, str]
    folder: str
    entrypoint: list[str]
    health: list[str]


def _serve_line(image: ImageLike, model: Path, port: int) -> list[str]:
    root = Path(image.root)
    Path(root, "models", "model").mkdir(parents=True, exist_ok=True)
    arguments = ["serve", "/models/model", "--host", "127.0.0.1", "--port", str(port), *_FLAGS]
    return enter(
        root,
        [*image.entrypoint, *arguments],
        environment={**image.env, "LEANMOE_HEALTH_URL": f"http://127.0.0.1:{port}/health"},
        mounts=[Mount(model, "/models/model")],
        memory=WRITABLE,
        user=USER,
        folder=image.folder,
    )


def _child(process: subprocess.Popen[bytes]) -> int:
    """The process that unshare started: number 1 inside, some number here."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return int(path.read_text().split()[0])


def _health(image: ImageLike, inside: int, port: int) -> int:
    """Exit code of the image's own health check, run where the server runs."""
    entering = ["nsenter", "--target", str(inside), "--mount", "--pid", "--"]
    changing = ["chroot", f"--userspec={USER}", image.root, "env", "-i"]
    variables = [f"LEANMOE_HEALTH_URL=http://127.0.0.1:{port}/health", f"PATH={image.env['PATH']}"]
    line = [*entering, *changing, *variables, *image.health]
    return subprocess.run(line, check=False, capture_output=True).returncode


def _ask(port: int) -> dict[str, Any]:
    body = {"model": "/models/model", "prompt": "the capital of france", "max_tokens": 8}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        found = json.load(answer)
        return {
            "status": answer.status,
            "usage": found["usage"],
            "level": answer.headers.get("X-LeanMoE-Skip-Level"),
        }


def _ready(port: int) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def _wait_until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> float:
    begun = time.monotonic()
    while time.monotonic() - begun < START_SECONDS and process.poll() is None:
        if _ready(port) == 200:
            return time.monotonic() - begun
        time.sleep(0.5)
    raise SystemExit(
        f"the server did not become ready; the end of {log}:\n{log.read_text()[-3000:]}"
    )


def try_image(image: ImageLike, model: Path, log: Path) -> dict[str, Any]:
    """What was found: seconds to ready, the health check before and after, an answer, the exit."""
    port = free_port()
    with log.open("wb") as out:
        process = subprocess.Popen(_serve_line(image, model, port), stdout=out, stderr=out)
    try:
        while not Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            time.sleep(0.05)
        inside = _child(process)
        early = _health(image, inside, port)
        found: dict[str, Any] = {"health_while_loading": early}
        found["ready_seconds"] = round(_wait_until_ready(process, port, log), 1)
        found["health_when_ready"] = _health(image, inside, port)
        found["answer"] = _ask(port)
        os.kill(inside, signal.SIGTERM)
        found["exit_after_sigterm"] = process.wait(STOP_SECONDS)
    finally:
        process.kill()  # unshare's --kill-child takes the rest along
        process.wait()
    return found
