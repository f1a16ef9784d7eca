"""``leanmoe plan``: what each method and budget would take and leave, before any work."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from leanmoe.command import Command, Result
from leanmoe.errors import InputError
from leanmoe_pruning.amounts import parse_bytes, show_bytes
from leanmoe_pruning.commands.options import add_model
from leanmoe_pruning.methods.registry import METHODS
from leanmoe_pruning.methods.selection import check_keep
from leanmoe_pruning.planning.costs import matmul_rate
from leanmoe_pruning.planning.fit import USABLE, largest_fitting
from leanmoe_pruning.planning.headers import HeaderModel
from leanmoe_pruning.planning.kinds import Kind, known_kinds
from leanmoe_pruning.planning.parallel import tensor_parallel
from leanmoe_pruning.planning.rows import Row, facts_of, row_of
from leanmoe_pruning.planning.table import render

# The calibration set of NAEE's paper: 128 sequences of 2048 tokens.
DEFAULT_TOKENS, DEFAULT_KV_TOKENS = 128 * 2048, 8192
_MOST_TOKENS = 10**12


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model(parser)
    parser.add_argument(
        "--method", choices=tuple(METHODS), help="only what this method does (default: all)"
    )
    parser.add_argument(
        "--keep",
        type=int,
        action="append",
        metavar="N",
        help="experts per layer, once or more (default: three quarters, half and a quarter)",
    )
    parser.add_argument(
        "--fit", metavar="MEMORY", help="find the largest cut one device holds, such as 80GiB"
    )
    parser.add_argument(
        "--kv-tokens",
        type=int,
        default=DEFAULT_KV_TOKENS,
        metavar="N",
        help=f"tokens of KV to leave room for, over all sequences (default {DEFAULT_KV_TOKENS})",
    )
    parser.add_argument(
        "--tokens",
        type=int,
        default=DEFAULT_TOKENS,
        metavar="N",
        help=f"calibration tokens (default {DEFAULT_TOKENS})",
    )
    parser.add_argument(
        "--tflops",
        type=float,
        metavar="X",
        help="speed of the machine that will do the work (default: this one's, measured)",
    )


def _check(args: argparse.Namespace) -> None:
    for option in ("tokens", "kv_tokens"):
        if not 1 <= getattr(args, option) <= _MOST_TOKENS:
            name, value = option.replace("_", "-"), getattr(args, option)
            raise InputError(f"--{name} is {value}, expected a number from 1 to {_MOST_TOKENS}")
    if args.tflops is not None and not 0 < args.tflops < 1e6:
        raise InputError(f"--tflops is {args.tflops}, expected more than 0 and less than a million")
    if args.fit is not None and args.keep is not None:
        raise InputError("--fit finds the budget and --keep gives it; drop one")


def _kinds(args: argparse.Namespace, model: HeaderModel) -> list[Kind]:
    """What to lay out: nothing for a source whose layers differ, which only plans can cut."""
    if model.checkpoint.layout.layers:
        return []
    kinds = [kind for kind in known_kinds() if args.method in (None, *kind.methods)]
    fitting = [kind for kind in kinds if kind.applies(model)]
    if kinds and not fitting:
        raise InputError(
            f"--method {args.method} does not apply to {args.model}: the router of "
            f"{model.checkpoint.family.name} cannot be mapped or condensed; use another method"
        )
    return fitting


def _rows(args: argparse.Namespace, model: HeaderModel, kinds: list[Kind]) -> list[Row]:
    rows = [row_of(model, None, 0, args.kv_tokens)]
    for keep in args.keep or ():
        check_keep(keep, model.checkpoint.shape, str(args.model))
    for kind in kinds:
        given = args.keep if kind.counts_experts else None
        budgets = given or kind.usual_budgets(model)
        rows += [row_of(model, kind, budget, args.kv_tokens) for budget in budgets]
    return rows


def _notes(args: argparse.Namespace, model: HeaderModel, rows: list[Row]) -> list[str]:
    notes = []
    if model.checkpoint.layout.layers:
        notes.append(
            "Its layers differ: methods that choose experts take models whose layers are alike; "
            "it can be cut by --plan."
        )
    if args.fit is not None:
        whole = " The whole model fits." if rows[0].kind is None else ""
        notes.append(
            f"--fit {args.fit}: the largest of each kind in {USABLE:.0%} of "
            f"{show_bytes(parse_bytes(args.fit, '--fit'))}, vLLM's share.{whole}"
        )
    return notes


def _run(args: argparse.Namespace) -> Result:
    _check(args)
    memory = None if args.fit is None else parse_bytes(args.fit, "--fit")
    model = HeaderModel.open(args.model)
    kinds = _kinds(args, model)
    if memory is None:
        rows = _rows(args, model, kinds)
    else:
        rows = largest_fitting(model, kinds, memory, args.kv_tokens)
    dtype = torch.float32 if model.compute_bytes == 4 else torch.bfloat16
    rate = matmul_rate(dtype) if args.tflops is None else args.tflops * 1e12
    return {
        **_model_facts(args.model, model),
        "tokens": args.tokens,
        "kv_tokens": args.kv_tokens,
        "fit_bytes": memory,
        "tflops": rate / 1e12,
        "tflops_from": "measured here" if args.tflops is None else "as given",
        "estimates": ["make", "serve", "kv_bytes_per_1k_tokens"],
        "rows": [facts_of(model, row, args.tokens, rate) for row in rows],
        "notes": _notes(args, model, rows),
    }


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
        "tensor_parallel": tensor_parallel(model.checkpoint),
    }


COMMAND = Command(
    name="plan",
    help="Say what each method and budget would take and leave, from headers alone.",
    example="leanmoe plan ./Mixtral-8x7B --fit 80GiB --kv-tokens 32768",
    add_arguments=_add_arguments,
    run=_run,
    show=render,
)
