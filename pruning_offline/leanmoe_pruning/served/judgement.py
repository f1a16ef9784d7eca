"""``leanmoe eval URL``: tasks asked of a running server, alone or beside another."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from leanmoe.errors import InputError
from leanmoe.policy import check_level
from leanmoe_pruning.evaluation.judging import no_hub
from leanmoe_pruning.evaluation.long_answers import LongQuestions
from leanmoe_pruning.served.chat_server import ChatServer, is_url
from leanmoe_pruning.served.recorded import Recorded
from leanmoe_pruning.served.writing import AskedAtLength

EXACTLY = "off"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is asked of a server."""

    url: str
    against: str | Path | None
    tasks: str | None
    include_path: Path | None
    skip_level: float | None
    max_kld: float | None
    long: LongQuestions | None

    @property
    def target(self) -> object:
        """The level as requests name it; ``None`` for the server's own."""
        if self.skip_level is not None:
            return {"level": check_level(self.skip_level, "--skip-level")}
        return None if self.max_kld is None else {"max_kld": self.max_kld}


def judge_served(asked: Asked) -> dict[str, Any]:
    """Accuracy on tasks and what long answers are like, with all answers; differences, if asked."""
    started = time.monotonic()
    judges = [_tasks_of(asked.tasks, asked.include_path)] if asked.tasks else []
    judges += [AskedAtLength(asked.long)] if asked.long else []
    server, other = ChatServer.open(asked.url, asked.target), _other(asked.against)
    if isinstance(other, Recorded):
        for judge in judges:
            judge.check(other)
    found: dict[str, Any] = {}
    for judge in judges:
        found |= judge.judge(server, other)
    return {
        "server": server.describe(),
        "against": _described(other),
        **found,
        "seconds": round(time.monotonic() - started, 1),
    }


class _Judge(Protocol):
    """Something asked of both."""

    def check(self, other: Recorded) -> None:
        """Whether a recorded result was asked the same."""

    def judge(self, server: ChatServer, other: ChatServer | Recorded | None) -> dict[str, Any]:
        """A part of the result."""
        ...


def _tasks_of(specs: str, include_path: Path | None) -> _Judge:
    with no_hub("--tasks of a server"):
        from leanmoe_pruning.served.chat_model import AskedTasks
    return AskedTasks(specs, include_path)


def _other(place: str | Path | None) -> ChatServer | Recorded | None:
    """What is compared with: a server, exact where it is ours, or a result in a file."""
    if place is None:
        return None
    if is_url(place):
        server = ChatServer.open(str(place))
        return server if server.standing is None else ChatServer.open(str(place), EXACTLY)
    if Path(place).is_dir():
        raise InputError(
            f"--against {place} is a checkpoint and the model judged is a server; give the URL of "
            "a server with that checkpoint, or what `leanmoe eval URL --json` wrote of it"
        )
    return Recorded(Path(place))


def _described(other: ChatServer | Recorded | None) -> Any:
    if isinstance(other, ChatServer):
        return other.describe()
    return None if other is None else other.content["server"]
