"""Task files of noise in the tiny models' words."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

_WORDS = [
    "the",
    "a",
    "of",
    "to",
    "and",
    "in",
    "is",
    "was",
    "for",
    "on",
    "that",
    "with",
    "capital",
    "france",
    "paris",
    "expert",
    "token",
    "model",
]


def write_choices(path: Path, count: int = 16) -> Path:
    """Prompts of four words, three words to choose from."""
    draw = random.Random(3)
    items = [
        {
            "prompt": " ".join(draw.choices(_WORDS, k=4)),
            "choices": [f" {word}" for word in draw.sample(_WORDS, 3)],
            "answer": draw.randrange(3),
        }
        for _ in range(count)
    ]
    return _write(path, items)


def write_open(path: Path, count: int = 8) -> Path:
    """Prompts whose continuation must be generated."""
    draw = random.Random(4)
    items = [
        {"prompt": " ".join(draw.choices(_WORDS, k=4)), "answer": draw.choice(_WORDS)}
        for _ in range(count)
    ]
    return _write(path, items)


def _write(path: Path, items: list[dict[str, Any]]) -> Path:
    path.write_text("".join(f"{json.dumps(item)}\n" for item in items))
    return path
