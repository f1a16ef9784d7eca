"""A server started as a user does: keys that reach neither log nor workers, memory, spans by gRPC.

vLLM's own way of sending spans does not survive a fork, so it is tried here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Self

import grpc
import openai
import psutil
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from tests.integration.live_server import LiveServer, live_server, wait_for

USER, ADMIN = "s3cret-user", "s3cret-admin"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """What an OpenTelemetry collector is to the server: it takes spans, by their names."""

    def __init__(self) -> None:
        self.spans: list[str] = []
        self._server = grpc.server(ThreadPoolExecutor(1))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")

    def take(self, request, context):
        self.spans += [
            span.name
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]
        return ExportTraceServiceResponse()

    Export = take

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(None)


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as taking:
        yield taking


@pytest.fixture(scope="module")
def keyed_server(
    tiny_model: Path, collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """Started as a user does: a process tells the environment that it was started with."""
    log = tmp_path_factory.mktemp("keyed") / "log"
    environment = {
        **{"LEANMOE_ADMIN_KEY": ADMIN, "VLLM_API_KEY": USER},
        # Spans go out in batches, by default every five seconds.
        **{"OTEL_BSP_SCHEDULE_DELAY": "100", "OTEL_EXPORTER_OTLP_TRACES_INSECURE": "true"},
    }
    traces = ("--otlp-traces-endpoint", f"http://127.0.0.1:{collector.port}")
    flags = ("--max-kld", "0.05", *traces)
    with live_server(tiny_model, log, *flags, environment=environment) as running:
        yield running


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_the_level_of_the_start_is_in_force(keyed_server: LiveServer) -> None:
    shown = keyed_server.get("/v1/expert_skipping", bearer(USER)).json()
    assert (shown["level"], shown["max_kld"], shown["version"]) == (0.5, 0.05, 1)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        (bearer(USER), 403),
        (bearer("wrong"), 401),
        ({**bearer(USER), "X-LeanMoE-Admin-Key": USER}, 403),
        ({**bearer(USER), "X-LeanMoE-Admin-Key": ADMIN}, 200),
        (bearer(ADMIN), 200),
    ],
)
def test_only_the_admin_key_changes_the_level(
    keyed_server: LiveServer, headers: dict[str, str], status: int
) -> None:
    assert keyed_server.put_level({"level": 1}, headers).status_code == status


def test_only_user_keys_infer(keyed_server: LiveServer) -> None:
    assert keyed_server.client(USER).models.list().data
    with pytest.raises(openai.PermissionDeniedError, match="needs a user's key"):
        keyed_server.client(ADMIN).models.list()
    with pytest.raises(openai.AuthenticationError, match="this key is not known"):
        keyed_server.client("wrong").models.list()


def test_spans_go_out_by_grpc_unless_told_otherwise(
    keyed_server: LiveServer, collector: Collector
) -> None:
    keyed_server.client(USER).completions.create(
        model=keyed_server.model, prompt="water", max_tokens=2
    )
    wanted = {"POST /v1/completions", "llm_request"}
    found = wait_for(lambda: set(collector.spans), wanted.issubset, seconds=60)
    assert wanted <= found, keyed_server.log.read_text()[-2000:]


def test_no_key_in_the_log_or_in_the_workers(keyed_server: LiveServer) -> None:
    log = keyed_server.log.read_text()
    assert USER not in log and ADMIN not in log
    workers = [p for p in keyed_server.processes() if p.pid != keyed_server.process.pid]
    assert workers
    assert all(ADMIN not in value for p in workers for value in environment_of(p).values())


def test_memory_and_weights_are_measured(keyed_server: LiveServer) -> None:
    """Told by their titles, which processes that the tests fork do not show."""
    samples = keyed_server.metrics()
    assert samples["leanmoe_handshake_complete", ""] == 1.0
    resident = {
        key: v for (name, key), v in samples.items() if name == "leanmoe_resident_memory_bytes"
    }
    assert {"api_server", "engine_core", "rank0"} <= set(resident)
    assert all(size > 50e6 for process, size in resident.items() if process != "other")
    files = (Path(keyed_server.model) / "model.safetensors").stat().st_size
    assert samples["leanmoe_weight_bytes", ""] == pytest.approx(files, rel=0.1)
    assert math.isfinite(samples["leanmoe_snapshot_age_seconds", ""])


def environment_of(process: psutil.Process) -> dict[str, str]:
    return dict(process.environ())
