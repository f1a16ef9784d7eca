"""``docs/format.md`` names the fields of the models that read and write the files, all of them."""

from __future__ import annotations

import re

import pytest

from leanmoe.curve import CurvePoint, QualityCurve
from leanmoe.layout import LayerLayout, Layout
from leanmoe.manifest import Manifest, Source
from leanmoe.sparse.sparse_format import SparseFormat
from leanmoe.tuned_tables import TableRecord, TunedRecord
from leanmoe_pruning.cutting.layer_plan import LayerPlan, Merge, PrunePlan
from leanmoe_pruning.scores.bundle import BundleDescription
from leanmoe_pruning.scores.halves_record import HalfAgreement, Halves
from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "format.md").read_text(encoding="utf-8")
MODELS = (
    *(Manifest, Source, QualityCurve, CurvePoint, Layout, LayerLayout),
    *(SparseFormat, TunedRecord, TableRecord),
    *(PrunePlan, LayerPlan, Merge, BundleDescription, Halves, HalfAgreement),
)
_ROW = re.compile(r"^\| `(\w+)` \|.*?\| (yes|no) \|", re.MULTILINE)
# Written by the function beside the model, not by the model.
WRITTEN_BESIDE = {"Manifest": {"digest": "yes"}}


def table_of(name: str) -> dict[str, str]:
    """Field to whether it is required, under the heading of that name."""
    section = re.split(r"^#+ ", PAGE.split(f"\n### {name}\n")[1], flags=re.MULTILINE)[0]
    return dict(_ROW.findall(section))


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_the_table_has_the_fields_of_the_model(model):
    fields = model.model_fields.items()
    expected = {name: "yes" if field.is_required() else "no" for name, field in fields}
    assert table_of(model.__name__) == expected | WRITTEN_BESIDE.get(model.__name__, {})


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_unknown_fields_are_refused_as_the_page_says(model):
    assert model.model_config.get("extra") == "forbid"


def test_every_table_of_fields_is_of_a_model():
    tables = re.findall(r"\n### (\w+)\n(?:(?!\n#).)*?\| field \|", PAGE, flags=re.DOTALL)
    assert tables == [model.__name__ for model in MODELS]
