"""The level that a request keeps: the governor's, or what its key's highest one leaves."""

from __future__ import annotations

from leanmoe.policy import EXACT, RequestLevel, hundredths_of
from leanmoe_server.error_shapes import ForbiddenError
from leanmoe_server.in_force import InForce
from leanmoe_server.tenants.tenants import Session


def held_level(
    session: Session | None, control: InForce, asked: RequestLevel | None
) -> RequestLevel | None:
    """What a request runs at all through; ``None``: at the engine's level, whatever it becomes.

    Held from the start, since the engine's level may rise past the key's meanwhile.
    ``ForbiddenError`` where more was asked, or where no request can be held to a level.
    """
    default = control.default_level
    cap = None if session is None else session.cap
    if session is None or cap is None:
        return default if asked is None else asked
    if asked is not None:
        if asked.hundredths > cap.hundredths:
            session.tenants.refused(session.name, "level")
            raise ForbiddenError(
                f"level {asked.level:g} is above {cap.level:g}, this key's highest; ask for less"
            )
        return RequestLevel(asked.hundredths, asked.deterministic or cap.deterministic)
    current = control.current
    level = EXACT if current is None else current.level
    level = level if default is None else default.level
    if control.settings.request_levels_unavailable is None:
        return RequestLevel(min(hundredths_of(level), cap.hundredths), cap.deterministic)
    budget = current is not None and current.union is not None
    if level > cap.level or (cap.deterministic and budget):
        session.tenants.refused(session.name, "level")
        raise ForbiddenError(
            f"the server skips more than level {cap.level:g}, this key's highest, and cannot tell "
            f"requests apart: {control.settings.request_levels_unavailable}"
        )
    return None
