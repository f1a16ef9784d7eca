"""The look at a body's bytes must not take long for what is only large."""

from __future__ import annotations

import pytest

from leanmoe_server.request_body import _LONG_NUMBER

LONG = 309


@pytest.mark.parametrize("digits", [LONG, 2 * LONG])
def test_a_long_number_is_looked_for_from_its_first_digit_alone(digits: int) -> None:
    """From each digit on, a body of numbers just too short took 300 steps a digit.

    A place where the look could succeed, were digits enough to follow, is one from which they are
    counted: only the first of each number may be one, so that none is counted twice.
    """
    body = b"[%s, %s, -%s, 12]" % (b"7" * digits, b"8" * (LONG - 1), b"9" * digits)
    enough = b"1" * LONG
    counted_from = [
        place
        for place in range(len(body))
        if body[place : place + 1].isdigit()
        and _LONG_NUMBER.match(body[: place + 1] + enough, place)
    ]
    firsts = [1, 3 + digits, 6 + digits + LONG - 1, 8 + 2 * digits + LONG - 1]
    assert counted_from == firsts
    assert [found.start() for found in _LONG_NUMBER.finditer(body)] == [firsts[0], firsts[2]]
