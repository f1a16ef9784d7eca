"""JSON from outside, whose readers must not take long for what is only large."""

from __future__ import annotations

from leanmoe.files.digest import repeated_keys


class Counted(str):
    """A key that counts how often it is compared."""

    __slots__ = ()
    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Counted.compared += 1
        return str.__eq__(self, other)


def test_keys_named_twice_are_found_in_their_order():
    assert repeated_keys([("b", 1), ("a", 1), ("c", 1), ("a", 2), ("b", 3)]) == ["b", "a"]
    assert repeated_keys([("a", 1), ("b", 1)]) == repeated_keys([]) == []


def test_a_key_is_compared_with_few_others():
    """With each it would be two million comparisons here, and hours for a body of some MiB."""
    pairs = [(Counted(f"key {i}"), 0) for i in range(2000)]
    assert repeated_keys([*pairs, (Counted("key 1999"), 1)]) == ["key 1999"]
    assert Counted.compared < 10 * len(pairs)
