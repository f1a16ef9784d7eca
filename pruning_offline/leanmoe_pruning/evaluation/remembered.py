"""What the model compared with said, kept in a folder: many cuts of one model, one pass over it.

A file's name is a digest of the weights, of what was asked and of how it was computed, so nothing
stale is ever taken up. Hidden states are those after the last layer, before the head.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import load_file, save_file

from leanmoe.errors import InputError
from leanmoe.files.digest import bytes_digest, tool_versions
from leanmoe.files.output import atomic_write_json
from leanmoe_pruning.evaluation.task_result import TaskResult
from leanmoe_pruning.forward.passes import Hidden


class Remembered:
    """Results of one model in ``folder``; without a folder everything is made anew."""

    def __init__(self, folder: Path | None, weights_digest: str, compute: str | None) -> None:
        if folder is not None and folder.exists() and not folder.is_dir():
            raise InputError(f"--remember {folder}: this is a file, expected a folder")
        self._folder = folder
        self._of = [weights_digest, compute or "default", json.dumps(tool_versions())]

    def hidden(self, data_digest: str, make: Callable[[], Hidden]) -> Hidden:
        """Final hidden states of a data set, one tensor ``[N, T, D]`` per source."""
        path = self._path("hidden", data_digest, ".safetensors")
        if path is None:
            return make()
        if not path.exists():
            found = {str(index): part.contiguous() for index, part in enumerate(make())}
            part = path.with_suffix(".part")
            save_file(found, part)
            part.replace(path)
        held = load_file(path)
        return [held[str(index)] for index in range(len(held))]

    def tasks(
        self, task_digests: str | None, make: Callable[[], list[TaskResult]]
    ) -> list[TaskResult]:
        """Task results; asked again where the judge cannot name its tasks by digest."""
        path = self._path("tasks", task_digests, ".json") if task_digests else None
        if path is None:
            return make()
        if not path.exists():
            atomic_write_json(path, {"tasks": [asdict(one) for one in make()]})
        held = json.loads(path.read_text(encoding="utf-8"))["tasks"]
        return [_task_result(one) for one in held]

    def _path(self, kind: str, asked: str, suffix: str) -> Path | None:
        if self._folder is None:
            return None
        self._folder.mkdir(parents=True, exist_ok=True)
        digest = bytes_digest(part.encode() + b"\n" for part in [*self._of, asked])
        return self._folder / f"{kind}-{digest.removeprefix('sha256:')[:32]}{suffix}"


def _task_result(held: dict[str, object]) -> TaskResult:
    lists = {key: tuple(value) for key, value in held.items() if isinstance(value, list)}
    if held.get("log_p") is not None:
        lists["log_p"] = tuple(tuple(one) for one in lists["log_p"])
    return TaskResult(**{**held, **lists})  # type: ignore[arg-type]
