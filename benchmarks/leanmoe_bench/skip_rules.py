"""``leanmoe bench skip-rules``: the three skip rules at equal skip rates, paired by window.

On the fine-grained reference model, or on a model that is given. Betas and factors come from the
calibration windows, as ``leanmoe curve`` takes them. Held-out text skips a little more or less than
that text: a first pass over one window of each domain says how much, and the levels move by it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from leanmoe.command import Command, Result
from leanmoe.errors import InputError
from leanmoe.skip_rule import SkipRule
from leanmoe_bench import options
from leanmoe_bench.machine import environment
from leanmoe_bench.reference import reference_model
from leanmoe_pruning.checkpoints.opening import open_runnable_model
from leanmoe_pruning.data import load_data
from leanmoe_pruning.evaluation.bounds import WindowMean
from leanmoe_pruning.evaluation.comparison import WindowSums
from leanmoe_pruning.evaluation.levels import Variant, calibrate_and_run
from leanmoe_pruning.forward.routing import Routing
from leanmoe_pruning.forward.stream import DecoderLayer, DecoderStream
from leanmoe_pruning.progress import progress

DOMAINS = ("gen", "fr", "de", "es", "c", "man", "kjv", "math")
RATES = (0.25, 0.40, 0.55)
Levels = dict[tuple[SkipRule, float], float]


class Measured(NamedTuple):
    """A rule near a rate on held-out text."""

    rule: SkipRule
    rate: float
    level: float
    skip_rate: float
    sums: WindowSums


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", type=Path, metavar="DIR", help="model to measure (default: qwen2-moe of ours)"
    )
    parser.add_argument(
        "--windows", type=int, default=4, help="held-out windows of each domain (default 4)"
    )
    parser.add_argument(
        "--calibration", type=int, default=4, help="windows of each domain to calibrate on"
    )
    parser.add_argument(
        "--unscaled",
        action="store_true",
        help="leave kept weights as they are where the router would bring their sum to 1 again: "
        "what that contributes",
    )
    options.add_work(parser, "keep the reference model here")


def _run(args: argparse.Namespace) -> Result:
    for name in ("windows", "calibration"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} is {getattr(args, name)}, expected 1 or more")
    with options.work_folder(args.work) as work:
        model = open_runnable_model(args.model or reference_model(work, "qwen2-moe"))
        stream = UnscaledStream(model) if args.unscaled else DecoderStream(model)
        rows = measure(stream, _mix(args.calibration), _mix(args.windows))
    named = {"calibration": _mix(args.calibration), "heldout": _mix(args.windows)}
    named["unscaled"] = args.unscaled
    return {"environment": environment(), "model": model.path.name, **named, "rates": rows}


def _mix(windows: int) -> str:
    return ",".join(f"builtin:{domain}:{windows}" for domain in DOMAINS)


class UnscaledLayer(DecoderLayer):
    """A layer that leaves the weights of kept experts as they are."""

    def route(self, logits_TE: torch.Tensor, kept: Sequence[int] | None = None) -> Routing:
        """Weights as the router applies them where nothing is skipped."""
        found = super().route(logits_TE, kept)
        if not found.renormalize:
            return found
        weights_TK = found.weights_TK / found.weights_TK.sum(-1, keepdim=True)
        return replace(found, weights_TK=weights_TK, renormalize=False)


class UnscaledStream(DecoderStream):
    """The same model of such layers."""

    def layer(self, index: int) -> DecoderLayer:
        """One decoder layer, loaded now."""
        layer = super().layer(index)
        return UnscaledLayer(**{one.name: getattr(layer, one.name) for one in fields(layer)})


@torch.inference_mode()
def measure(stream: DecoderStream, calibration: str, heldout: str) -> list[dict[str, Any]]:
    """One row for each rate: what every rule costs there, and its difference from ``ratio``."""
    model = stream.checkpoint
    top_k = max(model.layers[layer].top_k for layer in model.skip_layers)
    share = (top_k - 1) / top_k
    levels = {(rule, rate): min(1.0, rate / share) for rate in RATES for rule in SkipRule}
    first = _pass(stream, calibration, _mix(1), levels)
    moved = {
        (one.rule, one.rate): min(max(one.level + (one.rate - one.skip_rate) / share, 0.0), 1.0)
        for one in first
        if one.rule is not SkipRule.TOPK  # skips the same share of every text
    }
    found = _pass(stream, calibration, heldout, levels | moved)
    return [_row(rate, [one for one in found if one.rate == rate]) for rate in RATES]


def _pass(stream: DecoderStream, calibration: str, heldout: str, levels: Levels) -> list[Measured]:
    model = stream.checkpoint
    texts = load_data(calibration, model, "calibration"), load_data(heldout, model, "heldout")
    variants = [Variant(rule, level) for (rule, _), level in levels.items()]
    with progress("rules through layers", stream.n_layers) as tick:
        exact = Variant(SkipRule.RATIO, 0.0)
        _, run = calibrate_and_run(stream, texts[0].ids, texts[1].ids, [exact, *variants], tick)
    with progress("comparing windows", texts[1].windows) as tick:
        sums = run.measure(tick)[1:]
    return [
        Measured(rule, rate, level, run.skip_rate(1 + index), sums[index])
        for index, ((rule, rate), level) in enumerate(levels.items())
    ]


def _row(rate: float, found: Sequence[Measured]) -> dict[str, Any]:
    published = next(one for one in found if one.rule is SkipRule.RATIO)
    best = min(found, key=lambda one: one.sums.mean_kld().mean)
    return {
        "skip_rate": rate,
        "windows": len(published.sums.tokens),
        "tokens": sum(published.sums.tokens),
        "best": best.rule,
        "kld_of_best_over_ratio": _over(best, published),
        "rules": {one.rule: _figures(one, published) for one in found},
    }


def _over(one: Measured, other: Measured) -> float:
    return one.sums.mean_kld().mean / other.sums.mean_kld().mean


def _figures(one: Measured, published: Measured) -> dict[str, Any]:
    kld = one.sums.mean_kld()
    gaps = [mine - theirs for mine, theirs in zip(one.sums.kld, published.sums.kld, strict=True)]
    low, high = WindowMean.of(gaps, one.sums.tokens).interval()
    return {
        "level": round(one.level, 4),
        "skip_rate": one.skip_rate,
        "kld": kld.mean,
        "kld_upper": kld.upper(),
        "kld_less_ratios": kld.mean - published.sums.mean_kld().mean,
        "interval": [low, high],
        "top1_agreement": one.sums.top1_agreement(),
        "perplexity": one.sums.perplexity(),
    }


def _show(result: Result) -> str:
    lines = ["skipped  rule        KLD   less ratio's (95 %, paired by window)   top-1 same"]
    for row in result["rates"]:
        for rule, one in row["rules"].items():
            low, high = one["interval"]
            lines.append(
                f"{one['skip_rate']:7.1%}  {rule:5}  {one['kld']:9.5f}   "
                f"{one['kld_less_ratios']:+.5f} ({low:+.5f} .. {high:+.5f})   "
                f"{one['top1_agreement']:.1%}"
            )
    return "\n".join(lines)


COMMAND = Command(
    name="bench skip-rules",
    help="What each skip rule costs at equal skip rates on the fine-grained reference model.",
    example="leanmoe bench skip-rules --windows 4 --json",
    add_arguments=_add_arguments,
    run=_run,
    show=_show,
)
