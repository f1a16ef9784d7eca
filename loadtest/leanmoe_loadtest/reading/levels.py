"""Short names for the levels that requests asked for."""

from __future__ import annotations

import json

SERVERS_OWN = "server"


def level_name(wish: str | None) -> str:
    """``"off"``, ``0.4``, ``max_kld 0.02``; ``server`` where the request named none."""
    if wish is None:
        return SERVERS_OWN
    try:
        wished = json.loads(wish)
    except ValueError:
        return wish
    if not isinstance(wished, dict):
        return SERVERS_OWN if wished is None else str(wished)
    words = [
        str(value) if key == "level" else key if value is True else f"{key} {value}"
        for key, value in wished.items()
        if value is not False
    ]
    return " ".join(words) or SERVERS_OWN
