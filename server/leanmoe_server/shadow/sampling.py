"""Which finished answers are replayed: a share of those at the level of requests that name none."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from leanmoe.policy import EXACT, RequestLevel, hundredths_of
from leanmoe_server.in_force import InForce

Generate = Callable[..., AsyncGenerator[Any, None]]
# More would be stale before their turn; the texts of answers are held for no longer.
MOST_HELD = 8
_CUMULATIVE = "CUMULATIVE"
OURS = "leanmoe-"  # what the server itself asks; routes put a word of their own before a name


@dataclass(frozen=True)
class Answer:
    """Token ids of one finished request, and the level that it was computed at."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]
    level: RequestLevel

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


class Sampler:
    """Stands around vLLM's ``generate`` and keeps some of what passes."""

    def __init__(self, share: float, control: InForce, chance: random.Random) -> None:
        self._share, self._control, self._chance = share, control, chance
        self.held: deque[Answer] = deque(maxlen=MOST_HELD)
        self.keep: Callable[[Answer], None] = self.held.append

    @property
    def level(self) -> RequestLevel | None:
        """Of requests that name none; ``None`` where nothing is skipped."""
        current = self._control.current
        engine = EXACT if current is None else current.level
        level = self._control.default_level or RequestLevel(hundredths_of(engine))
        return level if level.hundredths else None

    def around(self, generate: Generate) -> Generate:
        """``generate``, whose outputs pass as they are."""

        def sampled(
            prompt: Any, sampling_params: Any, request_id: str, **options: Any
        ) -> AsyncGenerator[Any, None]:
            outputs = generate(prompt, sampling_params, request_id, **options)
            level = self.level
            ids = prompt.get("prompt_token_ids") or () if isinstance(prompt, dict) else ()
            plain = ids and set(prompt) <= _PLAIN and options.get("lora_request") is None
            ours = request_id.startswith(OURS)
            if level is None or ours or not plain or self._chance.random() >= self._share:
                return outputs
            return self._kept(outputs, tuple(ids), sampling_params, level)

        return sampled

    async def _kept(
        self, outputs: AsyncGenerator[Any, None], prompt: tuple[int, ...], params: Any,
        level: RequestLevel,
    ) -> AsyncGenerator[Any, None]:  # fmt: skip
        tokens: list[int] = []
        repeats = params.output_kind.name == _CUMULATIVE
        async with aclosing(outputs):
            async for output in outputs:
                for one in output.outputs[:1]:
                    tokens = list(one.token_ids) if repeats else [*tokens, *one.token_ids]
                if output.finished and tokens and self._is_of(params, level):
                    self.keep(Answer(prompt, tuple(tokens), level))
                yield output

    def _is_of(self, params: Any, level: RequestLevel) -> bool:
        """False where the request had a level of its own, or the level changed meanwhile."""
        own = (params.extra_args or {}).get(self._control.request_key)
        return self.level == level and own in (None, level.pack())


_PLAIN = {"type", "prompt_token_ids", "prompt", "cache_salt", "arrival_time"}
