"""The ratios on ``docs/speed.md`` are those of the recorded runs."""

from __future__ import annotations

import json
import re

import pytest

from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
CASES = {
    "level 0": "level0",
    "median betas": "median",
    "top-1 only": "top1",
    "4 of 8 experts, median betas": "keep4+median",
    "40 % skipped": "skip40",
    "budget of 32 experts": "union32",
    "the same, redirected": "union32-redirect",
    "40 % and budget": "skip40+union32",
}
MEASURES = {
    "decode, batch 1": "decode_b1",
    "decode, batch 8": "decode_b8",
    "decode, batch 32": "decode_b32",
    "prefill, 1,024 tokens": "prefill_1024",
}
# Two places are shown.
SHOWN = 0.0051


def table(shape: str) -> list[list[str]]:
    section = PAGE.split(f"\n## Shape {shape}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows if not row[0].startswith("---")]


@pytest.mark.parametrize("shape", ["M", "F"])
def test_ratios_and_ideals_are_those_of_the_run(shape):
    path = ROOT / "benchmarks" / "results" / f"serve-{shape}-compiled.json"
    recorded = json.loads(path.read_text(encoding="utf-8"))["rows"]
    found = {(row["case"], row["measure"]): row for row in recorded}
    (head, *rows) = table(shape)
    assert [row[0] for row in rows] == list(MEASURES)
    for row in rows:
        case = ""
        for title, cell in zip(head[1:], row[1:], strict=True):
            case = CASES.get(title, case)
            names = ("ideal_bytes", "ideal_operations")
            names = names if title == "ideal" else ("ratio", "low", "high")
            shown = [float(number) for number in re.findall(r"\d+\.\d+", cell)]
            measured = [found[case, MEASURES[row[0]]][name] for name in names]
            assert shown == pytest.approx(measured, abs=SHOWN), f"{row[0]}, {title}"


def test_skip_rules_cost_what_was_measured():
    path = ROOT / "benchmarks" / "results" / "skip-rules.json"
    rates = json.loads(path.read_text(encoding="utf-8"))["rates"]
    recorded = [(rule, one) for row in rates for rule, one in row["rules"].items()]
    page = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    section = page.split("\n## Which skip rule\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if re.match(r"\| \d", line)]
    for line, (rule, one) in zip(lines, recorded, strict=True):
        shown = [float(number) for number in re.findall(r"[+-]?\d+\.\d+", line)]
        gaps = [] if rule == "ratio" else [one["kld_less_ratios"], *one["interval"]]
        percent = 100 * one["skip_rate"], 100 * one["top1_agreement"]
        assert f"| `{rule}` |" in line
        assert [shown[0], shown[-1]] == pytest.approx(percent, abs=0.051), line
        assert shown[1:-1] == pytest.approx([one["kld"], *gaps], abs=5.1e-5), line
