"""What the API process and the workers say to each other, and nothing else.

Messages cross process borders as JSON texts: vLLM's RPC carries strings without
pickling.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from leanmoe.skip_rule import Factor, SkipRule


class SkipMode(StrEnum):
    """How an experts class skips an assignment (VLLM seams)."""

    COMPACT = "compact"  # CPU: kept pairs are gathered, or redirected where few rows run
    MASK = "mask"  # id -1, weight 0
    REDIRECT = "redirect"  # the top-1 id, weight 0
    ZERO = "zero"  # id kept, weight 0: right, nothing is saved


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LayerReport(_Message):
    """One MoE layer as a worker found it after loading.

    ``ran`` is whether its skip seam was ever reached: a graph compiled without the plugin, or
    a path around it, would leave it ``False`` after a warm-up. ``condensed`` layers always
    compute all their experts and never skip; one without routed experts has no seam and counts as
    run.
    """

    layer: int
    name: str
    wrapped: bool
    ran: bool
    modular: bool
    condensed: bool = False
    n_routed_experts: int
    top_k: int
    renormalize: bool
    mode: SkipMode
    experts_class: str
    problem: str | None = None


class HandshakeReport(_Message):
    """One worker's answer to "did you wrap every MoE layer?".

    ``draft_layers`` names those of a draft model: they stay exact at every level.
    """

    worker: str
    engine: int = 0  # the data-parallel rank
    pid: int
    plugin_version: str
    vllm_version: str
    layers: list[LayerReport]
    weight_bytes: int
    draft_layers: list[str] = []
    # Why single requests can have no level of their own here, or None.
    request_levels_unavailable: str | None = None

    @property
    def problems(self) -> list[str]:
        """One sentence per layer that would silently not skip."""
        return [f"layer {r.layer} ({r.name}): {r.problem}" for r in self.layers if r.problem]


class Phases(StrEnum):
    """Which tokens may skip at all."""

    ALL = "all"  # as published
    DECODE = "decode"  # prompt tokens keep all their experts


class UnionMode(StrEnum):
    """What becomes of an assignment whose expert the union budget leaves out."""

    VANISH = "vanish"
    REDIRECT = "redirect"  # to the best-scored expert that is read anyway


class UnionBudget(_Message):
    """At most ``experts`` distinct experts per step and layer, as far as mandatory ones allow.

    Mandatory are every token's top expert and all experts of tokens that opted out.
    """

    experts: int = Field(gt=0)
    mode: UnionMode = UnionMode.VANISH


class ExpertFactors(_Message):
    """What the norm rule multiplies an expert's router weights by, sent once at the start."""

    factors: dict[int, list[Factor]] = Field(description="decoder layer -> factor of each expert")


class PolicyUpdate(_Message):
    """New betas for every MoE layer; layer -> beta of the rule in [0, 1], 0 is exact."""

    level: float = Field(ge=0.0, le=1.0)
    rule: SkipRule = SkipRule.RATIO
    betas: dict[int, float]
    version: int = Field(ge=0)
    phases: Phases = Phases.ALL
    union: UnionBudget | None = None


class LevelTable(_Message):
    """What single requests may ask for, sent once at the start.

    A request carries hundredths of a level as an extra sampling argument named ``key``, which
    only the server knows: no client can ask a worker past the server's cap.
    """

    key: str
    betas: dict[int, dict[int, float]] = Field(
        description="hundredths of a level -> decoder layer -> beta"
    )
    rules: dict[int, SkipRule] = Field(
        default_factory=dict, description="hundredths -> rule, ratio where none is named"
    )


class LayerCounts(_Message):
    """What one layer really ran since the worker started.

    ``skipped`` assignments were not computed; ``substituted`` ones (union budget only) were
    computed by another expert that was read anyway. ``distinct_experts`` is a sum over
    ``steps`` of the experts whose weights were read. ``skipped_weight`` is the router weight of
    skipped assignments, each token's whole weight being 1. ``nonfinite`` tokens had router
    weights that are no numbers, and kept everything.
    """

    layer: int
    tokens: int
    routed: int
    skipped: int
    substituted: int = 0
    steps: int = 0
    distinct_experts: int = 0
    skipped_weight: float = 0.0
    nonfinite: int = 0


class PolicyInForce(_Message):
    """A worker's answer to a change; it reads no counter, which would wait for the device."""

    worker: str
    engine: int = 0  # the data-parallel rank
    pid: int
    policy_version: int
    level: float
    rule: SkipRule = SkipRule.RATIO
    union_budget: int = 0


class SkipSnapshot(PolicyInForce):
    """One worker's counters and memory at the moment of the poll."""

    layers: list[LayerCounts]
    resident_bytes: int
    device_bytes: int | None = None


class RequestNames(_Message):
    """The requests whose accounts are asked for, by the ids that their answers carry."""

    names: list[str]


class RequestAssignments(_Message):
    """What one request had routed in all layers that can skip, and how much of it was skipped."""

    routed: int
    skipped: int


class RequestCounts(_Message):
    """One worker's accounts; under pipeline parallelism each holds those of its own layers."""

    worker: str
    engine: int = 0  # the data-parallel rank
    layers: list[int]
    requests: dict[str, RequestAssignments]
