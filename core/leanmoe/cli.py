"""``leanmoe``: one line per subcommand; each imports its part only when it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress

from leanmoe import __version__
from leanmoe.dispatch import Group
from leanmoe.process.interrupts import interrupt_from_the_start
from leanmoe.process.streams import open_closed_streams

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("leanmoe_demo.command", "the whole main job on the embedded model"),
    "reference": ("leanmoe_reference.command", "write the embedded reference MoE"),
    "plan": (
        "leanmoe_pruning.commands.plan",
        "what each method and budget would take and leave, from headers alone",
    ),
    "score": ("leanmoe_pruning.commands.score", "one pass over data: statistics for every method"),
    "prune": ("leanmoe_pruning.commands.prune", "cut experts and write a lean checkpoint"),
    "distill": (
        "leanmoe_pruning.commands.distill",
        "train a pruned model towards the one it came from",
    ),
    "pack": ("leanmoe_pruning.commands.pack", "store a weight-sparse model without its zeros"),
    "unpack": ("leanmoe_pruning.commands.unpack", "write a packed model dense again"),
    "curve": ("leanmoe_pruning.commands.curve", "measure betas and the quality of each level"),
    "eval": (
        "leanmoe_pruning.commands.evaluate",
        "perplexity per domain, alone or beside another",
    ),
    "report": (
        "leanmoe_pruning.commands.report",
        "a lean checkpoint's model card, and a page of what was measured",
    ),
    "serve": ("leanmoe_server.command", "serve a model behind the OpenAI API"),
    "key": ("leanmoe_server.keys.key_command", "make keys for a server's users and administrators"),
    "fleet": ("leanmoe_server.fleet.command", "one level for several servers"),
    "loadtest": ("leanmoe_loadtest.command", "load a running server with Locust"),
    "bench": ("leanmoe_bench.command", "side by side with stock vLLM in one run"),
}
LEANMOE = Group(name="", table=COMMANDS)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; return its exit code."""
    if argv is None:
        interrupt_from_the_start()
        open_closed_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(arguments)
    except OSError as error:  # of a help text or a version
        _let_go_of_stdout()
        with suppress(OSError):
            print(f"leanmoe: it could not be printed: {error.strerror}", file=sys.stderr)
        return 1


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["--version"]:
        print(f"leanmoe {__version__}", flush=True)
        return 0
    try:
        return LEANMOE.main(arguments)
    finally:
        sys.stdout.flush()


def _let_go_of_stdout() -> None:
    """Else the interpreter would try to print again as it ends, and say so in its own way."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    raise SystemExit(main())
