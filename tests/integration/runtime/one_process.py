"""An engine in one process, without an engine-core child: imports take most of a start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from leanmoe_bench.pair import RemoteArm
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
def running(model: Path, log: Path, *, plugin: bool, **own: Any) -> Iterator[Engine]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        arm = RemoteArm("ours" if plugin else "stock", plugin=plugin, log=log)
    try:
        flags = {**(WITH_PLUGIN if plugin else FLAGS), **own}
        arm.call("start", model=str(model), engine=flags, vocabulary=VOCABULARY, seed=0)
        yield Engine(arm)
    finally:
        arm.close()
