"""What every model family must say about its checkpoints: config keys, MoE layers, tensor names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Projection = Literal["gate_proj", "up_proj", "down_proj"]
# How router logits become scores.
Scoring = Literal["softmax", "sigmoid", "sparsemixer"]
PROJECTIONS: tuple[Projection, ...] = ("gate_proj", "up_proj", "down_proj")
Config = Mapping[str, Any]
Size = tuple[int, ...]


class ConfigError(ValueError):
    """A config that is not of its family, where more is known than that; ``advice`` says what."""

    def __init__(self, message: str, advice: str) -> None:
        super().__init__(message)
        self.advice = advice


@dataclass(frozen=True)
class MoEShape:
    """The numbers a method needs, in the project's own words."""

    n_layers: int
    moe_layers: tuple[int, ...]
    n_routed_experts: int
    top_k: int
    hidden_size: int
    expert_ffn_size: int
    # What vLLM runs, which for some families is not what config.json says.
    renormalize: bool
    # Groups of neighbouring experts the router first chooses among; all must stay equally large.
    n_groups: int = 1
    # Experts each group needs for the router to find its top-k.
    least_per_group: int = 1
    # Groups a token's experts are chosen from.
    top_groups: int = 1
    scoring: Scoring = "softmax"
    # What the weights of the chosen experts are multiplied by last.
    routed_scale: float = 1.0
    # Whether the files hold the experts in blocks of small numbers, a scale for each.
    packed: bool = False

    @property
    def least_keep(self) -> int:
        """The smallest number of experts a layer can be cut to."""
        return max(-(-self.top_k // self.n_groups), self.least_per_group) * self.n_groups


@dataclass(frozen=True)
class ExpertTensor:
    """A checkpoint tensor that belongs to one expert."""

    layer: int
    expert: int
    projection: Projection


@dataclass(frozen=True)
class Stacks:
    """Single experts of a family that stacks them: files hold them one by one where packed.

    A row of a stack holds some of an expert's matrices, one over the other.
    """

    # The name an expert's matrix has by itself, and what such a name speaks of.
    name: Callable[[int, int, Projection], str]
    parse: Callable[[str], ExpertTensor | None]
    # The stack that holds a projection of a layer's experts.
    stack: Callable[[int, Projection], str]
    # Which matrices a row of the stack of that name holds, empty for other tensors.
    held: Callable[[str], tuple[Projection, ...]]


def no_spare_layers(config: Config) -> int:
    """For families whose files hold the decoder layers of config.json and no more."""
    return 0


@dataclass(frozen=True)
class BlockParts:
    """Names inside a MoE block, without its prefix; ``None`` for what a family has not."""

    # Added to the router's logits.
    gate_bias: str | None = None
    # Added to the router's scores for the choice alone.
    correction: str | None = None
    # The SwiGLU every token passes besides, and what gates its output.
    shared_expert: str | None = None
    shared_gate: str | None = None


NO_PARTS = BlockParts()


@dataclass(frozen=True)
class Family:
    """One model family. Names are those in the FILES, not those of any library's modules.

    A family stores its experts in one of two layouts: a tensor per expert and projection, or
    stacked, all experts of a layer in one tensor. The second has ``stacked`` set, its
    ``parse_expert`` finds nothing, its ``expert_name`` raises ``ValueError``, and its expert
    weights are found by ``expert_rows`` like the router's.
    """

    name: str
    architectures: tuple[str, ...]
    # ValueError, in words, for a config that does not describe such a model.
    shape: Callable[[Config], MoEShape]
    # Names of all tensors without which no such model can run, those of router and routed
    # experts left out; a shared expert's are among them. A cut copies them.
    other_names: Callable[[Config], list[str]]
    # The decoder layer a tensor's name speaks of, or None.
    layer_of: Callable[[str], int | None]
    block_prefix: Callable[[int], str]
    gate_name: Callable[[int], str]
    expert_name: Callable[[int, int, Projection], str]
    parse_expert: Callable[[str], ExpertTensor | None]
    # The decoder layer of a tensor whose dimension 0 counts experts, or None.
    expert_rows: Callable[[str], int | None]
    # Name and size of every tensor of router and routed experts in a layer.
    block_sizes: Callable[[MoEShape, int], dict[str, Size]]
    # The weight of each expert where all n logits are zero and all n experts are chosen, in one
    # group, the routed scaling factor included; None where they are not uniform or cannot be.
    uniform_weight: Callable[[Config, int], float | None]
    cut_config: Callable[[Config, int], dict[str, Any]]
    # Layers past num_hidden_layers, held for speculative decoding; a cut leaves them out.
    spare_layers: Callable[[Config], int] = no_spare_layers
    # The key that counts them, where there can be any.
    spare_key: str | None = None
    # Whether vLLM gives a model whose config ties them the embedding as its head.
    ties_head: bool = True
    parts: BlockParts = NO_PARTS
    # Whether an engine that does not know layers that differ stops at them.
    stops_at_layouts: bool = True
    stacked: bool = False
    # Of a family that stacks its experts and whose experts can be packed.
    stacks: Stacks | None = None
    # Whether the router is one softmax over all experts, whose probabilities a matrix can map.
    transfers: bool = False
    # Whether the router is written for the model's top-k alone.
    fixed_top_k: bool = False
