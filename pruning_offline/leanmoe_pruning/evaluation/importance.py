"""How a layer's work is shared out among its experts, and which of them no cut may take.

- Gini: of the experts' summed output norms, weighted by the router. 0 is all alike, (E - 1)/E one
  that does everything. Where it is low, every expert that goes takes its part with it; where it
  is high, cuts are cheap down to the few that matter, and then no longer: the cliff.
- ``carriers``: the fewest experts that together do 95 % of the work. A cut to fewer is past the
  cliff, by this measure.
- Super experts (arXiv 2507.23279): a few experts whose ``down_proj`` gives rare, huge values that
  later layers' attention rests on. As the paper describes them, an expert whose largest absolute
  output is above the 99.5th percentile of all experts' of all layers, and above a tenth of the
  largest. Some expert of every model is; so it must also be ``HUGE`` times the median,
  which is our condition, not the paper's, and it is not looked where massive activations arise.

E experts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from leanmoe_pruning.evaluation.redundancy import LayerSample

# The share of the work that ``carriers`` do.
MOST = 0.95
PERCENTILE = 0.995
OF_LARGEST = 0.1
HUGE = 20.0


def gini(values_E: torch.Tensor) -> float:
    """Gini coefficient of numbers that are not negative; 0 where all are 0."""
    sorted_E = values_E.double().sort().values
    total, count = float(sorted_E.sum()), len(sorted_E)
    if total <= 0:
        return 0.0
    rank_E = torch.arange(1, count + 1, dtype=torch.float64)
    return float(2 * (rank_E * sorted_E).sum() / (count * total) - (count + 1) / count)


def carriers(values_E: torch.Tensor) -> int:
    """The fewest experts whose values sum to at least ``MOST`` of all."""
    share_E = values_E.double().sort(descending=True).values.cumsum(0)
    return int((share_E < MOST * share_E[-1] * (1 - 1e-12)).sum()) + 1


def importance_facts(samples: Sequence[LayerSample]) -> dict[str, Any]:
    """For the manifest: both figures of every layer and their means."""
    ginis = {str(one.layer): round(gini(one.work_E), 6) for one in samples}
    needed = {str(one.layer): carriers(one.work_E) for one in samples}
    return {
        "mean_gini": round(sum(ginis.values()) / len(ginis), 6),
        "mean_carriers": round(sum(needed.values()) / len(needed), 3),
        "gini": ginis,
        "carriers": needed,
    }


@dataclass(frozen=True)
class SuperExpert:
    """One of them; ``peak`` is its largest absolute output."""

    layer: int
    expert: int
    peak: float


def super_experts(samples: Sequence[LayerSample]) -> list[SuperExpert] | None:
    """All that there are, by layer; ``None`` where the scores do not hold largest outputs."""
    peaks: list[torch.Tensor] = []
    for one in samples:
        if one.peak_E is None:
            return None
        peaks.append(one.peak_E.double())
    if not peaks:
        return None
    every = torch.cat(peaks)
    high = max(float(every.quantile(PERCENTILE)), OF_LARGEST * float(every.max()))
    least = HUGE * float(every.median())
    return [
        SuperExpert(one.layer, expert, peak)
        for one, peak_E in zip(samples, peaks, strict=True)
        for expert, peak in enumerate(peak_E.tolist())
        if peak >= high and peak > least
    ]


def cut_super_experts(
    found: Sequence[SuperExpert], kept: Mapping[int, Sequence[int]]
) -> list[SuperExpert]:
    """Those of them that would go; layers that are not named stay whole."""
    return [one for one in found if one.layer in kept and one.expert not in kept[one.layer]]
