"""Salts of cached prompts: no request reads keys and values that it must not know of."""

from __future__ import annotations

import hashlib
import secrets

from leanmoe.messages import Phases
from leanmoe.policy import RequestLevel
from leanmoe_server.in_force import InForce

# Under which vLLM takes it, of a request and of a prompt.
SALT = "cache_salt"


def salt_of(secret: str, level: RequestLevel | None, given: str | None) -> str:
    """A salt of a level and the user's own that no other request can have, even by design."""
    packed = "" if level is None else level.pack()
    return hashlib.sha256(f"{secret} {packed} {given or ''}".encode()).hexdigest()


def secret_of(control: InForce, level: RequestLevel) -> str:
    """What the salt of a request's own level rests on: the server's, or one of it alone.

    Where only decoding skips, cached answers hold skipped keys and values and prompts exact ones;
    a request that promised to depend on nobody reads neither.
    """
    current = control.current
    decode_only = current is not None and current.phases is Phases.DECODE
    alone = level.deterministic and decode_only
    return secrets.token_hex(16) if alone else control.request_key
