"""``plan.json``: what is to become of each MoE layer, written by a method or by hand.

A layer is cut to some of its experts (``keep``), loses its router (``condense``, CD-MoE,
arXiv 2412.00069), or gets experts that are sums of its own behind a mapped router
(``merge``, EEP, arXiv 2407.00945). Layers that are not named stay whole. E experts of the
source, E' that are left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from leanmoe.checkpoint import Checkpoint
from leanmoe.errors import InputError
from leanmoe.files.digest import parse_json, repeated_keys
from leanmoe.files.records import One, read_record, what_is_wrong
from leanmoe.files.text import user_text
from leanmoe.layout import LayerLayout

# What float32 holds: beyond, a weight would turn into infinity.
_LARGEST, _SMALLEST = 3.4e38, 1.2e-38
Number = Annotated[float, Field(strict=True, ge=-_LARGEST, le=_LARGEST)]
ExpertId = Annotated[int, Field(strict=True)]
Matrix = list[list[Number]]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Merge(_Strict):
    """Both matrices ``[E', E]``: row j says what expert j is made of, and what it is chosen by.

    The router's probabilities over all E are multiplied by ``router`` before the top-k; expert
    j's weights are the sum of the source's, each times its entry in ``experts``.
    """

    router: Matrix
    experts: Matrix

    @property
    def adds_up(self) -> bool:
        """Whether an expert is made of several."""
        return any(sum(map(bool, row)) > 1 for row in self.experts)


class LayerPlan(_Strict):
    """Exactly one of the three; ``top_k`` lowers how many experts a token of this layer gets."""

    keep: tuple[ExpertId, ...] | None = None
    condense: dict[int, Number] | None = Field(
        default=None, description="expert -> the constant its output is multiplied by"
    )
    shared_gate: Annotated[float, Field(strict=True, ge=0, le=1)] | None = Field(
        default=None, description="what a condensed layer's shared expert is multiplied by"
    )
    merge: Merge | None = None
    top_k: Annotated[PositiveInt, Field(strict=True)] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [name for name in ("keep", "condense", "merge") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"names {given or 'nothing'}, expected one of keep, condense, merge")
        if self.condense is not None and self.top_k is not None:
            raise ValueError("a condensed layer runs all its experts and takes no top_k")
        if self.shared_gate is not None and self.condense is None:
            raise ValueError("shared_gate is for a condensed layer, whose gate becomes a constant")
        return self

    @property
    def kept(self) -> tuple[int, ...]:
        """Source experts whose weights are taken one to one, ascending."""
        return tuple(sorted(self.keep if self.keep is not None else self.condense or ()))

    @property
    def n_experts(self) -> int:
        return len(self.kept) if self.merge is None else len(self.merge.experts)


class PrunePlan(_Strict):
    """The whole file."""

    schema_version: One = 1
    note: str | None = None
    layers: dict[int, LayerPlan] = Field(min_length=1)


def read_plan(path: Path, checkpoint: Checkpoint) -> PrunePlan:
    """The plan in ``path``, checked against the model; ``InputError`` says what is wrong."""
    try:
        content = parse_json(user_text(path), object_pairs_hook=_unambiguous)
        plan = read_record(PrunePlan, content)
    except ValidationError as error:
        raise InputError(f"{path}: {what_is_wrong(error, 'the plan')}; correct the plan") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a plan ({error}); give a JSON file") from None
    for layer, wanted in plan.layers.items():
        reason_or_none = layer_fault(wanted, layer, checkpoint)
        if reason_or_none is not None:
            raise InputError(f"{path}: layer {layer} {reason_or_none}; correct the plan")
    return plan


def _unambiguous(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse keys of which one would win in silence, ``"1"`` beside ``"01"`` too."""
    twice = repeated_keys(pairs)
    for key, _ in pairs:
        plain = key.isidentifier() or (key.isdecimal() and str(int(key)) == key)
        if not plain or key in twice:
            raise ValueError(f"the key {key!r} is there twice or not written plainly")
    return dict(pairs)


def layer_fault(plan: LayerPlan, layer: int, checkpoint: Checkpoint) -> str | None:
    """Why a layer cannot be cut so, or ``None``."""
    if layer not in checkpoint.layers:
        return f"is no MoE layer of {checkpoint.path}"
    source = checkpoint.layers[layer]
    if source.condensed or source.gate_rows is not None:
        return f"of {checkpoint.path} was condensed or merged before: cut its source instead"
    if plan.merge is not None:
        return _merge_fault(plan.merge, source, checkpoint) or _top_k_fault(
            plan, source, checkpoint
        )
    wrong = sorted({e for e in plan.kept if not 0 <= e < source.n_experts})
    if wrong:
        return f"names expert {wrong[0]}, and has experts 0 to {source.n_experts - 1}"
    if len(set(plan.kept)) < len(plan.kept):
        return "names an expert twice"
    if plan.condense is not None:
        return _condense_fault(plan, layer, checkpoint)
    if not plan.kept:
        return "keeps no expert"
    return _top_k_fault(plan, source, checkpoint) or _group_fault(plan, source, checkpoint)


def _top_k_fault(plan: LayerPlan, source: LayerLayout, checkpoint: Checkpoint) -> str | None:
    top_k = plan.top_k or source.top_k
    if checkpoint.family.fixed_top_k and top_k != source.top_k:
        return f"asks for top_k {top_k}, and {checkpoint.family.name} routes to {source.top_k} only"
    if top_k > source.top_k:
        return f"asks for top_k {top_k}, more than the model's {source.top_k}"
    if top_k > plan.n_experts:
        return (
            f"keeps {plan.n_experts} experts, fewer than the {top_k} each token is given; keep "
            "more, or lower its top_k"
        )
    return None


def _group_fault(plan: LayerPlan, source: LayerLayout, checkpoint: Checkpoint) -> str | None:
    shape = checkpoint.shape
    if shape.n_groups == 1:
        return None
    size = source.n_experts // shape.n_groups
    held = Counter(expert // size for expert in plan.kept)
    if len(held) < shape.n_groups or len(set(held.values())) > 1:
        return (
            f"breaks the router's {shape.n_groups} groups of {size} experts: it keeps "
            f"{[held[group] for group in range(shape.n_groups)]} of them, expected equally many"
        )
    if len(plan.kept) < shape.least_keep:
        return f"keeps {len(plan.kept)} experts, and its groups need {shape.least_keep}"
    return None


def _condense_fault(plan: LayerPlan, layer: int, checkpoint: Checkpoint) -> str | None:
    if not plan.kept and checkpoint.shared_expert(layer) is None:
        return (
            f"condenses to no expert, and {checkpoint.family.name} has no shared expert that would "
            "be left: name one at least"
        )
    if plan.shared_gate is not None and checkpoint.shared_gate(layer) is None:
        return (
            f"states a shared_gate, and {checkpoint.family.name} has no gate on a shared expert: "
            "leave it out"
        )
    if plan.kept and checkpoint.family.uniform_weight(checkpoint.config, plan.n_experts) is None:
        return (
            f"cannot be condensed to {plan.n_experts} experts: the router of "
            f"{checkpoint.family.name} gives them no even choice"
        )
    return None


def _merge_fault(merge: Merge, source: LayerLayout, checkpoint: Checkpoint) -> str | None:
    if not checkpoint.family.transfers:
        return (
            f"cannot be merged: the router of {checkpoint.family.name} is no plain softmax, whose "
            "probabilities could be mapped"
        )
    rows = {len(merge.router), len(merge.experts)}
    columns = {len(row) for row in (*merge.router, *merge.experts)}
    if len(rows) > 1 or rows == {0} or columns != {source.n_experts}:
        return (
            f"has matrices with {sorted(rows)} rows and {sorted(columns)} columns, expected "
            f"equally many rows and {source.n_experts} columns"
        )
    if max(rows) > source.n_experts:
        return f"makes {max(rows)} experts out of {source.n_experts}"
    empty = [j for j, row in enumerate(merge.router) if max(row) < _SMALLEST]
    return f"has no positive entry in router row {empty[0]}: never chosen" if empty else None


def layouts(
    plans: Mapping[int, LayerPlan], checkpoint: Checkpoint, rank: int | None = None
) -> dict[int, LayerLayout]:
    """Every MoE layer as the output will hold it, with stand-ins of ``rank`` where one is given."""
    return {
        layer: _layout(plans[layer], source, rank) if layer in plans else source
        for layer, source in checkpoint.layers.items()
    }


def _layout(plan: LayerPlan, source: LayerLayout, rank: int | None) -> LayerLayout:
    if rank is not None and plan.n_experts < source.n_experts:
        gone = tuple(sorted(set(range(source.n_experts)) - set(plan.kept)))
        top_k = plan.top_k or source.top_k
        return LayerLayout(n_experts=source.n_experts, top_k=top_k, stand_ins=gone, rank=rank)
    condensed = plan.condense is not None
    return LayerLayout(
        n_experts=plan.n_experts,
        top_k=plan.n_experts if condensed else plan.top_k or source.top_k,
        condensed=condensed,
        gate_rows=None if plan.merge is None else source.n_experts,
    )
