"""``docs/format.md`` names the fields of the models that read and write the files, all of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from leanmoe.cli import main
from leanmoe.curve import CurvePoint, QualityCurve
from leanmoe.layout import LayerLayout, Layout
from leanmoe.manifest import Manifest, Source
from leanmoe.sparse.sparse_format import SparseFormat
from leanmoe.tuned_tables import TableRecord, TunedRecord
from leanmoe_pruning.cutting.layer_plan import LayerPlan, Merge, PrunePlan
from leanmoe_pruning.scores.bundle import BundleDescription
from leanmoe_pruning.scores.halves_record import HalfAgreement, Halves
from tests.docs.pages import ROOT
from tests.tiny_families import write_tiny

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


def packed_and_dense(folder: Path, *how: str) -> tuple[dict[str, torch.Tensor], ...]:
    source = write_tiny(folder / "source", "olmoe")
    prune = ["prune", str(source), "--method", "magnitude", *how]
    assert main([*prune, "--compress", "-o", str(folder / "packed")]) == 0
    assert main([*prune, "-o", str(folder / "dense")]) == 0
    return tuple(load_file(folder / one / "model.safetensors") for one in ("packed", "dense"))


@pytest.mark.parametrize("pattern", ["16:32", "24:64"])
def test_the_pages_function_unpacks_what_is_written(pattern, tmp_path):
    packed, dense = packed_and_dense(tmp_path, "--pattern", pattern, "--permute")
    page: dict[str, Any] = {}
    exec(re.findall(r"```python\n(import numpy.*?)```", PAGE, flags=re.DOTALL)[0], page)
    words = {
        name: one.view(torch.int16).numpy() if one.dtype == torch.bfloat16 else one.numpy()
        for name, one in packed.items()
    }
    stems = [name.removesuffix("_values") for name in packed if name.endswith(".weight_values")]
    assert len(stems) == 3 * 8 * 3
    for stem in stems:
        parts = (words.get(f"{stem}_overflow_{one}") for one in ("rows", "columns", "values"))
        listed = tuple(one for one in parts if one is not None)
        found = page["unpacked"](
            words[f"{stem}_values"],
            words[f"{stem}_mask"],
            listed or None,
            words.get(f"{stem}_input_order"),
        )
        assert bool(listed) == (pattern == "24:64")
        assert np.array_equal(found, dense[stem].view(torch.int16).numpy())
