"""The workflow is clean YAML and does what a machine of one's own does, by the same commands."""

from __future__ import annotations

import re
import subprocess
import sys

import yaml

from tests.docs.pages import ROOT

WORKFLOWS = ROOT / ".github" / "workflows"
CI = WORKFLOWS / "ci.yml"


def steps():
    (job,) = yaml.safe_load(CI.read_text(encoding="utf-8"))["jobs"].values()
    return job["steps"]


def test_yamllint_has_nothing_to_say():
    files = [*map(str, WORKFLOWS.glob("*.yml")), str(ROOT / "mkdocs.yml")]
    done = subprocess.run(
        [sys.executable, "-m", "yamllint", "--strict", *files],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_it_runs_all_checks_and_builds_the_site():
    runs = [step["run"] for step in steps() if "run" in step]
    assert ".ci/run" in runs and "make docs" in runs
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"make (\w+)", " ".join(runs)):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_actions_are_pinned_to_commits_and_may_only_read():
    used = [step["uses"] for step in steps() if "uses" in step]
    assert used and all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", name) for name in used)
    assert yaml.safe_load(CI.read_text(encoding="utf-8"))["permissions"] == {"contents": "read"}
