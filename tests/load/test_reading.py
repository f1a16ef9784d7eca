"""Goals, checks, quality, report and comparison at the command line, against a live server."""

from __future__ import annotations

import json
import shutil

import pytest

from leanmoe_loadtest.run import read_run
from tests.load.loadtest_command import run
from tests.load.skipping_server import skipping_server
from tests.unit.loadtest.runs import SMALL_RUN, drawn_run, stored

GOALS = "ttft<2s,itl_p95<1s,e2e<20s"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> dict:
    """One run with everything: a mix, goals, quality, a page, a check that holds."""
    folder = tmp_path_factory.mktemp("whole")
    with skipping_server() as server:
        done = run(
            server.url,
            *("--arrivals", "constant:10", "--duration", "4", "--levels", "off:1,0.5:1"),
            *("--slo", GOALS, "--quality", "--report", str(folder / "page.html")),
            *("-o", str(folder / "run"), "--json"),
            *("--fail-if", "goodput<0.5", "--fail-if", "ttft_p50[0.5]>5s", "--fail-if", "failed>0"),
        )
    assert done.returncode == 0, done.stderr
    return {"folder": folder, "summary": json.loads(done.stdout)}


def test_everything_is_measured_in_one_run(whole):
    summary = whole["summary"]
    assert summary["goodput"]["met"] > 0
    assert set(summary["by_level"]) == {"off", "0.5"}
    assert summary["by_level"]["0.5"]["applied_levels"] == [0.5]
    assert summary["quality"]["levels"]["0.5"]["exact_match"] < 1
    assert summary["quality"]["noise"]["exact_match"] == 1.0
    assert summary["server"]["skip_rate"] == pytest.approx(0.25, abs=0.02)
    assert 0.25 in summary["timeline"]["server"]["skip_level"]
    html = (whole["folder"] / "page.html").read_text()
    assert "Quality" in html and "On the time axis" in html


def test_a_stored_run_gives_the_same_figures(whole):
    again = run("--read", str(whole["folder"] / "run"), "--slo", GOALS, "--json")
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == whole["summary"]


def test_a_stored_run_is_judged_by_other_goals(whole, tmp_path):
    page = tmp_path / "page.html"
    done = run(
        *("--read", str(whole["folder"] / "run"), "--slo", "ttft<1us", "--report", str(page)),
        *("--fail-if", "goodput<99%", "--json"),
    )
    assert done.returncode == 1
    assert "the check failed: goodput<99% is true: 0.00%" in done.stderr
    assert json.loads(done.stdout)["failed"] == ["goodput<99% is true: 0.00%"]
    assert page.exists()


def test_the_table_shows_levels_quality_and_server(whole):
    done = run("--read", str(whole["folder"] / "run"), "--slo", GOALS)
    for text in ("By level", "Quality", "The server", "expert calls skipped", "Goodput: ttft<2s"):
        assert text in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--slo", "tftt<1s"], "did you mean ttft?"),
        (["--fail-if", "ttft_p95>2"], "takes a number with us or ms or s or min"),
        (["--fail-if", "goodput<0.9"], "it needs --slo"),
        (["--fail-if", "late_p95>1s"], "only an open loop"),
        (["--fail-if", "device_max>1GiB"], "has no leanmoe_device_memory_bytes"),
        (["--fail-if", "ttft_p95[0.4]>1s"], "no group '0.4'; it has chat, server"),
        (["--report", "/nowhere/page.html"], "there is no folder /nowhere"),
        (["--find-saturation"], "give --slo"),
        (["--find-saturation", "--slo", "ttft<1s", "--goodput-target", "1.5"], "--goodput-target"),
        (
            ["--find-saturation", "--slo", "ttft<1s", "--fail-if", "goodput<1"],
            "no figure 'goodput'",
        ),
        (["--read", "."], "leave out URL"),
    ],
)
def test_what_is_wrong_is_refused_before_anything_is_sent(arguments, words):
    with skipping_server() as server:
        done = run(server.url, *arguments)
        assert server.asked == []
    assert done.returncode == 2, done.stderr
    assert words in done.stderr and done.stdout == ""


def test_a_folder_that_is_no_run_is_named(tmp_path):
    done = run("--read", str(tmp_path))
    assert done.returncode == 2 and f"{tmp_path} is no run folder" in done.stderr
    shutil.copytree(SMALL_RUN, tmp_path / "run")
    for sent in ('"soon"', "true"):
        (tmp_path / "run" / "requests.jsonl").write_text(f'{{"sent": {sent}}}\n')
        done = run("--read", str(tmp_path / "run"))
        assert done.returncode == 2 and "requests.jsonl:1 is not a RequestRecord" in done.stderr


def test_two_sides_are_compared(tmp_path):
    a = [stored(tmp_path / f"a{n}", drawn_run(n, count=64)) for n in range(2)]
    b = [stored(tmp_path / f"b{n}", drawn_run(9 + n, scale=1.3, count=64)) for n in range(2)]
    page = tmp_path / "page.html"
    folders = [*map(str, a), "--with", *map(str, b)]
    done = run("--compare", *folders, "--json", "--report", str(page))
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    rows = {row["figure"]: row for row in found["rows"]}
    assert rows["ttft_p50"]["ratio"] == pytest.approx(1.3, rel=0.05)
    assert rows["ttft_p50"]["low"] < 1.3 < rows["ttft_p50"]["high"]
    assert found["a"]["runs"] == 2 and page.read_text().count("<svg") == 2
    failed = run("--compare", *folders, "--fail-if", "itl_p95>1.1x")
    assert failed.returncode == 1 and "itl_p95>1.1x is true" in failed.stderr
    assert "B/A" in failed.stdout


def test_unlike_loads_are_refused_unless_forced(tmp_path):
    a = stored(tmp_path / "a", drawn_run(1, count=32))
    b = stored(tmp_path / "b", drawn_run(2, count=32, users=8))
    done = run("--compare", str(a), str(b))
    assert done.returncode == 2
    assert f"users is 4 in {a} and 8 in {b}" in done.stderr
    assert run("--compare", str(a), str(b), "--force").returncode == 0
    three = run("--compare", str(a), str(b), str(a))
    assert three.returncode == 2 and "--with" in three.stderr


def test_the_saturation_of_a_server_is_found(tmp_path):
    # Four answers at a time of about 60 ms each hold; more make first tokens late.
    with skipping_server(most_at_once=4) as server:
        done = run(
            server.url,
            *("--find-saturation", "--slo", "ttft<0.35s", "--rate", "4", "--duration", "2"),
            *("--goodput-target", "0.8", "--most-steps", "3", "--json"),
            *("-o", str(tmp_path / "search"), "--report", str(tmp_path / "page.html")),
            *("--fail-if", "saturation_rate<0.001"),
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert 1 <= len(found["steps"]) <= 3
    assert found["rate"] is not None and found["target"] == 0.8
    stored_steps = sorted(path.name for path in (tmp_path / "search").iterdir())
    names = [f"step-{n + 1:02d}" for n in range(len(found["steps"]))]
    assert stored_steps == ["saturation.json", *names]
    first = read_run(tmp_path / "search" / "step-01")
    assert first.info.arrivals == "poisson:4" and first.info.loop == "open"
    assert json.loads((tmp_path / "search" / "saturation.json").read_text()) == found
    assert "step 1: 4 requests/s" in done.stderr
    assert "Saturation of skipping" in (tmp_path / "page.html").read_text()
