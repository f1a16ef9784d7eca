"""The file for Locust's own command line, run by the real Locust from where an install has it."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

from leanmoe.cli import main
from leanmoe_bench.load.known_server import Pace, known_server

PACE = Pace(ttft_ms=[80.0], itl_ms=[20.0], tokens=6)


@pytest.fixture
def locust(tmp_path, capsys):
    """Runs Locust headless in an empty folder; what it said, and its table by row."""
    assert main(["loadtest", "--locustfile"]) == 0
    file = capsys.readouterr().out.strip()

    def run(
        url: str, *more: str, **variables: str
    ) -> tuple[subprocess.CompletedProcess[str], dict]:
        command = [sys.executable, "-P", "-m", "locust", "-f", file, "--headless", "--host", url]
        command += ["-u", "2", "-r", "2", "-t", "3", "--csv", "table", "--skip-log", *more]
        env = {**os.environ, **variables}
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
        path = Path(tmp_path, "table_stats.csv")
        rows = list(csv.DictReader(path.open())) if path.exists() else []
        return done, {row["Name"]: row for row in rows}

    return run


def test_the_model_is_found_and_gaps_are_in_locust_s_own_table(locust):
    with known_server(PACE) as server:
        done, rows = locust(server.url, "ChatUser")
        truth = server.truth()
    assert done.returncode == 0, done.stderr
    assert {payload["model"] for payload in truth.payloads} == {"known"}
    whole, first, gaps = (rows[f"chat{end}"] for end in ("", ": first token", ": between tokens"))
    completed = int(whole["Request Count"])
    assert completed > 5 and int(first["Request Count"]) == completed
    assert int(gaps["Request Count"]) == 5 * completed
    # Locust keeps times of more than 100 ms to two digits.
    assert float(first["Min Response Time"]) >= 80 and float(whole["Min Response Time"]) >= 180
    assert float(gaps["Average Response Time"]) == pytest.approx(20, abs=10)
    assert pytest.approx(float(whole["Average Content Size"])) == 6
    assert {row["Failure Count"] for row in rows.values()} == {"0"}


def test_both_endpoints_are_asked_where_no_user_is_named_and_failures_are_counted(locust):
    with known_server(Pace(ttft_ms=[5.0], itl_ms=[1.0], tokens=4, fail_every=3)) as server:
        done, rows = locust(server.url)
    assert done.returncode == 1, done.stderr
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
        done, _ = locust(server.url, *more, **variables)
    assert done.returncode == 2
    assert done.stderr.count(said) == 1 and "Traceback" not in done.stderr, done.stderr
