"""One server of a fleet: what it says of its policy, and a change of it, over plain HTTP.

No redirect is followed and no proxy is asked: the key goes to the address that was named.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanmoe.errors import InputError, LeanMoEError
from leanmoe.files.digest import parse_json
from leanmoe.wire import ADMIN_HEADER, CONTROL_PATH
from leanmoe_server.fleet.members import Member
from leanmoe_server.keys.key_source import ADMIN_KEY_VARIABLE, read_admin_key

_MAX_ANSWER_BYTES = 4 << 20


class ReplicaError(LeanMoEError):
    """A server could not be asked, or refused; ``status`` is its HTTP status, if it answered."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Caller:
    """How servers are asked: with which key, for how long, trusting whom."""

    key: str | None
    timeout_seconds: float = 10.0
    trust: ssl.SSLContext | None = None

    def show(self, member: Member) -> dict[str, Any]:
        """What a server says of its policy."""
        return self._asked(member, "GET", None, self.timeout_seconds)

    def change(self, member: Member, wanted: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        """Put ``wanted`` in force on a server; what it says of its policy afterwards."""
        return self._asked(member, "PUT", json.dumps(dict(wanted)), seconds)

    def _asked(
        self, member: Member, method: str, body: str | None, seconds: float
    ) -> dict[str, Any]:
        headers = {"Accept": "application/json"}
        headers |= {} if self.key is None else {ADMIN_HEADER: self.key}
        headers |= {} if body is None else {"Content-Type": "application/json"}
        connection = self._connection(member, seconds)
        try:
            connection.request(method, f"{member.prefix}{CONTROL_PATH}", body, headers)
            answer = connection.getresponse()
            text = answer.read(_MAX_ANSWER_BYTES)
        except (OSError, http.client.HTTPException) as error:
            said = str(error) or type(error).__name__
            raise ReplicaError(f"{member.url} does not answer: {said}") from None
        finally:
            connection.close()
        return _content(member, answer.status, text)

    def _connection(self, member: Member, seconds: float) -> http.client.HTTPConnection:
        if not member.tls:
            return http.client.HTTPConnection(member.host, member.port, timeout=seconds)
        trust = self.trust or ssl.create_default_context()
        return http.client.HTTPSConnection(member.host, member.port, timeout=seconds, context=trust)


def _content(member: Member, status: int, text: bytes) -> dict[str, Any]:
    try:
        content = parse_json(text)
    except (ValueError, UnicodeDecodeError):
        content = None
    if status != 200:
        raise ReplicaError(f"{member.url} answered {status}: {_said(content)}", status)
    if not isinstance(content, dict) or not {"level", "version"} <= set(content):
        raise ReplicaError(f"{member.url} is no LeanMoE server: it states no level", status)
    return content


def _said(content: Any) -> str:
    error = content.get("error") if isinstance(content, dict) else None
    message = error.get("message") if isinstance(error, dict) else None
    return str(message or "it says no more")[:300]


def add_caller_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that say how servers are asked."""
    parser.add_argument(
        "--admin-key-file",
        metavar="FILE",
        help=f"file with the admin key of the servers; else {ADMIN_KEY_VARIABLE}",
    )
    parser.add_argument(
        "--ca-file", type=Path, metavar="FILE", help="certificates to trust for https addresses"
    )
    parser.add_argument(
        "--timeout-seconds", type=float, default=10.0, help="for one server to say its level (10)"
    )


def caller_of(args: argparse.Namespace) -> Caller:
    """What ``add_caller_arguments`` read, and the key."""
    if not 0 < args.timeout_seconds < float("inf"):
        raise InputError(f"--timeout-seconds is {args.timeout_seconds}, expected more than 0")
    trust = None
    if args.ca_file is not None:
        try:
            trust = ssl.create_default_context(cafile=args.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise InputError(f"--ca-file {args.ca_file} cannot be used: {error}") from None
    return Caller(read_admin_key(args.admin_key_file, os.environ), args.timeout_seconds, trust)
