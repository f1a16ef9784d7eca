"""A port for a server of one's own on this machine."""

from __future__ import annotations

import socket
from pathlib import Path
from secrets import randbelow

# Below are those of services that stay.
_FIRST = 15_000
_LENT = Path("/proc/sys/net/ipv4/ip_local_port_range")
_TRIES = 100


def free_port() -> int:
    """A loopback port that was free a moment ago, and that no connection takes meanwhile.

    A server that imports vLLM binds it many seconds later. So it is none of those that the system
    gives to connections and to whoever asks for any, where there is room below them.
    """
    room = _first_lent() - _FIRST
    tries = _TRIES if room > _TRIES else 0
    drawn = (_FIRST + randbelow(room) for _ in range(tries))
    return next((port for port in drawn if _bound(port)), None) or _bound(0)


def _first_lent() -> int:
    try:
        return int(_LENT.read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return 0


def _bound(port: int) -> int:
    """The port that was bound, of 0 any; 0 where it is taken."""
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return 0
        return int(probe.getsockname()[1])
