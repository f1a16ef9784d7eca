"""The platform team of the demo: what it serves, what it can do without."""

from __future__ import annotations

KEEP = 5
MAX_KLD = 0.05
# What the third column keeps of each expert's weights.
PATTERN = "16:32"
QUESTION = "What is the capital of France?"

SERVED = ("gen", "c", "man", "math")
GIVEN_UP = ("fr", "de", "es", "kjv")
TITLES = {
    "gen": "English chat",
    "c": "C",
    "man": "man pages",
    "math": "arithmetic",
    "fr": "French",
    "de": "German",
    "es": "Spanish",
    "kjv": "old English",
}


def mix(domains: tuple[str, ...], count: int | None = None) -> str:
    """A ``--data`` specification of built-in texts, ``count`` windows of each."""
    tail = f":{count}" if count else ""
    return ",".join(f"builtin:{name}{tail}" for name in domains)
