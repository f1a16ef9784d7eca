"""The chart's README is what its values say."""

from __future__ import annotations

import subprocess
import sys

from tests.chart.rendering import CHART, ROOT

SCRIPT = ROOT / "packaging" / "chart_readme.py"


def test_readme_is_current():
    done = subprocess.run(
        [sys.executable, SCRIPT, "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_readme_names_every_ci_file_as_an_example():
    text = (CHART / "README.md").read_text()
    missing = [path.name for path in (CHART / "ci").iterdir() if path.name not in text]
    assert not missing
