"""Write the built-in tasks: ``python -m leanmoe_pruning.data.tasks.items.make``.

Calibration items are made of calibration text and held-out items of held-out text; synthetic
items are drawn once and parted. The same files come out every time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from leanmoe_pruning.data.builtin import SPLITS
from leanmoe_pruning.data.spec import DOMAINS
from leanmoe_pruning.data.tasks.builtin_tasks import task_file
from leanmoe_pruning.data.tasks.items import arith, asked, cloze, facts
from leanmoe_pruning.data.tasks.task import Item

COUNT = 200
# Text that cloze items are made of: all but arithmetic, which has a task of its own.
TEXTS = tuple(domain for domain in DOMAINS if domain != "math")


def tasks() -> Iterator[tuple[str, Sequence[Item]]]:
    """Every file's name and items."""
    for split in SPLITS:
        for domain in TEXTS:
            yield f"cloze-{domain}.{split}", cloze.cloze(domain, split, COUNT)
        yield f"language.{split}", cloze.language(split, COUNT)
    both = 2 * COUNT
    sums, known = arith.choices(arith.questions("arith"), both), facts.facts()
    yield from _parted("arith", sums)
    yield from _parted("sums", arith.written(both))
    yield from _parted("facts", known)
    yield from _parted("asked-arith", asked.asked(sums))
    yield from _parted("asked-facts", asked.asked(known))


def _parted(name: str, items: Sequence[Item]) -> Iterator[tuple[str, Sequence[Item]]]:
    middle = len(items) // 2
    yield f"{name}.calibration", items[:middle]
    yield f"{name}.heldout", items[middle:]


def content(items: Sequence[Item]) -> str:
    """A task file."""
    return "".join(json.dumps(item.to_json(), ensure_ascii=False) + "\n" for item in items)


def write() -> None:
    """Write every file."""
    for name, items in tasks():
        task_file(name).write_text(content(items), encoding="utf-8")


if __name__ == "__main__":
    write()
