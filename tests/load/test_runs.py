"""Whole runs: schedules kept, workers merged, interrupts, mistakes, secrets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from leanmoe.cli import main
from leanmoe_bench.load.known_server import KnownServer, Pace, known_server
from leanmoe_loadtest.run import read_run
from tests.integration.live_server import free_port, wait_for
from tests.load.loadtest_command import COMMAND, report, run

SHORT = Pace(ttft_ms=[20.0], itl_ms=[5.0], tokens=0)


@pytest.fixture(scope="module")
def server() -> Iterator[KnownServer]:
    with known_server(SHORT) as one:
        yield one


def begin(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True)


def payloads(server: KnownServer) -> int:
    return len(server.truth().payloads)


def begin_and_wait(server: KnownServer, *arguments: str) -> subprocess.Popen[str]:
    """A load that has sent some requests."""
    before = payloads(server)
    load = begin(server.url, "--duration", "600", *arguments)
    assert wait_for(lambda: payloads(server), lambda n: n >= before + 5, seconds=60) >= before + 5
    return load


def test_an_open_loop_keeps_its_schedule_behind_slow_answers(tmp_path: Path) -> None:
    with known_server(Pace(ttft_ms=[1500.0], itl_ms=[1.0])) as slow:
        arguments = ["--arrivals", "constant:5", "--duration", "3", "-o", str(tmp_path / "run")]
        result = report(slow.url, *arguments)
    run = read_run(tmp_path / "run")
    # A closed loop would have sent two per user by then.
    assert result["requests"]["completed"] == 15
    dues = sorted(record.scheduled - run.info.started for record in run.requests)
    assert dues == pytest.approx([i / 5 for i in range(15)], abs=1e-5)
    assert run.info.concurrency is not None and run.info.concurrency.hits == 0
    assert all(record.sent >= record.scheduled for record in run.requests)


def test_what_the_bound_on_concurrency_delays_is_told(tmp_path: Path) -> None:
    with known_server(Pace(ttft_ms=[1500.0], itl_ms=[1.0])) as slow:
        arguments = ["--arrivals", "burst:4/10", "--duration", "1", "--max-concurrency", "2"]
        done = run(slow.url, *arguments, "-o", str(tmp_path / "run"))
    found = read_run(tmp_path / "run")
    late = sorted(record.late_seconds for record in found.requests)
    assert late[2] >= 1.4
    assert found.info.concurrency is not None
    assert (found.info.concurrency.limit, found.info.concurrency.hits) == (2, 2)
    assert "2 requests had to wait for one of 2 places" in done.stdout


def test_workers_share_a_load_and_their_records_are_merged(
    server: KnownServer, tmp_path: Path
) -> None:
    arguments = ["--arrivals", "constant:20", "--duration", "3", "--prompts", "synthetic"]
    lengths = ["--input-tokens", "uniform:5,50", "--output-tokens", "uniform:2,9"]
    runs = []
    for processes in ("1", "2"):
        folder = tmp_path / processes
        before = payloads(server)
        report(server.url, *arguments, *lengths, "--processes", processes, "-o", str(folder))
        sent = server.truth().payloads[before:]
        runs.append(sorted(json.dumps(payload) for payload in sent))
        merged = read_run(folder)
        assert sorted(record.prompt for record in merged.requests) == list(range(60))
        assert Counter(record.worker for record in merged.requests) == dict.fromkeys(
            merged.info.workers, 60 // int(processes)
        )
    # The same requests, whoever sends them.
    assert runs[0] == runs[1]


def test_workers_come_to_a_master_over_the_network(server: KnownServer, tmp_path: Path) -> None:
    place = f"127.0.0.1:{free_port()}"
    load = ["--users", "4", "--duration", "2", "-o", str(tmp_path / "run")]
    master = begin(server.url, *load, "--master", place, "--expect-workers", "2")
    workers = [begin("--worker", place) for _ in range(2)]
    assert master.wait(60) == 0
    assert [worker.wait(60) for worker in workers] == [0, 0]
    names = Counter(record.worker for record in read_run(tmp_path / "run").requests)
    assert len(names) == 2 and min(names.values()) > 1
    for process in (master, *workers):
        process.communicate()


def test_an_interrupt_leaves_a_valid_run_marked_partial(
    server: KnownServer, tmp_path: Path
) -> None:
    load = begin_and_wait(server, "--users", "3", "--max-tokens", "400", "-o", str(tmp_path / "a"))
    load.send_signal(signal.SIGINT)
    _, said = load.communicate(timeout=60)
    assert load.returncode == 130 and "marked partial" in said
    found = read_run(tmp_path / "a")
    assert found.info.partial
    assert sum(record.unfinished for record in found.requests) == 3
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_lost_worker_marks_the_run_partial(server: KnownServer, tmp_path: Path) -> None:
    arguments = ["--arrivals", "constant:10", "--processes", "2", "--request-seconds", "5"]
    before = payloads(server)
    load = begin(server.url, *arguments, "--duration", "12", "-o", str(tmp_path / "run"))
    wait_for(lambda: payloads(server), lambda n: n >= before + 5, seconds=60)
    locust = psutil.Process(load.pid).children()[0]
    locust.children()[0].kill()
    _, said = load.communicate(timeout=90)
    assert load.returncode == 0 and "1 workers went away" in said
    assert read_run(tmp_path / "run").info.partial


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_load_leaves_no_generator_behind(server: KnownServer, ending: int) -> None:
    load = begin_and_wait(server, "--processes", "2" if ending == signal.SIGKILL else "1")
    family = psutil.Process(load.pid).children(recursive=True)
    assert family
    load.send_signal(ending)
    load.communicate(timeout=60)
    _, alive = psutil.wait_procs(family, timeout=30)
    assert alive == []


def test_a_trace_is_replayed_with_its_lengths(server: KnownServer, tmp_path: Path) -> None:
    rows = [(0.0, 12, 3), (0.2, 30, 5), (0.9, 8, 4)]
    trace = tmp_path / "trace.jsonl"
    names = ("timestamp", "input_length", "output_length")
    trace.write_text("\n".join(json.dumps(dict(zip(names, row, strict=True))) for row in rows))
    before = payloads(server)
    arguments = ["--arrivals", f"trace:{trace}", "-o", str(tmp_path / "run")]
    report(server.url, *arguments, "--endpoint", "completions")
    sent = server.truth().payloads[before:]
    assert [(len(p["prompt"].split()), p["max_tokens"]) for p in sent] == [
        (12, 3),
        (30, 5),
        (8, 4),
    ]
    found = read_run(tmp_path / "run")
    dues = [record.scheduled - found.info.started for record in found.requests]
    assert sorted(dues) == pytest.approx([0.0, 0.2, 0.9], abs=1e-5)


def test_made_up_prompts_are_as_long_as_the_server_counts() -> None:
    with known_server(Pace(tokens_per_word=3, ttft_ms=[5.0])) as counting:
        report(counting.url, "--input-tokens", "307", "--max-requests", "4")
        sent = counting.truth().payloads
    assert [len(p["messages"][0]["content"].split()) for p in sent] == [100] * 4
    assert len({p["messages"][0]["content"] for p in sent}) == 4


def test_levels_are_sent_and_the_applied_one_is_recorded(
    server: KnownServer, tmp_path: Path
) -> None:
    before = payloads(server)
    mix = ["--levels", 'off:1,{"level": 0.5}:1,server', "--duration", "3"]
    report(server.url, *mix, "--keep-text", "--max-tokens", "2", "-o", str(tmp_path / "run"))
    sent = server.truth().payloads[before:]
    asked = Counter(json.dumps(payload.get("expert_skipping")) for payload in sent)
    assert asked.keys() == {'"off"', '{"level": 0.5}', "null"}
    found = read_run(tmp_path / "run")
    assert Counter(record.level or "null" for record in found.requests) == asked
    assert {(one.applied_level, one.text) for one in found.requests} == {(0.25, "t0 t1 ")}
    # The metrics of the server lie beside its requests, on one time axis.
    assert len(found.metrics) >= 3
    assert all("vllm:num_requests_running" in one.samples for one in found.metrics)
    assert found.metrics[0].time < found.info.started < found.metrics[1].time


def test_the_key_is_sent_and_written_nowhere(tmp_path: Path) -> None:
    with known_server(Pace(api_key="sk-of-nobody", ttft_ms=[5.0])) as guarded:
        refused = run(guarded.url)
        assert refused.returncode == 2 and "asks for an API key" in refused.stderr
        env = {**os.environ, "OPENAI_API_KEY": "sk-of-nobody", "TMPDIR": str(tmp_path)}
        arguments = ["--duration", "1", "-v", "-o", str(tmp_path / "run")]
        done = run(guarded.url, *arguments, env=env)
    assert done.returncode == 0
    written = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) == 3
    assert not any("sk-of-nobody" in text for text in [*written, done.stdout, done.stderr])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["http://127.0.0.1:9"], "no server answers"),
        ([], "no URL is given"),
        (["ftp://host"], "expected http://host:port"),
        (["http://["], "expected http://host:port"),
        (["host:8000"], "expected http://host:port"),
        (["http://127.0.0.1:9", "--users", "0"], "--users is 0"),
        (["http://127.0.0.1:9", "--rate", "0"], "--rate is 0"),
        (["http://127.0.0.1:9", "--duration", "-1"], "--duration is -1"),
        (["http://127.0.0.1:9", "--users", "2", "--rate", "3"], "give one of them"),
        (["http://127.0.0.1:9", "--prompts", "/nowhere.jsonl"], "cannot be read"),
        (["http://127.0.0.1:9", "--prompts", "synthetic"], "--input-tokens"),
        (["http://127.0.0.1:9", "--master", "127.0.0.1"], "go together"),
        (["--worker", "a:b:c"], "--worker is"),
        (["--worker", "nowhere.invalid"], "cannot be found"),
    ],
)
def test_mistakes_are_told_in_one_sentence(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["loadtest", *arguments, "-o", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_model_the_server_lacks_is_named(server: KnownServer) -> None:
    done = run(server.url, "--model", "other")
    assert done.returncode == 2 and "no model 'other'; it lists known" in done.stderr


def test_what_stands_at_the_output_is_not_overwritten(server: KnownServer, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mine").write_text("x")
    before = payloads(server)
    for flags in ([], ["--force"]):
        done = run(server.url, "-o", str(tmp_path / "run"), *flags)
        assert done.returncode == 2 and (tmp_path / "run" / "mine").read_text() == "x"
    assert payloads(server) == before
