"""Which servers a fleet has: addresses that were named, lines of a file, what a DNS name holds."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from leanmoe.errors import InputError
from leanmoe.files.text import user_text

DEFAULT_PORT = 8000
_EXPECTED = "expected HOST:PORT or http(s)://HOST:PORT"


@dataclass(frozen=True)
class Member:
    """Where one server is; ``prefix`` is the path that its routes lie below."""

    host: str
    port: int
    tls: bool = False
    prefix: str = ""

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{self.prefix}"


@dataclass(frozen=True)
class Roster:
    """What was named; ``members`` looks names up anew each time, for pods come and go."""

    replicas: tuple[str, ...] = ()
    file: Path | None = None
    dns: str | None = None
    port: int = DEFAULT_PORT

    def members(self) -> list[Member]:
        """Each server once, in the order named; ``InputError`` where there is none."""
        named = [member_of(one, self.port) for one in (*self.replicas, *self._lines())]
        found = list(dict.fromkeys([*named, *self._resolved()]))
        if not found:
            raise InputError("the fleet has no member: give --replica, --replicas-file or --dns")
        return found

    def _lines(self) -> list[str]:
        if self.file is None:
            return []
        try:
            lines = user_text(self.file).splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--replicas-file {self.file} cannot be read: {error}") from None
        return [line.strip() for line in lines if line.strip() and not line.startswith("#")]

    def _resolved(self) -> Iterable[Member]:
        if self.dns is None:
            return []
        try:
            answers = socket.getaddrinfo(self.dns, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise InputError(
                f"--dns {self.dns} could not be resolved ({error}); give the name of a headless "
                "Service, NAME.NAMESPACE.svc"
            ) from None
        return sorted({Member(str(one[4][0]), self.port) for one in answers}, key=lambda m: m.url)


def member_of(address: str, port: int = DEFAULT_PORT) -> Member:
    """The server behind an address as a person writes it."""
    whole = address if "://" in address else f"http://{address}"
    try:
        parts = urlsplit(whole)
        named = parts.port
    except ValueError as error:
        raise InputError(f"the address {address!r:.80} is not one ({error}), {_EXPECTED}") from None
    stray = parts.username is not None or parts.query or parts.fragment
    if parts.scheme not in ("http", "https") or not parts.hostname or stray:
        raise InputError(f"the address {address!r:.80} is not one, {_EXPECTED}")
    return Member(parts.hostname, named or port, parts.scheme == "https", parts.path.rstrip("/"))


def add_member_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that name a fleet's members."""
    parser.add_argument(
        "--replica",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="a server, as HOST:PORT or http(s)://HOST:PORT; may be repeated",
    )
    parser.add_argument(
        "--replicas-file", type=Path, metavar="FILE", help="one address a line, # for comments"
    )
    parser.add_argument(
        "--dns",
        metavar="NAME",
        help="a name that holds one address per server: a headless Service",
    )
    parser.add_argument(
        "--port",
        type=int,
        default=DEFAULT_PORT,
        help=f"port of addresses that name none ({DEFAULT_PORT})",
    )


def roster_of(args: argparse.Namespace) -> Roster:
    """What ``add_member_arguments`` read."""
    if not 1 <= args.port <= 65535:
        raise InputError(f"--port is {args.port}, expected a number from 1 to 65535")
    return Roster(tuple(args.replica), args.replicas_file, args.dns, args.port)
