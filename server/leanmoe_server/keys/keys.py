"""The keys of users and administrators: what a key file holds, and what a key may do.

A file holds digests only. It is TOML, a table for each name::

    [alice]
    hash = "sha256:9f86…"
    requests_per_minute = 60

    [operator]
    hash = ["sha256:60303…", "sha256:fd61…"]
    admin = true

Keys are random (``leanmoe key new``), so that a plain SHA-256 of one tells nothing.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from leanmoe.errors import InputError
from leanmoe.policy import EXACT, TOP1_ONLY

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HASH = re.compile(r"sha256:([0-9a-f]{64})")
_SCHEME = "sha256:"
KEY_PREFIX = "lmk-"
# Labels of metrics for who has no name in a file.
ANONYMOUS, UNNAMED, UNKNOWN, ADMINISTRATOR = "anonymous", "unnamed", "unknown", "admin"
_RESERVED = frozenset({ANONYMOUS, UNNAMED, UNKNOWN, ADMINISTRATOR})
_HOW = "make an entry with `leanmoe key new NAME`"


@dataclass(frozen=True)
class KeyLimits:
    """What the holder of a key may have at most; ``None`` is no limit of its own.

    ``max_kld`` is in nats per token. Tokens are those of prompts and of answers.
    """

    max_level: float | None = None
    max_kld: float | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None

    @property
    def counted(self) -> bool:
        """True where what its holder uses has to be counted."""
        counts = (self.requests_per_minute, self.tokens_per_minute, self.concurrent_requests)
        return any(one is not None for one in counts)


@dataclass(frozen=True)
class Key:
    """One entry: a name, the digests of what its holder sends, and what that opens."""

    name: str
    digests: tuple[bytes, ...]
    admin: bool = False
    limits: KeyLimits = KeyLimits()


_LIMITS = {field.name for field in fields(KeyLimits)}
_KNOWN = {"hash", "admin", *_LIMITS}


def digest_of(key: str | bytes) -> bytes:
    """What is kept of a key, and compared."""
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).digest()


def new_key() -> str:
    """A key nobody can guess: 256 random bits."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


def entry_of(name: str, key: str, *, admin: bool = False) -> str:
    """The lines of a key file that admit the holder of ``key``."""
    check_name(name)
    lines = [f'["{name}"]', f'hash = "{_SCHEME}{digest_of(key).hex()}"']
    return "\n".join([*lines, *(["admin = true"] if admin else []), ""])


def check_name(name: str) -> None:
    """``InputError`` where ``name`` cannot be an entry's."""
    if not _NAME.fullmatch(name):
        raise InputError(
            f"the name {name!r} cannot be a key's; use up to 64 letters, digits, '.', '_' and '-', "
            "a letter or digit first"
        )
    if name in _RESERVED:
        raise InputError(f"the name {name!r} is taken by the metrics; choose another")


def parse_keys(text: str, where: str) -> tuple[Key, ...]:
    """All entries of a key file; ``InputError`` says in one sentence what is wrong with it."""
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # a number too long is only the former
        raise InputError(f"{where} is not valid TOML: {error}; {_HOW}") from None
    keys = tuple(_key(name, entry, where) for name, entry in content.items())
    check_apart(keys, where)
    return keys


def check_apart(keys: tuple[Key, ...], where: str) -> None:
    """``InputError`` where two entries share a key: who sends it would be either."""
    seen: dict[bytes, str] = {}
    for key in keys:
        for digest in key.digests:
            if digest in seen:
                raise InputError(
                    f"{where}: {seen[digest]!r} and {key.name!r} have the same key; give each its "
                    "own"
                )
            seen[digest] = key.name


def _key(name: str, entry: Any, where: str) -> Key:
    place = f"{where}, [{name}]"
    try:
        check_name(name)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    if not isinstance(entry, dict):
        raise InputError(f"{where}: {name!r} is {entry!r:.40}, expected a table; {_HOW}")
    if stray := sorted(set(entry) - _KNOWN):
        raise InputError(f"{place} has unknown fields {stray}; known are {sorted(_KNOWN)}")
    admin = entry.get("admin", False)
    if not isinstance(admin, bool):
        raise InputError(f"{place}: admin is {admin!r:.40}, expected true or false")
    limits = _limits(entry, place)
    if admin and limits != KeyLimits():
        raise InputError(f"{place}: an admin key does not infer, so that it takes no limits")
    return Key(name, _digests(entry.get("hash"), place), admin, limits)


def _digests(given: Any, place: str) -> tuple[bytes, ...]:
    hashes = given if isinstance(given, list) else [given]
    found = [_HASH.fullmatch(one) for one in hashes if isinstance(one, str)]
    good = [one for one in found if one is not None]
    if not hashes or len(good) < len(hashes):
        # What stands there may be a key that somebody put in place of its hash: it is not shown.
        raise InputError(
            f"{place}: hash is not 'sha256:' and 64 hexadecimal digits, nor a list of these; {_HOW}"
        )
    return tuple(bytes.fromhex(one[1]) for one in good)


def _limits(entry: Mapping[str, Any], place: str) -> KeyLimits:
    given = {name: entry[name] for name in _LIMITS & set(entry)}
    for name, value in given.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if name == "max_level":
            if not number or not EXACT <= value <= TOP1_ONLY:
                raise InputError(f"{place}: max_level is {value!r:.40}, expected 0 to 1")
        elif name == "max_kld":
            if not number or not 0 <= value < float("inf"):
                raise InputError(f"{place}: max_kld is {value!r:.40}, expected nats, 0 or more")
        elif not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{place}: {name} is {value!r:.40}, expected a whole number from 1 up")
    return KeyLimits(**given)
