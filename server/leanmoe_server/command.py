"""``leanmoe serve``: check what can be checked, then hand over to vLLM's OpenAI server."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from leanmoe.checkpoint import open_checkpoint
from leanmoe.command import Command, Result, parser_of
from leanmoe.engine_versions import installed_vllm, version_problem
from leanmoe.errors import InputError, LeanMoEError
from leanmoe.messages import Phases, UnionMode
from leanmoe.process.environment import engine_environment
from leanmoe.process.interrupts import hold_signals, stop_on_signals
from leanmoe.skip_rule import SkipRule
from leanmoe_server.governor.aims import add_governor_arguments
from leanmoe_server.log_lines import FORMATS, logging_as
from leanmoe_server.preflight import check_and_configure
from leanmoe_server.settings import CLIENT_SECONDS, MAX_BODY_MIB, MAX_WAITING
from leanmoe_server.shadow.terms import add_shadow_arguments
from leanmoe_server.table_folder import read_sources

_REPLACED = "LEANMOE_SERVE_REPLACED"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="model directory; comes first")
    _add_level(parser)
    _add_budget(parser)
    _add_access(parser)
    _add_running(parser)
    _add_limits(parser)
    add_governor_arguments(parser)
    add_shadow_arguments(parser)


def _add_level(parser: argparse.ArgumentParser) -> None:
    level = parser.add_mutually_exclusive_group()
    level.add_argument("--skip-level", type=float, help="0 exact (default) to 1 top-1 only")
    level.add_argument(
        "--max-kld", type=float, help="highest level whose measured KLD bound stays under this"
    )
    parser.add_argument(
        "--max-skip-level", type=float, default=1.0, help="no level above this, for anybody"
    )
    parser.add_argument(
        "--skip-rule",
        choices=[rule.value for rule in SkipRule],
        help="one rule at every level (default: the one that the quality curve names at each)",
    )
    parser.add_argument(
        "--phases",
        choices=[phase.value for phase in Phases],
        default=Phases.ALL.value,
        help="all (default), or decode: prompt tokens keep all their experts",
    )


def _add_budget(parser: argparse.ArgumentParser) -> None:
    union = parser.add_mutually_exclusive_group()
    union.add_argument(
        "--union-budget",
        type=int,
        metavar="N",
        help="most distinct experts per step and layer; on a GPU no smaller one can be set later",
    )
    union.add_argument(
        "--deterministic",
        action="store_true",
        help="never a union budget: it lets requests that run together change each other's answers",
    )
    parser.add_argument(
        "--union-mode",
        choices=[mode.value for mode in UnionMode],
        help="what becomes of assignments past the budget: vanish (default), or redirect to the "
        "best expert that is read anyway",
    )


def _add_access(parser: argparse.ArgumentParser) -> None:
    """Where it listens, and who may ask for what."""
    parser.add_argument("--host", help="address to listen on (vLLM's default: all)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on")
    parser.add_argument("--admin-key-file", help="file with the key that may change the level")
    parser.add_argument(
        "--keys", metavar="FILE", help="users and administrators, made with `leanmoe key new`"
    )
    parser.add_argument(
        "--share-prefix-cache",
        action="store_true",
        help="let the holders of different keys read each other's cached prompts (faster; how "
        "long an answer takes then tells what others asked)",
    )


def _add_running(parser: argparse.ArgumentParser) -> None:
    """What it reads and writes while it runs."""
    parser.add_argument(
        "--tuned-table",
        action="append",
        type=Path,
        default=[],
        metavar="FILE",
        help="tuned tiles for this card and shape, named as vLLM names its tables; may be repeated",
    )
    parser.add_argument(
        "--audit-file",
        type=Path,
        metavar="FILE",
        help="append every change of the policy here, a JSON object a line (default: memory only)",
    )
    parser.add_argument(
        "--log-format",
        choices=FORMATS,
        default=FORMATS[0],
        help="text (default), or json: an object a line, with the request's id",
    )
    parser.add_argument("--skip-verify", action="store_true", help="do not hash the model's files")
    parser.add_argument("--poll-seconds", type=float, default=5.0, help="between two readings")


def _add_limits(parser: argparse.ArgumentParser) -> None:
    """How many requests, how large, and how long anything may take."""
    parser.add_argument(
        "--max-waiting",
        type=int,
        default=MAX_WAITING,
        metavar="N",
        help="requests that may wait beside those that run; more are refused with 503",
    )
    parser.add_argument(
        "--max-body-mib",
        type=int,
        default=MAX_BODY_MIB,
        metavar="N",
        help="longest body of a request; all under way together hold 16 times as much at most",
    )
    parser.add_argument(
        "--client-seconds",
        type=float,
        default=CLIENT_SECONDS,
        help="for a request to arrive whole, and for a client to read on; then it is cut off",
    )
    parser.add_argument(
        "--keep-alive-seconds",
        type=float,
        help="an idle connection stays open (90, or VLLM_HTTP_TIMEOUT_KEEP_ALIVE); more than a "
        "proxy in front keeps one it reuses",
    )
    parser.add_argument(
        "--drain-seconds", type=float, default=30.0, help="for answers to finish on SIGTERM"
    )


def _enter_engine_environment() -> None:
    """Replace this process once by one whose preloads and plugins are the engine's."""
    wanted = engine_environment()
    if all(os.environ.get(name) == value for name, value in wanted.items()):
        return
    if _REPLACED in os.environ or sys.argv[1:2] != [COMMAND.name]:
        raise LeanMoEError(
            "the engine's environment could not be set up: run `leanmoe serve` as a command"
        )
    # -P: what lies in the working directory is not to be imported.
    arguments = [sys.executable, "-P", "-m", "leanmoe.cli", *sys.argv[1:]]
    sys.stdout.flush()
    hold_signals()
    os.execve(sys.executable, arguments, {**wanted, _REPLACED: "1"})


def _vllm_arguments(args: argparse.Namespace) -> list[str]:
    host = [] if args.host is None else ["--host", args.host]
    return [
        *("--model", args.model, "--port", str(args.port), "--seed", str(args.seed)),
        *host,
        *args.rest,
    ]


def _run(args: argparse.Namespace) -> Result:
    if (problem := version_problem(installed_vllm())) is not None:
        raise InputError(problem)
    _enter_engine_environment()
    with stop_on_signals():
        return _checked_and_served(args)


def _own_options() -> set[str]:
    actions = parser_of(COMMAND)._actions
    return {option for action in actions for option in action.option_strings}


def _checked_and_served(args: argparse.Namespace) -> Result:
    # With vLLM comes what reads such files.
    from leanmoe_server.config_file import check_config_files

    check_config_files(args.rest, _own_options())
    settings = check_and_configure(args)
    tables = read_sources(open_checkpoint(Path(args.model)), args.tuned_table)
    with logging_as(args.log_format, os.environ):
        from leanmoe_server.vllm_engine import serve

        serve(args.model, _vllm_arguments(args), settings, tables)
    return {"stopped": True}


COMMAND = Command(
    name="serve",
    help="Serve a model behind the OpenAI API with live skip levels. Arguments that are not "
    "listed here go to vLLM.",
    example="leanmoe serve ./lean --max-kld 0.05 --port 8000 --max-model-len 4096",
    add_arguments=_add_arguments,
    run=_run,
    passes_through=True,
)
