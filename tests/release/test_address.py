"""Where the project is to be found: in all files or in none, and never another project's."""

import re
import shutil
import subprocess
import sys
import tomllib
from contextlib import suppress

import pytest
import yaml

from tests.release.conftest import ROOT

sys.path.insert(0, str(ROOT / "packaging"))

from project_address import _PLACES, found, write

ADDRESS = "https://git.example.org/somebody/leanmoe"


@pytest.fixture
def copy(tmp_path):
    """The files that name it, as they are."""
    for name in _PLACES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def test_no_file_names_an_address_before_all_do():
    with suppress(SystemExit):
        assert found(ROOT)
        return
    chart = yaml.safe_load((ROOT / "helm/leanmoe/Chart.yaml").read_text())
    assert not {"home", "sources"} & chart.keys()
    for folder in (".", "reference_model", "copyleft_texts"):
        assert (
            "urls" not in tomllib.loads((ROOT / folder / "pyproject.toml").read_text())["project"]
        )
    owners = (ROOT / ".github/CODEOWNERS").read_text()
    assert set(re.findall(r"@(\w+)/", owners)) == {"OWNER"}


def test_a_release_without_one_is_not_made(copy):
    (copy / "pyproject.toml").write_text("[project]\n")
    tool = shutil.copytree(ROOT / "packaging", copy / "packaging") / "project_address.py"
    done = subprocess.run([sys.executable, tool], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("no file names where the project is to be found; ")


@pytest.mark.parametrize("before", [[], ["https://git.example.org/another/place"]])
def test_one_command_writes_it_everywhere(copy, before):
    for address in (*before, ADDRESS):
        write(copy, address)
    assert found(copy) == ADDRESS
    chart = yaml.safe_load((copy / "helm/leanmoe/Chart.yaml").read_text())
    assert (chart["home"], chart["sources"]) == (ADDRESS, [ADDRESS])
    for folder in (".", "reference_model", "copyleft_texts"):
        project = tomllib.loads((copy / folder / "pyproject.toml").read_text())["project"]
        assert project["urls"] == {"Repository": ADDRESS}
    assert f"git clone {ADDRESS} leanmoe\n" in (copy / "docs/kubernetes.md").read_text()
    owners = (copy / ".github/CODEOWNERS").read_text()
    assert set(re.findall(r"@(\w+)/", owners)) == {"somebody"}


@pytest.mark.parametrize("name", list(_PLACES)[1:])
def test_a_file_that_lacks_it_is_named(copy, name):
    write(copy, ADDRESS)
    text = (copy / name).read_text().replace(ADDRESS, "").replace("@somebody/", "@OWNER/")
    (copy / name).write_text(text)
    with pytest.raises(SystemExit, match=f"names {ADDRESS}, and {name} does not"):
        found(copy)


def test_it_is_written_whole(copy):
    with pytest.raises(SystemExit, match="'here' is no address of a project"):
        write(copy, "here")
    (copy / ".github/CODEOWNERS").write_text("* nobody\n")
    with pytest.raises(SystemExit, match="CODEOWNERS has no place for an address"):
        write(copy, ADDRESS)
    assert (copy / "pyproject.toml").read_text() == (ROOT / "pyproject.toml").read_text()
