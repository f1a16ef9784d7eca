"""What every ``leanmoe`` subcommand shares: arguments, output, errors, exit codes.

A subcommand is a module with a ``COMMAND``: its parser and its ``run``, which
returns the one object that ``--json`` prints. Logs and progress go to stderr.
"""

from __future__ import annotations

import argparse
import errno
import json
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from leanmoe.errors import CheckError, InputError, LeanMoEError, OutputError
from leanmoe.extras import install_problem
from leanmoe.process.interrupts import forget_interrupts, interrupt_requested

Result = dict[str, Any]
# Generators of 64 bits count parts of the work above those of the seed.
MOST_SEED = (1 << 31) - 1
# What a machine answers where a command is not at fault: no room, no right, no such place.
_REFUSED = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO),
    *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EMFILE),
)


@dataclass(frozen=True)
class Command:
    """One subcommand: how it is described, parsed, run and shown to a person."""

    name: str
    help: str
    example: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], Result]
    show: Callable[[Result], str] | None = None
    passes_through: bool = False  # unknown arguments land in ``args.rest``


def parser_of(command: Command) -> argparse.ArgumentParser:
    """The argparse parser behind a subcommand, its help and example included."""
    parser = argparse.ArgumentParser(
        prog=f"leanmoe {command.name}",
        description=command.help,
        epilog=f"example:\n  {command.example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    parser.add_argument("--seed", type=int, default=0, help="seed of every random choice")
    parser.add_argument("-v", "--verbose", action="store_true", help="log more on stderr")
    return parser


def check_seed(seed: int) -> None:
    """Raise ``InputError`` unless every generator takes it."""
    if not 0 <= seed <= MOST_SEED:
        raise InputError(f"--seed is {seed}, expected a number from 0 to {MOST_SEED}")


def parse(command: Command, argv: Sequence[str]) -> argparse.Namespace:
    """The arguments of a subcommand; argparse ends the process where they are wrong."""
    parser = parser_of(command)
    if not command.passes_through:
        return parser.parse_args(argv)
    args, rest = parser.parse_known_args(argv)
    args.rest = rest
    return args


def run_command(command: Command, argv: Sequence[str]) -> int:
    """Parse, run and print; the exit code is 0 done, 1 failed, 2 bad input, 130 interrupted."""
    forget_interrupts()
    args = parse(command, argv)
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    try:
        _run_and_print(command, args)
    except LeanMoEError as error:
        _say(f"leanmoe {command.name}: {error}")
        return error.exit_code
    except KeyboardInterrupt as stop:
        return _interrupted(command, str(stop))
    except Exception as error:
        if interrupt_requested():
            return _interrupted(command)
        if isinstance(error, OSError) and error.errno in _REFUSED:
            _say(f"leanmoe {command.name}: {_refusal(error)}")
            return 1
        if args.verbose or install_problem(command.name, error):
            raise
        _say(
            f"leanmoe {command.name}: unexpected {type(error).__name__}: {error}; this is a fault "
            "of LeanMoE: run it again with --verbose and report what it prints"
        )
        return 1
    return 0


def _run_and_print(command: Command, args: argparse.Namespace) -> None:
    check_seed(args.seed)
    try:
        result = command.run(args)
    except CheckError as error:
        _print(command, args.json, error.result)
        raise
    _print(command, args.json, result)


def _print(command: Command, as_json: bool, result: Result) -> None:
    if as_json:
        text = json.dumps(result, ensure_ascii=False)
    elif command.show is not None:
        text = command.show(result)
    else:
        return
    try:
        print(text, flush=True)
    except OSError as error:
        raise OutputError(f"the result could not be printed: {error.strerror}") from error


def _refusal(error: OSError) -> str:
    place = f"could not use {error.filename}" if error.filename else "a file could not be used"
    return f"{place}: {error.strerror}; make room or give another place, and run it again"


def _say(text: str) -> None:
    """On stderr, where that takes it: with a full disk behind it the exit code must do."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _interrupted(command: Command, left: str = "") -> int:
    left = left or "nothing half-written is left"
    _say(f"leanmoe {command.name}: interrupted; {left}")
    return 130
