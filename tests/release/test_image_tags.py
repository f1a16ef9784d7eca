"""Images have one scheme of tags: ``VERSION-cuda`` and ``VERSION-cpu``, wherever one is named."""

import re

import pytest

from leanmoe import __version__
from tests.chart.rendering import rendered, server
from tests.release.conftest import ROOT

# Whoever names an image of ours: pages, the values that CI renders (workflows: tests/docs).
NAMING = (
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "helm").glob("**/*.yaml")),
    ROOT / "README.md",
)
_TAG = re.compile(r"[/\s]leanmoe:([\w.{}$-]*\w}?)")
_BUILD = re.compile(r"docker build .*--target (\w+).*leanmoe:(\S+)")
_VERSIONS = (__version__, "VERSION")


@pytest.mark.parametrize("path", NAMING, ids=lambda path: path.name)
def test_every_tag_that_is_named_is_a_version_and_a_target(path):
    for tag in _TAG.findall(path.read_text(encoding="utf-8")):
        version, _, target = tag.rpartition("-")
        assert version in _VERSIONS and target in ("cpu", "cuda"), tag


@pytest.mark.parametrize("page", ["image.md", "releasing.md", "kubernetes.md"])
def test_a_build_is_tagged_as_the_target_it_builds(page):
    built = _BUILD.findall((ROOT / "docs" / page).read_text(encoding="utf-8"))
    assert built and all(tag.endswith(f"-{target}") for target, tag in built), built


@pytest.mark.parametrize(("values", "target"), [("defaults", "cuda"), ("cpu", "cpu")])
def test_the_chart_takes_the_image_that_the_pages_build(values, target):
    assert server(rendered(values))["image"] == f"leanmoe:{__version__}-{target}"
