"""What ours does in each case of the comparison; stock always runs the whole model exactly."""

from __future__ import annotations

from dataclasses import dataclass

from leanmoe.messages import UnionBudget, UnionMode


@dataclass(frozen=True)
class Case:
    """One way of running ours.

    ``beta``: the same threshold everywhere. ``skipped``: thresholds at which that share of a
    layer's assignments is skipped, found on the running engine. ``keep``: the model is pruned to
    so many experts first. ``pattern``: its experts are packed, so many of every M weights left.
    """

    name: str
    beta: float = 0.0
    skipped: float | None = None
    union: UnionBudget | None = None
    keep: int | None = None
    pattern: str | None = None


# Half of all tokens lose their second of two experts at the published median.
_MEDIAN = 0.25
CASES = (
    Case("level0"),
    Case("median", skipped=_MEDIAN),
    Case("top1", beta=1.0),
    Case("keep4+median", skipped=_MEDIAN, keep=4),
    Case("16:32", pattern="16:32"),
    Case("keep4+16:32+median", skipped=_MEDIAN, keep=4, pattern="16:32"),
    Case("skip40", skipped=0.4),
    Case("union32", union=UnionBudget(experts=32)),
    Case("union32-redirect", union=UnionBudget(experts=32, mode=UnionMode.REDIRECT)),
    Case("skip40+union32", skipped=0.4, union=UnionBudget(experts=32)),
)
_FINE_GRAINED = 32


def cases_for(n_experts: int, top_k: int) -> list[Case]:
    """The cases that say something about a model of ``n_experts``, ``top_k`` of them per token."""
    return [
        case
        for case in CASES
        if (case.union is None or n_experts > case.union.experts)
        and (case.keep is None or top_k <= case.keep < n_experts)
        and not (case.skipped == _MEDIAN and top_k != 2)
        and not (case.name == "skip40" and top_k == 2)
        and not (case.keep is not None and n_experts > _FINE_GRAINED)
    ]
