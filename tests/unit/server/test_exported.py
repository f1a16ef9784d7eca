"""What several processes count is read as one, as a scrape would see it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import REGISTRY, CollectorRegistry

from leanmoe_server.console.samples import Samples
from leanmoe_server.exported import exported, sums_several

COUNT = (
    "import sys\n"
    "from prometheus_client import Counter\n"
    "Counter('leanmoe_tried_total', 'Tried').inc(int(sys.argv[1]))"
)


def test_counts_of_processes_are_added_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    for count in ("2", "3"):
        subprocess.run([sys.executable, "-c", COUNT, count], check=True)
    assert sums_several()
    assert Samples.read(["leanmoe_tried_total"]).sum("leanmoe_tried_total") == 5
    assert exported(own := CollectorRegistry()) is own


def test_alone_a_process_reads_its_own() -> None:
    assert not sums_several() and exported() is REGISTRY
