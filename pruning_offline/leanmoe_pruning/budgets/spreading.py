"""Choices of all layers together: none of the experts, or of the domains, pays for all cuts.

Layers that choose alone may drop the same specialist nearly everywhere, and what it knew is then
gone from the model. Two rules say that this must not be:

- ``experts``: every expert number is kept in about equally many layers. It stands for something
  only where numbers do (``domains.identity``).
- ``domains``: no calibration domain loses more than its share, which is the mean over domains of
  what they lose where layers choose alone.

The least sum of losses under the rule is an integer programme (HiGHS): columns (``offers``) as
0/1 variables, as many taken of each layer as it says, the rule as rows. L layers, N columns of
all layers, E experts, D domains.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from leanmoe.errors import LeanMoEError
from leanmoe_pruning.budgets.offers import Floats, Offer
from leanmoe_pruning.later import optimize, sparse

Rule = Literal["experts", "domains"]
# Layers in which an expert may be kept more or less than the mean.
LAYERS_OFF = 1.5
# Where a share is less than the worst domain must lose: what it may lose over that.
DOMAIN_SLACK = 0.02
# HiGHS stops once the best sum is known this closely, a share of it: bounds on domains leave many
# sums that hardly differ.
_GAP = 5e-3
# Where that would take hours, it stops with the best that it found: after this many columns tried,
# some minutes, and always after the same ones.
_MOST_COLUMNS_TRIED = 4_000_000
_TINY = 1e-9
# What a unit of a domain's loss over the limit costs.
_OVER = 1e3
# Losses of columns lie below 1; HiGHS holds rows to about 1e-7.
_SCALE = 1e3
_HELD = 1e-6


@dataclass(frozen=True)
class Spread:
    """What was taken of every layer, and what the rule did."""

    rule: Rule
    columns: tuple[tuple[int, ...], ...]
    offers: tuple[Offer, ...]
    domains: tuple[str, ...]
    # What one domain may lose, the mean over layers; ``None`` where the rule is another.
    limit: float | None = None
    # The least that any choice under the rule loses; ``None`` where layers chose alone.
    least: float | None = None

    @property
    def kept(self) -> tuple[tuple[int, ...], ...]:
        """Kept experts of every layer."""
        return tuple(one.kept(own) for one, own in zip(self.offers, self.columns, strict=True))

    def facts(self) -> dict[str, Any]:
        """For the manifest: the rule, its slack, and what it cost and brought."""
        alone = tuple(one.own for one in self.offers)
        facts: dict[str, Any] = {
            "rule": self.rule,
            "loss": _figure(_total(self.offers, self.columns)),
            "loss_of_layers_alone": _figure(_total(self.offers, alone)),
        }
        if self.least is not None:
            facts["loss_at_least"] = _figure(self.least)
        if self.limit is not None:
            facts["limit"] = _figure(self.limit)
        if self.rule == "experts":
            facts["slack_layers"] = LAYERS_OFF
            for name, columns in (("layers_kept", self.columns), ("layers_kept_alone", alone)):
                facts[name] = [int(count) for count in _kept_counts(self.offers, columns)]
        for name, columns in (("domain_loss", self.columns), ("domain_loss_alone", alone)):
            losses_D = _domain_losses(self.offers, columns) / len(self.offers)
            facts[name] = dict(zip(self.domains, map(_figure, losses_D), strict=True))
        return facts


def _figure(value: float) -> float:
    return round(float(value), 6)


def spread(
    offers: Sequence[Offer],
    rule: Rule | None,
    domains: Sequence[str] = (),
    layers_off: float = LAYERS_OFF,
) -> Spread:
    """The choices of least loss that obey the rule; each layer's own where they do already.

    ``domains`` names the domains of the offers' losses. Without a rule (``None``), which is a
    price of 0 on everything, every layer decides alone.
    """
    offers = tuple(offers)
    alone = tuple(one.own for one in offers)
    if rule == "domains":
        solved, limit = _fair_to_domains(offers, alone)
        return Spread(
            rule, solved.columns, offers, tuple(domains), limit / len(offers), solved.least
        )
    low, high = _layers_allowed(offers, math.inf if rule is None else layers_off)
    counts_E, solved = _kept_counts(offers, alone), _Solved(alone)
    if not (low <= counts_E.min() and counts_E.max() <= high):
        solved = _balanced(offers, low, high)
    return Spread("experts", solved.columns, offers, tuple(domains), least=solved.least)


def _layers_allowed(offers: Sequence[Offer], off: float) -> tuple[float, float]:
    """The fewest and the most layers that an expert may be kept in; whole numbers."""
    mean = _kept_counts(offers, [one.own for one in offers]).mean()
    if math.isinf(off):
        return 0.0, float(len(offers))
    # The mean's own neighbours are always possible.
    low = min(math.ceil(mean - off - 1e-9), math.floor(mean + 1e-9))
    high = max(math.floor(mean + off + 1e-9), math.ceil(mean - 1e-9))
    return float(max(0, low)), float(min(len(offers), high))


@dataclass(frozen=True)
class _Solved:
    """Columns of every layer, and the least that any would lose where a programme was solved."""

    columns: tuple[tuple[int, ...], ...]
    least: float | None = None


def _balanced(offers: Sequence[Offer], low: float, high: float) -> _Solved:
    members_EN = np.concatenate([one.members_CE for one in offers]).T
    losses_N = np.concatenate([one.losses_C for one in offers])
    return _solve(
        offers,
        losses_N,
        [optimize.LinearConstraint(sparse.csr_array(members_EN), lb=low, ub=high)],
        0.0,
    )


def _fair_to_domains(
    offers: Sequence[Offer], alone: tuple[tuple[int, ...], ...]
) -> tuple[_Solved, float]:
    """Least loss while no domain loses more than its share, and that share, summed over layers.

    It is the mean over domains of what the layers alone would lose; where domains at odds do not
    allow that, the least that the worst domain must lose, and a little. Few layers may have no
    whole columns within it: then the worst domain's least is that of whole ones.
    """
    base = sum(one.base_D for one in offers)
    losses_DN = np.concatenate([one.losses_CD for one in offers]).T
    lost_D = _domain_losses(offers, alone)
    least = _least_worst(offers, losses_DN, base)
    limit = max(float(lost_D.mean()), least * (1 + DOMAIN_SLACK)) + _TINY
    if lost_D.max() <= limit:
        return _Solved(alone), limit
    losses_N = np.concatenate([one.losses_C for one in offers])
    # What is over the limit costs more than all else.
    bound = optimize.LinearConstraint(_less_one(losses_DN), ub=limit - base)
    solved = _solve(offers, np.append(losses_N, _OVER), [bound], _GAP, free=1)
    worst = float(_domain_losses(offers, solved.columns).max())
    if worst <= limit + _HELD:
        return solved, limit
    limit = worst * (1 + DOMAIN_SLACK)
    bound = optimize.LinearConstraint(losses_DN, ub=limit - base)
    return _solve(offers, losses_N, [bound], _GAP), limit


def _less_one(rows_DN: Floats) -> Floats:
    """Rows with one variable more, which is taken off each."""
    return np.concatenate([rows_DN, -np.ones((len(rows_DN), 1))], axis=1)


def _least_worst(offers: Sequence[Offer], losses_DN: Floats, base: float) -> float:
    """The least that the domain which loses most can lose, columns taken in parts.

    Whole ones lose little more: where D domains are bounded, no more than D + 1 columns of all
    layers are in parts.
    """
    n = losses_DN.shape[1]
    rows = _less_one(losses_DN)
    found = optimize.linprog(
        np.append(np.zeros(n), 1.0),
        A_ub=rows,
        b_ub=np.full(len(rows), -base),
        A_eq=_taken(offers, n + 1).A,
        b_eq=_taken(offers, n + 1).lb,
        bounds=[(0, 1)] * n + [(0, None)],
    )
    return float(_answer(found)[-1])


def _solve(
    offers: Sequence[Offer],
    costs: Floats,
    rules: list[optimize.LinearConstraint],
    gap: float,
    free: int = 0,
) -> _Solved:
    """Columns of least cost, per layer; the last ``free`` variables are none."""
    n = len(costs) - free
    found = optimize.milp(
        costs * _SCALE,
        integrality=np.append(np.ones(n), np.zeros(free)),
        bounds=optimize.Bounds(0, np.append(np.ones(n), np.full(free, np.inf))),
        constraints=[_taken(offers, len(costs)), *rules],
        options={"mip_rel_gap": gap, "node_limit": max(100, _MOST_COLUMNS_TRIED // n)},
    )
    starts = np.cumsum([len(one.losses_C) for one in offers])
    parts = np.split(_answer(found)[:n] > 0.5, starts[:-1])
    columns = tuple(tuple(np.flatnonzero(part).tolist()) for part in parts)
    base = math.fsum(one.base for one in offers)
    return _Solved(columns, base + found.mip_dual_bound / _SCALE)


def _answer(found: Any) -> Floats:
    if found.x is None:
        raise LeanMoEError(f"the integer programme of --spread has no answer: {found.message}")
    answer: Floats = found.x
    return answer


def _taken(offers: Sequence[Offer], n: int) -> optimize.LinearConstraint:
    """As many columns of every layer as it says."""
    rows: list[int] = []
    columns: list[int] = []
    counts: list[int] = []
    start = 0
    for one in offers:
        for group, count in one.takes:
            columns += [start + column for column in group]
            rows += [len(counts)] * len(group)
            counts.append(count)
        start += len(one.losses_C)
    matrix = sparse.csr_array((np.ones(len(rows)), (rows, columns)), shape=(len(counts), n))
    return optimize.LinearConstraint(matrix, lb=counts, ub=counts)


def _kept_counts(offers: Sequence[Offer], columns: Sequence[Sequence[int]]) -> Floats:
    """Layers that keep each expert, ``[E]``."""
    kept = [one.members_CE[list(own)].sum(0) for one, own in zip(offers, columns, strict=True)]
    counts_E: Floats = np.sum(kept, axis=0)
    return counts_E


def _domain_losses(offers: Sequence[Offer], columns: Sequence[Sequence[int]]) -> Floats:
    """Losses of every domain summed over the layers, ``[D]``."""
    parts = [
        one.base_D + one.losses_CD[list(own)].sum(0)
        for one, own in zip(offers, columns, strict=True)
    ]
    losses_D: Floats = np.sum(parts, axis=0)
    return losses_D


def _total(offers: Sequence[Offer], columns: Sequence[Sequence[int]]) -> float:
    return math.fsum(one.loss(own) for one, own in zip(offers, columns, strict=True))
