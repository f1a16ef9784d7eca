"""The file for Locust's own command line, run by the real Locust from where an install has it."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path

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
        command += ["-r", "2", "--host", server.url, "--csv", "table", "--skip-log", *more]
        env = {**os.environ, **variables}
        process = subprocess.Popen(
            command, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True
        )
        if requests:
            wait_for(lambda: len(server.truth().payloads), lambda n: n >= requests, seconds=120)
            process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=120)[1]
        path = Path(tmp_path, "table_stats.csv")
        rows = list(csv.DictReader(path.open())) if path.exists() else []
        return process.returncode, said, {row["Name"]: row for row in rows}

    return run


def test_the_model_is_found_and_gaps_are_in_locust_s_own_table(locust):
    with known_server(PACE) as server:
        code, said, rows = locust(server, "ChatUser", requests=12)
        truth = server.truth()
    assert code == 0, said
    assert {payload["model"] for payload in truth.payloads} == {"known"}
    whole, first, gaps = (rows[f"chat{end}"] for end in ("", ": first token", ": between tokens"))
    completed = int(whole["Request Count"])
    assert completed > 5 and int(first["Request Count"]) == completed
    assert int(gaps["Request Count"]) == 5 * completed
    # Locust keeps times of more than 100 ms to two digits.
    assert float(first["Min Response Time"]) >= 80 and float(whole["Min Response Time"]) >= 180
    # Pieces that a busy machine took late arrive together, and the gap before them is longer.
    assert float(gaps["Max Response Time"]) > 15
    assert pytest.approx(float(whole["Average Content Size"])) == 6
    assert {row["Failure Count"] for row in rows.values()} == {"0"}


def test_both_endpoints_are_asked_where_no_user_is_named_and_failures_are_counted(locust):
    with known_server(Pace(ttft_ms=[5.0], itl_ms=[1.0], tokens=4, fail_every=3)) as server:
        code, said, rows = locust(server, requests=40)
    assert code == 1, said
    for endpoint in ("chat", "completions"):
        assert 0 < int(rows[endpoint]["Failure Count"]) < int(rows[endpoint]["Request Count"])
        assert rows[f"{endpoint}: between tokens"]["Failure Count"] == "0"


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
