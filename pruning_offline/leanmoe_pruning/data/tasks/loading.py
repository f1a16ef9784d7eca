"""``--tasks SPEC``: a list of ``FILE.jsonl[:COUNT]`` and ``builtin:NAME[:COUNT]``, read."""

from __future__ import annotations

from pathlib import Path

from leanmoe.errors import DataError
from leanmoe.files.address import check_is_path
from leanmoe_pruning.data.builtin import Split
from leanmoe_pruning.data.parts import as_written, fields_of, found_parts
from leanmoe_pruning.data.spec import BUILTIN
from leanmoe_pruning.data.tasks.builtin_tasks import builtin_path
from leanmoe_pruning.data.tasks.item_files import read_items
from leanmoe_pruning.data.tasks.task import Item, Task

HELP = (
    "comma-separated list of FILE.jsonl[:COUNT] and builtin:NAME[:COUNT]; a file may have commas "
    "and colons in its name"
)
_MAX_DIGITS = 12
# One of each form that the built-in sums take.
EXAMPLES = 6


def load_task(spec: str, split: Split = "heldout") -> Task:
    """Read one task.

    A built-in task gives its ``split`` (methods that search take "calibration", judges
    "heldout"). A user's file has none and is taken whole; ``Task.split`` parts it. With a
    count, the first so many items. Raises ``DataError``.
    """
    check_is_path(spec, "--tasks", DataError)
    head = BUILTIN if spec.startswith(BUILTIN) else ""
    name, *counts = fields_of(as_written(spec, (BUILTIN,)).removeprefix(head))
    if not name:
        raise DataError(f"--tasks {spec!r} names nothing; expected {HELP}")
    items = read_items(builtin_path(name, split) if head else Path(name))
    return Task(name if head else Path(name).stem, items[: _count(counts, spec, len(items))])


def examples_of(spec: str) -> tuple[Item, ...]:
    """What a chat shows before a question: calibration items of a built-in task, else nothing."""
    if not spec.startswith(BUILTIN):
        return ()
    name = spec.removeprefix(BUILTIN).partition(":")[0]
    return load_task(BUILTIN + name, "calibration").items[:EXAMPLES]


def _count(counts: list[str], spec: str, found: int) -> int:
    if not counts:
        return found
    text = ":".join(counts)
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS and int(text) > 0):
        raise DataError(f"--tasks {spec!r}: count {text!r} is not a positive whole number of items")
    if int(text) > found:
        raise DataError(
            f"--tasks {spec!r} asks for {text} items and there are {found}; ask for fewer"
        )
    return int(text)


def parts_of(specs: str) -> list[str]:
    """The parts of a list."""
    return found_parts(specs, (BUILTIN,))


def load_tasks(specs: str, split: Split = "heldout") -> list[Task]:
    """Every task of a list; two of one name are refused."""
    tasks = [load_task(spec, split) for spec in parts_of(specs)]
    names = [task.name for task in tasks]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"--tasks {specs!r} gives two tasks named {twice}; rename one file")
    return tasks
