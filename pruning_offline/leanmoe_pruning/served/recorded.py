"""What ``leanmoe eval URL --json`` wrote before, read to be compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from leanmoe.errors import InputError
from leanmoe.files.digest import parse_json
from leanmoe.files.text import user_text
from leanmoe_pruning.evaluation.long_answers import LongAnswer
from leanmoe_pruning.evaluation.task_result import TaskResult


class Recorded:
    """A result in a file; raises ``InputError`` where it holds no answers of a server."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = _read(path)
        if not isinstance(self.content.get("server"), dict):
            raise InputError(
                f"{path} is no result of `leanmoe eval URL --json`; give the URL of a server or "
                "such a file"
            )

    def check_tasks(self, digests: Mapping[str, str | None]) -> None:
        """``InputError`` where a task, by its name, is missing or was asked other items."""
        for task, digest in digests.items():
            found = self.content.get("tasks", {}).get(task)
            if found is None:
                raise InputError(f"{self.path} has no task {task}; run it again with that task")
            if not isinstance(found.get("answers"), list) or found.get("digest") != digest:
                raise InputError(
                    f"{self.path} holds other items of {task}; give the same --tasks as there"
                )

    def check_long(self, asked: Mapping[str, Any]) -> None:
        """``InputError`` where long answers are missing or were asked otherwise."""
        found = self.content.get("long")
        if not isinstance(found, dict):
            raise InputError(f"{self.path} has no long answers; run it again with --long")
        for key, value in asked.items():
            if found.get(key) != value:
                raise InputError(
                    f"{self.path} has long answers with {key} {found.get(key)!r} and these have "
                    f"{value!r}; give the same --long, --prompts, --temperature and --seed"
                )

    def long_answers(self) -> list[LongAnswer]:
        """Its long answers, which were checked."""
        return [LongAnswer(**one) for one in self.content["long"]["answers"]]

    def tasks(self, mine: Sequence[TaskResult]) -> list[TaskResult]:
        """The same tasks as ``mine``, which were checked."""
        return [_result(one, self.content["tasks"][one.task]["answers"]) for one in mine]


def _read(path: Path) -> dict[str, Any]:
    try:
        found = parse_json(user_text(path))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}); give another file") from None
    return found if isinstance(found, dict) else {}


def _result(mine: TaskResult, answers: list[dict[str, Any]]) -> TaskResult:
    right = tuple(bool(one["right"]) for one in answers) if mine.correct else ()
    texts = tuple(str(one["text"]) for one in answers)
    return TaskResult(mine.task, right, digest=mine.digest, answers=texts)
