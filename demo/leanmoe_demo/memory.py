"""Which steps of an unfinished demo are done, kept beside what they made."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from leanmoe.files.digest import bytes_digest, parse_json, tool_versions
from leanmoe.files.output import atomic_write_json

_NAME = "steps.json"
_PACKAGES = ("leanmoe", "leanmoe_pruning", "leanmoe_reference", "leanmoe_demo")


class Memory:
    """Finished steps in order, in ``work``; the first one that differs forgets those behind it.

    A later step may have read what an earlier one wrote, so only an unbroken beginning counts, and
    only what the same tools and the same code did.
    """

    def __init__(self, work: Path) -> None:
        self._file = work / _NAME
        self._made_by = {"tools": tool_versions(), "code": _code_digest()}
        self._steps: list[dict[str, Any]] = self._read()
        self._next = 0

    def _read(self) -> list[dict[str, Any]]:
        try:
            content = parse_json(self._file.read_bytes())
            steps = content["steps"] if content["made_by"] == self._made_by else []
            return [step for step in steps if step["arguments"]]
        except (OSError, ValueError, TypeError, LookupError):
            return []  # none yet, or not ours: begin anew

    def recall(self, arguments: list[str], makes: Path | None) -> dict[str, Any] | None:
        """What the next step gave when it last ran, ``None`` where it has to run."""
        if self._next < len(self._steps):
            step: dict[str, Any] = self._steps[self._next]
            if step["arguments"] == arguments and (makes is None or makes.exists()):
                self._next += 1
                return step
        del self._steps[self._next :]
        return None

    def keep(self, arguments: list[str], found: dict[str, Any]) -> None:
        """Remember a step that has just ended."""
        self._steps.append({"arguments": arguments, **found})
        self._next = len(self._steps)
        atomic_write_json(self._file, {"made_by": self._made_by, "steps": self._steps})

    def forget(self) -> None:
        """The demo is at its end: the next one measures anew."""
        self._file.unlink(missing_ok=True)


def _code_digest() -> str:
    """Of the modules that the steps run: a developer's change begins anew."""
    roots = [Path(next(iter(_place(name)))) for name in _PACKAGES]
    files = [file for root in roots for file in sorted(root.rglob("*.py"))]
    return bytes_digest(file.read_bytes() for file in files)


def _place(package: str) -> Iterable[str]:
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations is not None
    return spec.submodule_search_locations
