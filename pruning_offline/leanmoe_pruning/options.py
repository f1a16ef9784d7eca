"""Command-line options as the fields of a frozen dataclass: what is read below the command line.

A field says its type, its default, its help, what it may be; ``add_options`` makes arguments of
the fields and ``read_options`` makes the object. A plain field, one without ``option`` or
``argument``, reads an option that somebody else added: ``--seed``, which every command has, or
another method's.

argparse stays underneath. The parsers of all of ``leanmoe`` are argparse's (``leanmoe.command``),
the reference of the commands is written from them, and what is wrong with an option mostly takes a
model to tell. typer and pydantic-settings would each bring a second way to print help and to
refuse values, and save nothing but the forty lines below.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from leanmoe.command import Command, Result, check_seed
from leanmoe.errors import InputError
from leanmoe.files.address import check_is_path
from leanmoe_pruning.data.spec import DEFAULT_WINDOW, HELP
from leanmoe_pruning.precision import CHOICES

T = TypeVar("T")
_KEY = "argument"


@dataclass(frozen=True)
class NoOptions:
    """Of what takes none."""


@dataclass(frozen=True)
class _Argument:
    """A field on the command line."""

    flags: tuple[str, ...]
    settings: dict[str, Any]
    # The least and the largest number.
    within: tuple[int, int] | None = None


def option(
    help_text: str,
    *,
    default: Any = None,
    short: str | None = None,
    within: tuple[int, int] | None = None,
    required: bool = False,
    **settings: Any,
) -> Any:
    """A field that is ``--its-name``; ``settings`` are argparse's (metavar, choices, action)."""
    if required:
        default, settings = MISSING, {"required": True, **settings}
    found = _Argument(() if short is None else (short,), {"help": help_text, **settings}, within)
    return field(default=default, metadata={_KEY: found})


def argument(help_text: str, *, metavar: str) -> Any:
    """A field that is given by its place."""
    return field(metadata={_KEY: _Argument((), {"help": help_text, "metavar": metavar})})


def add_options(kind: type[Any], parser: argparse._ActionsContainer) -> None:
    """Make an argument of every field that is one."""
    hints = get_type_hints(kind)
    for one in fields(kind):
        if _KEY in one.metadata:
            _add(one, hints[one.name], parser)


def _add(one: Field[Any], hint: Any, parser: argparse._ActionsContainer) -> None:
    found: _Argument = one.metadata[_KEY]
    settings, value = dict(found.settings), _value_type(hint)
    if one.default is not MISSING:
        settings["default"] = one.default
    if value is bool:
        settings.setdefault("action", "store_true")
    elif value is not str:
        settings["type"] = value
    if _has_place(one):
        parser.add_argument(one.name, **settings)
    else:
        parser.add_argument(*found.flags, flag(one.name), **settings)


def _has_place(one: Field[Any]) -> bool:
    """Whether a field is given by its place, without a flag."""
    return one.default is MISSING and not one.metadata[_KEY].settings.get("required")


def _value_type(hint: Any) -> Any:
    """The type of one value of a field: the first where there are several."""
    # `Literal[...] | None` is of typing's kind, `int | None` of the language's.
    if get_origin(hint) in (Union, UnionType):
        hint, *_ = (one for one in get_args(hint) if one is not NoneType)
    if get_origin(hint) is tuple:
        return get_args(hint)[0]
    return str if get_origin(hint) is Literal else hint


def flag(name: str) -> str:
    """A field's name as it is typed."""
    return f"--{name.replace('_', '-')}"


def own_options(kind: type[Any]) -> dict[str, Any]:
    """The names of a class's fields and what they are where nothing was given."""
    return {one.name: one.default for one in fields(kind)}


def adds_options(kind: type[Any]) -> bool:
    """Whether the class has options of its own."""
    return any(_KEY in one.metadata for one in fields(kind))


