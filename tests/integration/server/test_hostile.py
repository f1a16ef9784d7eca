"""Requests that mean harm or make no sense are refused in a sentence, and the server stays well.

A hundred and fifty here; `leanmoe bench hostile` sends as many as are asked for.
"""

from __future__ import annotations

import pytest

from leanmoe_bench.hostile.ammunition import Shot, shots
from leanmoe_bench.hostile.barrage import barrage, fault_of
from tests.integration.live_server import LiveServer

SHOT = Shot("POST", "/v1/completions", b'{"prompt": "/usr/lib"}')


def test_no_fault_no_leak_and_a_healthy_server(exact_server: LiveServer) -> None:
    damage = barrage(
        exact_server.url, shots(150, 7, exact_server.model, "unused", exact_server.admin_key)
    )
    assert damage.faults == []
    assert damage.healthy and damage.statuses.total() == 150
    assert {200, 400, 403, 404, 405} <= set(damage.statuses)


@pytest.mark.parametrize(
    ("status", "text", "words"),
    [
        (500, '{"error": {"message": "m"}}', "a fault of the server's"),
        (503, '{"error": {"message": "m"}}', "a fault of the server's"),
        (200, 'data: {"error": {"message": "m", "code": 500}}', "a fault of the server's"),
        (400, '{"error": {"message": "in site-packages"}}', "gives away 'site-packages'"),
        (400, '{"error": {"message": "at 0x7f3a12345678"}}', "gives away '0x7f3a12345678'"),
        (404, '{"detail": "Not Found"}', "not in the shape"),
        (404, "nothing", "not in the shape"),
        (400, '{"error": {"message": "/usr/lib is no prompt"}}', None),
        (200, '{"choices": []}', None),
    ],
)
def test_what_counts_as_a_fault(status: int, text: str, words: str | None) -> None:
    found = fault_of(SHOT, status, text)
    assert (found is None) if words is None else (words in str(found))
