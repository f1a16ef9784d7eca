"""The methods that ``leanmoe prune --method`` knows."""

from __future__ import annotations

from typing import Any

from leanmoe_pruning.methods.baselines import RANDOM
from leanmoe_pruning.methods.cd_moe.cd_moe import METHOD as CD_MOE
from leanmoe_pruning.methods.eep.eep import METHOD as EEP
from leanmoe_pruning.methods.eep.matrices import METHOD as MATRICES
from leanmoe_pruning.methods.merging.merging import METHOD as M_SMOE
from leanmoe_pruning.methods.method import Method
from leanmoe_pruning.methods.naee.naee import METHOD as NAEE
from leanmoe_pruning.methods.pairwise import METHOD as PAIRWISE
from leanmoe_pruning.methods.ranked import RANKINGS
from leanmoe_pruning.methods.weights.weight_pruner import WEIGHT_METHODS

METHODS: dict[str, Method[Any]] = {
    method.name: method
    for method in (
        NAEE,
        *RANKINGS,
        PAIRWISE,
        RANDOM,
        M_SMOE,
        EEP,
        MATRICES,
        CD_MOE,
        *WEIGHT_METHODS,
    )
}
