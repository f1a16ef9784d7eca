"""What a release ships: everything that belongs to it, and nothing else."""

import hashlib
import subprocess
import tarfile
import tomllib
import zipfile
from email.parser import Parser

import pytest

from leanmoe_reference.models import MODELS
from leanmoe_reference.training.sources import SOURCES
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


REFERENCE = "reference_model"


def names_in(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def metadata_of(wheel):
    name = next(name for name in names_in(wheel) if name.endswith(".dist-info/METADATA"))
    with zipfile.ZipFile(wheel) as archive:
        return Parser().parsestr(archive.read(name).decode())


def names_in_source(archive_path):
    with tarfile.open(archive_path) as archive:
        return {name.partition("/")[2] for name in archive.getnames()}


@pytest.fixture(scope="module")
def in_wheel(wheel):
    return names_in(wheel)


@pytest.fixture(scope="module")
def in_reference_wheel(reference_wheel):
    return names_in(reference_wheel)


@pytest.fixture(scope="module")
def in_source(distributions):
    return names_in_source(next(distributions.glob("leanmoe-*.tar.gz")))


def project(folder):
    return tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]


def packed(folder, package):
    """Files of a package by their names in a wheel."""
    return {name.removeprefix(f"{folder}/") for name in tracked(f"{folder}/{package}")}


def tracked(*paths):
    command = ["git", "ls-files", "--", *paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in done.stdout.splitlines() if (ROOT / name).exists()}


@pytest.mark.parametrize("part", PARTS)
def test_the_wheel_holds_every_file_of_each_package(in_wheel, pure_wheel, part):
    names = packed(part, PARTS[part])
    assert names and names <= in_wheel, sorted(names - in_wheel)[:5]
    assert names <= names_in(pure_wheel)


def test_the_reference_wheel_holds_its_package_and_nothing_else(in_reference_wheel):
    found = {name for name in in_reference_wheel if ".dist-info/" not in name}
    assert found == packed(REFERENCE, "leanmoe_reference")


def test_the_reference_wheel_holds_the_weights_that_the_digests_were_pinned_for(reference_wheel):
    with zipfile.ZipFile(reference_wheel) as archive:
        for model in MODELS.values():
            for name, digest in model.files.items():
                held = hashlib.sha256(archive.read(f"leanmoe_reference/{name}"))
                assert f"sha256:{held.hexdigest()}" == digest, name


def test_a_serving_install_carries_no_reference_model(wheel, in_wheel):
    assert not [name for name in in_wheel if name.startswith("leanmoe_reference")]
    assert wheel.stat().st_size < 5e6


def test_the_wheel_holds_nothing_but_the_packages_and_its_metadata(in_wheel):
    tops = {name.partition("/")[0] for name in in_wheel}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PARTS.values())
    assert not [name for name in in_wheel if "__pycache__" in name or "/test_" in name]


def licences(folder):
    """Of the distribution made in ``folder``, by their names there."""
    names = tracked(str(ROOT / folder / "LICENSES"))
    return ["LICENSE", "NOTICE", *sorted(name.removeprefix(f"{folder}/") for name in names)]


@pytest.mark.parametrize(("fixture", "folder"), [("wheel", "."), ("reference_wheel", REFERENCE)])
def test_every_licence_goes_along(fixture, folder, request):
    built = request.getfixturevalue(fixture)
    metadata, names = metadata_of(built), names_in(built)
    assert metadata["License-Expression"] == project(folder)["license"]
    assert sorted(metadata.get_all("License-File")) == sorted(licences(folder))
    for name in licences(folder):
        assert any(one.endswith(f".dist-info/licenses/{name}") for one in names), name


def test_the_reference_wheel_says_under_which_licences_its_excerpts_stand(reference_wheel):
    stated = set(metadata_of(reference_wheel)["License-Expression"].split(" AND "))
    sources = {source.licence.partition(" (")[0] for source in SOURCES}
    assert stated == sources - {"public domain"}
    held = {name.rpartition("/")[2].removesuffix(".txt") for name in licences(REFERENCE)}
    assert {one.replace("MIT", "MIT-Lua") for one in stated - {"Apache-2.0"}} <= held


@pytest.mark.parametrize("folder", [".", REFERENCE])
def test_the_notice_names_a_text_for_every_licence_of_others(folder):
    notice = (ROOT / folder / "NOTICE").read_text(encoding="utf-8")
    for name in licences(folder)[2:]:
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


def test_the_reference_source_distribution_holds_all_of_its_folder(distributions):
    found = names_in_source(next(distributions.glob("leanmoe_reference-*.tar.gz")))
    wanted = {name.removeprefix(f"{REFERENCE}/") for name in tracked(REFERENCE)}
    assert wanted <= found, sorted(wanted - found)[:5]


def test_all_are_of_the_version_that_the_changelog_begins_with(distributions, wheel):
    version = project(".")["version"]
    assert {path.name for path in distributions.iterdir()} == {
        wheel.name,
        *(
            f"{name}-{version}{ending}"
            for name in ("leanmoe", "leanmoe_reference")
            for ending in (".tar.gz", "-py3-none-any.whl")
        ),
    }
    assert wheel.name.startswith(f"leanmoe-{version}-py3-none-manylinux_2_")
    headings = [
        line for line in (ROOT / "CHANGELOG.md").read_text().splitlines() if line.startswith("## ")
    ]
    assert headings[0] == "## [Unreleased]" and headings[1].startswith(f"## [{version}] - 20")


def test_either_asks_for_the_other_in_its_own_version():
    version = project(".")["version"]
    assert project(".")["optional-dependencies"]["reference"] == [f"leanmoe-reference=={version}"]
    assert f"leanmoe=={version}" in project(REFERENCE)["dependencies"]


def test_the_notice_names_every_source_of_the_training_text():
    """By the list in `sources.py`; what a person calls one differs here and there."""
    notice = (ROOT / REFERENCE / "NOTICE").read_text(encoding="utf-8").lower()
    called = {"apache2": "apache http", "cups": "cups", "python3.11": "python 3.11"}
    called |= {"libpython3.11": "python 3.11", "dict": "dictionary", "bible": "king james"}
    for source in SOURCES:
        stem = source.package.partition("-")[0]
        assert called.get(stem, stem) in notice, source
