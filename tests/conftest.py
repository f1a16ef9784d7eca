"""Files that share a process where two run, which begin, no deadlines, an end on a full disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from xdist.scheduler import LoadFileScheduling

# How long one example takes is the machine's matter.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

_ROOM_GIB = 1.0
# By a fixture that takes long to make, the files that use it: two processes would make two.
TOGETHER = {
    "distributions": {f"release/test_{name}" for name in ("distributions", "libraries", "smoke")},
    "stock_eager": {
        f"integration/runtime/test_{name}"
        # The last for the process off which engines fork that interpret kernels.
        for name in ("device_path", "engine", "stand_ins")
    },
    "server": {
        f"integration/server/test_{name}"
        for name in (
            *("clients", "console", "doc_snippets", "faults"),
            *("hostile", "judged", "load", "serving"),
        )
    },
}


def unit_of(path: str) -> str:
    """What a file of this path, as in a test's id, goes to a process with."""
    name = path.removeprefix("tests/").removesuffix(".py")
    return next((shared for shared, files in TOGETHER.items() if name in files), path)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling  # other Pythons run tests without it

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return unit_of(super()._split_scope(nodeid))

    return Together(config, log)


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
