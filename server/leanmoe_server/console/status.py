"""``GET /v1/expert_skipping/status``: all that the console shows of a server, in one answer.

It is made of what was read last; the workers are asked nothing.
"""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from leanmoe import __version__
from leanmoe.errors import InputError
from leanmoe_server.console.recorder import Recorder
from leanmoe_server.error_shapes import error_response
from leanmoe_server.service import NOT_SET_UP, OwnerService, service_of

_ATTRIBUTE = "leanmoe_recorder"
_MOST_DIGITS = 15


def record_readings(app_state: Any, service: OwnerService, recorder: Recorder) -> None:
    """Make a point of every reading of the poller's."""
    setattr(app_state, _ATTRIBUTE, recorder)
    service.poller.after_reading = recorder.read


async def show_status(request: Request) -> Response:
    """Readiness, policy, curve, rates, memory and layers; ``?after=N`` leaves out older points."""
    service = service_of(request.app)
    recorder = getattr(request.app.state, _ATTRIBUTE, None)
    if not isinstance(service, OwnerService) or not isinstance(recorder, Recorder):
        return error_response(503, NOT_SET_UP, "server_error")
    try:
        after = _after(request.query_params.get("after"))
    except InputError as error:
        return error_response(400, str(error), "invalid_request_error")
    status = {**describe(service), **recorder.describe(after)}
    return JSONResponse(status, headers={"Cache-Control": "no-store"})


def _after(given: str | None) -> int:
    if given is None:
        return 0
    if not (given.isascii() and given.isdigit() and len(given) <= _MOST_DIGITS):
        raise InputError(
            f"after is {given!r:.40}, expected the number of a point, a whole number from 0 up"
        )
    return int(given)


def describe(service: OwnerService) -> dict[str, Any]:
    """The state of ``service`` apart from its counters; the betas are left out."""
    policy = service.control.describe()
    del policy["betas"]
    reasons = service.blocked
    return {
        "ready": not reasons,
        "reasons": reasons,
        "stopping": service.drain.draining,
        "seconds": round(time.time(), 1),
        "version": __version__,
        "poll_seconds": service.settings.poll_seconds,
        "snapshot_age_seconds": service.poller.age_seconds,
        "policy": policy,
        "loaded": _loaded(service),
    }


def _loaded(service: OwnerService) -> list[dict[str, Any]]:
    """Each MoE layer as the first worker that holds it reported it."""
    layers = {
        layer.layer: {
            "layer": layer.layer,
            "experts": layer.n_routed_experts,
            "top_k": layer.top_k,
            "mode": layer.mode.value,
            "condensed": layer.condensed,
        }
        for report in reversed(service.control.handshake)
        for layer in report.layers
    }
    return [layers[number] for number in sorted(layers)]
