"""``leanmoe bench soak``: one run, and whether its counts are exact."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

from leanmoe.command import Command, Result
from leanmoe.errors import InputError, LeanMoEError
from leanmoe_bench import options
from leanmoe_bench.machine import environment
from leanmoe_bench.soak.model import soak_model
from leanmoe_bench.soak.server import SoakServer, soak_server
from leanmoe_bench.soak.traffic import Traffic, run_traffic

# Recounted field -> exported counter.
_EXACT = {
    "skipped": "leanmoe_skipped_assignments_total",
    "substituted": "leanmoe_substituted_assignments_total",
    "steps": "leanmoe_layer_steps_total",
    "distinct_experts": "leanmoe_distinct_experts_total",
    "nonfinite": "leanmoe_nonfinite_router_tokens_total",
}
_ROUTED = "leanmoe_routed_assignments_total"


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--concurrency", type=int, default=64, help="clients (default 64)")
    parser.add_argument("--seconds", type=float, default=120.0, help="how long (default 120)")
    options.add_work(parser, "keep the models here")


def _run(args: argparse.Namespace) -> Result:
    if not (1 <= args.concurrency <= 1024 and 1 <= args.seconds <= 3600):
        raise InputError("a soak takes 1 to 1024 clients (--concurrency) and 1 to 3600 --seconds")
    with options.work_folder(args.work) as work:
        found = _soak(work, args.concurrency, args.seconds, args.seed)
    if found["errors"] or not found["exact"]:
        raise LeanMoEError(f"the soak failed: {found['errors'][:3]} {found['differences'][:3]}")
    return {"environment": environment(), "soak": found}


def _soak(work: Path, concurrency: int, seconds: float, seed: int) -> dict[str, Any]:
    """Serve, press, recount; ``exact`` says whether every sum is the same."""
    model = soak_model(work)
    with soak_server(model, work / "server.log", concurrency) as server:
        before = server.counters()
        listening = server.rpc("leanmoe_recount_start")
        traffic = run_traffic(server, concurrency, seconds, seed)
        counted = _during(server, before)
        again = {int(k): v for k, v in json.loads(server.rpc("leanmoe_recount")).items()}
    differences = _differences(counted, again, _top_k(model))
    if int(listening) != len(again) or not traffic.answered:
        raise LeanMoEError(f"{listening} layers were listened to, {traffic.answered} answers came")
    return {
        "layers": len(again),
        "concurrency": concurrency,
        "seconds": seconds,
        "answered": traffic.answered,
        "changes": traffic.changes,
        "errors": traffic.errors,
        "exact": not differences,
        "differences": differences,
        "sums": {name: sum(held.values()) for name, held in counted.items()},
        **_growth(traffic),
    }


def _during(server: SoakServer, before: dict[str, dict[int, float]]) -> dict[str, dict[int, float]]:
    after = server.counters()
    return {
        name: {layer: value - before[name][layer] for layer, value in held.items()}
        for name, held in after.items()
    }


def _top_k(model: Path) -> int:
    config = json.loads((model / "config.json").read_text(encoding="utf-8"))
    return int(config["num_experts_per_tok"])


def _differences(
    counted: dict[str, dict[int, float]], again: dict[int, dict[str, float]], top_k: int
) -> list[str]:
    found = []
    for layer, fields in again.items():
        pairs = {name: (counted[name][layer], fields[field]) for field, name in _EXACT.items()}
        pairs[_ROUTED] = (counted[_ROUTED][layer], fields["tokens"] * top_k)
        found += [
            f"layer {layer}: {name} {ours}, recounted {theirs}"
            for name, (ours, theirs) in pairs.items()
            if ours != theirs
        ]
    return found


def _growth(traffic: Traffic) -> dict[str, float]:
    """Resident memory of all processes in the second and in the last quarter of the run."""
    size = [bytes_ for _, bytes_ in traffic.resident]
    quarter = max(1, len(size) // 4)
    early, late = median(size[quarter : 2 * quarter] or size), median(size[-quarter:])
    return {
        "resident_bytes_second_quarter": early,
        "resident_bytes_last_quarter": late,
        "growth": round(late / early - 1, 4),
    }


def _show(found: Result) -> str:
    result = found["soak"]
    verdict = "equal an independent recount" if result["exact"] else "DIFFER from the recount"
    return (
        f"{result['answered']} answers to {result['concurrency']} clients in "
        f"{result['seconds']:.0f} s, {result['changes']} policy changes, "
        f"{len(result['errors'])} errors; the counters of {result['layers']} layers {verdict}; "
        f"memory {result['growth']:+.1%} from the second quarter to the last"
    )


COMMAND = Command(
    name="bench soak",
    help="Press a server with many mixed requests while the policy changes; every counter "
    "against a recount.",
    example="leanmoe bench soak --concurrency 64 --seconds 120 --json",
    add_arguments=_add_arguments,
    run=_run,
    show=_show,
)
