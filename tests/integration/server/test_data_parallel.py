"""Two data-parallel engines of one model behind one server: levels and counters are of both."""

from __future__ import annotations

import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.forked import Forked
from tests.integration.live_server import LiveServer, live_server, wait_for
from tests.integration.server.test_stopping import Stream, alive, read_stream
from tests.tiny import write_tiny_curve, write_tiny_mixtral

TEXT = "the water and people of a long day go home see time look write number"
WORDS = TEXT.split()
PROMPTS = [" ".join(WORDS[i : i + 4] + WORDS[: i % 5]) for i in range(8)]
TOKENS, TOP_K, LAYERS = 12, 2, 4
ENGINES = ("0", "1")
# vLLM gives each engine cores of its own, which a machine of two has not.
ENVIRONMENT = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
COUNTED = ("routed_assignments", "skipped_assignments")


@pytest.fixture(scope="module")
def servers(
    forked: type[Forked], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LiveServer, LiveServer]]:
    """One engine, and two: in float32, where the halves of experts add up to the same tokens."""
    folder = tmp_path_factory.mktemp("parallel")
    model = write_tiny_curve(write_tiny_mixtral(folder / "tiny", dtype="float32"))
    flags = ("--dtype", "float32", "--drain-seconds", "1")
    given = {"environment": ENVIRONMENT, "popen": forked}
    with ExitStack() as stack:
        one = stack.enter_context(live_server(model, folder / "one.log", *flags, **given))
        several = ("--data-parallel-size", "2")
        two = live_server(model, folder / "two.log", *flags, *several, **given)
        yield one, stack.enter_context(two)


@pytest.fixture
def two(servers: tuple[LiveServer, LiveServer]) -> LiveServer:
    return servers[1]


