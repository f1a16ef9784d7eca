"""Real engines on a tiny random Mixtral: stock and ours, eager and compiled."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from leanmoe.messages import HandshakeReport, PolicyUpdate, SkipSnapshot
from leanmoe_bench.engines.pair import RemoteArm
from tests.tiny import write_tiny_mixtral

ENGINE = {
    "max_model_len": 256,
    "max_num_seqs": 32,
    "max_num_batched_tokens": 256,
    "enable_prefix_caching": False,
    "kv_cache_memory_bytes": 100_000_000,
}


class Engine:
    """One engine process with the plugin's methods as calls."""

    def __init__(self, arm: RemoteArm) -> None:
        self.arm = arm
        self.version = 0

    def generate(self, prompts: list[list[int]], tokens: int) -> list[list[int]]:
        return self.arm.call("generate", prompts=prompts, tokens=tokens)["ids"]

    def rpc(self, method: str, *args: str):
        return self.arm.call("rpc", method=method, args=list(args))["results"][0]

    def rpc_all(self, method: str, kind):
        """Every worker's answer."""
        answers = self.arm.call("rpc", method=method, args=[])["results"]
        return [kind.model_validate_json(answer) for answer in answers]

    def handshake(self) -> HandshakeReport:
        return HandshakeReport.model_validate_json(self.rpc("leanmoe_handshake"))

    def snapshot(self) -> SkipSnapshot:
        return SkipSnapshot.model_validate_json(self.rpc("leanmoe_snapshot"))

    def set_betas(self, betas: dict[int, float]) -> SkipSnapshot:
        self.version += 1
        update = PolicyUpdate(level=max(betas.values()), betas=betas, version=self.version)
        self.rpc("leanmoe_set_policy", update.model_dump_json())
        return self.snapshot()


@pytest.fixture(scope="package", autouse=True)
def _forked(forked_arms: None) -> None:
    """All engines of this folder."""


@pytest.fixture(scope="package")
def tiny_model(tmp_path_factory) -> Path:
    return write_tiny_mixtral(tmp_path_factory.mktemp("runtime") / "tiny")


@pytest.fixture(scope="package")
def start_engine(tiny_model, tmp_path_factory) -> Iterator:
    """A function (plugin, model, **flags) -> Engine; engines end with the package's tests."""
    vocabulary = json.loads((tiny_model / "config.json").read_text())["vocab_size"]
    started: list[RemoteArm] = []

    def start(plugin: bool, model: Path = tiny_model, **flags) -> Engine:
        log = tmp_path_factory.mktemp("engine") / "engine.log"
        arm = RemoteArm("ours" if plugin else "stock", plugin=plugin, log=log)
        started.append(arm)
        extra = {"additional_config": {"leanmoe": {"plugin": True}}} if plugin else {}
        arm.call(
            "start",
            model=str(model),
            engine={**ENGINE, **extra, **flags},
            vocabulary=vocabulary,
            seed=0,
        )
        return Engine(arm)

    yield start
    for arm in started:
        arm.close()


@pytest.fixture(scope="package")
def stock_eager(start_engine) -> Engine:
    return start_engine(False, enforce_eager=True)


@pytest.fixture(scope="package")
def ours_eager(start_engine) -> Engine:
    return start_engine(
        True,
        enforce_eager=True,
        worker_extension_cls="tests.integration.runtime.recorder.LogitRecorder",
    )


@pytest.fixture(scope="package")
def stock_compiled(start_engine) -> Engine:
    return start_engine(False)


@pytest.fixture(scope="package")
def ours_compiled(start_engine) -> Engine:
    counter = "tests.integration.runtime.recorder.CompileCounter"
    return start_engine(True, worker_extension_cls=counter)
