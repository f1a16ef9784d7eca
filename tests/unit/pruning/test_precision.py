"""What matrix products are computed in where nobody says: the fastest that the processor has."""

from __future__ import annotations

import pytest
import torch

from leanmoe_pruning import precision
from leanmoe_pruning.checkpoints.opening import open_model
from leanmoe_pruning.forward.stream import DecoderStream
from leanmoe_pruning.planning.headers import HeaderModel
from tests.tiny import write_tiny_mixtral


def test_torch_says_whether_it_has_fast_products_of_bfloat16():
    assert precision.multiplies_bfloat16() is torch.ops.mkldnn._is_mkldnn_bf16_supported()


@pytest.mark.parametrize(
    ("stored", "has_bfloat16", "expected"),
    [
        ("float32", True, torch.float32),
        ("float32", False, torch.float32),
        ("bfloat16", True, torch.bfloat16),
        ("bfloat16", False, torch.float32),
    ],
)
def test_half_precision_is_computed_with_where_that_is_faster(
    stored, has_bfloat16, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(precision, "multiplies_bfloat16", lambda: has_bfloat16)
    write_tiny_mixtral(tmp_path / "model", dtype=stored)
    assert DecoderStream(open_model(tmp_path / "model")).compute == expected
    assert DecoderStream(open_model(tmp_path / "model"), "bfloat16").compute == torch.bfloat16
    assert HeaderModel.open(tmp_path / "model").compute_bytes == expected.itemsize
