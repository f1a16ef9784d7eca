"""Judges ``leanmoe ...`` lines by the real parsers, without running anything."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator, Sequence

from leanmoe.cli import LEANMOE
from leanmoe.command import Command, parser_of
from leanmoe.dispatch import Group

_PLACEHOLDER = re.compile(r"[A-Z][A-Z0-9_:]*|…|\.\.\.")
_MORE = ("…", "...")
_OF_GROUPS = ("COMMAND", "--help", "--version", "…")
_ENDS = set("|&;<>()")
_ASSIGNMENT = re.compile(r"[A-Z_][A-Z0-9_]*=")
_SAMPLES = {int: "1", float: "0.5"}


class RefusedError(Exception):
    """What is wrong with a line."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise RefusedError(message)


def command_lines(text: str) -> Iterator[list[str]]:
    """The arguments of each ``leanmoe`` in shell text, redirections and pipes cut off."""
    for line in text.replace("\\\n", " ").splitlines():
        for words in _simple_commands(line.strip().removeprefix("$ ")):
            while words and _ASSIGNMENT.match(words[0]):
                words = words[1:]
            if words[:1] == ["leanmoe"]:
                yield words[1:]


def _simple_commands(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    words: list[str] = []
    try:
        for word in lexer:
            if set(word) <= _ENDS:
                yield words
                words = []
            else:
                words.append(word)
    except ValueError:  # an open quote: part of a script of another language
        if words[:1] == ["leanmoe"]:
            raise
        return
    yield words


def check(words: Sequence[str], *, whole: bool) -> None:
    """Raise ``RefusedError`` unless the command takes this.

    ``whole``: a line to type, nothing missing. Otherwise a mention: what is there must be right.
    Words in capitals stand for any value.
    """
    command, words = _found(words)
    if command is None:
        return
    parser = parser_of(command)
    parser.__class__ = _Parser
    given = list(_filled(words, parser))
    if not whole:
        _ask_nothing(parser)
        if command.passes_through and given and given[0].startswith("-"):
            # Else the first value of an engine's option would be taken for the model.
            given.insert(0, "model")
    rest = parser.parse_known_args(given)[1]
    if command.passes_through:
        _check_engine_arguments(rest)
    elif rest:
        raise RefusedError(f"unknown: {' '.join(rest)}")


def _found(words: Sequence[str]) -> tuple[Command | None, Sequence[str]]:
    """The command that the first words name, and the other words; none for a group's own help."""
    found: Command | Group = LEANMOE
    while isinstance(found, Group):
        if not words or words[0] in _OF_GROUPS:
            return None, ()
        if words[0] not in found.table:
            raise RefusedError(f"{found.called}: no command {words[0]!r}")
        found, words = found.load(words[0]), words[1:]
    return found, words


def _ask_nothing(parser: argparse.ArgumentParser) -> None:
    for action in parser._actions:
        action.required = False
        if action.nargs is None:
            action.nargs = "?"
    for group in parser._mutually_exclusive_groups:
        group.required = False


def _filled(words: Sequence[str], parser: argparse.ArgumentParser) -> Iterator[str]:
    """The words, placeholders replaced by values that their option takes."""
    before = ""
    for word in words:
        if word in ("-h", "--help"):
            return
        action = parser._option_string_actions.get(before)
        if _PLACEHOLDER.fullmatch(word) and before.startswith("-"):
            # An option that is not ours is the engine's; a switch takes no value.
            if action is None or action.nargs != 0:
                yield _sample(action)
        elif word not in _MORE:
            yield word
        before = word


def _sample(action: argparse.Action | None) -> str:
    if action is None:
        return "1"
    if action.choices:
        return str(next(iter(action.choices)))
    return _SAMPLES.get(action.type, "1")


def _check_engine_arguments(rest: Sequence[str]) -> None:
    """Raise unless vLLM's own parser takes them."""
    from leanmoe.errors import InputError
    from leanmoe_server.vllm_engine import parse_vllm_arguments

    try:
        parse_vllm_arguments(["--model", "model", *rest])
    except InputError as error:
        raise RefusedError(str(error)) from None
