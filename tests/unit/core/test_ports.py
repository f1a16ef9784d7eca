"""Ports for servers that bind them seconds later."""

from __future__ import annotations

import socket
from itertools import chain, count
from pathlib import Path

import pytest

from leanmoe.process import ports


def test_a_port_is_none_that_connections_are_given() -> None:
    lent = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    if lent <= ports._FIRST + ports._TRIES:
        pytest.xfail(f"this system gives connections all ports from {lent}")
    found = {ports.free_port() for _ in range(20)}
    assert max(found) < lent and len(found) > 15


def test_a_port_that_is_taken_is_not_given(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", ports.free_port()))
        taken = held.getsockname()[1] - ports._FIRST
        draws = chain([taken, taken], count(1))
        monkeypatch.setattr(ports, "randbelow", lambda _: next(draws))
        assert ports.free_port() != held.getsockname()[1]


@pytest.mark.parametrize("content", ["1024\t65535\n", "", "none"])
def test_without_room_below_any_port_will_do(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = tmp_path / "range"
    said.write_text(content)
    monkeypatch.setattr(ports, "_LENT", said)
    assert ports.free_port() > 0
