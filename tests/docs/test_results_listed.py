"""Every result in the repository stands in the table of ``docs/benchmarks.md``."""

from __future__ import annotations

import re

from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "benchmarks.md").read_text(encoding="utf-8")


def test_every_result_is_listed() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")]
    listed = {name for line in rows for name in re.findall(r"`([^`/]+\.json)`", line)}
    kept = {file.name for file in (ROOT / "benchmarks" / "results").iterdir()}
    # The demo's lies where its reader ran it.
    assert listed - {"demo.json"} == kept
