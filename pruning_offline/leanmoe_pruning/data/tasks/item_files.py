"""Task files: JSON lines, one item each, checked line by line.

``{"prompt": str, "choices": [str, ...], "answer": int}`` is judged by the likelihood of the
choices, ``{"prompt": str, "answer": str}`` by greedy generation. A file holds one kind.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from leanmoe.errors import DataError
from leanmoe.files.digest import parse_json
from leanmoe.files.text import user_text
from leanmoe_pruning.data.tasks.task import ChoiceItem, Item, OpenItem

FORMS = '{"prompt": str, "choices": [str, ...], "answer": int} or {"prompt": str, "answer": str}'
_KEYS = {"prompt", "choices", "answer"}


def read_items(path: Path) -> tuple[Item, ...]:
    """Every item of a task file; ``DataError`` names the first line that is wrong."""
    items: list[Item] = []
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path} line {number}"
        items.append(_item(_object(line, where), where))
        if type(items[-1]) is not type(items[0]):
            raise DataError(
                f"{where} {_kind(items[-1])} and the lines before it {_kind(items[0])}: a task is "
                "judged in one way; put the two kinds into two files"
            )
    if not items:
        raise DataError(f"{path} holds no items; expected one {FORMS} per line")
    return tuple(items)


def _read(path: Path) -> str:
    try:
        return user_text(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}); convert it first") from None
    except OSError as error:
        raise DataError(f"--tasks names {path}, which cannot be read ({error.strerror})") from None


def _kind(item: Item) -> str:
    return "has choices" if isinstance(item, ChoiceItem) else "has none"


def _object(line: str, where: str) -> dict[str, Any]:
    try:
        found = parse_json(line)
    except ValueError as error:
        raise DataError(f"{where} cannot be read as JSON ({error}); expected {FORMS}") from None
    if not isinstance(found, dict):
        raise DataError(f"{where} holds a {type(found).__name__}; expected {FORMS}")
    return found


def _item(found: dict[str, Any], where: str) -> Item:
    unknown = sorted(set(found) - _KEYS)
    if unknown:
        raise DataError(f"{where} has a key {unknown[0]!r}; expected {FORMS}")
    prompt = _text(found.get("prompt"), f'{where}: "prompt"')
    if "choices" not in found:
        answer = _text(found.get("answer"), f'{where}: "answer"')
        if len(answer.strip().splitlines()) != 1:
            raise DataError(f'{where}: "answer" is {answer!r:.40}, expected one line of text')
        return OpenItem(prompt, answer)
    choices = _choices(found["choices"], where)
    return ChoiceItem(prompt, choices, _number(found.get("answer"), len(choices), where))


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"{what} is {value!r:.60}, expected a string")
    if any(0xD800 <= ord(one) < 0xE000 for one in value):
        raise DataError(f"{what} holds half of a surrogate pair, which is no character; clean it")
    return value


def _choices(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or len(value) < 2:
        raise DataError(f'{where}: "choices" is {value!r:.60}, expected 2 strings or more')
    choices = tuple(_text(one, f"{where}: choice {i}") for i, one in enumerate(value))
    for i, choice in enumerate(choices):
        if not choice:
            raise DataError(f"{where}: choice {i} is empty, expected the text of a continuation")
        if choice in choices[:i]:
            raise DataError(f"{where}: choice {i} ({choice!r:.40}) is there twice; drop one")
    return choices


def _number(value: Any, count: int, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count:
        raise DataError(
            f'{where}: "answer" is {value!r:.40}, expected the number of the right choice, from 0 '
            f"to {count - 1}"
        )
    return value
