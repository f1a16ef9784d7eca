"""``leanmoe bench``: the table of benches; each imports what it measures only when it runs."""

from __future__ import annotations

from leanmoe.dispatch import Group

BENCHES: dict[str, tuple[str, str]] = {
    "serve": ("leanmoe_bench.serve.command", "tokens per second beside stock vLLM"),
    "kernel": ("leanmoe_bench.kernel.command", "ways of leaving assignments out on a CPU"),
    "soak": ("leanmoe_bench.soak.command", "many mixed requests, every counter against a recount"),
    "hostile": ("leanmoe_bench.hostile.command", "a running server under requests that mean harm"),
    "overload": (
        "leanmoe_bench.overload.command",
        "a server past its capacity, beside idle connections, behind nginx",
    ),
    "governor": (
        "leanmoe_bench.governor.command",
        "answers within their goals under overload, governed beside a fixed level 0",
    ),
    "drafts": ("leanmoe_bench.drafts", "how many drafted tokens are accepted at which beta"),
    "http": ("leanmoe_bench.http", "what our layer over vLLM's own server costs"),
    "memory": ("leanmoe_bench.memory", "resident memory over time, beside stock vLLM"),
    "offline": (
        "leanmoe_bench.offline.command",
        "how fast experts are chosen, and within which memory they are scored",
    ),
    "goldens": (
        "leanmoe_bench.goldens.command",
        "what methods decide against the published code's numbers",
    ),
    "methods": ("leanmoe_bench.methods.command", "every pruning method on the reference model"),
    "cuts": (
        "leanmoe_bench.cuts.command",
        "cuts whose layers are chosen together, beside cuts by chance",
    ),
    "skip-rules": (
        "leanmoe_bench.skip_rules",
        "three ways to choose what is skipped, at equal skip rates on the reference model",
    ),
    "patterns": (
        "leanmoe_bench.patterns.command",
        "what patterns of weight sparsity cost on the reference model",
    ),
    "same-tokens": (
        "leanmoe_bench.same_tokens",
        "whether packed experts continue as the dense model does",
    ),
    "load": ("leanmoe_bench.load.command", "whether the load test's figures are true"),
    "tools": ("leanmoe_bench.tools.command", "whether other load generators see the same"),
    "tune": (
        "leanmoe_bench.tune.command",
        "which tiles of the experts kernel are the fastest for a model on this card",
    ),
}

COMMAND = Group(
    name="bench",
    table=BENCHES,
    help="Measure LeanMoE beside stock vLLM: same flags, interleaved, ratios with spread.",
    example="leanmoe bench serve --shape M --case median --measure decode_b1 --json",
)
