"""Which tests begin first where two files run at once, and an end where the disk is full."""

from __future__ import annotations

import os
import shutil
import tempfile

import pytest

_ROOM_GIB = 1.0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no worker is left alone with them at the end."""
    items.sort(key=lambda item: "integration" not in item.path.parts)


def pytest_runtest_logreport() -> None:
    """On a full disk everything fails in its own way; one sentence says why instead."""
    place = tempfile.gettempdir()
    free_gib = shutil.disk_usage(place).free / 2**30
    # Where two files run at once, the process that gathers the results ends the others.
    if free_gib < _ROOM_GIB and "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.exit(
            f"{place} has {free_gib:.1f} GiB free, tests need {_ROOM_GIB:.0f} GiB and more; "
            "free some or name another folder with TMPDIR",
            returncode=2,
        )
