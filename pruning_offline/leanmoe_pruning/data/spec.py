"""``--data SPEC``: a comma-separated mix of ``name[:count]``, parsed and not yet read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from leanmoe.errors import DataError

DOMAINS = ("gen", "fr", "de", "es", "c", "man", "kjv", "math", "py", "wn")
BUILTIN = "builtin:"
DEFAULT_TENSOR = "input_ids"
_MAX_DIGITS = 12
HELP = (
    "comma-separated mix of NAME[:COUNT] windows: builtin:DOMAIN "
    f"({', '.join(DOMAINS)}), a .txt/.jsonl file, or FILE.safetensors[:TENSOR] with token ids"
)


@dataclass(frozen=True)
class Item:
    """One part of a mix; ``count`` windows of it, all where ``None``."""

    text: str
    domain: str | None = None
    path: Path | None = None
    tensor: str = DEFAULT_TENSOR
    count: int | None = None

    @property
    def name(self) -> str:
        """What reports call it."""
        if self.domain is not None:
            return self.domain
        return str(self.path) if self.tensor == DEFAULT_TENSOR else f"{self.path}:{self.tensor}"


def parse_spec(spec: str) -> list[Item]:
    """The items of ``spec``; raise ``DataError`` for an empty part, a bad count or domain."""
    texts = [text.strip() for text in spec.split(",")]
    if not all(texts):
        raise DataError(f"--data {spec!r} has an empty part; expected {HELP}")
    items = [_parse_item(text) for text in texts]
    names = [item.name for item in items]
    twice = next((item for item in items if names.count(item.name) > 1), None)
    if twice is not None:
        raise DataError(f"--data {spec!r} names {twice.name} twice; name it once with a count")
    return items


def _parse_item(text: str) -> Item:
    if text.startswith(BUILTIN):
        domain, _, count = text.removeprefix(BUILTIN).partition(":")
        if domain not in DOMAINS:
            raise DataError(
                f"--data {text!r}: no built-in text {domain!r}; known: {', '.join(DOMAINS)}"
            )
        return Item(text, domain=domain, count=_count(count, text) if count else None)
    path, *rest = text.split(":")
    if not path.endswith(".safetensors"):
        return Item(text, path=Path(path), count=_only_count(rest, text))
    tensor = rest.pop(0) if rest and not _is_number(rest[0]) else DEFAULT_TENSOR
    return Item(text, path=Path(path), tensor=tensor, count=_only_count(rest, text))


def _is_number(text: str) -> bool:
    return text.isascii() and text.removeprefix("+").removeprefix("-").isdigit()


def _only_count(rest: list[str], text: str) -> int | None:
    if len(rest) > 1:
        raise DataError(f"--data {text!r} has too many ':'; expected {HELP}")
    return _count(rest[0], text) if rest else None


def _count(text: str, item: str) -> int:
    if not _is_number(text) or len(text) > _MAX_DIGITS or int(text) <= 0:
        raise DataError(
            f"--data {item!r}: count {text!r} is not a positive whole number of windows"
        )
    return int(text)
