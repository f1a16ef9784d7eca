"""Offers of the layers as they pass, and what is chosen of them once all are known."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from leanmoe_pruning.budgets.domains import Domains, identity
from leanmoe_pruning.budgets.offers import Offer
from leanmoe_pruning.budgets.spreading import Rule, spread
from leanmoe_pruning.methods.request import Asked
from leanmoe_pruning.methods.selection import LayerChoice
from leanmoe_pruning.scores.layer_scores import LayerScores

# Numbers of experts stand for specialists from here on (``domains.identity``).
SAME_FROM = 0.5


@dataclass
class Gathering:
    """One run of ``--spread``."""

    asked: Asked
    domains: Domains
    _offers: list[Offer] = field(default_factory=list)
    _usage: list[torch.Tensor] = field(default_factory=list)

    def add(self, scores: LayerScores, offer: Offer) -> None:
        """Take the next layer in."""
        self._offers.append(offer)
        self._usage.append(self.domains.usage(scores))

    def choose(self) -> tuple[list[LayerChoice], dict[str, Any]]:
        """The choice of every layer, and what the manifest says of it."""
        found = identity(self._usage) if len(self.domains.names) > 1 else None
        rule = self._rule(found)
        chosen = spread(self._offers, rule, self.domains.names)
        facts = {"asked": self.asked, **chosen.facts()}
        if found is not None:
            facts |= {"identity": round(found, 6), "experts_from": SAME_FROM}
        layers = [one.layer for one in self._offers]
        choices = [LayerChoice(i, kept) for i, kept in zip(layers, chosen.kept, strict=True)]
        return choices, {"spread": facts}

    def _rule(self, found: float | None) -> Rule:
        assert self.asked != "effects", "naee alone takes it, by another way"
        if self.asked != "auto":
            return self.asked
        return "experts" if found is not None and found >= SAME_FROM else "domains"
