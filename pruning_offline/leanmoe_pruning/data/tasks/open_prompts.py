"""Prompts that ask for long answers: a user's file, or those that ship, by language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from leanmoe.errors import DataError
from leanmoe.files.address import check_is_path
from leanmoe.files.digest import bytes_digest, parse_json
from leanmoe.files.text import user_text
from leanmoe_pruning.data.parts import as_written, fields_of

BUILTIN_PROMPTS = Path(__file__).parent / "items" / "open_prompts.jsonl"
HELP = (
    "what long answers are asked for: FILE.jsonl[:COUNT] of "
    '{"prompt": str, "group": str}, or builtin[:COUNT] (default)'
)
_FORM = '{"prompt": str} or {"prompt": str, "group": str}'


@dataclass(frozen=True)
class OpenPrompt:
    """A prompt; answers are told apart by ``group``, such as a language."""

    prompt: str
    group: str


def load_prompts(spec: str) -> list[OpenPrompt]:
    """Read ``--prompts``; raises ``DataError``. With a count, the first so many."""
    check_is_path(spec, "--prompts", DataError)
    name, *counts = fields_of(as_written(spec))
    count = ":".join(counts)
    path = BUILTIN_PROMPTS if name == "builtin" else Path(name)
    found = [
        _prompt(line, f"{path} line {number}")
        for number, line in enumerate(_lines(path), start=1)
        if line.strip()
    ]
    if counts and not (count.isascii() and count.isdigit() and 0 < int(count[:9]) <= len(found)):
        raise DataError(
            f"--prompts {spec!r}: the count is {count!r}, expected a whole number from 1 to "
            f"{len(found)}"
        )
    if not found:
        raise DataError(f"{path} holds no prompts; expected one {_FORM} per line")
    return found[: int(count)] if counts else found


def digest_of(prompts: Sequence[OpenPrompt]) -> str:
    """SHA-256 over the prompts in order."""
    return bytes_digest(f"{one.prompt!r} {one.group!r}\n".encode() for one in prompts)


def _lines(path: Path) -> list[str]:
    try:
        return user_text(path).split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--prompts names {path}, which cannot be read ({error})") from None


def _prompt(line: str, where: str) -> OpenPrompt:
    try:
        found = parse_json(line)
    except ValueError as error:
        raise DataError(f"{where} cannot be read as JSON ({error}); expected {_FORM}") from None
    fields = found if isinstance(found, dict) else {}
    prompt, group = fields.get("prompt"), fields.get("group", "all")
    if not (isinstance(prompt, str) and prompt.strip() and isinstance(group, str) and group):
        raise DataError(f"{where} is {line!r:.60}, expected {_FORM}")
    return OpenPrompt(prompt, group)
