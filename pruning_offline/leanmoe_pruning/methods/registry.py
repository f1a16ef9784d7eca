"""The methods that ``leanmoe prune --method`` knows."""

from __future__ import annotations

from leanmoe_pruning.methods.baselines import FREQUENCY, RANDOM
from leanmoe_pruning.methods.cd_moe.method import METHOD as CD_MOE
from leanmoe_pruning.methods.method import Method
from leanmoe_pruning.methods.naee.method import METHOD as NAEE

METHODS: dict[str, Method] = {method.name: method for method in (NAEE, CD_MOE, FREQUENCY, RANDOM)}
