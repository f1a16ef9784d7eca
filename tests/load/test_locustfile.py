"""The file for Locust's own command line, run by the real Locust from where an install has it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from leanmoe.cli import main
from leanmoe_bench.load.known_server import KnownServer, Pace, known_server
from tests.integration.live_server import wait_for

PACE = Pace(ttft_ms=[80.0], itl_ms=[20.0], tokens=6)


@pytest.fixture
def locust(tmp_path, capsys):
    """Runs Locust headless in an empty folder; what it said, and its table by row.

    It is stopped, as Ctrl-C does, once the server has been asked ``requests`` times.
    """
    assert main(["loadtest", "--locustfile"]) == 0
    file = capsys.readouterr().out.strip()

    def run(server: KnownServer, *more: str, requests: int = 0, **variables: str):
        command = [sys.executable, "-P", "-m", "locust", "-f", file, "--headless", "-u", "2"]
        command += ["-r", "2", "--host", server.url, "--json", "--skip-log", *more]
        settings = {"cwd": tmp_path, "env": {**os.environ, **variables}, "text": True}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen(command, **pipes, **settings)
        if requests:
            wait_for(lambda: len(server.truth().payloads), lambda n: n >= requests, seconds=120)
            process.send_signal(signal.SIGINT)
        table, said = process.communicate(timeout=120)
        rows = json.loads(table[table.index("[") :]) if requests else []
        return process.returncode, said, {row["name"]: row for row in rows}

    return run


def test_the_model_is_found_and_gaps_are_in_locust_s_own_table(locust):
    with known_server(PACE) as server:
        code, said, rows = locust(server, "ChatUser", requests=12)
        truth = server.truth()
    assert code == 0, said
    assert {payload["model"] for payload in truth.payloads} == {"known"}
    whole, first, gaps = (rows[f"chat{end}"] for end in ("", ": first token", ": between tokens"))
    completed = whole["num_requests"]
    assert completed > 5 and first["num_requests"] == completed
    assert gaps["num_requests"] == 5 * completed
    assert first["min_response_time"] >= 80 and whole["min_response_time"] >= 180
    # Pieces that a busy machine took late arrive together, and the gap before them is longer.
    assert gaps["max_response_time"] > 15
    assert whole["total_content_length"] == 6 * completed
    assert {row["num_failures"] for row in rows.values()} == {0}


def test_both_endpoints_are_asked_where_no_user_is_named_and_failures_are_counted(locust):
    with known_server(Pace(ttft_ms=[5.0], itl_ms=[1.0], tokens=4, fail_every=3)) as server:
        code, said, rows = locust(server, requests=40)
    assert code == 1, said
    for endpoint in ("chat", "completions"):
        assert 0 < rows[endpoint]["num_failures"] < rows[endpoint]["num_requests"]
        assert rows[f"{endpoint}: between tokens"]["num_failures"] == 0


@pytest.mark.parametrize(
    ("more", "variables", "said"),
    [
        (
            ["--chat-model", "other"],
            {"OPENAI_API_KEY": "k"},
            "has no model 'other'; it lists known",
        ),
        ([], {"OPENAI_API_KEY": ""}, "asks for an API key; put it into OPENAI_API_KEY"),
    ],
)
def test_a_run_that_cannot_send_ends_with_one_sentence(locust, more, variables, said):
    with known_server(Pace(api_key="k")) as server:
        code, found, _ = locust(server, *more, **variables)
    assert code == 2
    assert found.count(said) == 1 and "Traceback" not in found, found
