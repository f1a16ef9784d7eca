"""Sends the quality prompts to a server and takes down the answers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import urllib3

from leanmoe.wire import REQUEST_KEY
from leanmoe_loadtest.reading.quality import Answer, Quality, passes
from leanmoe_loadtest.reading.quality_prompts import ANSWER_TOKENS, PROMPTS

_AT_ONCE = 4
_PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}


@dataclass(frozen=True)
class Asked:
    """Where and how the prompts are sent."""

    url: str
    model: str
    endpoint: str
    headers: Mapping[str, str]
    timeout_seconds: float
    tokens: bool = True  # ask for the answers' tokens

    def payload(self, prompt: str, level: str | None) -> dict[str, Any]:
        common: dict[str, Any] = {
            "model": self.model,
            "max_tokens": ANSWER_TOKENS,
            "temperature": 0,
        }
        if level is not None:
            common[REQUEST_KEY] = json.loads(level)
        if self.endpoint == "chat":
            logprobs = {"logprobs": True} if self.tokens else {}
            return {**common, **logprobs, "messages": [{"role": "user", "content": prompt}]}
        return {**common, **({"logprobs": 1} if self.tokens else {}), "prompt": prompt}


def ask_quality(asked: Asked, levels: Iterable[str | None], skipping: bool) -> Quality:
    """Every prompt in every pass, a few at once; what fails is noted in its answer."""
    with urllib3.PoolManager(num_pools=1, maxsize=_AT_ONCE, retries=False) as pool:
        if _ask(pool, asked, "probe", '"off"' if skipping else None, 0).tokens is None:
            # Refused, or left out: some servers know no logprobs.
            asked = replace(asked, tokens=False)
        with ThreadPoolExecutor(_AT_ONCE) as threads:
            answers = [
                answer
                for name, level in passes(levels, skipping).items()
                for answer in threads.map(
                    lambda prompt, name=name, level=level: _ask(pool, asked, name, level, prompt),
                    range(len(PROMPTS)),
                )
            ]
    return Quality(answers)


def _ask(
    pool: urllib3.PoolManager, asked: Asked, name: str, level: str | None, prompt: int
) -> Answer:
    answer = Answer(answers=name, level=level, prompt=prompt)
    try:
        response = pool.request(
            "POST",
            asked.url + _PATHS[asked.endpoint],
            body=json.dumps(asked.payload(PROMPTS[prompt], level)),
            headers={"Content-Type": "application/json", **asked.headers},
            timeout=asked.timeout_seconds,
        )
    except urllib3.exceptions.HTTPError as error:
        answer.error = type(error).__name__
        return answer
    if response.status != 200:
        answer.error = f"HTTP {response.status}"
        return answer
    try:
        _take(answer, json.loads(response.data)["choices"][0], response.headers)
    except (ValueError, LookupError, TypeError, AttributeError):
        answer.error = "an answer of another shape"
    return answer


def _take(answer: Answer, choice: Mapping[str, Any], headers: Mapping[str, str]) -> None:
    message = choice.get("message")
    answer.text = str((choice["text"] if message is None else message["content"]) or "")
    answer.tokens = _tokens(choice.get("logprobs"))
    applied = headers.get("X-LeanMoE-Skip-Level")
    answer.applied_level = None if applied is None else float(applied)


def _tokens(logprobs: Mapping[str, Any] | None) -> list[str] | None:
    if not logprobs:
        return None
    if logprobs.get("content") is not None:
        return [str(one["token"]) for one in logprobs["content"]]
    tokens = logprobs.get("tokens")
    return None if tokens is None else [str(token) for token in tokens]