def read_options(kind: type[T], args: argparse.Namespace) -> T:
    """The object that a command line says; raises ``InputError`` for a number out of its range."""
    values = {}
    for one in fields(kind):  # type: ignore[arg-type]
        value = getattr(args, one.name)
        values[one.name] = tuple(value) if isinstance(value, list) else value
    return checked(kind(**values))


def checked(options: T) -> T:
    """The same options, wherever they came from: paths made of text, numbers in their ranges.

    Raises ``InputError`` for a number out of its range and a word that is no choice.
    """
    hints, values = get_type_hints(type(options)), {}
    for one in fields(options):  # type: ignore[arg-type]
        value = getattr(options, one.name)
        found: _Argument | None = one.metadata.get(_KEY)
        if _value_type(hints[one.name]) is Path and value is not None:
            values[one.name] = _path_or_paths(one, value)
        if _value_type(hints[one.name]) in (int, float):
            _check_no_boolean(one.name, value)
        if one.name == "seed":
            check_seed(value)
        if found is not None and value is not None:
            _check_value(one.name, value, found)
    return replace(options, **values)  # type: ignore[type-var]


def _path_or_paths(one: Field[Any], value: Any) -> Any:
    """What is given for a field of one path, or of several."""
    if isinstance(value, tuple):
        return tuple(_path_or_paths(one, single) for single in value)
    check_is_path(value, one.name.upper() if _has_place(one) else flag(one.name))
    return Path(value)


def _check_no_boolean(name: str, value: Any) -> None:
    """Raise where true or false, which Python counts with, is given for a number or among them."""
    given = value if isinstance(value, tuple) else (value,)
    if any(isinstance(one, bool) for one in given):
        raise InputError(f"{flag(name)} is {value}, expected a number")


def _check_value(name: str, value: Any, found: _Argument) -> None:
    if found.within is not None and not found.within[0] <= value <= found.within[1]:
        least, most = found.within
        raise InputError(f"{flag(name)} is {value}, expected a number from {least} to {most}")
    choices = found.settings.get("choices")
    given = value if isinstance(value, tuple) else (value,)
    if choices is not None and (wrong := [one for one in given if one not in choices]):
        raise InputError(f"{flag(name)} is {wrong[0]!r}, expected one of {', '.join(choices)}")


@dataclass(frozen=True)
class OptionsCommand(Command, Generic[T]):
    """A command that takes its options as an object; ``do`` runs it from Python."""

    work: Callable[[T], Result] = field(kw_only=True)

    def do(self, options: T) -> Result:
        """What the command prints with ``--json``; a ``LeanMoEError`` where it would refuse."""
        return self.work(checked(options))


def command_of(
    options: type[T],
    run: Callable[[T], Result],
    *,
    name: str,
    summary: str,
    example: str,
    show: Callable[[Result], str],
) -> OptionsCommand[T]:
    """A command whose ``run`` takes its options as an object."""
    return OptionsCommand(
        name=name,
        help=summary,
        example=example,
        add_arguments=partial(add_options, options),
        run=lambda args: run(read_options(options, args)),
        show=show,
        work=run,
    )


# What several commands take.


def model_argument() -> Any:
    """``MODEL``."""
    return argument("checkpoint directory", metavar="MODEL")


def data_option(required: bool = True) -> Any:
    """``--data``."""
    return option(HELP, metavar="SPEC", required=required)


def window_option() -> Any:
    """``--window``, beside ``--data``."""
    said = f"length text is cut into (default {DEFAULT_WINDOW})"
    return option(said, default=DEFAULT_WINDOW, metavar="TOKENS")


def compute_option() -> Any:
    """``--compute``."""
    said = (
        "dtype of matrix products (default: float32 for float32 weights and on processors that "
        "multiply no bfloat16, else bfloat16)"
    )
    return option(said, choices=CHOICES)


def out_option(what: str) -> Any:
    """``-o``, ``--out``."""
    return option(what, short="-o", metavar="OUT", required=True)


def force_option() -> Any:
    """``--force``, beside ``--out``."""
    return option("replace OUT if it exists", default=False)
