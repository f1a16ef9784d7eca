"""Every golden prune run once per session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.naee_data import RUNS, prune
from tests.one_thread import one_thread

__all__ = ["one_thread"]


@pytest.fixture(scope="session")
def pruned(tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    """Golden name -> (lean checkpoint, dump)."""
    folder = tmp_path_factory.mktemp("naee")
    runs = {name: (folder / name, folder / f"{name}.dump") for name in RUNS}
    for name, (out, dump) in runs.items():
        assert prune(name, out, dump) == 0
    return runs
