"""Token windows out of the user's files: plain text, JSON lines, token ids."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from leanmoe.errors import DataError
from leanmoe.files.digest import parse_json
from leanmoe.files.text import user_text
from leanmoe_pruning.data.parts import is_file
from leanmoe_pruning.data.tokenizer import ModelTokenizer
from leanmoe_pruning.later import torch

_JSON_LINES = (".jsonl", ".ndjson", ".json")
_INTEGERS = ("int64", "int32", "int16", "uint8", "int8")


def stored_ids(path: Path, tensor: str) -> torch.Tensor:
    """Token ids ``[N, T]`` of one tensor of a safetensors file, int64; ``[T]`` is one window."""
    _check_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            if tensor not in names:
                raise DataError(f"{path} has no tensor {tensor!r}; it holds {', '.join(names)}")
            ids: torch.Tensor = file.get_tensor(tensor)
    except SafetensorError as error:
        raise DataError(
            f"{path} is not a whole safetensors file ({error}); copy it again"
        ) from None
    if ids.ndim not in (1, 2) or ids.dtype not in [getattr(torch, name) for name in _INTEGERS]:
        raise DataError(
            f"{path}:{tensor} is {ids.dtype} of shape {list(ids.shape)}, expected integer token "
            "ids [windows, length], or [length] for one window"
        )
    return ids.long() if ids.ndim == 2 else ids.long()[None]


def text_ids(path: Path, tokenizer: ModelTokenizer) -> Iterator[list[int]]:
    """Token ids of each document of a text, JSON-lines or chat file."""
    _check_file(path)
    if path.suffix.lower() not in _JSON_LINES:
        yield tokenizer.encode(_read(path))
        return
    for number, line in enumerate(_read(path).split("\n"), start=1):
        if line.strip():
            yield _document_ids(line, f"{path} line {number}", tokenizer)


def _check_file(path: Path) -> None:
    if not is_file(path):
        raise DataError(f"--data names {path}, which is not a file; check the path")


def _read(path: Path) -> str:
    try:
        return user_text(path)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}); convert it first") from None


def prompt_ids(path: Path, tokenizer: ModelTokenizer) -> list[list[int]]:
    """Token ids of the prompts of a text or JSON-lines file: chats up to the answer."""
    _check_file(path)
    if path.suffix.lower() not in _JSON_LINES:
        return [tokenizer.encode(_read(path))]
    return [
        _document_ids(line, f"{path} line {number}", tokenizer, answer=True)
        for number, line in enumerate(_read(path).split("\n"), start=1)
        if line.strip()
    ]


def _asked(messages: list[Any]) -> list[Any]:
    """A chat without the answers at its end."""
    left = list(messages)
    while left and isinstance(left[-1], dict) and left[-1].get("role") == "assistant":
        left.pop()
    return left


def _check_messages(messages: list[Any], where: str) -> None:
    """Raise on what a template would write nothing for: most pass over what is not there."""
    for place, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise DataError(
                f'{where}: message {place} of the chat is no object with a "role"; add one'
            )
        if len(message) < 2:
            raise DataError(f'{where}: message {place} of the chat has no "content"; add it')


def _document_ids(
    line: str, where: str, tokenizer: ModelTokenizer, answer: bool = False
) -> list[int]:
    try:
        # Beside the text there may be numbers that tables wrote as NaN.
        document: Any = parse_json(line, parse_constant=float)
    except ValueError as error:
        raise DataError(
            f"{where} cannot be read as JSON ({error}); expected one object per line"
        ) from None
    if not isinstance(document, dict):
        raise DataError(
            f'{where} holds no object; expected one per line with a "text" or "messages"'
        )
    if isinstance(document.get("text"), str):
        return tokenizer.encode(document["text"], where)
    if isinstance(document.get("messages"), list):
        messages = document["messages"]
        _check_messages(messages, where)
        return tokenizer.encode_chat(_asked(messages) if answer else messages, where, answer)
    raise DataError(f'{where} has neither "text" (a string) nor "messages" (a chat); add one')


def cut_windows(
    documents: Iterator[list[int]], separator: list[int], length: int, name: str
) -> torch.Tensor:
    """Join documents and cut windows of ``length``; the remainder is left out. ``[N, length]``"""
    flat: list[int] = []
    for ids in documents:
        flat += [*separator, *ids] if flat else ids
    n_windows = len(flat) // length
    if n_windows == 0:
        raise DataError(
            f"{name} has {len(flat)} tokens, too few for one window of {length}; give more text "
            "or a smaller --window"
        )
    return torch.tensor(flat[: n_windows * length]).view(n_windows, length)
