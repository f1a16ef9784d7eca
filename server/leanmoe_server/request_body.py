"""Bodies of requests, read where ours or vLLM's code would trip over them.

Nearly all bodies pass unread: a look at their bytes says whether one needs reading.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from leanmoe.errors import InputError
from leanmoe.files.digest import repeated_keys, whole_number
from leanmoe.wire import REQUEST_KEY

# Half a surrogate pair in UTF-8, which JSON's own decoder lets pass.
_HALF_PAIR = re.compile(rb"\xed[\xa0-\xbf]")
# An integer of so many digits is no number (``whole_number``), and vLLM's own words of one
# say nothing: "There was an error parsing the body".
# Looked for from its first digit on: from each, a body of long numbers would take minutes.
_LONG_NUMBER = re.compile(rb"(?<![0-9])[0-9]{309}")
# Keys that a sentence names, and characters of each.
_TOLD, _TOLD_LENGTH = 5, 40
# Fields of which vLLM takes for granted that they are objects.
_OBJECTS = ("structured_outputs",)
# Escapes and wide encodings may spell any key in another way.
_TELLING = (REQUEST_KEY.encode(), b"\\u", b"\x00", *(name.encode() for name in _OBJECTS))


# vLLM, its validators and its templates walk through bodies by recursion.
MOST_NESTED = 100
_TOO_DEEP = f"the body is nested deeper than {MOST_NESTED} levels; send less"


class JsonObject(dict[str, Any]):
    """A JSON object that remembers which of its keys were named more than once."""

    repeated: tuple[str, ...] = ()


def _object(pairs: list[tuple[str, Any]]) -> JsonObject:
    found = JsonObject(pairs)
    if len(found) < len(pairs):
        found.repeated = tuple(sorted(repeated_keys(pairs)))
    return found


def _whole_number(text: str) -> int:
    try:
        return whole_number(text)
    except ValueError as error:
        raise InputError(f"the body cannot be read: {error}; send a smaller one") from None


def read_content(body: bytes) -> JsonObject | None:
    """The object in ``body`` if something in it has to be looked at, checked for what breaks vLLM.

    ``None``: pass it as it is; where it is no JSON object, vLLM says so.
    """
    _check_encoding(body)
    nested = body.count(b"[") + body.count(b"{") > MOST_NESTED
    if not (nested or _is_telling(body)):
        return None
    try:
        content = json.loads(body, object_pairs_hook=_object, parse_int=_whole_number)
    except RecursionError:
        raise InputError(_TOO_DEEP) from None
    except ValueError:
        return None
    if nested:
        _check_depth(content)
    _check_text(content)
    if not isinstance(content, JsonObject):
        return None
    for name in _OBJECTS:
        if not isinstance(content.get(name), dict | None):
            raise InputError(f"{name!r} is not a JSON object; send one or leave it out")
    return content


def _is_telling(body: bytes) -> bool:
    if any(part in body for part in _TELLING):
        return True
    return bool(_HALF_PAIR.search(body) or _LONG_NUMBER.search(body))


def _check_encoding(body: bytes) -> None:
    """``InputError`` where a body of bytes is no text, which vLLM says of any it cannot read."""
    encoding = json.detect_encoding(body)
    try:
        body.decode(encoding, "surrogatepass")
    except UnicodeDecodeError as error:
        raise InputError(
            f"the body is not text in {error.encoding}: byte {body[error.start]:#04x} at place "
            f"{error.start} belongs to no character; send JSON in UTF-8"
        ) from None


def _check_depth(content: Any) -> None:
    """``InputError`` where values lie deeper than what handles them can follow."""
    layer = [content] if isinstance(content, dict | list) else []
    depth = 0
    while layer:
        depth += 1
        if depth > MOST_NESTED:
            raise InputError(_TOO_DEEP)
        inner = [one.values() if isinstance(one, dict) else one for one in layer]
        layer = [one for held in inner for one in held if isinstance(one, dict | list)]


def _check_text(content: Any) -> None:
    """``InputError`` where a text holds half of a surrogate pair: nothing can encode it."""
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):x}"
        raise InputError(
            f"the body holds {half}, half of a surrogate pair, which is no text; send whole "
            "characters"
        ) from None


def check_named_once(content: Mapping[str, Any], where: str) -> None:
    """``InputError`` where a key was named twice: which of the two is meant, nobody knows."""
    repeated = content.repeated if isinstance(content, JsonObject) else ()
    if repeated:
        raise InputError(f"{where} names a key twice: {few(repeated)}; name each once")


def few(keys: Sequence[str]) -> str:
    """Keys as a sentence names them: not more than it can hold."""
    more = f" and {len(keys) - _TOLD} more" if len(keys) > _TOLD else ""
    return f"{[key[:_TOLD_LENGTH] for key in keys[:_TOLD]]}{more}"
