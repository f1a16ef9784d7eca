"""What a task is: items of one kind, with a name, a digest and disjoint parts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Any

from leanmoe.errors import DataError
from leanmoe.files.digest import bytes_digest


@dataclass(frozen=True)
class ChoiceItem:
    """A prompt and its possible continuations, joined as they stand; ``answer`` is the right one's
    number."""

    prompt: str
    choices: tuple[str, ...]
    answer: int

    def to_json(self) -> dict[str, Any]:
        return {"prompt": self.prompt, "choices": list(self.choices), "answer": self.answer}


@dataclass(frozen=True)
class OpenItem:
    """A prompt and the text that greedy generation must give, blanks at both ends aside."""

    prompt: str
    answer: str

    def to_json(self) -> dict[str, Any]:
        return {"prompt": self.prompt, "answer": self.answer}


Item = ChoiceItem | OpenItem


@dataclass(frozen=True)
class Task:
    """Items of one kind."""

    name: str
    items: tuple[Item, ...]

    def __len__(self) -> int:
        return len(self.items)

    @property
    def has_choices(self) -> bool:
        return isinstance(self.items[0], ChoiceItem)

    @property
    def choice_items(self) -> tuple[ChoiceItem, ...]:
        return tuple(item for item in self.items if isinstance(item, ChoiceItem))

    @property
    def open_items(self) -> tuple[OpenItem, ...]:
        return tuple(item for item in self.items if isinstance(item, OpenItem))

    @property
    def chance(self) -> float | None:
        """The accuracy of guessing; ``None`` where text is generated."""
        counts = [1.0 / len(item.choices) for item in self.choice_items]
        return sum(counts) / len(counts) if counts else None

    def digest(self) -> str:
        """SHA-256 over the items in order."""
        return bytes_digest(f"{_line(item)}\n".encode() for item in self.items)

    def split(self, train: int, dev: int) -> tuple[Task, Task, Task]:
        """Disjoint parts: ``train`` items, ``dev`` items, and the rest (test; may be empty).

        Items are ranked by a hash of their content, so a part depends neither on the order of the
        file nor on a seed; an item that stands there twice is taken once.
        """
        ranked = sorted(set(self.items), key=_rank)
        if min(train, dev) < 0 or train + dev > len(ranked):
            raise DataError(
                f"task {self.name} has {len(ranked)} different items and {train} for training and "
                f"{dev} for development were asked for; ask for fewer or give more items"
            )
        cuts = {"train": (0, train), "dev": (train, train + dev), "test": (train + dev, None)}
        parts = [
            replace(self, name=f"{self.name}.{part}", items=tuple(ranked[start:end]))
            for part, (start, end) in cuts.items()
        ]
        return parts[0], parts[1], parts[2]


def _line(item: Item) -> str:
    return json.dumps(item.to_json(), sort_keys=True)


def _rank(item: Item) -> str:
    return hashlib.sha256(_line(item).encode()).hexdigest()
