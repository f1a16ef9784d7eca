"""What an administrator may change while the server runs; what is not named stays."""

from __future__ import annotations

from dataclasses import dataclass, replace

from leanmoe.errors import InputError
from leanmoe.messages import Phases, UnionBudget, UnionMode
from leanmoe_server.settings import Rules, Wish

NO_BUDGET = 0


@dataclass(frozen=True)
class PolicyChange:
    """Any of: a level or a loss bound, the phases, the budget on distinct experts.

    ``union_budget`` is ``NO_BUDGET`` to turn it off.
    """

    wish: Wish | None = None
    phases: Phases | None = None
    union_budget: int | None = None
    union_mode: UnionMode | None = None

    def applied_to(self, wish: Wish, rules: Rules) -> tuple[Wish, Rules]:
        """What holds after this change of what held before."""
        phases = rules.phases if self.phases is None else self.phases
        return self.wish or wish, replace(rules, phases=phases, union=self._union(rules.union))

    def _union(self, before: UnionBudget | None) -> UnionBudget | None:
        experts = self.union_budget
        if experts is None and before is not None:
            experts = before.experts
        if not experts:
            if self.union_mode is not None:
                raise InputError(
                    "union_mode was given and there is no union_budget for it; give both"
                )
            return None
        mode = self.union_mode or (UnionMode.VANISH if before is None else before.mode)
        return UnionBudget(experts=experts, mode=mode)
