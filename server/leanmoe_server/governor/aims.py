"""What the governor was told at the start, and what of it contradicts."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from leanmoe.errors import InputError
from leanmoe.messages import HandshakeReport
from leanmoe.policy import check_level
from leanmoe_server.governor.decision import Objectives
from leanmoe_server.governor.traffic import Traffic, expert_share
from leanmoe_server.model import SkipModel
from leanmoe_server.policy import Policy, Target


class GovernorMode(StrEnum):
    """``OBSERVE`` says what it would do, ``ACT`` does it, ``HOLD`` does nothing for now."""

    OBSERVE = "observe"
    ACT = "act"
    HOLD = "hold"


@dataclass(frozen=True)
class Aims:
    """Objectives, and the floor of quality: the highest level and the smallest budget.

    ``bandwidth`` is the memory's in bytes per second, ``expert_share`` that of the experts in the
    weights; both are 0 where no budget may be chosen.
    """

    mode: GovernorMode
    objectives: Objectives
    top: float
    least_budget: int | None = None
    bandwidth: float = 0.0
    expert_share: float = 0.0

    def traffic(self, workers: Sequence[HandshakeReport], n_experts: int) -> Traffic | None:
        """What reading weights costs a step; ``None`` where that is not known."""
        if not (workers and n_experts and self.bandwidth):
            return None
        return Traffic(workers[0].weight_bytes, self.expert_share, n_experts, self.bandwidth)


def add_governor_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("the governor: more skipping while the load is high")
    group.add_argument(
        "--governor",
        choices=["off", GovernorMode.OBSERVE.value, GovernorMode.ACT.value],
        default="off",
        help="raise the level of requests that name none while an objective is in danger: off "
        "(default), observe (only say so) or act",
    )
    group.add_argument("--slo-ttft", type=float, metavar="MS", help="mean time to first token")
    group.add_argument("--slo-itl", type=float, metavar="MS", help="mean time between tokens")
    floor = group.add_mutually_exclusive_group()
    floor.add_argument(
        "--governor-max-level", type=float, metavar="L", help="floor of quality: no level above"
    )
    floor.add_argument(
        "--governor-max-kld",
        type=float,
        metavar="X",
        help="floor of quality: the highest level whose measured KLD bound stays under this",
    )
    group.add_argument(
        "--governor-union-budget",
        type=int,
        metavar="N",
        help="it may also set a budget on distinct experts, down to this one",
    )
    group.add_argument(
        "--memory-bandwidth",
        type=float,
        metavar="GB/S",
        help="of the memory that holds the weights; with --governor-union-budget",
    )
    group.add_argument(
        "--governor-dwell",
        type=float,
        metavar="S",
        help="least seconds between two steps up (default 10)",
    )


def aims_of(args: Namespace, model: SkipModel, policy: Policy) -> Aims | None:
    """The governor's aims, ``None`` where it is off; ``InputError`` for what contradicts."""
    if args.governor == "off":
        _refuse_without_governor(args)
        return None
    ttft = _seconds("--slo-ttft", args.slo_ttft)
    itl = _seconds("--slo-itl", args.slo_itl)
    if ttft is None and itl is None:
        raise InputError(
            f"--governor {args.governor} needs an objective; give --slo-ttft MS or --slo-itl MS"
        )
    dwell = _positive("--governor-dwell", args.governor_dwell, 10.0)
    aims = Aims(
        mode=GovernorMode(args.governor),
        objectives=Objectives(ttft, itl, dwell),
        top=_top(args, model, policy),
    )
    return _with_budget(aims, args, policy)


def _refuse_without_governor(args: Namespace) -> None:
    given = [
        name
        for name in (
            *("slo_ttft", "slo_itl", "governor_max_level", "governor_max_kld"),
            *("governor_union_budget", "memory_bandwidth", "governor_dwell"),
        )
        if getattr(args, name) is not None
    ]
    if given:
        flag = "--" + given[0].replace("_", "-")
        raise InputError(f"{flag} is for the governor, which is off; add --governor act")


def _top(args: Namespace, model: SkipModel, policy: Policy) -> float:
    if args.governor_max_kld is not None:
        top = model.resolve(Policy(Target(max_kld=args.governor_max_kld))).level
    elif args.governor_max_level is not None:
        level = check_level(args.governor_max_level, "--governor-max-level")
        top = model.resolve(Policy(Target(level=level))).level
    else:
        raise InputError(
            f"--governor {args.governor} needs a floor of quality; give --governor-max-level L or "
            "--governor-max-kld X"
        )
    base = model.resolve(replace(policy, union=None)).level
    if top <= base:
        raise InputError(
            f"the governor may go to level {top} and the server starts at {base}, so it could do "
            "nothing; allow it more or start lower"
        )
    return top


def _with_budget(aims: Aims, args: Namespace, policy: Policy) -> Aims:
    least, bandwidth = args.governor_union_budget, args.memory_bandwidth
    if (least is None) != (bandwidth is None):
        raise InputError(
            "--governor-union-budget and --memory-bandwidth go together: a budget pays only where "
            "reading weights bounds a step; give both or none"
        )
    if least is None:
        return aims
    if args.deterministic:
        raise InputError("--deterministic refuses the budgets of --governor-union-budget; give one")
    if policy.target.max_kld is not None or args.governor_max_kld is not None:
        raise InputError(
            "--governor-union-budget has a cost that no curve measured, which --max-kld and "
            "--governor-max-kld promise to bound; leave one of them out"
        )
    return replace(
        aims,
        least_budget=least,
        bandwidth=_positive("--memory-bandwidth", bandwidth, 1.0) * 1e9,
        expert_share=expert_share(Path(args.model)),
    )


def _seconds(flag: str, milliseconds: float | None) -> float | None:
    return None if milliseconds is None else _positive(flag, milliseconds, 1.0) / 1000


def _positive(flag: str, value: float | None, default: float) -> float:
    given = default if value is None else value
    if not 0 < given < float("inf"):
        raise InputError(f"{flag} is {value}, expected a number above 0")
    return given
