"""The Dockerfile is clean, pinned, copies what exists, and ends without root or weights."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from recipe import copy_of, pairs, read_stages, words
from tests.image.conftest import ROOT

TARGETS = ("cpu", "cuda")
PINNED = re.compile(r"[a-z0-9./-]+:[a-z0-9.-]+@sha256:[0-9a-f]{64}")


@pytest.fixture(scope="module")
def stages():
    return {stage.name: stage for stage in read_stages(ROOT / "Dockerfile", {})}


def values(stage, keyword):
    return [step.value for step in stage.steps if step.keyword == keyword]


def test_hadolint_finds_nothing():
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_base_is_pinned_by_tag_and_digest(stages):
    bases = {stage.base for stage in stages.values()} - set(stages)
    assert len(bases) == 2
    assert all(PINNED.fullmatch(base) for base in bases), bases


def test_a_base_can_be_replaced_from_outside():
    stages = read_stages(ROOT / "Dockerfile", {"CPU_BASE": "debian:trixie"})
    assert {stage.base for stage in stages if stage.name.startswith("cpu-os")} == {"debian:trixie"}


def test_dependencies_are_installed_before_sources_are_copied(stages):
    for target in TARGETS:
        sources = {
            name
            for step in values(stages[f"{target}-dependencies"], "COPY")
            for name in copy_of(step).sources
        }
        assert "." not in sources and not sources & {"core", "pyproject.toml"}
        assert stages[f"{target}-build"].base == f"{target}-dependencies"


def test_everything_copied_exists(stages):
    for stage in stages.values():
        for copy in map(copy_of, values(stage, "COPY")):
            for name in copy.sources:
                assert copy.stage in stages if copy.stage else (ROOT / name).exists(), name


@pytest.mark.parametrize("target", TARGETS)
def test_the_image_runs_as_a_numbered_user_of_group_0(stages, target):
    assert values(stages[target], "USER") == ["1001:0"]


@pytest.mark.parametrize("target", TARGETS)
def test_entrypoint_command_and_health_check_are_in_exec_form(stages, target):
    assert words(values(stages[target], "ENTRYPOINT")[0])[-1] == "/usr/local/bin/entrypoint"
    assert words(values(stages[target], "CMD")[0]) == ["--help"]
    assert words(values(stages[target], "HEALTHCHECK")[0]) == ["/usr/local/bin/healthcheck"]


@pytest.mark.parametrize("target", TARGETS)
def test_the_labels_of_an_oci_image_are_there(stages, target):
    labels = {name for value in values(stages[target], "LABEL") for name in pairs(value)}
    wanted = ("title", "description", "licenses", "version", "revision", "created", "source")
    assert {f"org.opencontainers.image.{name}" for name in (*wanted, "base.name")} <= labels


@pytest.mark.parametrize("target", TARGETS)
def test_the_version_is_the_project_s(stages, target):
    project = (ROOT / "pyproject.toml").read_text()
    version = re.search(r'^version = "(.*)"', project, re.MULTILINE).group(1)
    assert f"VERSION={version}" in values(stages[target], "ARG")


@pytest.mark.parametrize("target", TARGETS)
def test_every_cache_named_lies_under_home(stages, target):
    env = {}
    for value in values(stages[target], "ENV"):
        env |= pairs(value)
    assert env["HOME"] == "/home/leanmoe" == values(stages[target], "WORKDIR")[0]
    folders = [v for k, v in env.items() if re.search("CACHE|CONFIG|HF_HOME", k)]
    assert len(folders) >= 7
    assert all(folder.startswith("/home/leanmoe/.") for folder in folders), folders


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_shipped_takes_only_the_environment_and_two_programs(stages, target):
    copied = [source for v in values(stages[target], "COPY") for source in copy_of(v).sources]
    assert copied == [
        "packaging/image/entrypoint",
        "packaging/image/healthcheck",
        "/opt/leanmoe",
    ]


def test_the_documented_pins_are_those_of_the_dockerfile(stages):
    document = (ROOT / "docs" / "image.md").read_text()
    bases = {stage.base for stage in stages.values()} - set(stages)
    for base in bases:
        tag, digest = base.split("@")
        assert tag in document and digest in document


@pytest.mark.parametrize("target", TARGETS)
def test_the_chart_moves_every_cache_along_with_home(stages, target):
    """Its pods mount a folder of their own; what stayed behind could not be written."""
    chart = (ROOT / "helm" / "leanmoe" / "templates" / "_settings.tpl").read_text()
    moved = set(re.findall(r"^([A-Z_]+): /", chart, re.MULTILINE))
    for value in values(stages[target], "ENV"):
        here = {name for name, place in pairs(value).items() if place.startswith("/home/leanmoe")}
        assert here and here <= moved, here - moved
