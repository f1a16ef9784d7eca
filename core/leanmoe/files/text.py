"""Text that users write: UTF-8, with the byte order mark before it that some editors put there."""

from __future__ import annotations

from pathlib import Path


def user_text(path: Path) -> str:
    """The text without that mark; ``OSError`` or ``UnicodeDecodeError`` where there is none."""
    return path.read_text(encoding="utf-8-sig")
