"""GraniteMoe: every layer MoE, experts stacked in two tensors, softmax over the chosen.

Its config counts experts, and its files name what is outside the blocks, as Mixtral's do.
"""

from __future__ import annotations

from leanmoe.families.keys import softmax_share
from leanmoe.families.mixtral import cut_config, other_names, shape
from leanmoe.families.names import OWN_NAMES, StackedNames, block_family

_NAMES = StackedNames(
    "block_sparse_moe",
    OWN_NAMES,
    ("router.layer.weight", "input_linear.weight", "output_linear.weight"),
    packs=True,
)

GRANITEMOE = block_family(
    _NAMES,
    name="granitemoe",
    architectures=("GraniteMoeForCausalLM",),
    shape=shape,
    other_names=other_names,
    uniform_weight=softmax_share,
    cut_config=cut_config,
    transfers=True,
)
