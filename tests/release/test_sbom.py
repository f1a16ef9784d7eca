"""The bills of materials name every pinned package, and depend on the commit alone."""

import json
import subprocess
import venv

import pytest

from tests.release.conftest import ROOT
from tests.release.test_constraints import versions


@pytest.fixture(scope="module")
def tools(tmp_path_factory):
    """The release's tools in an environment of their own, as in the Makefile."""
    folder = tmp_path_factory.mktemp("tools")
    venv.create(folder, with_pip=True)
    makefile = (ROOT / "Makefile").read_text()
    wanted = next(word for word in makefile.split("'") if word.startswith("cyclonedx-bom"))
    python = folder / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", wanted], check=True)
    return python


def test_both_bills_name_every_pinned_package_and_nothing_of_the_moment(tools, tmp_path):
    subprocess.run([tools, ROOT / "packaging" / "sbom.py", tmp_path], check=True)
    for target in ("cpu", "cuda"):
        bill = json.loads((tmp_path / f"leanmoe-image-{target}.cdx.json").read_text())
        assert bill["bomFormat"] == "CycloneDX"
        assert bill["metadata"]["component"]["name"] == "leanmoe"
        listed = {one["name"]: one["version"] for one in bill["components"]}
        assert listed == versions(f"image-{target}")
        assert "serialNumber" not in bill and "timestamp" not in bill["metadata"]
