"""What shadow replays may cost, and from where on quality is too low."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import dataclass

from leanmoe.errors import InputError
from leanmoe_server.policy import Policy


@dataclass(frozen=True)
class ShadowTerms:
    """``share`` of finished answers, ``tokens_per_minute`` computed for them at most; past
    ``max_kld`` the level is forced down, ``None``: it is only measured."""

    share: float
    tokens_per_minute: int
    max_kld: float | None


def add_shadow_arguments(parser: ArgumentParser) -> None:
    group = parser.add_argument_group("shadow quality: finished answers scored again, exact")
    group.add_argument(
        "--shadow-share", type=float, default=0.0, metavar="P", help="share of answers (default 0)"
    )
    group.add_argument(
        "--shadow-tokens-per-minute",
        type=int,
        default=20_000,
        metavar="N",
        help="computed for it at most (default 20000)",
    )
    group.add_argument(
        "--shadow-max-kld",
        type=float,
        metavar="X",
        help="force the level down where the measured KLD is surely above this "
        "(default: --max-kld or --governor-max-kld, if given)",
    )


def terms_of(args: Namespace, policy: Policy) -> ShadowTerms | None:
    """``None`` where it is off; ``InputError`` for what cannot be."""
    if not 0.0 <= args.shadow_share <= 1.0:
        raise InputError(f"--shadow-share is {args.shadow_share}, expected a share from 0 to 1")
    if args.shadow_tokens_per_minute < 1:
        raise InputError(
            f"--shadow-tokens-per-minute is {args.shadow_tokens_per_minute}, expected 1 or more"
        )
    limits = (args.shadow_max_kld, policy.target.max_kld, args.governor_max_kld)
    limit = next((one for one in limits if one is not None), None)
    if limit is not None and not 0.0 <= limit < float("inf"):
        raise InputError(f"--shadow-max-kld is {limit}, expected a finite number of at least 0")
    if args.shadow_share == 0.0:
        if args.shadow_max_kld is not None:
            raise InputError("--shadow-max-kld needs measurements; add --shadow-share")
        return None
    return ShadowTerms(args.shadow_share, args.shadow_tokens_per_minute, limit)
