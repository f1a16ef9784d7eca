"""What a release ships: everything that belongs to it, and nothing else."""

import subprocess
import tarfile
import tomllib
import zipfile
from email.parser import Parser

import pytest

from leanmoe_pruning.reference.training.sources import SOURCES
from tests.release.conftest import ROOT

PARTS = {
    "core": "leanmoe",
    "pruning_offline": "leanmoe_pruning",
    "runtime_patches": "leanmoe_runtime",
    "server": "leanmoe_server",
    "loadtest": "leanmoe_loadtest",
    "benchmarks": "leanmoe_bench",
    "demo": "leanmoe_demo",
}


@pytest.fixture(scope="module")
def in_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="module")
def in_source(distributions):
    with tarfile.open(next(distributions.glob("*.tar.gz"))) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


@pytest.fixture(scope="module")
def metadata(wheel, in_wheel):
    name = next(name for name in in_wheel if name.endswith(".dist-info/METADATA"))
    with zipfile.ZipFile(wheel) as archive:
        return Parser().parsestr(archive.read(name).decode())


def tracked(*paths):
    command = ["git", "ls-files", "--", *paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in done.stdout.splitlines() if (ROOT / name).exists()}


@pytest.mark.parametrize("part", PARTS)
def test_the_wheel_holds_every_file_of_each_package(in_wheel, part):
    package = f"{part}/{PARTS[part]}"
    names = {name.removeprefix(f"{part}/") for name in tracked(package)}
    assert names and names <= in_wheel, sorted(names - in_wheel)[:5]


def test_the_wheel_holds_nothing_but_the_packages_and_its_metadata(in_wheel):
    tops = {name.partition("/")[0] for name in in_wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PARTS.values())
    assert not [name for name in in_wheel if "__pycache__" in name or "/test_" in name]


def test_every_licence_goes_along(in_wheel, metadata):
    licences = ("LICENSE", "NOTICE", *sorted(tracked("LICENSES")))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert sorted(metadata.get_all("License-File")) == sorted(licences)
    for name in licences:
        assert any(one.endswith(f".dist-info/licenses/{name}") for one in in_wheel), name


def test_the_notice_names_a_text_for_every_licence_of_others():
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    for name in tracked("LICENSES"):
        stem = name.removeprefix("LICENSES/").removesuffix(".txt")
        words = {"MIT-Lua": "MIT", "Linux-man-pages-copyleft": "Debian-manpages-copyright"}
        wanted = words.get(stem, stem).replace("-no-invariants-or-later", "")
        assert wanted in notice, name


def test_the_notice_names_every_built_in_text():
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    texts = {
        name.rpartition("/")[2] for name in tracked("pruning_offline/leanmoe_pruning/data/texts")
    }
    domains = {name.removesuffix(".jsonl") for name in texts if name.endswith(".jsonl")}
    named = {word.strip(" ,") for line in notice.splitlines() for word in line[:15].split()}
    assert domains and domains <= named, domains - named


def test_the_source_distribution_builds_and_tests_like_a_clone(in_source):
    left_out = {name for name in tracked() if name.startswith((".ci/", ".github/"))}
    assert tracked() - left_out <= in_source, sorted(tracked() - left_out - in_source)[:5]
    assert not {name for name in in_source if name.startswith((".venv", ".git/", "dist/"))}


def test_both_are_of_the_version_that_the_changelog_begins_with(distributions):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert {path.name for path in distributions.iterdir()} == {
        f"leanmoe-{version}.tar.gz",
        f"leanmoe-{version}-py3-none-any.whl",
    }
    headings = [
        line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## ")
    ]
    assert headings[0] == "## [Unreleased]" and headings[1].startswith(f"## [{version}] - 20")


def test_the_notice_names_every_source_of_the_training_text():
    """By the list in `sources.py`; what a person calls one differs here and there."""
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8").lower()
    called = {"apache2": "apache http", "cups": "cups", "python3.11": "python 3.11"}
    called |= {"libpython3.11": "python 3.11", "dict": "dictionary", "bible": "king james"}
    for source in SOURCES:
        stem = source.package.partition("-")[0]
        assert called.get(stem, stem) in notice, source
