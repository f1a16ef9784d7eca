"""``leanmoe``: one line per subcommand; each imports its part only when it runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

from leanmoe.command import Command, run_command
from leanmoe.extras import missing_package

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
    "loadtest": ("leanmoe_loadtest.command", "load a running server with Locust"),
    "bench": ("leanmoe_bench.command", "side by side with stock vLLM in one run"),
}


def usage() -> str:
    """The text of ``leanmoe --help``."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {line}" for name, (_, line) in COMMANDS.items()]
    return "\n".join(
        ["usage: leanmoe COMMAND [options]", "", *lines, "", "leanmoe COMMAND --help says more."]
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage(), file=sys.stdout if arguments else sys.stderr)
        return 0 if arguments else 2
    name, *rest = arguments
    if name == "--version":
        from leanmoe import __version__

        print(f"leanmoe {__version__}")
        return 0
    if name not in COMMANDS:
        print(
            f"leanmoe: no command {name!r}; expected one of {', '.join(COMMANDS)}", file=sys.stderr
        )
        return 2
    try:
        command: Command = import_module(COMMANDS[name][0]).COMMAND
        return run_command(command, rest)
    except ModuleNotFoundError as error:
        if (missing := missing_package(name, error)) is None:
            raise
        print(missing, file=sys.stderr)
        return missing.exit_code
    except KeyboardInterrupt:
        print(f"leanmoe {name}: interrupted before it began", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
