"""Calibration and held-out token windows: what ``--data`` names, read and checked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from leanmoe.checkpoint import Checkpoint
from leanmoe.errors import DataError
from leanmoe.families.keys import longest_context
from leanmoe.files.digest import bytes_digest
from leanmoe_pruning.data.builtin import Split, builtin_ids, builtin_texts
from leanmoe_pruning.data.files import cut_windows, stored_ids, text_ids
from leanmoe_pruning.data.spec import DEFAULT_WINDOW, Item, parse_spec, written_spec
from leanmoe_pruning.data.tokenizer import ModelTokenizer
from leanmoe_pruning.later import torch

FileShare = Literal["all", "halves"]


@dataclass(frozen=True)
class Source:
    """Windows of one name; ``ids_NT`` are token ids, int64."""

    name: str
    ids_NT: torch.Tensor

    @property
    def tokens(self) -> int:
        return self.ids_NT.numel()


@dataclass(frozen=True)
class DataSet:
    """A mix, in the order it was given."""

    spec: str
    sources: tuple[Source, ...]

    @property
    def ids(self) -> list[torch.Tensor]:
        return [source.ids_NT for source in self.sources]

    @property
    def windows(self) -> int:
        return sum(len(source.ids_NT) for source in self.sources)

    @property
    def tokens(self) -> int:
        return sum(source.tokens for source in self.sources)

    @property
    def layout(self) -> list[tuple[int, int]]:
        """(windows, length) of each source."""
        return [(ids.shape[0], ids.shape[1]) for ids in self.ids]

    def digest(self) -> str:
        """SHA-256 over names, shapes and token ids."""

        def parts() -> Iterator[bytes]:
            for source in self.sources:
                yield f"{source.name} {list(source.ids_NT.shape)}\n".encode()
                yield source.ids_NT.numpy().tobytes()

        return bytes_digest(parts())


@dataclass(frozen=True)
class _Asked:
    """What every part of a mix is read for."""

    tokenizer: ModelTokenizer
    split: Split
    window: int
    files: FileShare
    # Who writes where the model itself is to, and how it draws.
    author: Checkpoint
    seed: int


def load_data(
    spec: str,
    checkpoint: Checkpoint,
    split: Split,
    *,
    window: int = DEFAULT_WINDOW,
    files: FileShare = "all",
    seed: int = 0,
    author: Checkpoint | None = None,
) -> DataSet:
    """Read ``spec`` for a model.

    Built-in texts give their ``split``. A user's file has none: all of it is taken,
    or with ``files="halves"`` the first half of its windows for calibration and the
    second as held-out text. ``self:`` is written by ``author``, the model where there is none,
    as ``seed`` and split say. Raises ``DataError``.
    """
    if window < 2:
        raise DataError(f"--window {window} is too short; give at least 2 tokens")
    spec, tokenizer = written_spec(spec), ModelTokenizer(checkpoint.path)
    asked = _Asked(tokenizer, split, window, files, author or checkpoint, seed)
    sources = tuple(_load_item(item, asked) for item in parse_spec(spec))
    for source in sources:
        _check_ids(source, int(checkpoint.config["vocab_size"]))
        _check_length(source, checkpoint)
    return DataSet(spec, sources)


def _load_item(item: Item, asked: _Asked) -> Source:
    split, window = asked.split, asked.window
    if item.own:
        # It runs the model, which reads data of its own: not before it is needed.
        from leanmoe_pruning.data.own_text import own_windows

        return Source(item.name, own_windows(asked.author, item, split, window, asked.seed))
    if item.domain is not None:
        ids_NT = _builtin(item.domain, asked.tokenizer, split, window)
        return Source(item.name, _take(ids_NT, item))
    ids_NT = _take(_from_file(item, asked.tokenizer, window), item)
    return Source(item.name, _half(ids_NT, split, item) if asked.files == "halves" else ids_NT)


def _builtin(domain: str, tokenizer: ModelTokenizer, split: Split, window: int) -> torch.Tensor:
    if tokenizer.is_smollm2 and window == DEFAULT_WINDOW:
        return builtin_ids(domain, split)
    documents = (tokenizer.encode(text) for text in builtin_texts(domain, split))
    return cut_windows(documents, [], window, f"builtin:{domain}")


def _from_file(item: Item, tokenizer: ModelTokenizer, window: int) -> torch.Tensor:
    assert item.path is not None
    if item.path.suffix == ".safetensors":
        return stored_ids(item.path, item.tensor)
    documents = text_ids(item.path, tokenizer)
    return cut_windows(documents, tokenizer.separator, window, item.name)


def _take(ids_NT: torch.Tensor, item: Item) -> torch.Tensor:
    found = len(ids_NT)
    if item.count is not None and item.count > found:
        raise DataError(
            f"--data {item.text!r} asks for {item.count} windows and there are {found}; "
            "ask for fewer"
        )
    return ids_NT[: item.count]


def _half(ids_NT: torch.Tensor, split: Split, item: Item) -> torch.Tensor:
    middle = len(ids_NT) // 2
    if middle == 0:
        raise DataError(
            f"--data {item.text!r} has {len(ids_NT)} window(s): one half is for calibration and "
            "one is held out; give at least 2, or name other text with --calibration"
        )
    return ids_NT[:middle] if split == "calibration" else ids_NT[middle:]


def _check_ids(source: Source, vocab_size: int) -> None:
    ids_NT = source.ids_NT
    if ids_NT.numel() == 0 or ids_NT.shape[1] < 2:
        raise DataError(
            f"{source.name} has windows of shape {list(ids_NT.shape)}, expected at least one "
            "window of 2 tokens"
        )
    low, high = int(ids_NT.min()), int(ids_NT.max())
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise DataError(
            f"{source.name} holds token id {wrong}, outside the model's vocabulary of "
            f"{vocab_size}; tokenise it with this model's tokenizer"
        )


def _check_length(source: Source, checkpoint: Checkpoint) -> None:
    """Raise where windows go past the positions that the model knows."""
    length, longest = source.ids_NT.shape[1], longest_context(checkpoint.config)
    if longest is not None and length > longest:
        raise DataError(
            f"{source.name} has windows of {length} tokens and {checkpoint.path} was made for at "
            f"most {longest} (max_position_embeddings of its config.json); give a smaller --window"
        )


def batch_of_tokens(layout: list[tuple[int, int]], batch_size: int) -> torch.Tensor:
    """The batch each token belongs to, int64 ``[T]``: ``batch_size`` windows each, per source."""
    if batch_size < 1:
        raise DataError(f"--batch-size {batch_size} is not a positive whole number of windows")
    parts, first = [], 0
    for windows, length in layout:
        batches = torch.arange(windows) // batch_size
        parts.append((first + batches).repeat_interleave(length))
        first += int(batches[-1]) + 1
    return torch.cat(parts)