def complete(server: LiveServer, prompt: str, engine: str | None, **body: object) -> httpx.Response:
    """A greedy completion; ``engine`` names the data-parallel rank that is to serve it."""
    content = {"model": server.model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
    headers = {} if engine is None else {"X-data-parallel-rank": engine}
    sent = {"json": {**content, "ignore_eos": True, **body}, "headers": headers}
    return httpx.post(f"{server.url}/v1/completions", timeout=60, **sent)


def text_of(server: LiveServer, prompt: str, engine: str | None = None, **body: object) -> str:
    answer = complete(server, prompt, engine, **body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def samples(server: LiveServer, label: str) -> Counter[tuple[str, str]]:
    """Sums of a scrape by (name, value of ``label``)."""
    found: Counter[tuple[str, str]] = Counter()
    for family in text_string_to_metric_families(server.get("/metrics").text):
        for sample in family.samples:
            found[sample.name, sample.labels.get(label, "")] += sample.value
    return found


def counted(server: LiveServer) -> list[float]:
    by_layer = samples(server, "layer")
    names = [f"leanmoe_{name}_total" for name in COUNTED]
    return [by_layer[name, str(layer)] for name in names for layer in range(LAYERS)]


def ran(server: LiveServer, engine: str) -> float:
    """Tokens an engine ran, by vLLM's own count."""
    vllm = samples(server, "engine")
    ended = vllm["vllm:e2e_request_latency_seconds_count", engine]
    prompts = vllm["vllm:prompt_tokens_total", engine]
    cached = vllm["vllm:prefix_cache_hits_total", engine]
    return prompts - cached + vllm["vllm:generation_tokens_total", engine] - ended


def set_level(server: LiveServer, level: float) -> None:
    assert server.put_level({"level": level}).status_code == 200


def test_both_engines_report_every_layer(two: LiveServer) -> None:
    assert two.get("/ready").status_code == 200, two.log.read_text()[-4000:]
    workers = samples(two, "worker")
    named = [f"engine{index}-rank0" for index in ENGINES]
    assert [workers["leanmoe_wrapped_layers", name] for name in named] == [LAYERS] * 2


def test_counters_are_those_of_one_engine_given_the_same_requests(
    servers: tuple[LiveServer, LiveServer],
) -> None:
    """One engine works and the other steps along without requests, which is not counted."""
    new, texts = [], []
    for server in servers:
        set_level(server, 0.5)
        before = counted(server)
        engines = ENGINES * 4 if server is servers[1] else (None,) * 8
        texts.append([text_of(server, p, e) for p, e in zip(PROMPTS, engines, strict=True)])
        new.append([now - then for now, then in zip(counted(server), before, strict=True)])
    assert texts[1] == texts[0]
    assert new[1] == new[0] and all(count > 0 for count in new[0])


def test_counters_are_the_sum_of_what_both_engines_ran(two: LiveServer) -> None:
    set_level(two, 1.0)
    before, ran_before = counted(two), [ran(two, engine) for engine in ENGINES]
    threads = [threading.Thread(target=text_of, args=(two, prompt)) for prompt in PROMPTS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ran_now = wait_for(
        lambda: [ran(two, e) - then for e, then in zip(ENGINES, ran_before, strict=True)],
        lambda new: sum(new) >= len(PROMPTS) * TOKENS,
        seconds=10,
    )
    assert all(tokens > 0 for tokens in ran_now)
    new = [now - then for now, then in zip(counted(two), before, strict=True)]
    assert new[:LAYERS] == [TOP_K * sum(ran_now)] * LAYERS


@pytest.mark.parametrize("engine", ENGINES)
def test_requests_of_own_levels_on_either_engine(two: LiveServer, engine: str) -> None:
    """Each as the whole server at that level, while others of another level run."""
    set_level(two, 1.0)
    expected = text_of(two, PROMPTS[0], engine)
    set_level(two, 0.0)
    exact = text_of(two, PROMPTS[0], engine)
    assert expected != exact
    others = [threading.Thread(target=text_of, args=(two, prompt)) for prompt in PROMPTS[1:5]]
    for other in others:
        other.start()
    asked = complete(two, PROMPTS[0], engine, expert_skipping={"level": 1}).json()
    for other in others:
        other.join()
    assert asked["choices"][0]["text"] == expected
    assert asked["usage"]["expert_skipping"]["level"] == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_a_change_empties_the_prefix_cache_of_each_engine(two: LiveServer, engine: str) -> None:
    prompt = "the water and the people of the long day " * 20
    answers = []
    for level in (1.0, 0.0, 1.0):
        set_level(two, level)
        answers.append(text_of(two, prompt, engine))
    assert answers[0] == answers[2] != answers[1]


def stream_on(server: LiveServer, engine: str) -> Stream:
    seen = Stream()
    arguments = (server, seen, 900, {"X-data-parallel-rank": engine})
    threading.Thread(target=read_stream, args=arguments, daemon=True).start()
    return seen


def test_a_stop_ends_the_streams_of_both_engines(two: LiveServer) -> None:
    """The module's server is stopped here: the drain of one second is over before the streams."""
    family, streams = two.processes(), [stream_on(two, engine) for engine in ENGINES]
    assert all(stream.begun.wait(60) for stream in streams)
    two.process.send_signal(signal.SIGTERM)
    assert two.process.wait(60) == 0, two.log.read_text()[-4000:]
    wait_for(lambda: [s.reason or s.error for s in streams], all, seconds=20)
    assert [(s.reason, s.error) for s in streams] == [("abort", None)] * 2
    assert wait_for(lambda: [p for p in family if alive(p)], lambda p: not p, seconds=10) == []


def test_a_killed_engine_ends_the_server(
    servers: tuple[LiveServer, LiveServer], forked: type[Forked], tmp_path: Path
) -> None:
    model = Path(servers[0].model)
    given = {"environment": ENVIRONMENT, "popen": forked}
    flags = ("--data-parallel-size", "2", "--dtype", "float32")
    with live_server(model, tmp_path / "log", *flags, **given) as server:
        assert server.get("/ready").status_code == 200
        family = server.processes()
        engine = re.search(r"EngineCore_DP1 pid=(\d+)", server.log.read_text())
        assert engine is not None
        os.kill(int(engine[1]), signal.SIGKILL)
        assert not wait_for(lambda: is_ready(server), lambda ready: not ready, seconds=10)
        assert server.process.wait(60) != 0
        left = wait_for(lambda: [p for p in family if alive(p)], lambda left: not left, seconds=20)
    assert left == []


def is_ready(server: LiveServer) -> bool:
    try:
        return server.get("/ready").status_code == 200
    except httpx.TransportError:
        return False
