"""Which tests run on the same worker, and which begin first, where two run at once."""

from __future__ import annotations

import pytest

# Made once per worker and costly: its tests stay together.
SHARED_FIXTURES = ("server",)


def _group_of(item: pytest.Item) -> str:
    """Tests of a file stay together, as do all that share a fixture named above."""
    used = getattr(item, "fixturenames", ())
    shared = next((name for name in SHARED_FIXTURES if name in used), None)
    return shared or item.nodeid.partition("::")[0]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no worker is left alone with them at the end."""
    for item in items:
        item.add_marker(pytest.mark.xdist_group(_group_of(item)))
    items.sort(key=lambda item: "integration" not in item.path.parts)
