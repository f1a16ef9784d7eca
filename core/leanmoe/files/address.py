"""Addresses given where a path belongs: nothing of LeanMoE fetches files."""

from __future__ import annotations

import os
import re
from pathlib import Path

from leanmoe.errors import InputError

# A Path writes // as one /; drives of other systems have a single letter.
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")


def check_is_path(name: str | Path, what: str, kind: type[InputError] = InputError) -> None:
    """Raise ``kind`` where ``what`` was given an address, and there is no such file."""
    text = str(name)
    found = _SCHEME.match(text)
    if found is None or os.path.lexists(text):
        return
    raise kind(
        f"{what} is {found[1]}://{text[found.end() :]}, an address, expected a path: download it "
        "first (`hf download`, `curl -O`), or write to a folder and upload that"
    )
