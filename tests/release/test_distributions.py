"""What a release ships: everything that belongs to it, and nothing else."""

import hashlib
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from safetensors.numpy import load

from leanmoe_pruning.data.spec import COPYLEFT as COPYLEFT_DOMAINS
from leanmoe_pruning.data.spec import PERMISSIVE
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

REFERENCE, TEXTS = "reference_model", "copyleft_texts"
# Each distribution's fixture and folder.
ALL = (("wheel", "."), ("reference_wheel", REFERENCE), ("texts_wheel", TEXTS))
COPYLEFT = ("GPL", "GFDL", "copyleft")


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
def in_texts_wheel(texts_wheel):
    return names_in(texts_wheel)


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
    base = ROOT / folder
    found = [path for one in project(folder)["license-files"] for path in base.glob(one)]
    return sorted(str(path.relative_to(base)) for path in found)


def terms(folder):
    """Names of the licences whose texts go along, beside the project's own."""
    stems = {name.rpartition("/")[2].removesuffix(".txt") for name in licences(folder)}
    return stems - {"LICENSE", "NOTICE", "Debian-manpages-copyright", "LicenseRef-Public-Domain"}


@pytest.mark.parametrize(("fixture", "folder"), ALL)
def test_every_licence_goes_along(fixture, folder, request):
    built = request.getfixturevalue(fixture)
    metadata, names = metadata_of(built), names_in(built)
    assert metadata["License-Expression"] == project(folder)["license"]
    assert sorted(metadata.get_all("License-File")) == sorted(licences(folder))
    for name in licences(folder):
        assert any(one.endswith(f".dist-info/licenses/{name}") for one in names), name


@pytest.mark.parametrize(("fixture", "folder"), ALL)
def test_a_wheel_says_the_licences_whose_texts_it_carries(fixture, folder, request):
    stated = set(metadata_of(request.getfixturevalue(fixture))["License-Expression"].split(" AND "))
    assert stated - {"Apache-2.0"} == terms(folder)
    said = tomllib.loads((ROOT / "REUSE.toml").read_text())["annotations"]
    of_files = {
        licence
        for one in said
        for path in ([one["path"]] if isinstance(one["path"], str) else one["path"])
        if any(path.startswith(part) for part in (PARTS if folder == "." else [folder]))
        for licence in one["SPDX-License-Identifier"].split(" AND ")
    }
    assert of_files - {"LicenseRef-Public-Domain", "Apache-2.0"} == terms(folder)


def test_the_reference_wheel_names_the_licence_of_every_source():
    sources = {source.licence.partition(" (")[0] for source in SOURCES}
    assert sources - {"public domain", "Apache-2.0"} == terms(REFERENCE)


@pytest.mark.parametrize(("fixture", "folder"), ALL[:2])
def test_nothing_under_copyleft_is_in_a_permissive_wheel(fixture, folder, request, in_texts_wheel):
    wheel = request.getfixturevalue(fixture)
    stated = metadata_of(wheel)["License-Expression"]
    assert not any(word in one for word in COPYLEFT for one in (stated, *licences(folder)))
    held = {name.rpartition("/")[2] for name in in_texts_wheel if name.endswith(".jsonl")}
    assert len(held) == 14 and not held & {name.rpartition("/")[2] for name in names_in(wheel)}


def test_the_permissive_wheel_holds_the_token_ids_of_its_own_texts_alone(wheel, texts_wheel):
    def domains(built, package):
        with zipfile.ZipFile(built) as archive:
            ids = load(archive.read(f"{package}/texts/tokens.safetensors"))
        return {name.partition(".")[0] for name in ids}

    assert domains(wheel, "leanmoe_pruning/data") == set(PERMISSIVE)
    assert domains(texts_wheel, "leanmoe_texts") == set(COPYLEFT_DOMAINS)


def test_the_texts_wheel_holds_its_package_and_nothing_else(in_texts_wheel):
    found = {name for name in in_texts_wheel if ".dist-info/" not in name}
    assert found == packed(TEXTS, "leanmoe_texts")


@pytest.mark.parametrize("folder", [folder for _, folder in ALL])
def test_the_notice_names_every_licence_that_goes_along(folder):
    notice = (ROOT / folder / "NOTICE").read_text(encoding="utf-8")
    assert [one for one in terms(folder) if one not in notice] == []


def test_every_licence_text_is_the_repository_s():
    """REUSE wants them at its root; a distribution made in a folder needs its own."""
    for folder in (REFERENCE, TEXTS):
        for path in (ROOT / folder / "LICENSES").iterdir():
            assert path.read_bytes() == (ROOT / "LICENSES" / path.name).read_bytes(), path
    assert (ROOT / "LICENSES/Apache-2.0.txt").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_every_file_s_licence_is_said(tmp_path):
    """`reuse lint`, and what it says of a file that nobody thought of."""
    reuse = [Path(sys.executable).with_name("reuse"), "--root"]
    done = subprocess.run([*reuse, ROOT, "lint"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (tmp_path / "new.py").write_text("NEW = 1\n")
    done = subprocess.run([*reuse, tmp_path, "lint"], capture_output=True, text=True)
    assert done.returncode == 1


@pytest.mark.parametrize(("folder", "domains"), [(".", PERMISSIVE), (TEXTS, COPYLEFT_DOMAINS)])
def test_the_notice_names_every_built_in_text(folder, domains):
    notice = (ROOT / folder / "NOTICE").read_text(encoding="utf-8")
    named = {word.strip(" ,") for line in notice.splitlines() for word in line[:15].split()}
    assert set(domains) <= named, set(domains) - named


def test_the_source_distribution_builds_and_tests_like_a_clone(in_source):
    left_out = {name for name in tracked() if name.startswith((".ci/", ".github/", f"{TEXTS}/"))}
    assert not left_out & in_source
    assert tracked() - left_out <= in_source, sorted(tracked() - left_out - in_source)[:5]
    assert not {name for name in in_source if name.startswith((".venv", ".git/", "dist/"))}


@pytest.mark.parametrize(("name", "folder"), [("reference", REFERENCE), ("texts", TEXTS)])
def test_a_source_distribution_of_its_own_holds_all_of_its_folder(distributions, name, folder):
    found = names_in_source(next(distributions.glob(f"leanmoe_{name}-*.tar.gz")))
    wanted = {name.removeprefix(f"{folder}/") for name in tracked(folder)}
    assert wanted <= found, sorted(wanted - found)[:5]


def test_all_are_of_the_version_that_the_changelog_begins_with(distributions, wheel):
    version = project(".")["version"]
    assert {path.name for path in distributions.iterdir()} == {
        wheel.name,
        *(
            f"{name}-{version}{ending}"
            for name in ("leanmoe", "leanmoe_reference", "leanmoe_texts")
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
    for name in ("reference", "texts"):
        assert project(".")["optional-dependencies"][name] == [f"leanmoe-{name}=={version}"]
    assert f"leanmoe=={version}" in project(REFERENCE)["dependencies"]


def test_the_notice_names_every_source_of_the_training_text():
    """By the list in `sources.py`; what a person calls one differs here and there."""
    notice = (ROOT / REFERENCE / "NOTICE").read_text(encoding="utf-8").lower()
    called = {"apache2": "apache http", "cups": "cups", "python3.11": "python 3.11"}
    called |= {"libpython3.11": "python 3.11", "dict": "dictionary", "bible": "king james"}
    for source in SOURCES:
        stem = source.package.partition("-")[0]
        assert called.get(stem, stem) in notice, source
