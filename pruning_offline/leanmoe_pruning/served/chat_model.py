"""lm-evaluation-harness's own client for chats, told of our levels.

Imported only where that library is asked for.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tenacity  # noqa: F401  # lm-eval looks for it as late as it asks
from aiohttp import ClientError, ClientResponseError
from lm_eval.models.openai_completions import LocalChatCompletion

from leanmoe.errors import LeanMoEError
from leanmoe_pruning.evaluation.harness import HarnessTasks
from leanmoe_pruning.evaluation.task_result import TaskResult, task_report
from leanmoe_pruning.served.chat_server import (
    ANSWER_SECONDS,
    AT_ONCE,
    CHATS_PATH,
    ChatServer,
    headers,
    refusal,
    unreachable,
)
from leanmoe_pruning.served.recorded import Recorded


class LevelledChat(LocalChatCompletion):  # type: ignore[misc]  # the library is not typed
    """``local-chat-completions`` whose requests name a level where one was asked for."""

    def __init__(self, server: ChatServer) -> None:
        super().__init__(
            model=server.model,
            base_url=server.url + CHATS_PATH,
            num_concurrent=AT_ONCE,
            timeout=int(ANSWER_SECONDS),
            header=headers(),
        )
        self._added = dict(server.body)

    def _create_payload(self, *arguments: Any, **settings: Any) -> dict[str, Any]:
        return {**super()._create_payload(*arguments, **settings), **self._added}


class AskedTasks:
    """What ``--tasks`` names, asked of servers as chats; ``DataError`` where something is not."""

    def __init__(self, specs: str, include_path: Path | None) -> None:
        self._tasks = HarnessTasks(specs, include_path, chat=True)

    def check(self, other: Recorded) -> None:
        """``InputError`` where ``other`` was asked something else."""
        other.check_tasks(self._tasks.digests)

    def judge(self, server: ChatServer, other: ChatServer | Recorded | None) -> dict[str, Any]:
        """Every task's figures with the answers."""
        mine = self._ask(server)
        theirs: Sequence[TaskResult | None] = [None] * len(mine)
        if isinstance(other, ChatServer):
            theirs = self._ask(other)
        elif other is not None:
            theirs = other.tasks(mine)
        pairs = zip(mine, theirs, strict=True)
        return {
            "backend": "lm-eval",
            "tasks": {one.task: task_report(one, two) for one, two in pairs},
        }

    def _ask(self, server: ChatServer) -> list[TaskResult]:
        # What it says of errors again and again is said once, below.
        logging.getLogger("lm_eval").setLevel(logging.CRITICAL)
        try:
            return self._tasks.run(LevelledChat(server))
        except ClientResponseError as error:
            raise refusal(server.url, error.status, error.message) from None
        except (ClientError, TimeoutError) as error:
            raise LeanMoEError(str(unreachable(server.url, error))) from None
