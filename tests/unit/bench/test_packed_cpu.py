"""What ``leanmoe bench kernel --pattern`` times on a CPU is a layer that computes."""

from __future__ import annotations

import pytest
import torch

from leanmoe_bench.kernel import packed

LAYER = {"experts": 2, "top_k": 2, "hidden": 64, "ffn": 32}


@pytest.mark.parametrize("float8", [False, True])
def test_a_layer_of_random_values_gives_numbers(float8):
    kernel = packed._packed(LAYER, 16, float8=float8)
    found = kernel(*packed._step(LAYER, 3))
    assert found.dtype == torch.bfloat16
    assert found.isfinite().all()
    assert found.abs().max() > 0
