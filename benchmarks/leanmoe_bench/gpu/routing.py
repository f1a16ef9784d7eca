"""What routers chose, counted a second time from their logits, and how far apart the choices lie.

Both whole-depth models route alike: softmax, top-k, renormalised. T tokens, K top-k, E experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

# Two programs that divide in another order may differ by this much about a weight.
_LAST_BITS = 1e-5


@dataclass(frozen=True)
class Choice:
    """One step of one layer: renormalised weights [T, K], largest first, and experts [T, K]."""

    weights_TK: torch.Tensor
    ids_TK: torch.Tensor

    @classmethod
    def of(cls, logits_TE: torch.Tensor, top_k: int) -> Choice:
        """As vLLM's routers choose; the CPU's stays in the precision of its logits."""
        best = (logits_TE if logits_TE.is_cpu else logits_TE.float()).topk(top_k)
        return cls(best.values.softmax(-1).float().cpu(), best.indices.cpu())

    @property
    def ratios_TK(self) -> torch.Tensor:  # noqa: N802
        """Each weight over its token's largest."""
        return self.weights_TK / self.weights_TK[:, :1]


def recount(choices: list[Choice], beta: float) -> dict[str, int]:
    """What a layer ran at ``beta``, as ``leanmoe.messages.LayerCounts`` defines it.

    ``near`` assignments lie so close to the threshold that the last bits decide.
    """
    sums = dict.fromkeys(("tokens", "routed", "skipped", "steps", "distinct_experts", "near"), 0)
    threshold = torch.tensor(beta, dtype=torch.float32)
    for choice in choices:
        ratios_TK = choice.ratios_TK
        keep_TK = choice.weights_TK >= threshold * choice.weights_TK[:, :1]
        near_TK = (ratios_TK - threshold).abs() <= _LAST_BITS * threshold
        sums["tokens"] += len(keep_TK)
        sums["routed"] += keep_TK.numel()
        sums["skipped"] += int((~keep_TK).sum())
        sums["steps"] += 1
        sums["distinct_experts"] += len(set(choice.ids_TK[keep_TK].tolist()))
        sums["near"] += int((near_TK & (ratios_TK < 1)).sum())
    return sums


def gate_statistics(choices: list[Choice], shares: tuple[float, ...]) -> dict[str, Any]:
    """How far a token's other experts lie behind its first; the thresholds that skip ``shares``."""
    ratios_TK = torch.cat([choice.ratios_TK for choice in choices])
    smallest = ratios_TK[:, 1:].flatten().sort().values
    wanted = {share: int(share * ratios_TK.numel()) for share in shares}
    return {
        "tokens": sum(len(choice.ids_TK) for choice in choices),
        "median_second_to_first": round(float(ratios_TK[:, 1].median()), 3),
        "median_last_to_first": round(float(ratios_TK[:, -1].median()), 3),
        "thresholds": {
            f"{share:.0%}": round(float(smallest[at]), 3)
            for share, at in wanted.items()
            if at < len(smallest)
        },
    }
