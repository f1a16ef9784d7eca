"""Who may change the level: the administrator, kept apart from the users of ``--api-key``.

    admin key set                the admin key, from anywhere
    only --api-key set           nobody: a user is not an administrator
    neither                      clients on this machine, and no web page from elsewhere

Reading the policy is for everyone who may use the model; its history, which names
administrators and addresses, is for them alone where there are keys.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from urllib.parse import urlsplit

from leanmoe.wire import ADMIN_HEADER
from leanmoe_server.settings import ServeSettings

_HOW = "start the server with --admin-key-file FILE or LEANMOE_ADMIN_KEY to have one"


@dataclass(frozen=True)
class Refusal:
    """An HTTP status and the sentence that goes with it."""

    status: int
    reason: str


def presents_admin_key(headers: Mapping[str, str], admin_key: str | None) -> bool:
    """True when ``headers`` carry the admin key; compares in constant time."""
    if admin_key is None:
        return False
    scheme, _, token = headers.get("authorization", "").partition(" ")
    offered = [headers.get(ADMIN_HEADER, ""), token.strip() if scheme.lower() == "bearer" else ""]
    expected = admin_key.encode()
    # Starlette reads header bytes as latin-1; the key is compared as the bytes that were sent.
    sent = [one.encode("latin-1", errors="replace") for one in offered]
    matches = [hmac.compare_digest(one, expected) for one in sent]
    return any(matches)


def _is_loopback(host: str | None) -> bool:
    if host is None or host == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _foreign_origin(headers: Mapping[str, str]) -> bool:
    """True for a web page from elsewhere, whose requests come from this machine's browser."""
    origin = headers.get("origin")
    if origin is None:
        return False
    try:
        return not _is_loopback(urlsplit(origin).hostname or "")
    except ValueError:
        return True


def refuse_change(
    headers: Mapping[str, str], client_host: str | None, settings: ServeSettings
) -> Refusal | None:
    """Why this client may not change the level, or ``None`` if it may.

    ``client_host`` is ``None`` on a Unix socket, whose file permissions decide.
    """
    if settings.admin_key is not None:
        if presents_admin_key(headers, settings.admin_key):
            return None
        return Refusal(
            401,
            "changing the level needs the admin key, as `Authorization: Bearer` "
            "or `X-LeanMoE-Admin-Key`",
        )
    if settings.has_user_keys:
        return Refusal(403, f"changing the level needs an admin key and none is set: {_HOW}")
    if not _is_loopback(client_host) or _foreign_origin(headers):
        return Refusal(
            403, f"without an admin key the level changes only from this machine itself: {_HOW}"
        )
    return None


def refuse_history(headers: Mapping[str, str], settings: ServeSettings) -> Refusal | None:
    """Why this client may not read who changed the level, or ``None`` if it may."""
    if settings.admin_key is None and not settings.has_user_keys:
        return None
    refusal = refuse_change(headers, None, settings)
    return (
        None if refusal is None else replace(refusal, reason=f"the audit trail: {refusal.reason}")
    )


def who_changes(headers: Mapping[str, str], settings: ServeSettings) -> str:
    """The name in the audit trail of a client that may change the level."""
    return "admin" if presents_admin_key(headers, settings.admin_key) else "local"
