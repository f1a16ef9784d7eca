"""Tensor names that families share, as their files have them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NoReturn

from leanmoe.families.base import (
    NO_PARTS,
    PROJECTIONS,
    BlockParts,
    Config,
    ExpertTensor,
    Family,
    MoEShape,
    Projection,
    Size,
    Stacks,
    no_spare_layers,
)

HEAD, HEAD_BIAS = "lm_head.weight", "lm_head.bias"
_LAYER = re.compile(r"model\.layers\.([0-9]+)\.")

OWN_NAMES: Mapping[Projection, str] = {name: name for name in PROJECTIONS}
MIXTRAL_NAMES: Mapping[Projection, str] = {
    "gate_proj": "w1",
    "up_proj": "w3",
    "down_proj": "w2",
}
NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")
ATTENTION = tuple(f"self_attn.{one}_proj.weight" for one in "qkvo")
QKV_BIASES = tuple(f"self_attn.{one}_proj.bias" for one in "qkv")
QK_NORMS = ("self_attn.q_norm.weight", "self_attn.k_norm.weight")


def layer_of(name: str) -> int | None:
    """The decoder layer a tensor's name speaks of."""
    match = _LAYER.match(name)
    return int(match[1]) if match else None


def feed_forward(prefix: str) -> tuple[str, ...]:
    """The weights of one dense or shared SwiGLU."""
    return tuple(f"{prefix}.{projection}.weight" for projection in PROJECTIONS)


def model_names(
    n_layers: int, parts: Callable[[int], Iterable[str]], *, tied: bool = False
) -> list[str]:
    """Names outside the routed experts; ``parts`` gives those of a layer without its prefix."""
    head = [] if tied else [HEAD]
    layers = [f"model.layers.{layer}.{part}" for layer in range(n_layers) for part in parts(layer)]
    return ["model.embed_tokens.weight", "model.norm.weight", *head, *layers]


@dataclass(frozen=True)
class BlockNames:
    """A MoE block whose experts have a tensor per projection."""

    block: str
    projections: Mapping[Projection, str]
    # Tensors with a row per expert, the router's weight first.
    rows: tuple[str, ...] = ("gate.weight",)

    def prefix(self, layer: int) -> str:
        return f"model.layers.{layer}.{self.block}"

    def gate(self, layer: int) -> str:
        return f"{self.prefix(layer)}.{self.rows[0]}"

    def expert(self, layer: int, expert: int, projection: Projection) -> str:
        return f"{self.prefix(layer)}.experts.{expert}.{self.projections[projection]}.weight"

    @cached_property
    def _expert_pattern(self) -> re.Pattern[str]:
        files = "|".join(self.projections.values())
        return re.compile(
            rf"model\.layers\.([0-9]+)\.{self.block}\.experts\.([0-9]+)\.({files})\.weight"
        )

    def parse(self, name: str) -> ExpertTensor | None:
        match = self._expert_pattern.fullmatch(name)
        if match is None:
            return None
        layer, expert, file_name = match.groups()
        found = {file: projection for projection, file in self.projections.items()}[file_name]
        return ExpertTensor(int(layer), int(expert), found)

    @cached_property
    def _rows_pattern(self) -> re.Pattern[str]:
        rows = "|".join(map(re.escape, self.rows))
        return re.compile(rf"model\.layers\.([0-9]+)\.{self.block}\.(?:{rows})")

    def expert_rows(self, name: str) -> int | None:
        match = self._rows_pattern.fullmatch(name)
        return int(match[1]) if match else None

    def sizes(self, shape: MoEShape, layer: int) -> dict[str, Size]:
        count, narrow, wide = shape.n_routed_experts, shape.hidden_size, shape.expert_ffn_size
        vectors: dict[str, Size] = {
            f"{self.prefix(layer)}.{row}": (count,) for row in self.rows[1:]
        }
        weights: dict[str, Size] = {
            self.expert(layer, expert, projection): (
                (narrow, wide) if projection == "down_proj" else (wide, narrow)
            )
            for expert in range(count)
            for projection in PROJECTIONS
        }
        return {self.gate(layer): (count, narrow), **vectors, **weights}


@dataclass(frozen=True)
class StackedNames(BlockNames):
    """A MoE block whose experts lie in two tensors, the first with gate over up projection.

    ``rows`` are the router's weight and these two. ``packs``: an engine takes single experts, too.
    """

    packs: bool = False

    @property
    def stacks(self) -> Stacks | None:
        """How single experts are named, as the files of other families have them."""
        if not self.packs:
            return None
        single = BlockNames(self.block, self.projections)
        return Stacks(single.expert, single.parse, self._stack, self._held)

    def _stack(self, layer: int, projection: Projection) -> str:
        return f"{self.prefix(layer)}.{self.rows[2 if projection == 'down_proj' else 1]}"

    def _held(self, name: str) -> tuple[Projection, ...]:
        layer = self.expert_rows(name)
        if layer is None:
            return ()
        return tuple(one for one in PROJECTIONS if self._stack(layer, one) == name)

    def expert(self, layer: int, expert: int, projection: Projection) -> NoReturn:
        raise ValueError(
            f"expert {expert} of {self.prefix(layer)} has no tensor of its own: the family stacks "
            "its experts, take a row of the tensors that expert_rows finds"
        )

    def parse(self, name: str) -> None:
        return None

    def sizes(self, shape: MoEShape, layer: int) -> dict[str, Size]:
        count, narrow, wide = shape.n_routed_experts, shape.hidden_size, shape.expert_ffn_size
        sizes: tuple[Size, ...] = (
            (count, narrow),
            (count, 2 * wide, narrow),
            (count, narrow, wide),
        )
        names = (f"{self.prefix(layer)}.{row}" for row in self.rows)
        return dict(zip(names, sizes, strict=True))


def block_family(
    names: BlockNames,
    *,
    name: str,
    architectures: tuple[str, ...],
    shape: Callable[[Config], MoEShape],
    other_names: Callable[[Config], list[str]],
    uniform_weight: Callable[[Config, int], float | None],
    cut_config: Callable[[Config, int], dict[str, Any]],
    spare_layers: Callable[[Config], int] = no_spare_layers,
    spare_key: str | None = None,
    ties_head: bool = True,
    parts: BlockParts = NO_PARTS,
    stops_at_layouts: bool = True,
    transfers: bool = False,
    fixed_top_k: bool = False,
) -> Family:
    """A family whose tensors are named by ``names``; the rest as ``Family`` says."""
    return Family(
        name=name,
        architectures=architectures,
        shape=shape,
        other_names=other_names,
        layer_of=layer_of,
        block_prefix=names.prefix,
        gate_name=names.gate,
        expert_name=names.expert,
        parse_expert=names.parse,
        expert_rows=names.expert_rows,
        block_sizes=names.sizes,
        uniform_weight=uniform_weight,
        cut_config=cut_config,
        spare_layers=spare_layers,
        spare_key=spare_key,
        ties_head=ties_head,
        parts=parts,
        stops_at_layouts=stops_at_layouts,
        stacked=isinstance(names, StackedNames),
        stacks=names.stacks if isinstance(names, StackedNames) else None,
        transfers=transfers,
        fixed_top_k=fixed_top_k,
    )
