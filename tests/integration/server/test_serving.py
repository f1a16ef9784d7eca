"""The live server as a client sees it: chat, levels, readiness, metrics."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from leanmoe import metric_names
from tests.integration.live_server import LiveServer, wait_for

DOCS = Path(__file__).parents[3] / "docs" / "metrics.md"
LAYERS, TOP_K = 4, 2
ROUTED, SKIPPED = "leanmoe_routed_assignments_total", "leanmoe_skipped_assignments_total"
# Without a sample where there is no device, and until answers were replayed.
WITHOUT_SAMPLES = {
    metric_names.DEVICE_BYTES.name,
    metric_names.SHADOW_KLD.name,
    metric_names.SHADOW_TOP1.name,
}


def by_layer(samples: dict[tuple[str, str], float], name: str) -> list[float]:
    return [samples.get((name, str(layer)), 0.0) for layer in range(LAYERS)]


def forward_tokens(samples: dict[tuple[str, str], float]) -> float:
    """Tokens the model ran, by vLLM's own count: the last token of an answer is never fed back."""
    prompt, cached = samples["vllm:prompt_tokens_total", ""], cached_tokens(samples)
    finished = samples["vllm:e2e_request_latency_seconds_count", ""]
    return prompt - cached + samples["vllm:generation_tokens_total", ""] - finished


def cached_tokens(samples: dict[tuple[str, str], float]) -> float:
    return samples.get(("vllm:prefix_cache_hits_total", ""), 0.0)


def test_health_and_ready(server: LiveServer) -> None:
    assert server.get("/health").status_code == 200
    answer = server.get("/ready")
    assert answer.status_code == 200
    assert answer.json() == {"ready": True, "reasons": []}


def test_chat_in_one_piece_and_streamed_are_the_same(exact_server: LiveServer) -> None:
    whole = exact_server.answer(tokens=24)
    stream = exact_server.client().chat.completions.create(
        model=exact_server.model,
        messages=[{"role": "user", "content": "What is the capital of France?"}],
        max_tokens=24,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    pieces, usage = [], None
    for chunk in stream:
        pieces += [choice.delta.content or "" for choice in chunk.choices]
        usage = chunk.usage or usage
    assert "".join(pieces) == whole
    assert usage is not None and usage.completion_tokens == 24


def test_a_level_changes_the_next_tokens_and_level_0_restores_them(
    exact_server: LiveServer,
) -> None:
    exact = exact_server.answer()
    before = by_layer(exact_server.metrics(), SKIPPED)
    changed = exact_server.put_level({"level": 1})
    assert changed.status_code == 200
    assert changed.json()["betas"] == {str(layer): 1.0 for layer in range(LAYERS)}
    assert exact_server.answer() != exact
    skipped = wait_for(
        lambda: by_layer(exact_server.metrics(), SKIPPED), lambda now: now > before, seconds=10
    )
    assert all(now > then for now, then in zip(skipped, before, strict=True))
    assert exact_server.put_level({"level": 0}).status_code == 200
    assert exact_server.answer() == exact


def test_counts_add_up(exact_server: LiveServer) -> None:
    """Routed is tokens x top-k; at top-1 half of it is skipped, but for weights that tie."""
    before = exact_server.metrics()
    assert exact_server.put_level({"level": 1}).status_code == 200
    exact_server.answer("the one and only question of this test", tokens=20)
    new_tokens = forward_tokens(exact_server.metrics()) - forward_tokens(before)
    assert new_tokens > 20

    def new(samples: dict[tuple[str, str], float], name: str) -> list[float]:
        pairs = zip(by_layer(samples, name), by_layer(before, name), strict=True)
        return [now - then for now, then in pairs]

    expected = [TOP_K * new_tokens] * LAYERS
    after = wait_for(exact_server.metrics, lambda m: new(m, ROUTED) == expected, seconds=10)
    assert new(after, ROUTED) == expected
    assert all(0.9 * new_tokens <= skipped <= new_tokens for skipped in new(after, SKIPPED))


def test_max_kld_takes_the_highest_level_under_it(exact_server: LiveServer) -> None:
    answer = exact_server.put_level({"max_kld": 0.05}).json()
    assert (answer["level"], answer["max_kld"]) == (0.5, 0.05)
    assert answer["promise"]["kld_upper"] == pytest.approx(0.04)
    assert exact_server.put_level({"max_kld": 0.01}).json()["level"] == 0.0
    shown = exact_server.get("/v1/expert_skipping").json()
    assert shown["level"] == 0.0 and shown["has_curve"] and len(shown["curve"]) == 3


def test_between_two_points_betas_are_linear_and_the_promise_is_the_worse(
    exact_server: LiveServer,
) -> None:
    answer = exact_server.put_level({"level": 0.25}).json()
    assert answer["betas"] == {str(i): pytest.approx(0.3) for i in range(LAYERS)}
    assert answer["promise"]["level"] == 0.5


def test_the_version_counts_changes(exact_server: LiveServer) -> None:
    first = exact_server.get("/v1/expert_skipping").json()["version"]
    assert exact_server.put_level({"level": 1}).json()["version"] == first + 1
    metrics = wait_for(
        exact_server.metrics, lambda m: m["leanmoe_policy_version", ""] == first + 1, seconds=10
    )
    assert metrics["leanmoe_policy_version", ""] == first + 1
    assert metrics["leanmoe_skip_level", ""] == 1.0


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"level": NaN}',
        '{"level": Infinity}',
        '{"level": -0.1}',
        '{"level": 1.1}',
        '{"level": true}',
        '{"level": "0.5"}',
        '{"level": null}',
        '{"level": 1' + 400 * "0" + "}",
        '{"level": 0, "level": 1}',
        '{"level": 0, "max_kld": 0.1}',
        '{"level": 0, "phase": "decode"}',
        '{"max_kld": -1}',
        '{"max_kld": NaN}',
        4000 * "[",
    ],
)
def test_a_bad_body_is_refused_and_changes_nothing(server: LiveServer, body: str) -> None:
    before = server.get("/v1/expert_skipping").json()
    answer = server.put_level(body)
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert len(message) > 20 and "\n" not in message
    assert server.get("/v1/expert_skipping").json() == before


