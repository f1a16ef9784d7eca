"""A server process on a port of this machine: started, waited for, asked over HTTP, ended."""

from __future__ import annotations

import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from leanmoe.errors import LeanMoEError
from leanmoe.process.environment import engine_environment
from leanmoe.process.group import ProcessGroup, last_lines
from leanmoe.process.patience import Patience
from leanmoe.process.ports import free_port

_GRACE_SECONDS = 60.0
# Loopback is never behind a proxy, whatever the environment says of other hosts.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class LocalServer:
    """``python ARGUMENT... --host 127.0.0.1 --port PORT``, its output in ``log``.

    ``settings`` are added to the environment; ``plugin`` false gives stock vLLM. A context manager:
    the server ends with the block.
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        log: Path,
        *,
        plugin: bool = True,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        port = free_port()
        self.name, self.url = name, f"http://127.0.0.1:{port}"
        self._log = log
        place = ("--host", "127.0.0.1", "--port", str(port))
        with log.open("wb") as out:
            self.group = ProcessGroup(
                [sys.executable, "-P", *arguments, *place],
                env=engine_environment(plugin=plugin, base={**os.environ, **(settings or {})}),
                output=out,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get(self, path: str, timeout: float = 30.0) -> str:
        """The text of an answer; ``urllib.error.HTTPError`` for one that is an error."""
        with _OPENER.open(self.url + path, timeout=timeout) as answer:
            return str(answer.read().decode())

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """What is answered to a JSON body, as JSON."""
        request = urllib.request.Request(
            self.url + path,
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with _OPENER.open(request, timeout=600.0) as answer:
            return json.load(answer)

    def wait(self, path: str) -> None:
        """Wait until ``path`` answers 200; raise where the server ends or no longer gets on."""
        patience, said = Patience(self.group.process.pid), ""
        while (lost := patience.lost()) is None:
            self._check_alive()
            try:
                self.get(path, timeout=30.0)
                return
            except urllib.error.HTTPError as error:
                said = f"; {path} says {error.read().decode(errors='replace')}"
            except OSError:
                pass
            time.sleep(0.5)
        raise LeanMoEError(f"the {self.name} server does not come up: {lost}{said}")

    def _check_alive(self) -> None:
        if self.group.process.poll() is not None:
            tail = last_lines(self._log)
            raise LeanMoEError(f"the {self.name} server ended while starting:\n{tail}")

    def close(self) -> None:
        """SIGTERM to the server, SIGKILL to whatever is left of its processes."""
        self.group.process.terminate()
        self.group.end(_GRACE_SECONDS)
