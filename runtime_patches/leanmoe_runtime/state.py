"""What one worker holds per MoE layer: its betas, its counters, whether it ever ran.

A layer's ``betas`` is a table. Row 0 is the engine-wide level; the rows after it are the
levels single requests ask for, in hundredths. Which row a token uses is said once per
step, for all layers (requests.py). A row holds a rule and its beta as one number
(``leanmoe.skip_rule.threshold_of``), so that a captured graph follows a rule that changes, too.
"""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from leanmoe.errors import LevelError, RuntimeSeamError
from leanmoe.messages import (
    ExpertFactors,
    LayerCounts,
    LevelTable,
    Phases,
    PolicyUpdate,
    UnionBudget,
)
from leanmoe.policy import HUNDREDTHS
from leanmoe.skip_rule import SkipRule, threshold_of
from leanmoe_runtime.device.table import DeviceCounts, DeviceTable

ENGINE_ROW = 0
N_ROWS = 1 + HUNDREDTHS + 1
# Added to a token's row: no budget on distinct experts may take an expert from it.
MANDATORY = 256


class DeviceUnion(Protocol):
    """A budget on distinct experts as an accelerator holds it; ``least`` 0 allows none."""

    least: int

    def set(self, union: UnionBudget | None) -> None:
        """Put it in force, or none."""


def request_row(hundredths: int) -> int:
    """The row of a level that requests ask for."""
    return 1 + hundredths


EXACT_ROW = request_row(0) | MANDATORY


class Counters(ctypes.Structure):
    """``struct counts`` of skip/cpu.c; ``leanmoe.messages.LayerCounts`` says what each means."""

    _fields_ = (
        ("tokens", ctypes.c_int64),
        ("skipped", ctypes.c_int64),
        ("substituted", ctypes.c_int64),
        ("steps", ctypes.c_int64),
        ("distinct_experts", ctypes.c_int64),
        ("nonfinite", ctypes.c_int64),
        ("skipped_weight", ctypes.c_double),
    )

    tokens: int
    skipped: int
    substituted: int
    steps: int
    distinct_experts: int
    nonfinite: int
    skipped_weight: float


@dataclass
class LayerState:
    """One MoE layer's thresholds and counts.

    ``beta`` is the engine-wide threshold, ``betas`` the whole table and ``factors`` [E] the norm
    rule's, on the host; ``device`` is their copy and the counters on an accelerator, once the layer
    ran there. ``n_experts`` counts copies for load balancing, ``n_routed`` experts that a router
    scores.
    """

    layer: int
    top_k: int
    renormalize: bool
    n_experts: int = 0
    n_routed: int = 0
    beta: float = 0.0
    # vLLM builds models with an accelerator as torch's default device; this one is the host's.
    betas: torch.Tensor = field(
        default_factory=lambda: torch.zeros(N_ROWS, dtype=torch.float32, device="cpu")
    )
    device: DeviceTable | None = None
    calls: int = 0
    counters: Counters = field(default_factory=Counters)

    def __post_init__(self) -> None:
        self.counters_address = ctypes.addressof(self.counters)
        self.n_routed = self.n_routed or self.n_experts
        self.factors = torch.ones(self.n_experts, dtype=torch.float32, device="cpu")
        self.factors_address = self.factors.data_ptr()

    def set_beta(self, beta: float) -> None:
        """Set the engine-wide threshold."""
        self.beta = beta
        self.betas[ENGINE_ROW] = beta
        self.push()

    def push(self) -> None:
        """Bring the table to the device, where there is one."""
        if self.device is not None:
            self.device.push(self.betas)

    def set_factors(self, factors: Sequence[float]) -> None:
        """Take a factor of each expert."""
        self.factors[: len(factors)] = torch.tensor(factors, dtype=torch.float32, device="cpu")
        if self.device is not None:
            self.device.push_factors(self.factors)

    def counts(self) -> LayerCounts:
        """Counts since the start; the only place that reads the device."""
        device = DeviceCounts() if self.device is None else self.device.read()
        host = self.counters
        tokens = host.tokens + device.tokens
        return LayerCounts(
            layer=self.layer,
            tokens=tokens,
            routed=tokens * self.top_k,
            skipped=host.skipped + device.skipped,
            substituted=host.substituted + device.substituted,
            steps=host.steps + device.steps,
            distinct_experts=host.distinct_experts + device.distinct_experts,
            skipped_weight=host.skipped_weight + device.skipped_weight,
            nonfinite=host.nonfinite + device.nonfinite,
        )


