"""Every subcommand explains itself; an unknown one is refused with the known ones."""

import subprocess
import sys
from importlib import import_module

import pytest

from leanmoe.cli import COMMANDS, main


def test_no_command_prints_the_usage_and_fails(capsys):
    assert main([]) == 2
    error = capsys.readouterr().err
    assert all(name in error for name in COMMANDS)


def test_an_unknown_command_names_the_known_ones(capsys):
    assert main(["prunee"]) == 2
    error = capsys.readouterr().err
    assert "'prunee'" in error and "prune" in error


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("leanmoe 0.")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_and_the_common_options(name, capsys):
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "example:" in text and f"leanmoe {name}" in text
    assert "--json" in text and "--seed" in text


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_called_what_the_command_line_calls_it(name):
    assert import_module(COMMANDS[name][0]).COMMAND.name == name


def test_the_core_imports_neither_torch_nor_an_engine():
    code = (
        "import sys, leanmoe.cli, leanmoe.checkpoint, leanmoe.messages\n"
        "import leanmoe.process.environment\n"
        "print([m for m in ('torch', 'vllm', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
