"""helm 4 and helm 3 lint and render alike; the YAML a person edits is clean."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import tomllib

import pytest
import yaml

from tests.chart.rendering import CHART, CI, HELMS, ROOT, rendered_text, run_helm, strictly


@pytest.mark.parametrize("helm", HELMS)
@pytest.mark.parametrize("name", ["defaults", "prepare-hook", "monitoring", "multi-node-ray"])
def test_lint_is_clean(name, helm):
    """What all the others add is rendered and validated elsewhere."""
    done = run_helm("lint", "--strict", str(CHART), "--values", str(CI[name]), helm=helm)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout
    assert "[ERROR]" not in done.stdout


def test_the_versions_of_helm_are_four_and_three():
    versions = [run_helm("version", "--short", helm=helm).stdout for helm in HELMS]
    assert versions[0].startswith("v4.")
    assert versions[1].startswith("v3.")


@pytest.mark.parametrize("name", CI)
def test_both_versions_render_the_same(name):
    assert rendered_text(name) == rendered_text(name, helm="helm3")


def test_yaml_is_clean():
    sources = [CHART / "Chart.yaml", CHART / "values.yaml", *CI.values()]
    rules = {
        "extends": "default",
        "rules": {
            "document-start": "disable",
            # A description is one line, so that README.md can be made of it.
            "line-length": {"max": 200},
            "braces": {"max-spaces-inside": 0},
            "comments": {"min-spaces-from-content": 1},
        },
    }
    command = [sys.executable, "-m", "yamllint", "--strict", "-d", json.dumps(rules), *sources]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", CI)
def test_no_rendered_key_stands_twice(name):
    text = rendered_text(name)
    assert strictly(text)
    assert not [line for line in text.splitlines() if line != line.rstrip()]


def test_a_key_that_stands_twice_is_seen():
    with pytest.raises(AssertionError, match="stand twice"):
        strictly("a: [{b: 1, b: 2}]")


def test_the_package_holds_what_installs_and_no_examples(tmp_path):
    done = run_helm("package", str(CHART), "--destination", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (package,) = tmp_path.glob("leanmoe-*.tgz")
    with tarfile.open(package) as files:
        held = {name.removeprefix("leanmoe/") for name in files.getnames()}
    folders = ("files", "dashboards", "templates")
    wanted = {str(path.relative_to(CHART)) for one in folders for path in (CHART / one).iterdir()}
    missing = {path for path in wanted if not any(name.startswith(path) for name in held)}
    assert not missing
    assert {"values.yaml", "values.schema.json", "Chart.yaml", "README.md"} <= held
    assert not [name for name in held if name.startswith("ci/") or "head" in name]


def test_versions_are_the_projects():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["appVersion"] == chart["version"] == project["version"]
