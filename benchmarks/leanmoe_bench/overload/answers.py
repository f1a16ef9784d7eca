"""One request and how it ended: once, whole, refused, left, or wrong."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

from leanmoe_bench.overload.pressed_server import MODEL

_TEXT = "the model answers what people ask of it in many words and some of them are long"
_WORDS = _TEXT.split(" ")
LEAVING_SHARE = 0.1


@dataclass
class Answers:
    """How requests ended: ``completed``, ``refused`` (503), or by their client, which ``left`` or,
    after its own limit, ``gave_up``.
    """

    ended: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def fail(self, what: str) -> None:
        self.wrong.append(what)


def body_of(draw: random.Random, streamed: bool) -> dict[str, Any]:
    """A request of a random length, whose answer has one, too."""
    return {
        "model": MODEL,
        "prompt": " ".join(draw.choices(_WORDS, k=draw.randint(4, 60))),
        "max_tokens": draw.randint(8, 48),
        "ignore_eos": True,
        "stream": streamed,
    }


async def ask(
    client: httpx.AsyncClient, draw: random.Random, answers: Answers, leaving: float = 0.0
) -> None:
    """Send one request and count its end; a share of ``leaving`` disconnects somewhere."""
    body = body_of(draw, streamed=draw.random() < 0.7)
    leaves = draw.randint(1, 8) if draw.random() < leaving else None
    try:
        if body["stream"]:
            await _stream(client, body, leaves, answers)
        else:
            await _whole(client, body, leaves, answers)
    except httpx.ReadTimeout:
        answers.ended["gave_up"] += 1
    except httpx.HTTPError as error:
        answers.fail(f"{type(error).__name__}: {error}")


def _refused(answer: httpx.Response, answers: Answers) -> bool:
    if answer.status_code == 503 and "retry-after" in answer.headers:
        answers.ended["refused"] += 1
    elif answer.status_code != 200:
        answers.fail(f"status {answer.status_code}")
    return answer.status_code != 200


async def _stream(
    client: httpx.AsyncClient, body: dict[str, Any], leaves: int | None, answers: Answers
) -> None:
    events: list[str] = []
    async with client.stream("POST", "/v1/completions", json=body) as answer:
        if _refused(answer, answers):
            return
        async for line in answer.aiter_lines():
            if line:
                events.append(line.removeprefix("data: "))
            if leaves is not None and len(events) >= leaves:
                answers.ended["left"] += 1
                return
    ends = [one for one in events if _ends(one)]
    if len(ends) == 1 and events.count("[DONE]") == 1 and events[-1] == "[DONE]":
        answers.ended["completed"] += 1
    else:
        answers.fail(f"a stream of {len(events)} events ended {len(ends)} times: {events[-1:]}")


def _ends(event: str) -> bool:
    """Whether an event says why its answer ended; an error has no answer."""
    choices = [] if event == "[DONE]" else json.loads(event).get("choices", [])
    return any(one["finish_reason"] for one in choices)


async def _whole(
    client: httpx.AsyncClient, body: dict[str, Any], leaves: int | None, answers: Answers
) -> None:
    asked = client.post("/v1/completions", json=body)
    try:
        answer = await asyncio.wait_for(asked, None if leaves is None else leaves / 10)
    except TimeoutError:
        answers.ended["left"] += 1
        return
    if _refused(answer, answers):
        return
    if answer.json()["choices"][0]["finish_reason"] == "length":
        answers.ended["completed"] += 1
    else:
        answers.fail(f"an answer ended with {answer.text[-200:]}")
