"""``leanmoe bench drafts``: how many n-gram drafts the model accepts at which level of skipping."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from leanmoe.command import Command, Result
from leanmoe_bench import options
from leanmoe_bench.engines.control import Control
from leanmoe_bench.engines.pair import WITH_PLUGIN, RemoteArm
from leanmoe_bench.machine import environment
from leanmoe_bench.reference import reference_model

BETAS = (0.0, 0.5, 1.0)
_TOKENS = 96
_NGRAM = {
    "method": "ngram",
    "num_speculative_tokens": 3,
    "prompt_lookup_max": 3,
    "prompt_lookup_min": 2,
}
_ENGINE = {
    "max_model_len": 512,
    "max_num_seqs": 8,
    "enforce_eager": True,
    "kv_cache_memory_bytes": 500_000_000,
    "speculative_config": _NGRAM,
    **WITH_PLUGIN,
}
_COUNTERS = ("vllm:spec_decode_num_draft_tokens", "vllm:spec_decode_num_accepted_tokens")
# Texts that come back to their own words, as code and tables do.
_TEXTS = (
    "for (i = 0; i < n; i++) {\n    a[i] = b[i];\n}\nfor (i = 0; i < n; i++) {\n    c[i] =",
    "int add(int a, int b) { return a + b; }\nint sub(int a, int b) { return a - b; }\nint mul(",
    "name: one\nvalue: 1\n\nname: two\nvalue: 2\n\nname: three\nvalue: 3\n\nname: four\n",
    "In the beginning God created the heaven and the earth. And the earth was without form",
    "def first(x):\n    return x + 1\n\n\ndef second(x):\n    return x + 2\n\n\ndef third(",
    "the cat sat on the mat, the dog sat on the mat, the bird sat on the",
)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_work(parser, "keep the reference model here")


def _run(args: argparse.Namespace) -> Result:
    with options.work_folder(args.work) as work:
        return {"environment": environment(), "drafts": _measure(work, args.seed)}


def _measure(work: Path, seed: int) -> list[dict[str, Any]]:
    """Drafted and accepted tokens of the same prompts, greedy, at each beta."""
    model = reference_model(work)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    prompts = [tokenizer.encode(text).ids for text in _TEXTS]
    arm = RemoteArm("ours", plugin=True, log=work / "drafts.log")
    try:
        arm.call("start", model=str(model), engine=_ENGINE, vocabulary=1000, seed=seed)
        control = Control(arm)
        return [_row(arm, control, prompts, beta) for beta in BETAS]
    finally:
        arm.close()


def _row(arm: RemoteArm, control: Control, prompts: list[list[int]], beta: float) -> dict[str, Any]:
    control.set_policy(dict.fromkeys(control.layers, beta))
    before = arm.call("counters", names=_COUNTERS)["values"]
    arm.call("generate", prompts=prompts, tokens=_TOKENS)
    after = arm.call("counters", names=_COUNTERS)["values"]
    drafted, accepted = (new - old for new, old in zip(after, before, strict=True))
    return {
        "beta": beta,
        "drafted": drafted,
        "accepted": accepted,
        "acceptance": round(accepted / drafted, 4) if drafted else None,
    }


def _show(result: Result) -> str:
    return "\n".join(
        f"beta {row['beta']:.2f}: {row['accepted']:.0f} of {row['drafted']:.0f} drafted tokens "
        f"accepted ({row['acceptance'] or 0.0:.1%})"
        for row in result["drafts"]
    )


COMMAND = Command(
    name="bench drafts",
    help="How many n-gram drafts the reference model accepts at which beta.",
    example="leanmoe bench drafts --json",
    add_arguments=_add_arguments,
    run=_run,
    show=_show,
)
