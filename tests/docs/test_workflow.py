"""The workflows are clean YAML and do what a machine of one's own does, by the same commands."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest
import yaml

from tests.docs.pages import ROOT

sys.path.insert(0, str(ROOT / "packaging"))

import release_version

GITHUB = ROOT / ".github"
WORKFLOWS = GITHUB / "workflows"
NAMES = ("ci", "release")


def read(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def jobs(name):
    return read(WORKFLOWS / f"{name}.yml")["jobs"]


def steps(name):
    return [step for job in jobs(name).values() for step in job["steps"]]


def runs(name):
    return [step["run"] for step in steps(name) if "run" in step]


def test_yamllint_has_nothing_to_say():
    files = [*map(str, WORKFLOWS.glob("*.yml")), str(GITHUB / "dependabot.yml")]
    done = subprocess.run(
        [sys.executable, "-m", "yamllint", "--strict", *files, str(ROOT / "mkdocs.yml")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", NAMES)
def test_it_runs_what_the_makefile_has(name):
    said = " ".join(runs(name))
    assert ".ci/run" in runs(name)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"make ([\w-]+)", said)
    assert targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    for file in re.findall(r"packaging/\S+\.py", said):
        assert (ROOT / file).is_file(), file
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_every_change_gets_all_checks_and_the_site():
    assert {".ci/run", "make docs"} <= set(runs("ci"))


@pytest.mark.parametrize("name", NAMES)
def test_actions_are_pinned_to_commits_and_may_only_read(name):
    used = [step["uses"] for step in steps(name) if "uses" in step]
    assert used and all(re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", one) for one in used)
    assert read(WORKFLOWS / f"{name}.yml")["permissions"] == {"contents": "read"}
    # What a stranger can name, a branch or a title, never becomes a part of a script.
    assert not [run for run in runs(name) if "${{" in run]


def test_only_what_publishes_may_write_and_nothing_is_published_unchecked():
    found = jobs("release")
    written = {
        name: {key for key, how in job.get("permissions", {}).items() if how == "write"}
        for name, job in found.items()
    }
    assert written == {"distributions": set(), "images": {"packages"}, "release": {"contents"}}
    assert found["images"]["needs"] == "distributions"
    assert set(found["release"]["needs"]) == {"distributions", "images"}
    assert "--draft" in " ".join(runs("release"))


def test_a_release_tags_both_images_by_version_and_target():
    assert jobs("release")["images"]["strategy"]["matrix"]["target"] == ["cpu", "cuda"]
    (build,) = [run for run in runs("release") if "docker build" in run]
    assert 'leanmoe:${VERSION_TAG#v}-$TARGET"' in build and '--target "$TARGET"' in build


def test_every_python_that_the_classifiers_name_is_tried():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    told = {one.rpartition(" ")[2] for one in project["classifiers"] if ":: Python :: 3." in one}
    gate, others = jobs("ci")["gate"], jobs("ci")["pythons"]
    (setup,) = [one for one in gate["steps"] if "python-version" in one.get("with", {})]
    tried = {setup["with"]["python-version"], *others["strategy"]["matrix"]["python"]}
    assert told == tried == {"3.11", "3.12", "3.13"}


def test_the_version_s_changes_are_found():
    text = "# C\n\n## [Unreleased]\n\n- c\n\n## [1.2.0] - 2026-01-01\n\n- b\n\n## [1.1.0]\n\n- a\n"
    assert release_version.changes(text, "1.2.0") == "- b\n"
    assert release_version.changes(text, "1.1.0") == "- a\n"
    for missing in ("1.3.0", "1x2.0"):
        with pytest.raises(SystemExit, match="has no section of"):
            release_version.changes(text, missing)


def test_the_version_is_printed_as_a_tag_has_it():
    command = [sys.executable, release_version.__file__]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{release_version.version()}\n"


def test_owners_are_named_for_paths_that_are_there():
    lines = [one for one in (GITHUB / "CODEOWNERS").read_text().splitlines() if one[0] != "#"]
    for line in lines:
        path, *owners = line.split()
        assert owners and all(owner.startswith("@") for owner in owners), line
        assert path == "*" or (ROOT / path.lstrip("/")).exists(), path
