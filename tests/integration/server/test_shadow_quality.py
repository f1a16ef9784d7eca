"""Shadow replays on a live server: what they export, and scores that no order changes."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import httpx
import pytest

from tests.forked import Forked
from tests.integration.live_server import LiveServer, live_server, wait_for


@pytest.fixture(scope="module")
def watched(
    tiny_model, forked: type[Forked], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """A server at level 1 that replays every answer, behind everything else in vLLM's queue."""
    log = tmp_path_factory.mktemp("shadow") / "server.log"
    arguments = ("--skip-level", "1", "--shadow-share", "1", "--max-logprobs", "-1")
    priority = ("--scheduling-policy", "priority")
    with live_server(tiny_model, log, *arguments, *priority, popen=forked) as running:
        assert running.get("/ready").status_code == 200, running.log.read_text()[-4000:]
        yield running


def shadow(server: LiveServer) -> dict[str, object]:
    return server.get("/v1/expert_skipping").json()["shadow"]


def test_served_answers_differ_from_exact_ones_and_exact_from_exact_do_not(watched) -> None:
    for text in ("What is the capital of France?", "Who are you?"):
        watched.answer(text)
    found = wait_for(lambda: shadow(watched), lambda one: one["answers"] >= 2, 60)
    assert found["answers"] == 2 and found["level"] == 1.0, watched.log.read_text()[-2000:]
    assert found["kld"] > 0.001 > found["noise_kld"] and found["noise_top1_agreement"] == 1.0
    assert 0.0 <= found["top1_agreement"] < 1.0 and found["breach"] is None
    scraped = watched.get("/metrics").text
    assert 'leanmoe_shadow_replays_total{outcome="replayed"} 2.0' in scraped
    assert 'leanmoe_shadow_replays_total{outcome="failed"} 0.0' in scraped


def scores(server: LiveServer, prompt: list[int], salt: str, k: int = 20) -> list[dict[str, float]]:
    body = {
        "model": server.model,
        "prompt": prompt,
        "max_tokens": 1,
        "prompt_logprobs": k,
        "cache_salt": salt,
        "expert_skipping": "off",
    }
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    held = answer.json()["choices"][0]["prompt_logprobs"][1:]
    return [{token: one["logprob"] for token, one in place.items()} for place in held]


def test_scores_do_not_depend_on_the_order_of_requests_with_salts_of_their_own(watched) -> None:
    first = [7 + i % 90 for i in range(80)]
    second = first[:64] + [11 + i % 50 for i in range(16)]
    one = (scores(watched, first, "a1"), scores(watched, second, "a2"))
    other = (scores(watched, second, "b2"), scores(watched, first, "b1"))
    assert one == (other[1], other[0])


def test_with_priorities_replays_go_on_beside_traffic(watched) -> None:
    """Where there are none, they wait until no request is in flight."""
    ended, before = threading.Event(), shadow(watched)["answers"]

    def keep_busy() -> None:
        while not ended.is_set():
            watched.answer(tokens=64)

    threads = [threading.Thread(target=keep_busy) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        found = wait_for(lambda: shadow(watched)["answers"], lambda n: n > before, seconds=60)
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert found > before
