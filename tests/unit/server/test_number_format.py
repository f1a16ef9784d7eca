"""Who serves in a format that the processor multiplies slowly is told what to give instead."""

from __future__ import annotations

import pytest
import torch

from leanmoe_server import number_format
from leanmoe_server.number_format import multiplies_slowly


@pytest.fixture
def processor(monkeypatch):
    """This machine as one with or without fast products of bfloat16."""

    def is_one(fast: bool, machine: str = "x86_64", cpu: bool = True) -> None:
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: fast)
        monkeypatch.setattr(number_format.platform, "machine", lambda: machine)
        monkeypatch.setattr(number_format, "is_cpu_build", lambda: cpu)

    return is_one


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_two_bytes_are_slow_without_avx_512(processor, dtype: torch.dtype) -> None:
    processor(fast=False)
    said = multiplies_slowly(dtype)
    assert said is not None and "--dtype float32" in said
    assert str(dtype).removeprefix("torch.") in said


def test_nothing_is_said_where_there_is_nothing_to_gain(processor) -> None:
    processor(fast=False)
    assert multiplies_slowly(torch.float32) is None
    processor(fast=True)
    assert multiplies_slowly(torch.bfloat16) is None
    for elsewhere in ({"machine": "aarch64"}, {"cpu": False}):
        processor(fast=False, **elsewhere)
        assert multiplies_slowly(torch.bfloat16) is None
