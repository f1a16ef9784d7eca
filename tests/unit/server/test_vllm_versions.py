"""`leanmoe serve` names a vLLM it cannot run with, and finds what 0.33 moved."""

import importlib
import sys
from types import ModuleType

import pytest

from leanmoe.cli import main
from leanmoe.engine_versions import Installed
from leanmoe.errors import InputError
from leanmoe.seams import find
from leanmoe_server import command, seams
from leanmoe_server.seams import CLI_ENV_SETUP, MAKE_ARG_PARSER, VALIDATE_ARGUMENTS

MOVED = (MAKE_ARG_PARSER, VALIDATE_ARGUMENTS, CLI_ENV_SETUP)


@pytest.mark.parametrize("found", [Installed("vllm", "0.34.0"), Installed("vllm", "0.31.2"), None])
def test_another_vllm_is_refused_before_anything_is_read(found, monkeypatch, capsys):
    monkeypatch.setattr(command, "installed_vllm", lambda: found)
    assert main(["serve", "/no/such/model"]) == InputError.exit_code
    said = capsys.readouterr().err.strip()
    assert "\n" not in said and "pip install 'leanmoe[c" in said
    assert found is None or f"vLLM {found.version} is installed" in said


@pytest.mark.parametrize("seam", MOVED)
def test_what_moved_is_found_where_0_33_has_it(seam, monkeypatch):
    new, old = seam.modules
    module = ModuleType(new)
    vars(module)[seam.name] = "0.33's"
    monkeypatch.setitem(sys.modules, new, module)
    assert find(seam) == "0.33's"
    monkeypatch.delitem(sys.modules, new)
    assert find(seam) is getattr(importlib.import_module(old), seam.name)


def test_a_parser_of_another_shape_stops_the_start(monkeypatch):
    from leanmoe.errors import RuntimeSeamError
    from leanmoe_server import vllm_engine

    old = importlib.import_module(MAKE_ARG_PARSER.modules[1])
    monkeypatch.setattr(old, "make_arg_parser", lambda arguments: arguments)
    with pytest.raises(RuntimeSeamError, match=r"make_arg_parser takes \(arguments\), expected"):
        vllm_engine.serve("model", [], None, None)
    assert seams.AT_START[0] is MAKE_ARG_PARSER
