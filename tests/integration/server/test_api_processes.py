"""Two API processes before one engine: one owns the policy, the other follows and says so."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from leanmoe.wire import ADMIN_HEADER, CONTROL_PATH, HISTORY_PATH, LEVEL_HEADER, ROLLBACK_PATH
from leanmoe_server.keys.keys import entry_of
from tests.forked import Forked
from tests.integration.live_server import ADMIN_KEY, LiveServer, live_server, wait_for
from tests.integration.server.test_stopping import alive

USER_KEY, BUSY_KEY = "sk-user-of-the-tests", "sk-busy-of-the-tests"
LAYERS, TOP_K = 4, 2
TOKENS = 12
ADMIN = {ADMIN_HEADER: ADMIN_KEY}


@pytest.fixture(scope="module")
def two(
    tiny_model: Path, forked: type[Forked], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    folder = tmp_path_factory.mktemp("processes")
    keys = folder / "keys.toml"
    busy = entry_of("busy", BUSY_KEY) + "concurrent_requests = 1\n"
    keys.write_text(entry_of("user", USER_KEY) + busy)
    flags = ("--api-server-count", "2", "--keys", str(keys), "--drain-seconds", "1")
    audit = ("--audit-file", str(folder / "audit.jsonl"), "--poll-seconds", "1")
    governor = ("--governor", "observe", "--slo-itl", "10000", "--governor-max-level", "1")
    with live_server(tiny_model, folder / "log", *flags, *audit, *governor, popen=forked) as server:
        yield server


@pytest.fixture(scope="module")
def clients(two: LiveServer) -> Iterator[list[httpx.Client]]:
    """One kept connection to each process, the owner's first."""
    found: dict[int, httpx.Client] = {}
    spare: list[httpx.Client] = []

    def both() -> int:
        """vLLM gives a connection to the process that has fewest, once both take any."""
        client = httpx.Client(base_url=two.url, timeout=120, headers=bearer(USER_KEY))
        answer = client.get("/ready").json()
        (spare if answer["api_process"] in found else []).append(client)
        found.setdefault(answer["api_process"], client)
        return len(found)

    assert wait_for(both, lambda count: count == 2, 120) == 2, two.log.read_text()[-4000:]
    wait_for(
        lambda: [found[i].get("/ready").status_code for i in (0, 1)], lambda s: s == [200] * 2, 60
    )
    yield [found[0], found[1]]
    for client in (*found.values(), *spare):
        client.close()


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def complete(client: httpx.Client, two: LiveServer, prompt: str, **body: object) -> httpx.Response:
    content = {"model": two.model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
    return client.post("/v1/completions", json={**content, "ignore_eos": True, **body})


def put(client: httpx.Client, level: float, **more: object) -> httpx.Response:
    body = {"level": level, **more}
    return client.put(CONTROL_PATH, json=body, headers=ADMIN)


def samples(client: httpx.Client) -> Counter[tuple[str, str]]:
    """Sums of a scrape by (name, layer or tenant)."""
    found: Counter[tuple[str, str]] = Counter()
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            label = sample.labels.get("layer") or sample.labels.get("tenant") or ""
            found[sample.name, label] += sample.value
    return found


def test_each_says_which_it_is(clients: list[httpx.Client]) -> None:
    answers = [client.get("/ready").json() for client in clients]
    assert [(one["api_process"], one["owns_policy"]) for one in answers] == [(0, True), (1, False)]
    assert [one["reasons"] for one in answers] == [[], []]


@pytest.mark.parametrize("through", [0, 1])
def test_a_level_set_through_either_holds_on_both(
    through: int, clients: list[httpx.Client], two: LiveServer
) -> None:
    assert put(clients[through], 0).status_code == 200
    answer = put(clients[through], 0.5, reason=f"through {through}")
    assert answer.status_code == 200 and answer.json()["level"] == 0.5
    for client in clients:
        policy = client.get(CONTROL_PATH).json()
        assert (policy["level"], policy["version"]) == (0.5, answer.json()["version"])
        done = complete(client, two, "the water of the day")
        assert done.headers[LEVEL_HEADER] == "0.5"
        assert done.json()["usage"]["expert_skipping"]["level"] == 0.5
        own = complete(client, two, "the water of the day", expert_skipping={"level": 1}).json()
        assert own["usage"]["expert_skipping"]["level"] == 1


@pytest.mark.parametrize("process", [0, 1])
def test_each_asks_for_keys(process: int, clients: list[httpx.Client], two: LiveServer) -> None:
    client = clients[process]
    assert client.put(CONTROL_PATH, json={"level": 0}).status_code == 403
    nobody = {"Authorization": ""}
    assert client.put(CONTROL_PATH, json={"level": 0}, headers=nobody).status_code == 401
    assert client.get(HISTORY_PATH).status_code == 403
    assert client.post("/v1/completions", json={}, headers=nobody).status_code == 401
    assert client.put(CONTROL_PATH, content="{", headers=ADMIN).status_code == 400
    assert client.put(CONTROL_PATH, content="x" * 5000, headers=ADMIN).status_code == 413


def test_a_change_is_recorded_once_whichever_took_it(
    clients: list[httpx.Client], two: LiveServer
) -> None:
    assert put(clients[1], 0).status_code == 200
    before = clients[0].get(HISTORY_PATH, headers=ADMIN).json()["total"]
    assert put(clients[1], 1, reason="once").status_code == 200
    histories = [client.get(HISTORY_PATH, headers=ADMIN).json() for client in clients]
    assert histories[0] == histories[1] and histories[0]["total"] == before + 1
    change = histories[0]["changes"][0]
    assert (change["reason"], change["who"], change["peer"]) == ("once", "admin", "127.0.0.1")
    lines = (two.log.parent / "audit.jsonl").read_text().splitlines()
    assert [json.loads(line)["reason"] for line in lines].count("once") == 1
    assert clients[1].post(ROLLBACK_PATH, headers=ADMIN).json()["level"] == 0
    assert [client.get(CONTROL_PATH).json()["level"] for client in clients] == [0, 0]
    status = clients[1].get(f"{CONTROL_PATH}/status").json()
    assert status["ready"] and status["policy"]["level"] == 0
    assert {"api_server", "rank0"} <= set(status["memory"]["resident"])
    # What either process counts is what the console shows, and the governor sees.
    assert sum(point["decode_per_second"] for point in status["points"]) > 0
    assert status["points"][-1]["running"] is not None
    governor = clients[1].get(CONTROL_PATH).json()["governor"]
    assert (governor["mode"], governor["disarmed"]) == ("observe", None)


def test_counters_are_those_of_all_answers_whichever_process_made_them(
    clients: list[httpx.Client], two: LiveServer
) -> None:
    """A recount of ``usage``: the prefix cache is empty, so that every prompt is computed."""
    assert put(clients[0], 0).status_code == 200
    assert put(clients[0], 0.5).status_code == 200
    names = [f"leanmoe_{kind}_assignments_total" for kind in ("routed", "skipped")]
    before = samples(clients[0])
    stated: list[dict[str, float]] = []

    def ask(index: int) -> None:
        usage = complete(clients[index % 2], two, f"number {index} of the long day").json()["usage"]
        stated.append(usage["expert_skipping"])

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = [sum(one[kind] for one in stated) for kind in ("routed", "skipped")]
    assert all(told)
    for client in clients:
        after = samples(client)
        new = [
            sum(after[name, str(layer)] - before[name, str(layer)] for layer in range(LAYERS))
            for name in names
        ]
        assert new == told
    first, second = samples(clients[0]), samples(clients[1])
    for name, tenant in (("leanmoe_tenant_requests_total", "user"), ("leanmoe_skip_level", "")):
        assert first[name, tenant] == second[name, tenant] > 0
    assert first["vllm:generation_tokens_total", ""] == second["vllm:generation_tokens_total", ""]
    assert first["leanmoe_handshake_complete", ""] == 1
    assert 0 <= second["leanmoe_snapshot_age_seconds", ""] < 60


@pytest.mark.parametrize("holder", [0, 1])
def test_a_key_s_limit_holds_over_both(
    holder: int, clients: list[httpx.Client], two: LiveServer
) -> None:
    """While one process has a request of a key with one at once, the other takes none."""
    body = {"model": two.model, "prompt": "the day", "max_tokens": 1}
    asked = {"headers": {**bearer(BUSY_KEY), "Content-Type": "application/json"}}
    other = clients[1 - holder]
    there, done = threading.Event(), []

    def slowly() -> Iterator[bytes]:
        yield b" "
        there.wait(120)
        yield json.dumps(body).encode()

    def hold() -> None:
        done.append(clients[holder].post("/v1/completions", content=slowly(), **asked))

    thread = threading.Thread(target=hold)
    thread.start()

    running = ("leanmoe_tenant_requests_running", "busy")
    assert wait_for(lambda: samples(other)[running], lambda count: count == 1, seconds=30) == 1
    refused = other.post("/v1/completions", json=body, **asked)
    assert refused.status_code == 429 and refused.headers["retry-after"]
    there.set()
    thread.join(60)
    assert done[0].status_code == 200, done[0].text
    assert wait_for(lambda: samples(other)[running], lambda count: count == 0, seconds=30) == 0
    assert other.post("/v1/completions", json=body, **asked).status_code == 200


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_stopped_process_makes_the_other_unready(
    stopped: int, clients: list[httpx.Client], two: LiveServer
) -> None:
    """Its connections would hang; when it goes on, all is as before."""
    other, pid = clients[1 - stopped], pid_of(two, stopped)
    os.kill(pid, signal.SIGSTOP)
    try:
        found = wait_for(lambda: other.get("/ready"), lambda a: a.status_code == 503, seconds=60)
        assert f"API process {stopped}" in found.json()["reasons"][0]
        assert f"process {pid} is stopped" in found.json()["reasons"][0]
        assert other.get("/health").status_code == 200
        assert complete(other, two, "the day").status_code == 503
    finally:
        os.kill(pid, signal.SIGCONT)
    for client in clients:
        assert wait_for(lambda c=client: c.get("/ready").status_code, (200).__eq__, 60) == 200


def test_a_stop_ends_all(two: LiveServer, clients: list[httpx.Client]) -> None:
    """The module's server ends here, while both processes stream."""
    family, reasons = two.processes(), []

    def read(client: httpx.Client) -> None:
        body = {"model": two.model, "prompt": "day", "max_tokens": 900, "ignore_eos": True}
        with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
            begun.release()
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    reasons.extend(c["finish_reason"] for c in json.loads(line[6:])["choices"])

    begun = threading.Semaphore(0)
    threads = [threading.Thread(target=read, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    assert all(begun.acquire(timeout=60) for _ in threads)
    two.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(60)
    assert two.process.wait(60) == 0, two.log.read_text()[-4000:]
    assert [reason for reason in reasons if reason] == ["abort"] * 2
    assert wait_for(lambda: [p for p in family if alive(p)], lambda p: not p, seconds=10) == []
    log = two.log.read_text()
    assert "Traceback" not in log, log[-6000:]


@pytest.mark.slow
def test_a_killed_process_ends_the_server(
    tiny_model: Path, forked: type[Forked], tmp_path: Path
) -> None:
    flags = ("--api-server-count", "2")
    with live_server(tiny_model, tmp_path / "log", *flags, popen=forked) as server:
        family = server.processes()
        wait_for(lambda: server.get("/ready").status_code, lambda s: s == 200, seconds=60)
        os.kill(pid_of(server, 0), signal.SIGKILL)
        assert server.process.wait(60) == 1
        left = wait_for(lambda: [p for p in family if alive(p)], lambda left: not left, seconds=60)
    assert left == []


def pid_of(server: LiveServer, index: int) -> int:
    """The process that said so of itself in the log."""
    named = f"ApiServer_{index} pid="
    line = next(line for line in server.log.read_text().splitlines() if named in line)
    pid = int(line.partition(named)[2].partition(")")[0])
    assert psutil.pid_exists(pid)
    return pid
