"""Short names for the levels that requests asked for."""

from __future__ import annotations

import json

SERVERS_OWN = "server"


def level_name(text: str | None) -> str:
    """As ``--levels`` takes it: ``off``, ``0.4``, ``kld=0.02``; ``server`` where none was named."""
    try:
        level = None if text is None else json.loads(text)
    except ValueError:
        return str(text)
    if not isinstance(level, dict):
        return SERVERS_OWN if level is None else str(level)
    words = [
        word for key, value in level.items() if value is not False and (word := _word(key, value))
    ]
    return " ".join(words) or SERVERS_OWN


def _word(key: str, value: object) -> str:
    if value is True:
        return key
    # 1 and 1.0 are one level.
    text = f"{value:g}" if isinstance(value, int | float) else str(value)
    return text if key == "level" else f"{'kld' if key == 'max_kld' else key}={text}"