def test_a_long_body_is_refused_as_such(server: LiveServer) -> None:
    answer = server.put_level(5000 * "x")
    assert answer.status_code == 413 and "longer than 4096 bytes" in answer.text


def test_a_level_change_reaches_running_streams_and_they_finish(exact_server: LiveServer) -> None:
    stream = exact_server.client().chat.completions.create(
        model=exact_server.model,
        messages=[{"role": "user", "content": "tell me about the water"}],
        max_tokens=120,
        temperature=0,
        stream=True,
        extra_body={"ignore_eos": True, "return_token_ids": True},
    )
    tokens, reason = 0, None
    for chunk in stream:
        for choice in chunk.choices:
            tokens += len((choice.model_extra or {}).get("token_ids") or [])
            reason = choice.finish_reason or reason
        if tokens == 10:
            assert exact_server.put_level({"level": 1}).status_code == 200
    assert (tokens, reason) == (120, "length")


def test_levels_never_share_cached_prompts(exact_server: LiveServer) -> None:
    """The answer after a change is the answer of a fresh cache, for a prompt of many blocks."""
    prompt = "the water and the people of the long day " * 40
    assert exact_server.put_level({"level": 1}).status_code == 200
    fresh = exact_server.answer(prompt)
    hits = cached_tokens(exact_server.metrics())
    assert exact_server.answer(prompt) == fresh
    assert cached_tokens(exact_server.metrics()) > hits
    assert exact_server.put_level({"level": 0}).status_code == 200
    assert exact_server.answer(prompt) != fresh
    assert exact_server.put_level({"level": 1}).status_code == 200
    assert exact_server.answer(prompt) == fresh


def test_docs_and_scrape_hold_every_name(exact_server: LiveServer) -> None:
    exact_server.answer()
    text = exact_server.get("/metrics").text
    documented = DOCS.read_text(encoding="utf-8")
    for metric in metric_names.ALL:
        assert f"`{metric.name}`" in documented, metric.name
        exposed = re.findall(rf"^# TYPE {metric.name} (\w+)$", text, re.MULTILINE)
        assert exposed == ["counter" if metric.name.endswith("_total") else "gauge"], metric.name
        if metric.name not in WITHOUT_SAMPLES:
            samples = re.findall(rf"^{metric.name}(\{{.*\}})? \S+$", text, re.MULTILINE)
            assert samples, metric.name
            assert all(f'{label}="' in one for label in metric.labels for one in samples)
    known = {metric.name for metric in metric_names.ALL}
    assert set(re.findall(r"`(leanmoe_\w+)`", documented)) == known


def test_the_document_of_the_api_says_what_a_change_may_hold(exact_server: LiveServer) -> None:
    change = exact_server.get("/openapi.json").json()["paths"]["/v1/expert_skipping"]["put"]
    content = change["requestBody"]["content"]["application/json"]["schema"]
    assert {"level", "max_kld", "phases", "union_budget"} < set(content["properties"])


def test_errors_have_openai_shape(server: LiveServer) -> None:
    error = json.loads(server.put_level("{").text)["error"]
    assert set(error) == {"message", "type", "param", "code"}
