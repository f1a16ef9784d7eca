"""The table of ``docs/sizing.md`` is what ``leanmoe plan`` says today."""

from __future__ import annotations

import importlib.util
import re
import sys

import pytest

from tests.docs.pages import ROOT

SCRIPT = ROOT / "docs" / "tools" / "sizing.py"
# Of each form of weights but float8's, which only the model with the most tensors has.
TRIED = ("OLMoE-1B-7B", "gpt-oss-120b")


@pytest.fixture(scope="module")
def sizing():
    spec = importlib.util.spec_from_file_location("sizing", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    sys.modules["sizing"] = script
    spec.loader.exec_module(script)
    yield script
    del sys.modules["sizing"]


def table(sizing) -> dict[str, str]:
    text = sizing.PAGE.read_text("utf-8").partition(sizing.BEGIN)[2].partition(sizing.END)[0]
    return {row[1]: row[0] for row in re.findall(r"^(\| ([^,|]+), .*\|)$", text, re.MULTILINE)}


def test_the_table_has_every_model_in_its_order(sizing):
    rows = [name for name in table(sizing) if name != "model"]
    assert rows == [model.name for model in sizing.MODELS]
    assert len(rows) == 10


@pytest.mark.parametrize("name", TRIED)
def test_a_row_is_what_plan_says(name, sizing):
    (model,) = [one for one in sizing.MODELS if one.name == name]
    assert table(sizing)[name] == sizing.row_of(model)
