"""Outputs are written completely or not at all, and never over what another command made."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from leanmoe.errors import InputError, OutputError
from leanmoe.files.address import check_is_path
from leanmoe.files.scratch import ASIDE, HELD, PART, remove_abandoned, scratch_file, scratch_folder


def atomic_write_text(path: Path, text: str, mode: int = 0o666) -> None:
    """Replace ``path`` by ``text`` in one step; a new file gets ``mode`` less the umask."""
    remove_abandoned(path)
    temporary, handle = scratch_file(path, mode)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def atomic_write_json(path: Path, content: Any) -> None:
    """Replace ``path`` by ``content`` as indented JSON in one step."""
    atomic_write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


# Where a checkpoint carries tuned tables (tuned_tables.py).
TUNED_FOLDER = "tuned"
# Folders of a checkpoint that belong to its tokenizer; with the tables the only ones in any output.
TOKENIZER_FOLDERS = ("additional_chat_templates", "tokenizer")

# What marks a folder that a command of ours, or a model's maker, wrote: only such are replaced.
_REPLACEABLE = ("config.json", "scores.json", "results.json", "run.json")


def check_output(target: Path, force: bool = False, inputs: Iterable[Path] = ()) -> None:
    """Raise unless ``target`` is free, empty, or may be replaced without losing anything else.

    ``inputs`` are folders the command reads: the output may neither be, nor hold, nor lie in one.
    What a killed run left beside ``target`` is removed.
    """
    check_name(target)
    try:
        _check_place(target)
        for other in inputs:
            _check_apart(target.resolve(), other.resolve())
        remove_abandoned(target)
        if not target.exists() or (target.is_dir() and not any(target.iterdir())):
            return
        if not force:
            raise InputError(f"output {target} exists already; choose another path or pass --force")
        _check_replaceable(target)
    except (OSError, RuntimeError) as error:
        said = getattr(error, "strerror", None) or error
        raise OutputError(f"could not write {target}: {said}") from error


def check_name(path: Path) -> None:
    """Raise unless it is a path that safetensors, tokenizers and JSON can be given: in UTF-8."""
    check_is_path(path, "the model or output")
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{str(path)!r} is not UTF-8, as names of models and outputs must be; rename it"
        ) from None


def check_writable(target: Path) -> None:
    """Raise where nothing can be made at ``target``, before the work that it is to hold."""
    parent = next(one for one in target.absolute().parents if one.exists())
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(
            f"could not write {target}: {parent} cannot be written to; choose another path, or "
            "have it made writable"
        )


def _check_place(target: Path) -> None:
    if target.is_symlink():
        raise InputError(f"output {target} is a symbolic link; give the folder itself")
    if target.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise InputError(
            f"output {target} is the folder this command runs in, or holds it, and cannot be "
            "replaced; give the name of a folder to make"
        )
    if target.is_mount():
        raise InputError(f"output {target} is a mount point; give a folder inside it")
    parent = next(one for one in target.absolute().parents if one.exists())
    if not parent.is_dir():
        raise InputError(f"output {target} cannot be made: {parent} is a file; choose another path")
    check_writable(target)


def _check_apart(target: Path, other: Path) -> None:
    if target == other or target in other.parents or other in target.parents:
        raise InputError(
            f"output {target} and {other}, which the same command uses, are one folder or lie in "
            "one another; choose another path"
        )


def _check_replaceable(target: Path) -> None:
    names = [entry.name for entry in target.iterdir() if entry.is_file()] if target.is_dir() else []
    folders = [entry for entry in target.iterdir() if entry.is_dir()] if target.is_dir() else []
    ours = (TUNED_FOLDER, *TOKENIZER_FOLDERS)
    others = [entry for entry in folders if entry.name not in ours]
    if others or not any(name in names for name in _REPLACEABLE):
        raise InputError(
            f"output {target} is not a folder that LeanMoE wrote, so --force does not replace it; "
            "choose another path or remove it yourself"
        )


@contextmanager
def atomic_directory(
    target: Path, force: bool = False, first: AbstractContextManager[None] | None = None
) -> Iterator[Path]:
    """Yield a temporary sibling that becomes ``target`` only if the block succeeds.

    An interrupt, a full disk or any error removes the temporary directory and
    leaves what stood at ``target`` untouched. ``first`` is as ``placed`` has it.
    """
    with unplaced_directory(target, force) as temporary:
        yield temporary
        put_in_place(temporary, target, force, first)


@contextmanager
def unplaced_directory(target: Path, force: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling of ``target``, which the block puts there (``placed``)."""
    check_output(target, force)
    with _told_of(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(target, PART) as temporary:
            yield temporary


def put_in_place(
    temporary: Path,
    target: Path,
    force: bool,
    first: AbstractContextManager[None] | None = None,
) -> None:
    """Make a finished folder ``target``; what stood there goes only once the new one does."""
    with placed(temporary, target, force, first):
        pass


@contextmanager
def placed(
    temporary: Path,
    target: Path,
    force: bool,
    first: AbstractContextManager[None] | None = None,
) -> Iterator[None]:
    """A finished folder stands at ``target``; where the block fails, all is as it was.

    ``first`` is such a block, of what belongs to ``target``: a process killed between the two
    leaves that alone, never ``target`` without it.
    """
    check_output(target, force)  # again: something may have been written there meanwhile
    together = first or nullcontext()
    with _told_of(target), _aside(target) as aside, together, _moved(temporary, target, aside):
        yield


@contextmanager
def _aside(target: Path) -> Iterator[Path | None]:
    """Where what stands at ``target`` is kept meanwhile; removing it may take long."""
    if not target.exists():
        yield None
        return
    with scratch_folder(target, ASIDE) as folder:
        yield folder / HELD


@contextmanager
def _moved(temporary: Path, target: Path, aside: Path | None) -> Iterator[None]:
    try:
        with _told_of(target):
            if aside is not None:
                target.replace(aside)
            temporary.replace(target)
        yield
    except BaseException:
        if not temporary.exists():
            target.replace(temporary)
        if aside is not None and aside.exists():
            aside.replace(target)
        raise


@contextmanager
def _told_of(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"could not write {target}: {error.strerror or error}") from error
