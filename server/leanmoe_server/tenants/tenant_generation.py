"""vLLM's ``generate`` in a tenant's name: at its level, with its own cached prompts, counted.

Every route of vLLM that computes tokens ends there, so that no route is forgotten.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from leanmoe.policy import RequestLevel
from leanmoe_server.cache_salt import SALT, salt_of, secret_of
from leanmoe_server.in_force import InForce
from leanmoe_server.tenants.tenant_level import held_level
from leanmoe_server.tenants.tenants import SESSION, Session

Generate = Callable[..., AsyncGenerator[Any, None]]
# Of ``SamplingParams.output_kind``: every output holds all tokens before it too.
_CUMULATIVE = "CUMULATIVE"
_TOGETHER = 32


def for_tenants(generate: Generate, control: InForce) -> Generate:
    """``generate``, for requests that came through the door; what the server asks passes."""

    def generated(
        prompt: Any, sampling_params: Any, request_id: str, **options: Any
    ) -> AsyncGenerator[Any, None]:
        session = SESSION.get()
        if session is None:
            return generate(prompt, sampling_params, request_id, **options)
        level = _put_level(sampling_params, session, control)
        prompt = _salted(prompt, level, session, control)
        outputs = generate(prompt, sampling_params, request_id, **options)
        return _counted(outputs, prompt, sampling_params, session)

    return generated


def _put_level(params: Any, session: Session, control: InForce) -> RequestLevel | None:
    """The level that the request keeps, in its parameters; ``None`` where none is put there."""
    extra = params.extra_args or {}
    if control.request_key in extra:
        return None  # it asked, its salt has the level already
    level = session.level or held_level(session, control, None)
    if level is not None:
        params.extra_args = {**extra, control.request_key: level.pack()}
    return level


def _salted(prompt: Any, level: RequestLevel | None, session: Session, control: InForce) -> Any:
    own = session.salt
    if own is None and level is None:
        return prompt
    if not isinstance(prompt, dict) or prompt.get("type") == "enc_dec":
        raise ValueError("prompts of this kind cannot be kept apart from those of other keys")
    salt = prompt.get(SALT)
    if level is not None:
        salt = salt_of(secret_of(control, level), level, salt)
    return {**prompt, SALT: salt if own is None else salt_of(own, None, salt)}


async def _counted(
    outputs: AsyncGenerator[Any, None], prompt: Any, params: Any, session: Session
) -> AsyncGenerator[Any, None]:
    tokens = prompt.get("prompt_token_ids") if isinstance(prompt, dict) else None
    prompted = len(tokens or ())
    # The limit knows of a prompt while it waits; what vLLM refuses was not computed.
    await session.charge(prompted)
    repeats = params.output_kind.name == _CUMULATIVE
    new = 0
    try:
        async with aclosing(outputs):
            async for output in outputs:
                session.count("prompt", prompted)
                prompted = 0
                if output.finished or not repeats:
                    new += sum(len(one.token_ids) for one in output.outputs)
                # Not one by one: a stream has an output for each token.
                if new >= _TOGETHER:
                    await _count_generated(session, new)
                    new = 0
                yield output
    except (asyncio.CancelledError, GeneratorExit):
        session.count("prompt", prompted)
        raise
    finally:
        await _count_generated(session, new)


async def _count_generated(session: Session, tokens: int) -> None:
    session.count("generated", tokens)
    await session.charge(tokens)
