"""Domains together: geometric means whose intervals add up, by language."""

from __future__ import annotations

import json
import math

import pytest

from leanmoe.cli import main
from leanmoe_pruning.data.spec import DOMAINS
from leanmoe_pruning.evaluation.domain_groups import LANGUAGES, group_reports
from tests.tiny import write_tiny_mixtral


def domain(perplexity: float, half: float | None, ratio: float, kld: float) -> dict:
    def spread(value):
        ends = (None, None) if half is None else (value * math.exp(-half), value * math.exp(half))
        return dict(zip(("low", "high"), ends, strict=True))

    against = {"ratio": {"mean": ratio, **spread(ratio)}}
    common = {"kld": kld, "top1_agreement": 1 - kld, "against": against}
    return {"perplexity": perplexity, **spread(perplexity), **common}


def test_every_built_in_domain_has_one_language():
    named = [name for names in LANGUAGES.values() for name in names]
    assert sorted(named) == sorted(DOMAINS)


def test_means_and_intervals():
    found = group_reports({"gen": domain(2.0, 0.3, 1.0, 0.1), "kjv": domain(8.0, 0.4, 1.21, 0.3)})
    assert list(found) == ["all", "en"] and found["all"] == found["en"]
    whole = found["all"]
    assert whole["perplexity"] == pytest.approx(4.0) and whole["domains"] == 2
    assert whole["ratio"]["mean"] == pytest.approx(1.1)
    # Half widths of 0.3 and 0.4 make 0.5 of a sum, 0.25 of a mean.
    assert whole["ratio"]["high"] == pytest.approx(1.1 * math.exp(0.25))
    assert whole["low"] == pytest.approx(4.0 * math.exp(-0.25))
    assert (whole["kld"], whole["top1_agreement"]) == (pytest.approx(0.2), pytest.approx(0.8))


def test_groups_without_intervals_and_domains_of_no_language():
    one = {"fr": domain(2.0, None, 1.0, 0.0), "mine.txt": domain(2.0, 0.1, 1.0, 0.0)}
    found = group_reports(one)
    assert list(found) == ["all", "fr"]
    assert (found["all"]["of_one_window"], found["fr"]["of_one_window"]) == (1, 1)
    assert found["all"]["low"] is None and found["fr"]["ratio"]["high"] is None
    assert group_reports({"fr": domain(2.0, 0.1, 1.0, 0.0)}) == {}


def test_eval_prints_them(tmp_path, capsys):
    model = write_tiny_mixtral(tmp_path / "model", layers=1, dtype="float32")
    data = []
    for name in ("one", "two", "three"):
        path = tmp_path / f"{name}.txt"
        path.write_text("the people look at the water and find a way home " * 12)
        data.append(f"{path}:3")
    asked = ["eval", str(model), "--data", ",".join(data), "--window", "16"]
    asked += ["--against", str(model), "--skip-level", "1"]
    assert main([*asked, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    whole = found["groups"]["all"]
    assert whole["domains"] == 3 and whole["of_one_window"] == 0
    assert whole["ratio"]["low"] <= whole["ratio"]["high"]
    for one in found["domains"].values():
        assert one["top1_lower"] <= one["top1_agreement"] < 1
    assert main(asked) == 0
    assert "all    of   3" in capsys.readouterr().out
    asked[asked.index("--data") + 1] = f"{data[0]},{data[1][:-1]}1,{data[2][:-1]}1"
    assert main(asked) == 0
    *_, first, second, third, whole = capsys.readouterr().out.rstrip().split("\n")
    assert ".." in first and "  one window" in second and "  one window" in third
    assert "  2 of one window " in whole and "(2 of one window)" in whole
