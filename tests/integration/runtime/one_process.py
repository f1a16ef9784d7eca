"""An engine in one process, without an engine-core child: imports take most of a start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from leanmoe_bench.engines.pair import RemoteArm
from tests.integration.runtime.conftest import ENGINE, Engine

VOCABULARY = 512
FLAGS = {
    **ENGINE,
    "enforce_eager": True,
    "max_num_seqs": 8,
    "max_num_batched_tokens": 128,
    "max_model_len": 64,
    "kv_cache_memory_bytes": 30_000_000,
    "trust_remote_code": True,
}
WITH_PLUGIN = {**FLAGS, "additional_config": {"leanmoe": {"plugin": True}}}


@contextmanager
def one_process(log: Path, *, plugin: bool) -> Iterator[RemoteArm]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        arm = RemoteArm("ours" if plugin else "stock", plugin=plugin, log=log)
    try:
        yield arm
    finally:
        arm.close()


def start(arm: RemoteArm, model: Path, flags: dict) -> Engine:
    arm.call("start", model=str(model), engine=flags, vocabulary=VOCABULARY, seed=0)
    return Engine(arm)


@contextmanager
def running(model: Path, log: Path, **flags: Any) -> Iterator[Engine]:
    """Ours on one model."""
    with one_process(log, plugin=True) as arm:
        yield start(arm, model, {**WITH_PLUGIN, **flags})
