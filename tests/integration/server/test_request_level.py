"""Requests of different levels in one batch of a real engine, each served as if it were alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from leanmoe.wire import LEVEL_HEADER
from tests.forked import Forked
from tests.integration.live_server import LiveServer, live_server
from tests.tiny import write_tiny_curve, write_tiny_mixtral

LEVELS = (0.0, 0.5, 1.0)
TEXT = "the water and people of a long day go home see time look write number"
WORDS = TEXT.split()
PROMPTS = [" ".join(WORDS[i : i + 4] + WORDS[: i % 5]) for i in range(10)]
PAIRS = [" ".join(WORDS[i : i + 2]) for i in range(10)]


@pytest.fixture(scope="module")
def mixed(forked: type[Forked], tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A server in float32: what stands in a batch then changes no token by rounding."""
    folder = tmp_path_factory.mktemp("mixed")
    model = write_tiny_curve(write_tiny_mixtral(folder / "tiny", dtype="float32"))
    flags = ("--max-model-len", "1024", "--max-num-seqs", "32", "--dtype", "float32")
    cache = ("--kv-cache-memory-bytes", "100000000")
    log = folder / "server.log"
    given = {"flags": (*flags, *cache), "popen": forked}
    with live_server(model, log, "--max-skip-level", "1", **given) as running:
        assert running.get("/ready").status_code == 200, running.log.read_text()[-4000:]
        yield running


def complete(server: LiveServer, prompt: str, target: Any, **options: Any) -> Any:
    body = {"ignore_eos": True, **({} if target is None else {"expert_skipping": target})}
    return server.client().completions.with_raw_response.create(
        model=server.model,
        prompt=prompt,
        max_tokens=24,
        temperature=0,
        extra_body=body,
        **options,
    )


def text_of(server: LiveServer, prompt: str, target: Any) -> str:
    return str(complete(server, prompt, target).parse().choices[0].text)


def test_each_request_gets_the_tokens_it_would_get_alone(mixed: LiveServer) -> None:
    asked = [(prompt, {"level": level}) for prompt in PROMPTS for level in LEVELS]
    alone = []
    for level in LEVELS:
        # Alone means: this level for the whole engine, nobody asking for another.
        assert mixed.put_level({"level": level}).status_code == 200
        alone.append([text_of(mixed, prompt, None) for prompt in PROMPTS])
    assert mixed.put_level({"level": 0.5}).status_code == 200
    with ThreadPoolExecutor(len(asked)) as pool:
        together = list(pool.map(lambda one: text_of(mixed, *one), asked))
    expected = [alone[i][p] for p in range(len(PROMPTS)) for i in range(len(LEVELS))]
    assert together == expected
    assert alone[0] != alone[1] != alone[2]


def test_an_exact_request_after_an_approximate_one_is_exact(mixed: LiveServer) -> None:
    """The prompt fills many cache blocks; each answer is that of a fresh cache at its level."""
    prompt = " ".join(WORDS * 20)
    fresh = {}
    for level in (0.0, 1.0):
        assert mixed.put_level({"level": level}).status_code == 200
        fresh[level] = text_of(mixed, prompt, None)
    assert mixed.put_level({"level": 0}).status_code == 200
    assert text_of(mixed, prompt, {"level": 1}) == fresh[1.0]
    assert text_of(mixed, prompt, None) == fresh[0.0]
    assert text_of(mixed, prompt, "off") == fresh[0.0]
    assert text_of(mixed, prompt, {"level": 1}) == fresh[1.0]
    assert fresh[0.0] != fresh[1.0]


def skipped(server: LiveServer) -> float:
    return counted(server, "leanmoe_skipped_assignments_total")


def counted(server: LiveServer, series: str) -> float:
    return sum(value for (name, _), value in server.metrics().items() if name == series)


def test_only_who_asks_is_skipped_and_counted(mixed: LiveServer) -> None:
    assert mixed.put_level({"level": 0}).status_code == 200
    before = skipped(mixed)
    text_of(mixed, PROMPTS[0], None)
    assert skipped(mixed) == before
    text_of(mixed, PROMPTS[0], {"level": 1})
    assert skipped(mixed) > before
    assert mixed.put_level({"level": 1}).status_code == 200
    middle = skipped(mixed)
    text_of(mixed, PROMPTS[1], "off")
    assert skipped(mixed) == middle


