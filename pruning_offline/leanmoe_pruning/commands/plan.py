"""``leanmoe plan``: what each method and budget would take and leave, before any work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leanmoe.command import Result
from leanmoe.errors import InputError
from leanmoe.extras import install_hint
from leanmoe_pruning.amounts import parse_bytes, show_bytes
from leanmoe_pruning.budgets.budget import allowed_counts
from leanmoe_pruning.checkpoints.fp8 import FP8
from leanmoe_pruning.checkpoints.opening import check_no_stand_ins, check_uniform
from leanmoe_pruning.cutting.carried_orders import is_summable
from leanmoe_pruning.methods.selection import check_keep
from leanmoe_pruning.options import command_of, model_argument, option
from leanmoe_pruning.planning.costs import matmul_rate
from leanmoe_pruning.planning.fit import USABLE, largest_fitting
from leanmoe_pruning.planning.headers import HeaderModel
from leanmoe_pruning.planning.kinds import METHOD_NAMES, Kind, known_kinds, nearest
from leanmoe_pruning.planning.parallel import tensor_parallel
from leanmoe_pruning.planning.preview import preview
from leanmoe_pruning.planning.rows import Row, facts_of, row_of
from leanmoe_pruning.planning.table import render

# The calibration set of NAEE's paper: 128 sequences of 2048 tokens.
DEFAULT_TOKENS, DEFAULT_KV_TOKENS = 128 * 2048, 8192
_MOST_TOKENS = 10**12


@dataclass(frozen=True, kw_only=True)
class PlanOptions:
    """What ``leanmoe plan`` takes."""

    model: Path = model_argument()
    method: str | None = option("only what this method does (default: all)", choices=METHOD_NAMES)
    keep: tuple[int, ...] | None = option(
        "experts per layer, once or more (default: three quarters, half and a quarter)",
        action="append",
        metavar="N",
    )
    fit: str | None = option(
        "find the largest cut one device holds, such as 80GiB", metavar="MEMORY"
    )
    preview: bool = option(
        "read the weights too and say which experts they alone would keep (AIMER), at each --keep",
        default=False,
    )
    kv_tokens: int = option(
        f"tokens of KV to leave room for, over all sequences (default {DEFAULT_KV_TOKENS})",
        default=DEFAULT_KV_TOKENS,
        metavar="N",
        within=(1, _MOST_TOKENS),
    )
    tokens: int = option(
        f"calibration tokens (default {DEFAULT_TOKENS})",
        default=DEFAULT_TOKENS,
        metavar="N",
        within=(1, _MOST_TOKENS),
    )
    tflops: float | None = option(
        "speed of the machine that will do the work (default: this one's, measured)",
        metavar="X",
    )


def _check(options: PlanOptions) -> None:
    if options.tflops is not None and not 1e-6 <= options.tflops < 1e6:
        raise InputError(
            f"--tflops is {options.tflops}, expected a millionth or more and less than a million"
        )
    if options.fit is not None and options.keep is not None:
        raise InputError("--fit finds the budget and --keep gives it; drop one")


def _kinds(options: PlanOptions, model: HeaderModel) -> list[Kind]:
    """What to lay out: nothing for a source whose layers differ, which only plans can cut."""
    if model.checkpoint.layout.layers or model.checkpoint.has_stand_ins:
        return []
    kinds = [kind for kind in known_kinds() if options.method in (None, *kind.methods)]
    fitting = [kind for kind in kinds if kind.applies(model)]
    if kinds and not fitting:
        raise InputError(
            f"--method {options.method} does not apply to {options.model}: {_hindrance(model)}; "
            "use another method"
        )
    return fitting


def _hindrance(model: HeaderModel) -> str:
    """Why a method that sums, maps or condenses does not take a model."""
    family = model.checkpoint.family
    if family.transfers and FP8 in model.expert_types:
        return "it has float8 experts, whose sums would be rounded to 3 bits"
    if family.transfers and not is_summable(model.checkpoint):
        return "a pattern gave the hidden channels of each expert an order of its own"
    return f"the router of {family.name} cannot be mapped or condensed"


def _rows(options: PlanOptions, model: HeaderModel, kinds: list[Kind]) -> list[Row]:
    rows = [row_of(model, None, 0, options.kv_tokens)]
    for keep in options.keep or ():
        check_keep(keep, model.checkpoint.shape, str(options.model))
    for kind in kinds:
        given = options.keep if kind.counts_experts else None
        budgets = given or kind.usual_budgets(model)
        rows += [row_of(model, kind, budget, options.kv_tokens) for budget in budgets]
    return rows


def _notes(options: PlanOptions, model: HeaderModel, rows: list[Row]) -> list[str]:
    notes = []
    if model.checkpoint.has_stand_ins:
        notes.append(
            "It has stand-ins in the place of removed experts and cannot be cut; plan with the "
            "model that it was cut from."
        )
    elif model.checkpoint.layout.layers:
        notes.append(
            "Its layers differ: methods that choose experts take models whose layers are alike; "
            "it can be cut by --plan."
        )
    if (how := model.checkpoint.packing) is not None:
        besides = (
            "how large --compress makes them, headers alone do not tell."
            if how.layout == "overflow"
            else "those named packed are as --compress writes them."
        )
        notes.append(
            "Its experts are packed. Cuts are laid out as they are written without --compress, "
            f"dense, zeros included; {besides}"
        )
    if len(model.expert_types) > 1:
        named = ", ".join(one.name for one in model.expert_types)
        notes.append(
            f"Its experts are of several types ({named}): how large a cut is depends on which "
            "stay; the first ones are counted here."
        )
    if options.fit is not None:
        whole = " The whole model fits." if rows[0].kind is None else ""
        notes.append(
            f"--fit {options.fit}: the largest of each kind in {USABLE:.0%} of "
            f"{show_bytes(parse_bytes(options.fit, '--fit'))}, vLLM's share.{whole}"
        )
    return notes


def _untimed(rate: float | None) -> list[str]:
    if rate is not None:
        return []
    return [
        "Time is not told: torch, which would do the work, is not installed to be measured; give "
        f"--tflops, or run {install_hint('offline')}."
    ]


def _run(options: PlanOptions) -> Result:
    _check(options)
    memory = None if options.fit is None else parse_bytes(options.fit, "--fit")
    model = HeaderModel.open(options.model)
    kinds = _kinds(options, model)
    seen = _preview(options, model) if options.preview else {}
    if memory is None:
        rows = _rows(options, model, kinds)
    else:
        rows = largest_fitting(model, kinds, memory, options.kv_tokens)
    given = options.tflops
    rate = matmul_rate(model.compute_bytes) if given is None else given * 1e12
    return {
        **_model_facts(options.model, model),
        "tokens": options.tokens,
        "kv_tokens": options.kv_tokens,
        "fit_bytes": memory,
        "tflops": None if rate is None else rate / 1e12,
        "tflops_from": "measured here" if given is None else "as given",
        "estimates": ["make", "serve", "kv_bytes_per_1k_tokens"],
        "rows": [facts_of(model, row, options.tokens, rate) for row in rows],
        "notes": [*_notes(options, model, rows), *_untimed(rate)],
        **seen,
    }


def _preview(options: PlanOptions, model: HeaderModel) -> dict[str, Any]:
    """By the budgets asked for, half of the experts where none is."""
    check_no_stand_ins(model.checkpoint, "--preview")
    check_uniform(model.checkpoint)
    shape = model.checkpoint.shape
    for keep in options.keep or ():
        check_keep(keep, shape, str(options.model))
    half = nearest(allowed_counts(shape), [shape.n_routed_experts / 2])
    return {"preview": preview(model.checkpoint, list(options.keep or half))}


def _model_facts(path: Path, model: HeaderModel) -> dict[str, Any]:
    shape = model.checkpoint.shape
    return {
        "model": str(path),
        "family": model.checkpoint.family.name,
        "moe_layers": len(shape.moe_layers),
        "n_routed_experts": shape.n_routed_experts,
        "top_k": shape.top_k,
        "weight_bytes": model.weight_bytes,
        "largest_layer_bytes": model.largest_layer_bytes,
        "kv_bytes_per_1k_tokens": 1000 * model.kv_bytes_per_token,
        "tensor_parallel": tensor_parallel(
            model.checkpoint, packed=model.checkpoint.packing is not None
        ),
    }


COMMAND = command_of(
    PlanOptions,
    _run,
    name="plan",
    summary="Say what each method and budget would take and leave, from headers alone.",
    example="leanmoe plan ./Mixtral-8x7B --fit 80GiB --kv-tokens 32768",
    show=render,
)
