"""A ``leanmoe`` for shell blocks that starts at once: forks of a process with all imports done.

The real command line in a process of its own, with the block's files, pipes and exit codes. What
is saved is the seconds of importing torch and transformers, once per command.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

_WARM = (
    "transformers",
    "leanmoe_pruning.commands.prune",
    "leanmoe_pruning.commands.curve",
    "leanmoe_pruning.commands.evaluate",
    "leanmoe_pruning.commands.distill",
    "leanmoe_pruning.commands.report",
    "leanmoe_pruning.forward.families.known",
)
_STUB = """#!{python} -S
import json, os, socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect({path!r})
said = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(link, [len(said).to_bytes(8, "big")], [0, 1, 2])
link.sendall(said)
code = link.recv(1)
sys.exit(code[0] if code else 70)
"""


def serve(path: str) -> None:
    """Answer connections on the socket at ``path`` until killed."""
    from leanmoe.cli import main

    for name in _WARM:
        import_module(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    print("ready", flush=True)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        link, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            link.sendall(bytes([_run(main, link)]))
            os._exit(0)
        link.close()


def _run(main, link: socket.socket) -> int:
    head, descriptors, _, _ = socket.recv_fds(link, 8, 3)
    length, said = int.from_bytes(head, "big"), b""
    while len(said) < length:
        said += link.recv(length - len(said))
    argv, folder, environment = json.loads(said)
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["leanmoe", *argv]
    try:
        code = main(argv)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    return code


@contextlib.contextmanager
def forked_leanmoe(folder: Path) -> Iterator[Path]:
    """A folder to put first on PATH: the ``leanmoe`` in it runs in forks."""
    path = folder / "socket"
    command = [sys.executable, "-m", "tests.docs.forked", str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=environment)
    assert process.stdout is not None and process.stdout.readline() == b"ready\n"
    stub = folder / "leanmoe"
    stub.write_text(_STUB.format(python=sys.executable, path=str(path)), encoding="utf-8")
    stub.chmod(0o755)
    try:
        yield folder
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


if __name__ == "__main__":
    serve(sys.argv[1])
