"""The offline stage from Python: the same work, results and refusals as on the command line."""

from __future__ import annotations

import json
from typing import Any

import pytest

from leanmoe.cli import main
from leanmoe.errors import InputError
from leanmoe_pruning.api import (
    CurveOptions,
    EvalOptions,
    PlanOptions,
    PruneOptions,
    ScoreOptions,
    curve,
    evaluate,
    plan,
    prune,
    score,
)
from leanmoe_pruning.methods.registry import METHODS
from tests.tiny import write_tiny_mixtral

TEXT = "builtin:gen:2"


@pytest.fixture(scope="module")
def tiny_mixtral(tmp_path_factory):
    return write_tiny_mixtral(tmp_path_factory.mktemp("model") / "tiny")


def test_functions_make_what_the_commands_make(tiny_mixtral, tmp_path, capsys):
    model, scores, lean = tiny_mixtral, tmp_path / "scores", tmp_path / "lean"
    assert plan(PlanOptions(model=model, keep=(4,), tflops=1.0))["n_routed_experts"] == 8
    made = score(ScoreOptions(model=model, data=TEXT, window=64, out=scores))
    cut = prune(PruneOptions(model=model, method="reap", keep=4, scores=scores, out=lean))
    points = curve(CurveOptions(model=lean, data=TEXT, window=64, levels=3))["points"]
    assert [point["level"] for point in points] == [0.0, 0.5, 1.0]
    assert evaluate(EvalOptions(model=lean, data=TEXT, window=64))["domains"]
    capsys.readouterr()
    again = ["prune", str(model), "--method", "reap", "--keep", "4", "--scores", str(scores)]
    assert main([*again, "-o", str(tmp_path / "again"), "--json"]) == 0
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (said["kept"], said["weight_bytes"]) == (cut["kept"], cut["weight_bytes"])
    assert made["digest"].startswith("sha256:")


def test_a_path_may_be_text_and_a_refusal_is_the_commands(tiny_mixtral, tmp_path):
    wrong = CurveOptions(model=tiny_mixtral, data=TEXT, levels=1)
    with pytest.raises(InputError, match="--levels is 1, expected a number from 3 to 1001"):
        curve(wrong)
    text: Any = str(tiny_mixtral)
    with pytest.raises(InputError, match="--compute is 'float8', expected one of float32"):
        score(ScoreOptions(model=text, data=TEXT, out=tmp_path / "s", compute="float8"))
    with pytest.raises(InputError, match="give --method and what it asks for"):
        prune(PruneOptions(model=text, out=tmp_path / "lean"))


def test_the_options_of_another_method_are_refused(tiny_mixtral, tmp_path):
    options = PruneOptions(model=tiny_mixtral, method="reap", keep=4, out=tmp_path / "lean")
    with pytest.raises(InputError, match=r"the options of reap are \w+, got \w*Naee\w*"):
        prune(options, METHODS["naee"].options())
