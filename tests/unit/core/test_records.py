"""No record takes true for a number, wherever in it the number stands."""

import pytest
from pydantic import ValidationError

from leanmoe.errors import CheckpointError
from leanmoe.files.records import read_record
from leanmoe.layout import LayerLayout, Layout, read_layout
from leanmoe.manifest import Manifest, Source, read_manifest, write_manifest
from leanmoe.sparse.scale_blocks import Blocks
from leanmoe.sparse.sparse_format import SparseFormat
from leanmoe.stand_ins import read_constants
from leanmoe.tuned_tables import TableRecord, Tiles, TunedRecord
from tests.unit.core.test_curve import of_rules
from tests.wrong_values import numbers_of, with_true

LAYERS = {
    0: LayerLayout(n_experts=4, top_k=2, gate_rows=8),
    1: LayerLayout(n_experts=4, top_k=2, stand_ins=(1, 2), rank=1),
}
SIDES = ("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "GROUP_SIZE_M", "num_warps", "num_stages")
TEXTS = dict.fromkeys(("digest", "card", "vllm", "triton", "date", "command"), "x")
RECORDS = [
    Manifest(
        family="mixtral",
        method="naee",
        source=Source(name="x", files={}, experts=8),
        kept={0: [1, 3]},
        curve=of_rules(),
    ),
    Layout(layers=LAYERS),
    SparseFormat(keep=16),
    Tiles(**dict.fromkeys(SIDES, 1), num_ctas=1, SPLIT_K=1),
    TunedRecord(tables={"x": TableRecord(**TEXTS, batches=[1])}),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda one: type(one).__name__)
def test_true_is_no_number_of_a_record(record):
    kind, content = type(record), record.model_dump(mode="json", exclude_none=True)
    assert read_record(kind, content) == record
    for place in numbers_of(content):
        with pytest.raises(ValidationError) as error:
            read_record(kind, with_true(content, place))
        assert tuple(map(str, place)) == tuple(map(str, error.value.errors()[0]["loc"]))


def test_a_manifest_says_where_it_is_no_number(tmp_path):
    write_manifest(tmp_path, RECORDS[0])
    path = tmp_path / "leanmoe.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": true'))
    with pytest.raises(CheckpointError, match="schema_version: Input should be a valid integer"):
        read_manifest(tmp_path)


def test_true_is_no_number_of_a_config():
    with pytest.raises(CheckpointError, match="schema_version: Input should be a valid integer"):
        read_layout({"leanmoe": {"schema_version": True}}, "config.json")
    with pytest.raises(CheckpointError, match=r"approximate_experts must map .*\[True\]"):
        read_constants({"approximate_experts": {"0": [True]}}, "config.json")
    with pytest.raises(CheckpointError, match=r"weight_block_size \[True, 64\]"):
        Blocks.of({"weight_block_size": [True, 64]})
