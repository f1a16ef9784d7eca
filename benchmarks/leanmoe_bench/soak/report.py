"""``leanmoe bench soak``: one run, and whether its counts are exact."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Any

from leanmoe.errors import LeanMoEError
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


def soak(work: Path, concurrency: int, seconds: float, seed: int) -> dict[str, Any]:
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


def show(result: dict[str, Any]) -> str:
    """For people."""
    verdict = "equal an independent recount" if result["exact"] else "DIFFER from the recount"
    return (
        f"{result['answered']} answers to {result['concurrency']} clients in "
        f"{result['seconds']:.0f} s, {result['changes']} policy changes, "
        f"{len(result['errors'])} errors; the counters of {result['layers']} layers {verdict}; "
        f"memory {result['growth']:+.1%} from the second quarter to the last"
    )
