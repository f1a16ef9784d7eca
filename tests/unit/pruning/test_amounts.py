"""Amounts as people read them."""

from __future__ import annotations

import pytest

from leanmoe_pruning.amounts import show_share


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (1, "100.0%"),
        (0, "0.0%"),
        (0.5, "50.0%"),
        (0.9999, "99.99%"),
        (0.99951, "99.95%"),
        (0.0001, "0.01%"),
        (0.999999999, "99.9999999%"),
    ],
)
def test_a_share_short_of_all_never_reads_as_all(share, text):
    assert show_share(share) == text
