"""Where two files run at once, those that share what takes long to make go to one process."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import TOGETHER, unit_of

TESTS = Path(__file__).parents[1]


def test_files_that_are_to_go_together_exist():
    for files in TOGETHER.values():
        assert [name for name in sorted(files) if not (TESTS / f"{name}.py").exists()] == []


def test_of_what_was_collected_all_that_use_it_go_together(request):
    apart = set()
    for item in request.session.items:
        for shared, files in TOGETHER.items():
            # Other folders have fixtures of the same names.
            folder = next(iter(files)).partition("/")[0]
            path = item.nodeid.partition("::")[0]
            if shared in item.fixturenames and path.startswith(f"tests/{folder}/"):
                apart |= {path} if unit_of(path) != shared else set()
    assert apart == set()


def test_a_file_that_shares_nothing_goes_alone():
    assert unit_of("tests/release/test_libraries.py") == "distributions"
    assert unit_of("tests/release/test_sbom.py") == "tests/release/test_sbom.py"
