"""Bytes, times and counts as people write and read them."""

from __future__ import annotations

import re

from leanmoe.errors import InputError

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
_UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": KIB,
    "MIB": MIB,
    "GIB": GIB,
    "TIB": TIB,
}
# Fifteen digits are more than any memory has bytes, and fit a float with any unit.
_AMOUNT = re.compile(r"\s*([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([A-Za-z]+)\s*")


def parse_bytes(text: str, option: str) -> int:
    """``80GiB``, ``80 GB`` or ``500MB`` in bytes; ``InputError`` names the ``option``."""
    match = _AMOUNT.fullmatch(text)
    if match is None or match[2].upper() not in _UNITS:
        raise InputError(
            f"{option} is {text!r:.60}, expected a number of up to 15 digits with one of the units "
            "B, KB, MB, GB, TB, KiB, MiB, GiB, TiB, such as 80GiB"
        )
    return int(float(match[1]) * _UNITS[match[2].upper()])


def show_bytes(count: int) -> str:
    """To three digits or so, in binary units."""
    for unit, size in (("TiB", TIB), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if count >= size:
            value = count / size
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"
    return f"{count} B"


def show_seconds(seconds: float) -> str:
    """In the unit a person would say."""
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"


def show_share(share: float) -> str:
    """In percent, to one digit or as many as keep it from reading as none or as all."""
    for digits in range(1, 9):
        text = f"{share:.{digits}%}"
        if share in (0, 1) or 0 < float(text.removesuffix("%")) < 100:
            break
    return text


def show_numbers(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
