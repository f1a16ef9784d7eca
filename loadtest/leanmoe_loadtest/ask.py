"""The body of each request of a plan; request number N is the same on every worker."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

from leanmoe.wire import REQUEST_KEY
from leanmoe_loadtest.lengths import parse_lengths
from leanmoe_loadtest.level_mix import WeightedLevel
from leanmoe_loadtest.plan import Plan
from leanmoe_loadtest.source import Prompt
from leanmoe_loadtest.words import Words

PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


@dataclass(frozen=True)
class Ask:
    """One request as it goes out, and what its record says about it."""

    path: str
    body: bytes
    prompt: int | None
    level: str | None


class Asker:
    """Builds requests from a plan: prompts in a shuffled order, lengths and levels drawn."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._order = list(plan.prompts)
        random.Random(f"{plan.seed}:order").shuffle(self._order)
        self._words = Words(plan.seed)
        self._input = parse_lengths(plan.input_tokens, "input") if plan.input_tokens else None
        self._output = parse_lengths(plan.output_tokens, "output") if plan.output_tokens else None
        self._fixed: dict[str, Any] = {
            "model": plan.model,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **({"ignore_eos": True} if plan.ignore_eos else {}),
        }

    def ask(self, number: int) -> Ask:
        """Request ``number``, counted over all workers from 0."""
        source = random.Random(f"{self._plan.seed}:{number}")
        asked, answer = self._lengths(number, source)
        level = self._level(source)
        if self._order:
            prompt = self._order[number % len(self._order)]
        else:
            prompt = Prompt(index=number, text=self._made_up(asked or 1, source))
        payload = {
            **self._fixed,
            **self._question(prompt),
            "max_tokens": prompt.max_tokens or answer or self._plan.max_tokens,
            **({} if level is None or level.value is None else {REQUEST_KEY: level.value}),
        }
        return Ask(
            path=PATHS[self._plan.endpoint],
            body=json.dumps(payload).encode(),
            prompt=prompt.index,
            level=None if level is None else level.text,
        )

    def _made_up(self, tokens: int, source: random.Random) -> str:
        words = (tokens - self._plan.extra_tokens) / self._plan.tokens_per_word
        return self._words.text(max(round(words), 1), source)

    def _lengths(self, number: int, source: random.Random) -> tuple[int | None, int | None]:
        if self._plan.trace_lengths is not None:
            return self._plan.trace_lengths[number]
        asked = self._input.draw(source) if self._input else None
        return asked, self._output.draw(source) if self._output else None

    def _level(self, source: random.Random) -> WeightedLevel | None:
        levels = self._plan.levels
        if not levels:
            return None
        return source.choices(levels, weights=[one.weight for one in levels])[0]

    def _question(self, prompt: Prompt) -> dict[str, Any]:
        if self._plan.endpoint == "completions":
            return {"prompt": prompt.text}
        return {"messages": prompt.messages or [{"role": "user", "content": prompt.text}]}
