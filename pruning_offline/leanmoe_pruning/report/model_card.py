"""The card put into a checkpoint, whose manifest names the digest of every file.

A source's own README.md stays as README.source.md. Each step leaves a checkpoint that opens: a
file is named in the manifest only while it is there with that digest.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from leanmoe.errors import InputError
from leanmoe.files.digest import file_digest
from leanmoe.files.output import atomic_write_text
from leanmoe.manifest import Manifest, write_manifest
from leanmoe_pruning.report.rendering import MARK

CARD, SOURCE_CARD = "README.md", "README.source.md"
# What a card inherits from the card of the model that was cut.
_INHERITED = ("license", "license_name", "license_link", "language")


def source_card(directory: Path) -> str | None:
    """The card of the model that was cut, or ``None``; raises where two could be it."""
    own, kept = _text(directory / CARD), _text(directory / SOURCE_CARD)
    if own is None or MARK in own:
        return kept
    if kept is not None and kept != own:
        raise InputError(
            f"{directory} holds a {CARD} that `leanmoe report` did not write and a {SOURCE_CARD} "
            "already; move one of them away"
        )
    return own


def _text(path: Path) -> str | None:
    # Bytes that are no text are kept as they are.
    return path.read_bytes().decode(errors="surrogateescape") if path.is_file() else None


def inherited(card: str | None) -> dict[str, Any]:
    """Licence and language out of the metadata at the head of a card."""
    found = re.match(r"\ufeff?---\r?\n(.*?)\r?\n---\s", card or "", re.DOTALL)
    try:
        metadata = yaml.safe_load(found[1]) if found else None
    except (ValueError, RecursionError, yaml.YAMLError):
        return {}
    if not isinstance(metadata, dict):
        return {}
    return {name: metadata[name] for name in _INHERITED if name in metadata}


def put_card(directory: Path, manifest: Manifest, card: str) -> Manifest:
    """Write ``README.md`` and name it in the manifest; return that."""
    own = _text(directory / CARD)
    if own is not None and MARK not in own and not (directory / SOURCE_CARD).exists():
        _copy(directory / CARD, directory / SOURCE_CARD)
    files = {name: digest for name, digest in manifest.files.items() if name != CARD}
    if (directory / SOURCE_CARD).is_file():
        files[SOURCE_CARD] = file_digest(directory / SOURCE_CARD)
    between = manifest.model_copy(update={"files": files})
    if between != manifest:
        write_manifest(directory, between)
    atomic_write_text(directory / CARD, card)
    files = {**files, CARD: file_digest(directory / CARD)}
    named = manifest.model_copy(update={"files": files})
    write_manifest(directory, named)
    return named


def _copy(source: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.part")
    try:
        temporary.write_bytes(source.read_bytes())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
