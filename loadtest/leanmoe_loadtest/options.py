"""The command line's options of a load; the same names, without dashes, are a profile's keys."""

from __future__ import annotations

import argparse
from typing import Any
from urllib.parse import urlsplit

from leanmoe.errors import InputError
from leanmoe_loadtest.locust_process import Address, Crew
from leanmoe_loadtest.settings import Settings, profile_names, resolve

_PORT = 5557


def add_load_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that settings have too are absent from the namespace unless they were given."""
    parser.add_argument("--profile", metavar="NAME|FILE", help=f"{', '.join(profile_names())}")
    _add_shape(parser.add_argument_group("when to send"))
    _add_content(parser.add_argument_group("what to send"))
    _add_crew(parser.add_argument_group("who sends"))


def _add_shape(group: argparse._ArgumentGroup) -> None:
    _setting(group, "--users", int, "closed loop: requests under way at a time (default 4)")
    _setting(group, "--arrivals", str, "open loop: constant:R poisson:R ramp:A-B step:A,B,… "
             "burst:N/SECONDS trace:FILE", "KIND:…")  # fmt: skip
    _setting(group, "--rate", float, "open loop: short for --arrivals poisson:RATE")
    _setting(group, "--duration", float, "seconds to send requests for (default 30)")
    _setting(group, "--max-requests", int, "send at most this many")
    _setting(group, "--max-concurrency", int, "open loop: requests under way at most (1000)")
    _setting(group, "--request-seconds", float, "limit per request (default 120)")
    _setting(group, "--trace-unit", str, "unit of a trace's times: s (default) or ms")
    _setting(group, "--trace-speed", float, "replay a trace this many times as fast")


def _add_content(group: argparse._ArgumentGroup) -> None:
    _setting(group, "--endpoint", str, "chat (default) or completions")
    _setting(group, "--model", str, "model name (default: the first the server lists)")
    _setting(group, "--prompts", str, "builtin (default), synthetic, a ShareGPT-like .json file or "
             "a .jsonl file", "SOURCE")  # fmt: skip
    _setting(group, "--input-tokens", str, "length of synthetic prompts: N uniform:A,B "
             "normal:MEAN,SD lognormal:MEDIAN,SIGMA", "LENGTHS")  # fmt: skip
    _setting(group, "--output-tokens", str, "longest answer, drawn per request, as above",
             "LENGTHS")  # fmt: skip
    _setting(group, "--max-tokens", int, "longest answer, in tokens (default 64)")
    _flag(group, "--ignore-eos", "answers of exactly the longest length (vLLM servers)")
    _setting(group, "--levels", str, "mix of skip levels, such as off:1,0.4:2,server:1", "MIX")
    _flag(group, "--keep-text", "keep the answers in the run folder")


def _add_crew(group: argparse._ArgumentGroup) -> None:
    _setting(group, "--processes", int, "Locust workers on this machine (default 1)")
    group.add_argument("--master", metavar="HOST[:PORT]", help="listen here for workers")
    group.add_argument("--expect-workers", type=int, metavar="N", help="workers of --master")
    group.add_argument(
        "--worker", metavar="HOST[:PORT]", help="send for the master there; takes no other option"
    )


def _setting(
    group: argparse._ArgumentGroup, name: str, kind: type, text: str, metavar: str | None = None
) -> None:
    metavar = metavar or {int: "N", float: "X"}.get(kind)
    group.add_argument(name, type=kind, help=text, metavar=metavar, default=argparse.SUPPRESS)


def _flag(group: argparse._ArgumentGroup, name: str, text: str) -> None:
    action = argparse.BooleanOptionalAction
    group.add_argument(name, action=action, help=text, default=argparse.SUPPRESS)


def given_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that the command line names."""
    return {key: value for key, value in vars(args).items() if key in Settings.model_fields}


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings in effect: the profile's, and over them the command line's."""
    return resolve(args.profile, given_settings(args))


def crew_of(args: argparse.Namespace, settings: Settings) -> Crew:
    """Who sends."""
    if (args.master is None) != (args.expect_workers is None):
        raise InputError("--master and --expect-workers go together; give both or none")
    if args.master is None:
        return Crew(processes=settings.processes)
    if not 1 <= args.expect_workers <= 1000:
        raise InputError(f"--expect-workers is {args.expect_workers}, expected from 1 to 1000")
    if "processes" in given_settings(args):
        raise InputError("--processes starts workers here, --master waits for others; give one")
    return Crew(master=address(args.master, "--master"), workers=args.expect_workers)


def address(text: str, where: str) -> Address:
    """``HOST``, ``HOST:PORT`` or ``[IPV6]:PORT``."""
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port or _PORT
    except ValueError:
        host, port = None, _PORT
    if not host or parts.netloc != text or "@" in text:
        raise InputError(f"{where} is {text!r}, expected HOST or HOST:PORT")
    return Address(host, port)
