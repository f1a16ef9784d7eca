"""Engine processes forked off one that imported vLLM: imports take most of a start.

``Forked`` stands in for ``subprocess.Popen`` where a command is ``python -m MODULE ARGUMENT...``.
What runs is the real command with its own environment, descriptors and session, a child of the
tests like any other. The workers that vLLM itself spawns fork off it in turn.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import util
from pathlib import Path
from typing import Any, NoReturn

from leanmoe.process.environment import engine_environment

_IMPORTED = (
    "leanmoe_bench.engines.arm",
    "leanmoe_server.endpoint",
    "leanmoe_server.vllm_engine",
    "vllm.v1.engine.async_llm",
    "vllm.v1.engine.core",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.mixtral",
)
# Of prctl: a child whose parent ends becomes this process's own.
_SET_CHILD_SUBREAPER = 36


class Forked(subprocess.Popen[Any]):
    """A process as ``Popen`` makes it, without the seconds of importing vLLM."""

    link: socket.socket

    def _execute_child(self, args: Sequence[str], *given: Any) -> None:
        pass_fds, cwd, env = given[3], given[4], given[5]
        ours = (given[9], given[12], given[14])
        standard = [fd if fd != -1 else number for number, fd in enumerate(ours)]
        asked = {
            "argv": list(map(str, args))[1:],
            "cwd": os.fspath(cwd or Path.cwd()),
            "fds": [0, 1, 2, *pass_fds],
        }
        self.pid = _ask(
            self.link,
            {**asked, "env": dict(os.environ if env is None else env)},
            [*standard, *pass_fds],
        )
        self._child_created = True
        self._close_pipe_fds(*given[9:15])


def _ask(link: socket.socket, asked: dict[str, Any], descriptors: list[int]) -> int:
    """The id of the new process, by now a child of this one."""
    said = json.dumps(asked).encode()
    _adopt(True)
    try:
        socket.send_fds(link, [len(said).to_bytes(8, "big")], descriptors)
        link.sendall(said)
        return int.from_bytes(link.recv(8), "big")
    finally:
        _adopt(False)


def _adopt(orphans: bool) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(_SET_CHILD_SUBREAPER, int(orphans), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


@contextmanager
def forking(**settings: str) -> Iterator[type[Forked]]:
    """``Forked``, with the process that it forks off started, and ended with the block.

    ``settings`` are what must be in the environment where things are imported.
    """
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", "tests.forked", str(theirs.fileno())]
    environment = {**engine_environment(plugin=False), **settings}
    with theirs:
        process = subprocess.Popen(command, env=environment, pass_fds=[theirs.fileno()])
    with process, ours:  # it ends when the other end is closed
        yield type("Forked", (Forked,), {"link": ours})


def _serve(link: socket.socket) -> NoReturn:
    """Fork for each request until the other end is closed."""
    for name in _IMPORTED:
        import_module(name)
    while True:
        head = socket.recv_fds(link, 8, 16)
        length, said = int.from_bytes(head[0], "big"), b""
        if not length:
            os._exit(0)  # what vLLM would tidy up takes seconds, and is nothing here
        while len(said) < length:
            said += link.recv(length - len(said))
        read, write = os.pipe()
        # The child of a child that ended is adopted.
        if not (between := os.fork()):
            if not (child := os.fork()):
                os.close(read)
                os.close(write)
                _become(json.loads(said), head[1])
            os.write(write, child.to_bytes(8, "big"))
            os._exit(0)
        os.waitpid(between, 0)
        for descriptor in (write, *head[1]):
            os.close(descriptor)
        link.sendall(os.read(read, 8))
        os.close(read)


def _become(asked: dict[str, Any], descriptors: list[int]) -> NoReturn:
    # Out of the way of the numbers that are wanted.
    high = [os.dup2(fd, 500 + i, inheritable=False) for i, fd in enumerate(descriptors)]
    for fd, wanted in zip(high, asked["fds"], strict=True):
        os.dup2(fd, wanted)
    _blind(asked["fds"])
    os.setsid()
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    util.spawnv_passfds = _forked_or(util.spawnv_passfds)
    argv = [one for one in asked["argv"] if one != "-P"]
    sys.argv = argv[1:]
    # What ends with an interpreter, as the engine of a process does, ends with this one.
    _end_with(
        lambda: runpy.run_module(argv[1], run_name="__main__", alter_sys=True),
        atexit._run_exitfuncs,
    )


def _forked_or(spawn: Callable[..., int]) -> Callable[..., int]:
    """What ``multiprocessing`` starts a Python with: its workers are forked instead."""

    def start(path: bytes, arguments: list[Any], descriptors: Collection[int]) -> int:
        arguments = [os.fsdecode(one) for one in arguments]
        if "--multiprocessing-fork" not in arguments:
            return spawn(path, arguments, descriptors)
        if child := os.fork():
            return child
        _blind(descriptors)
        # A Python of its own would not have loaded any yet.
        import_module("vllm.plugins").plugins_loaded = False
        # It would look only now whether series are those of several processes.
        values = import_module("prometheus_client.values")
        values.ValueClass = values.get_value_class()
        code = arguments[arguments.index("-c") + 1]
        sys.argv = ["-c", "--multiprocessing-fork"]
        _end_with(lambda: exec(code, {}))

    return start


def _blind(kept: Collection[int]) -> None:
    """As after exec: signals as they are by default, and descriptors beside these see nothing.

    They stay open, on nothing: what was inherited closes its numbers some time.
    """
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD):
        signal.signal(
            number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        )
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in [int(one.name) for one in Path("/proc/self/fd").iterdir()]:
        if fd > 2 and fd != nothing and fd not in kept:
            with contextlib.suppress(OSError):
                os.fstat(fd)
                os.dup2(nothing, fd, inheritable=False)


def _end_with(run: Callable[[], object], last: Callable[[], object] = int) -> NoReturn:
    code = 1
    try:
        run()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    last()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
