"""What is asked to be in force on the whole engine, and what an administrator changes of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from leanmoe.errors import InputError
from leanmoe.messages import Phases, UnionBudget, UnionMode

NO_BUDGET = 0


@dataclass(frozen=True)
class Target:
    """A level, or the quality loss (mean KLD in nats per token) that may not be exceeded.

    Of the engine or of a single request; neither of the two is exact.
    """

    level: float | None = None
    max_kld: float | None = None


@dataclass(frozen=True)
class Policy:
    """All that an administrator decides; ``SkipModel.resolve`` makes of it what workers apply."""

    target: Target = Target()
    phases: Phases = Phases.ALL
    union: UnionBudget | None = None


@dataclass(frozen=True)
class PolicyChange:
    """Any of: a target, the phases, the budget on distinct experts; what is not named stays.

    ``union_budget`` is ``NO_BUDGET`` to turn it off; ``reason`` is for the audit trail
    and ``governor`` what that one is to do from now on.
    """

    target: Target | None = None
    phases: Phases | None = None
    union_budget: int | None = None
    union_mode: UnionMode | None = None
    reason: str | None = None
    governor: str | None = None

    @property
    def names_policy(self) -> bool:
        """False where it is only the governor that is told something."""
        return replace(self, reason=None, governor=None) != PolicyChange()

    def applied_to(self, before: Policy) -> Policy:
        """What holds after this change of what held ``before``."""
        phases = before.phases if self.phases is None else self.phases
        return Policy(self.target or before.target, phases, self._union(before.union))

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
