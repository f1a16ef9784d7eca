"""Dataclasses of options: the arguments they make, the objects they read."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from leanmoe.errors import InputError
from leanmoe_pruning.commands import curve, distill, evaluate, plan, prune, report, score
from leanmoe_pruning.methods.registry import METHODS
from leanmoe_pruning.options import (
    add_options,
    argument,
    checked,
    option,
    own_options,
    read_options,
)

COMMANDS = (curve, distill, evaluate, plan, prune, report, score)


@dataclass(frozen=True, kw_only=True)
class Sample:
    model: Path = argument("what is read", metavar="MODEL")
    out: Path = option("what is written", short="-o", required=True)
    count: int = option("a number", default=3, within=(1, 9))
    share: float | None = option("a share")
    kind: Literal["a", "b"] | None = option("one of two", choices=("a", "b"))
    names: tuple[str, ...] = option("several", default=(), nargs="+")
    dry_run: bool = option("do nothing", default=False)
    seed: int = 0


def read(*words: str) -> Sample:
    parser = argparse.ArgumentParser()
    add_options(Sample, parser)
    parser.add_argument("--seed", type=int, default=7)
    return read_options(Sample, parser.parse_args(words))


def test_an_object_has_what_the_command_line_says():
    found = read("m", "-o", "x", "--share", "0.5", "--kind", "b", "--names", "a", "b", "--dry-run")
    assert found == Sample(
        model=Path("m"), out=Path("x"), share=0.5, kind="b", names=("a", "b"), dry_run=True, seed=7
    )


def test_what_is_not_given_is_what_the_field_says():
    found = read("m", "--out", "x")
    assert found == Sample(model=Path("m"), out=Path("x"), seed=7)


@pytest.mark.parametrize("words", [("m",), ("-o", "x"), ("m", "-o", "x", "--kind", "c")])
def test_the_parser_refuses_what_is_missing_or_no_choice(words):
    with pytest.raises(SystemExit):
        read(*words)


@pytest.mark.parametrize("count", [0, 10])
def test_a_number_out_of_its_range_is_refused(count):
    with pytest.raises(InputError, match=f"--count is {count}, expected a number from 1 to 9"):
        read("m", "-o", "x", "--count", str(count))


def test_a_seed_from_python_is_held_to_the_same_range():
    with pytest.raises(InputError, match="--seed is -1, expected a number from 0 to 2147483647"):
        checked(Sample(model=Path("m"), out=Path("x"), seed=-1))


@pytest.mark.parametrize("name", ["count", "share", "seed"])
def test_true_from_python_is_no_number(name):
    with pytest.raises(InputError, match=f"--{name} is True, expected a number"):
        checked(Sample(**{"model": Path("m"), "out": Path("x"), name: True}))


def test_an_address_is_no_path():
    """A Path writes its two slashes as one, and an output made a folder of them."""
    for words, name in (
        (("https://hub/a", "-o", "x"), "MODEL is https://hub/a, an address"),
        (("m", "-o", "s3://bucket/x"), "--out is s3://bucket/x, an address"),
    ):
        with pytest.raises(InputError, match=f"{name}, expected a path: download it first"):
            read(*words)


def test_a_folder_called_like_an_address_is_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data:/x").mkdir(parents=True)
    assert read("data:/x", "-o", "y").model == Path("data:/x")


def test_no_two_methods_differ_in_what_an_option_is_where_it_is_not_given():
    defaults = {}
    for method in METHODS.values():
        for name, default in own_options(method.options).items():
            assert defaults.setdefault(name, default) == default, name


def test_no_command_passes_on_what_argparse_made():
    """But ``prune``, whose second half of options is the method's."""
    for module in COMMANDS:
        takes = [name for name, value in vars(module).items() if name == "argparse"]
        assert bool(takes) == (module is prune), module.__name__