class SkipState:
    """All layers of one engine's model in this process, and the policy in force."""

    def __init__(self) -> None:
        self.layers: dict[int, LayerState] = {}
        # Whether the policy has a threshold above 0 for any of these layers.
        self.skips = False
        self.level = 0.0
        self.rule = SkipRule.RATIO
        # Whether the norm rule can be followed.
        self.has_factors = False
        self.version = 0
        self.phases = Phases.ALL
        self.union: UnionBudget | None = None
        # Where a budget is put in force on an accelerator; None where the host holds to it.
        self.device_union: DeviceUnion | None = None
        self.request_key: str | None = None
        # Rows of the step's tokens, int32; None while every token uses the engine's.
        self.token_rows_T: torch.Tensor | None = None

    @property
    def may_skip(self) -> bool:
        """Whether assignments of the step that was laid out may be left out."""
        return self.skips or self.union is not None or self.token_rows_T is not None

    @property
    def routed_per_token(self) -> int:
        """Assignments of one token in all layers that can skip."""
        return sum(layer.top_k for layer in self.layers.values())

    def add(self, state: LayerState) -> LayerState:
        """Take a layer; two of one number are refused."""
        if state.layer in self.layers:
            raise RuntimeSeamError(
                f"two MoE layers of the model are number {state.layer}, so one would never skip; "
                "serve it with stock vLLM"
            )
        self.layers[state.layer] = state
        return state

    def apply(self, update: PolicyUpdate) -> None:
        """Put a policy in force on every layer, or on none: each of these must be named.

        Others may be: under pipeline parallelism a process holds some of the model's layers.
        """
        self._check_layers(update.betas)
        self._check_rule(update.rule)
        self._check_union(update.union)
        if self.device_union is not None and update.union != self.union:
            self.device_union.set(update.union)
        for index, layer in self.layers.items():
            layer.set_beta(threshold_of(update.rule, update.betas[index], layer.top_k))
        self.skips = any(layer.beta != 0.0 for layer in self.layers.values())
        self.level, self.version, self.rule = update.level, update.version, update.rule
        self.phases, self.union = update.phases, update.union

    def set_levels(self, table: LevelTable) -> None:
        """Take the betas of every level that requests may ask for, or none."""
        for hundredths, betas in table.betas.items():
            self._check_layers(betas)
            if not 0 <= hundredths <= HUNDREDTHS:
                raise LevelError(f"the table names {hundredths} hundredths, expected 0 to 100")
        for rule in table.rules.values():
            self._check_rule(rule)
        for hundredths, betas in table.betas.items():
            rule = table.rules.get(hundredths, SkipRule.RATIO)
            for index, layer in self.layers.items():
                threshold = threshold_of(rule, betas[index], layer.top_k)
                layer.betas[request_row(hundredths)] = threshold
        for layer in self.layers.values():
            layer.push()
        self.request_key = table.key

    def set_factors(self, given: ExpertFactors) -> None:
        """Take what the norm rule needs for every layer, or nothing."""
        self._check_layers(given.factors)
        for index, layer in self.layers.items():
            if len(given.factors[index]) != layer.n_routed:
                raise LevelError(
                    f"there are {len(given.factors[index])} factors for layer {index}, which "
                    f"routes among {layer.n_routed} experts: measure the curve on this checkpoint "
                    "again"
                )
        for index, layer in self.layers.items():
            layer.set_factors(given.factors[index])
        self.has_factors = True

    def _check_rule(self, rule: SkipRule) -> None:
        if rule is SkipRule.NORM and not self.has_factors:
            raise LevelError(
                "the policy follows the norm rule and this worker was given no factors of "
                "experts: measure the curve on this checkpoint again, or follow another rule"
            )

    def _check_layers(self, betas: Collection[int]) -> None:
        absent = sorted(set(self.layers) - set(betas))
        if absent:
            raise LevelError(
                f"the policy has betas for {len(betas)} layers and none for layer {absent[0]} "
                f"of the {len(self.layers)} MoE layers here: measure the curve on this checkpoint "
                "again"
            )

    def _check_union(self, union: UnionBudget | None) -> None:
        if union is None or self.device_union is None:
            return
        least = self.device_union.least
        if not 0 < least <= union.experts:
            held = f"{least} experts and more" if least else "none"
            raise LevelError(
                f"union_budget is {union.experts}; the graphs captured at the start hold budgets "
                f"of {held}: start the server with --union-budget {union.experts}"
            )

    def counts(self) -> list[LayerCounts]:
        return [self.layers[layer].counts() for layer in sorted(self.layers)]
