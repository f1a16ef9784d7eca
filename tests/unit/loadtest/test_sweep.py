"""Loads at rising rates: figures of each, the knee, and the same as a table for spreadsheets."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest

from leanmoe.cli import main
from leanmoe.errors import CheckError, InputError
from leanmoe_loadtest.analysis_options import Reading, finish
from leanmoe_loadtest.planning import make_plan
from leanmoe_loadtest.reading.checks import parse_checks
from leanmoe_loadtest.reading.slo import parse_slo
from leanmoe_loadtest.reading.spreadsheet import as_csv
from leanmoe_loadtest.reading.summary import summarise_run
from leanmoe_loadtest.settings import resolve
from tests.unit.loadtest.runs import drawn_run, record, run_of, stored, swept_run


def rows_of(text):
    return list(csv.DictReader(io.StringIO(text)))


def test_every_rate_has_its_own_figures():
    found = summarise_run(swept_run(), parse_slo("e2e<1s"))["sweep"]
    assert found["step_seconds"] == 20.0
    assert [step["rate"] for step in found["steps"]] == [1, 2, 4, 8]
    assert [step["requests"]["completed"] for step in found["steps"]] == [20, 40, 80, 160]
    one, two, four, eight = found["steps"]
    assert one["requests_per_second"] == 1 and two["requests_per_second"] == 2
    # A third of a second each: no more than three a second are done, however many come.
    assert four["requests_per_second"] == pytest.approx(3, rel=0.02)
    assert eight["requests_per_second"] < 3
    assert two["ttft_ms"]["p95"] == pytest.approx(200) and four["ttft_ms"]["p95"] > 5000
    assert one["goodput"]["share"] == 1 and four["goodput"]["share"] < 0.2


@pytest.mark.parametrize(("bend", "knee", "above"), [(3, 2, False), (6, 4, False), (99, 8, True)])
def test_the_knee_is_the_last_rate_before_requests_queue(bend, knee, above):
    summary = summarise_run(swept_run(bend=bend))
    found = summary["sweep"]["knee"]
    assert (found["rate"], found["above"]) == (knee, above)
    assert any("No knee was reached" in note for note in summary["notes"]) is above


@pytest.mark.parametrize("arrivals", [None, "poisson:2", "step:1,2", "ramp:1-8"])
def test_other_loads_have_no_sweep(arrivals):
    run = drawn_run(1, count=20)
    run.info.arrivals = arrivals
    assert summarise_run(run)["sweep"] is None


def test_rates_at_which_nothing_completed_have_no_say():
    run = swept_run()
    late = run.info.started + 60
    failed = [
        one.model_copy(update={"error": "503"}) if one.scheduled >= late else one
        for one in run.requests
    ]
    found = summarise_run(replace(run, requests=failed))["sweep"]
    assert found["steps"][3]["power"] is None and found["knee"]["rate"] == 2


def test_the_profile_makes_a_sweep():
    settings = resolve("sweep", {})
    plan = make_plan(settings, "http://a", "m", 0)
    assert settings.arrivals.startswith("step:") and plan.duration == 450
    assert len(settings.arrivals.split(",")) == 10


def test_a_check_on_the_knee_needs_rates():
    plan = make_plan(resolve(None, {"arrivals": "poisson:2"}), "http://a", "m", 0)
    reading = Reading(None, parse_checks(["knee_rate<4"]), None, None, False)
    with pytest.raises(InputError, match="a knee needs three rates or more"):
        reading.check(plan, "poisson:2", set)
    reading.check(plan, "step:1,2,4", set)
    with pytest.raises(CheckError, match="knee_rate<4 is true: 2"):
        finish(swept_run(), reading)


def test_a_stored_run_is_judged_by_the_goals_it_was_made_with(tmp_path, capsys):
    folder = stored(tmp_path / "run", run_of([record(), record(ttft=3.0)], slo="ttft<1s"))
    command = ["loadtest", "--read", str(folder), "--json"]
    assert main([*command, "--fail-if", "goodput<0.9"]) == 1
    printed = capsys.readouterr()
    assert json.loads(printed.out)["goodput"]["slo"] == "ttft<1s"
    assert "goodput<0.9 is true: 50.00%" in printed.err
    # Goals of the command line come first.
    assert main([*command, "--fail-if", "goodput<0.9", "--slo", "ttft<5s"]) == 0
    capsys.readouterr()
    without = stored(tmp_path / "without", run_of([record()]))
    assert main(["loadtest", "--read", str(without), "--fail-if", "goodput<0.9"]) == 2
    assert "goodput was not measured" in capsys.readouterr().err


def test_a_run_is_a_table_of_its_parts(tmp_path, capsys):
    folder = stored(tmp_path / "run", swept_run())
    table = tmp_path / "run.csv"
    assert main(["loadtest", "--read", str(folder), "--slo", "e2e<1s", "--csv", str(table)]) == 0
    rows = rows_of(table.read_text())
    assert [(row["part"], row["name"]) for row in rows] == [
        *(("run", ""), ("endpoint", "chat"), ("level", "server")),
        *(("rate", f"{rate:.1f}") for rate in (1, 2, 4, 8)),
    ]
    summary = summarise_run(swept_run(), parse_slo("e2e<1s"))
    assert float(rows[0]["ttft_ms_p95"]) == summary["ttft_ms"]["p95"]
    assert float(rows[4]["goodput_share"]) == 1 and rows[0]["completed"] == "300"
    assert "2 (knee)" in capsys.readouterr().out


def test_what_a_spreadsheet_would_compute_stays_text():
    run = run_of([record(level='"=1+1"')])
    names = [row["name"] for row in rows_of(as_csv(summarise_run(run)))]
    assert "'=1+1" in names and not any(name.startswith("=") for name in names)


def test_a_comparison_is_a_table_of_its_ratios(tmp_path):
    folders = [str(stored(tmp_path / str(n), drawn_run(n, count=48))) for n in (1, 2)]
    table = tmp_path / "ratios.csv"
    assert main(["loadtest", "--compare", *folders, "--csv", str(table)]) == 0
    rows = rows_of(table.read_text())
    assert rows[0].keys() >= {"figure", "a", "b", "ratio", "low", "high"}


def test_a_place_where_no_table_can_be_is_refused(tmp_path, capsys):
    folder = stored(tmp_path / "run", run_of([record()]))
    command = ["loadtest", "--read", str(folder), "--csv"]
    assert main([*command, str(tmp_path / "none" / "a.csv")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert main([*command, str(tmp_path)]) == 2
    assert "is a folder; name a file" in capsys.readouterr().err