def test_the_level_that_applied_comes_back(mixed: LiveServer) -> None:
    assert mixed.put_level({"level": 0.5}).status_code == 200
    default = complete(mixed, PROMPTS[0], None)
    assert default.headers[LEVEL_HEADER] == "0.5"
    answer = complete(mixed, PROMPTS[0], {"max_kld": 0.01})
    assert answer.headers[LEVEL_HEADER] == "0"
    assert answer.parse().usage.model_extra["expert_skipping"] == {"level": 0.0, "skipped": 0}


def assert_at_top_1(told: dict[str, Any]) -> None:
    """Of two experts each a token keeps one."""
    assert told == {"level": 1.0, "routed": 2 * told["skipped"], "skipped": told["skipped"]}
    assert told["skipped"] > 0


def test_what_answers_say_adds_up_to_the_counters(mixed: LiveServer) -> None:
    assert mixed.put_level({"level": 0.5}).status_code == 200
    before = skipped(mixed), counted(mixed, "leanmoe_routed_assignments_total")
    targets = [None, {"level": 1}, {"level": 0.3}, {"level": 0}]
    asked = [(prompt, target) for prompt in PROMPTS[:6] for target in targets]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda one: complete(mixed, *one).parse(), asked))
    told = [answer.usage.model_extra["expert_skipping"] for answer in answers]
    after = skipped(mixed), counted(mixed, "leanmoe_routed_assignments_total")
    assert sum(one["skipped"] for one in told) == after[0] - before[0] > 0
    # An exact answer's are known without asking the workers.
    assert sum(one.get("routed", 0) for one in told) < after[1] - before[1]
    every = [one for one, (_, target) in zip(told, asked, strict=True) if target != {"level": 0}]
    assert all(one["routed"] > one["skipped"] > 0 for one in every)


def test_chat_streams_and_responses_take_a_level(mixed: LiveServer) -> None:
    client, target = mixed.client(), {"expert_skipping": {"level": 1}, "ignore_eos": True}
    stream = client.chat.completions.create(
        model=mixed.model,
        messages=[{"role": "user", "content": PROMPTS[0]}],
        max_tokens=8,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=target,
    )
    usages = [chunk.usage for chunk in stream if chunk.usage is not None]
    assert usages[-1].completion_tokens == 8
    assert_at_top_1(usages[-1].model_extra["expert_skipping"])
    response = client.responses.with_raw_response.create(
        model=mixed.model,
        input=PROMPTS[0],
        max_output_tokens=8,
        temperature=0,
        extra_body={"expert_skipping": {"level": 1}},
    )
    assert response.headers[LEVEL_HEADER] == "1"
    assert_at_top_1(response.parse().usage.model_extra["expert_skipping"])


def test_a_level_above_the_cap_is_refused(
    tiny_model: Path, forked: type[Forked], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with live_server(tiny_model, log, "--max-skip-level", "0.5", popen=forked) as capped:
        with pytest.raises(openai.BadRequestError, match="the most this server allows"):
            text_of(capped, PROMPTS[0], {"level": 0.6})
        assert text_of(capped, PROMPTS[0], {"level": 0.5})
        assert capped.put_level({"level": 0.6}).status_code == 400


def test_a_budget_on_distinct_experts_never_reaches_an_exact_request(mixed: LiveServer) -> None:
    """Batch mates change what runs under a budget, and nothing else."""
    targets = ("off", {"level": 0.5, "deterministic": True}, {"max_kld": 0.05})
    assert mixed.put_level({"level": 0}).status_code == 200
    alone = [[text_of(mixed, prompt, target) for prompt in PROMPTS] for target in targets]
    free = [text_of(mixed, pair, None) for pair in PAIRS]
    shown = mixed.put_level({"union_budget": 2, "union_mode": "redirect"})
    assert shown.status_code == 200 and shown.json()["union_budget"] == 2
    try:
        asked = [(prompt, target) for prompt in PROMPTS for target in (*targets, None)]
        with ThreadPoolExecutor(len(asked)) as pool:
            together = list(pool.map(lambda one: text_of(mixed, *one), asked))
        for place, tokens in enumerate(alone):
            assert together[place::4] == tokens
        # Who runs together decides what a budget moves: nothing does in a batch whose exact
        # requests need every expert. Two tokens alone need four experts at most, the budget is two.
        assert [text_of(mixed, pair, None) for pair in PAIRS] != free
        counts = mixed.metrics()
        assert counts["leanmoe_union_budget", ""] == 2
        assert counts["leanmoe_substituted_assignments_total", "0"] > 0
        refused = mixed.put_level({"max_kld": 0.1})
        assert refused.status_code == 400 and "budget" in refused.text
    finally:
        assert mixed.put_level({"union_budget": None, "level": 0}).status_code == 200
