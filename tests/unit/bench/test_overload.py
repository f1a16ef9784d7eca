"""How the overload bench judges an answer: whole once, refused, left, or wrong."""

from __future__ import annotations

import asyncio
import json
import random

import httpx
import pytest

from leanmoe_bench.overload.answers import Answers, ask
from leanmoe_bench.overload.endurance import growth


def event(reason: str | None) -> str:
    return f"data: {json.dumps({'choices': [{'text': 'a', 'finish_reason': reason}]})}\n\n"


ONCE = event(None) + event("length") + "data: [DONE]\n\n"
TWICE = event("length") + ONCE
CUT = event(None) + event("length")


def judged(answer: httpx.Response, leaving: float = 0.0) -> Answers:
    async def all_of_it() -> Answers:
        answers = Answers()
        transport = httpx.MockTransport(lambda _: answer)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            await ask(client, random.Random(0), answers, leaving)
        return answers

    return asyncio.run(all_of_it())


def streamed(text: str) -> httpx.Response:
    return httpx.Response(200, text=text, headers={"content-type": "text/event-stream"})


@pytest.fixture(autouse=True)
def _always_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(random.Random, "random", lambda _: 0.0)


def test_an_answer_that_ends_once_is_complete() -> None:
    found = judged(streamed(ONCE))
    assert (dict(found.ended), found.wrong) == ({"completed": 1}, [])


@pytest.mark.parametrize("text", [TWICE, CUT, ONCE + ONCE], ids=["twice", "cut", "after the end"])
def test_an_answer_that_ends_otherwise_is_wrong(text: str) -> None:
    found = judged(streamed(text))
    assert (sum(found.ended.values()), len(found.wrong)) == (0, 1)


def test_a_refusal_must_say_when_to_come_again() -> None:
    assert judged(httpx.Response(503, headers={"retry-after": "5"})).ended["refused"] == 1
    assert judged(httpx.Response(503)).wrong == ["status 503"]


def test_a_client_that_leaves_is_counted_as_such() -> None:
    assert judged(streamed(event(None) * 20), leaving=1.0).ended["left"] == 1


def test_growth_is_of_the_last_quarter_over_the_second() -> None:
    assert growth([50, 100, 100, 103]) == 0.03
