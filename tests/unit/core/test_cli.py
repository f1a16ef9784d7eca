"""Every subcommand explains itself; an unknown one is refused with the known ones."""

import subprocess
import sys

import pytest

from leanmoe.cli import COMMANDS, LEANMOE, main
from leanmoe.dispatch import Group
from leanmoe_bench.command import BENCHES
from tests.tiny import write_tiny_mixtral

EVERY = list(LEANMOE.every())
GROUPS = [one for one in EVERY if isinstance(one, Group)]
# Every command that has arguments.
ALONE = [one.name for one in EVERY if not isinstance(one, Group)]


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


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_a_group_lists_its_commands(group, capsys):
    assert main([group.name, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: leanmoe {group.name} COMMAND") and "example:" in text
    assert all(f"  {name} " in text for name in group.table)


@pytest.mark.parametrize("arguments", [["bench"], ["bench", "serv"], ["bench", "--shape", "M"]])
def test_a_group_without_a_command_of_its_own_is_refused(arguments, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and all(name in captured.err for name in BENCHES)


@pytest.mark.parametrize("words", ALONE)
def test_every_command_has_help_with_an_example_and_the_common_options(words, capsys):
    assert main([*words.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert "example:" in text and f"leanmoe {words}" in text
    assert "--json" in text and "--seed" in text


@pytest.mark.parametrize("seed", ["-1", "2147483648", "9" * 30])
def test_a_seed_that_generators_do_not_take_is_refused(seed, tmp_path, capsys):
    """They said so in words of their own, or overflowed, once the work had come to them."""
    assert main(["plan", str(tmp_path), f"--seed={seed}"]) == 2
    said = f"leanmoe plan: --seed is {seed}, expected a number from 0 to 2147483647\n"
    assert capsys.readouterr().err == said


def test_every_command_is_called_what_the_command_line_calls_it():
    assert [LEANMOE.load(name).name for name in COMMANDS] == list(COMMANDS)
    for group in GROUPS:
        names = [group.load(name).name for name in group.table]
        assert names == [f"{group.name} {name}" for name in group.table]


def test_the_core_imports_neither_torch_nor_an_engine():
    code = (
        "import sys, leanmoe.cli, leanmoe.checkpoint, leanmoe.messages\n"
        "import leanmoe.process.environment\n"
        "print([m for m in ('torch', 'vllm', 'transformers', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_cut_that_solves_nothing_imports_no_solver(tmp_path):
    model, out = write_tiny_mixtral(tmp_path / "model", layers=1), tmp_path / "out"
    code = (
        "import sys; from leanmoe.cli import main; assert main(sys.argv[1:]) == 0; "
        "print(any(name.partition('.')[0] == 'scipy' for name in sys.modules))"
    )
    words = ["prune", str(model), "--method", "random", "--keep", "6", "-o", str(out)]
    run = [sys.executable, "-c", code, *words]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
