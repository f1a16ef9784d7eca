"""One live server as its operator's tools see it: traces, log lines, a Prometheus scraping it."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from prometheus_client.parser import text_string_to_metric_families

from leanmoe import metric_names as names
from leanmoe.process.ports import free_port
from tests.integration.live_server import LiveServer, live_server, wait_for
from tests.page_tools import tool

USER = "key-of-the-observed-user"
SECRET = "xylophone marmalade"
AUTHORIZED = {"Authorization": f"Bearer {USER}"}
SECONDS = 60.0
# A client costs more than a request.
CLIENT = httpx.Client(timeout=60)
LINE_KEYS = {"time", "level", "logger", "process", "pid", "message"}


class Collector(HTTPServer):
    """What an OpenTelemetry collector is to the server: it takes spans, here over HTTP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Taking)
        self.spans: list[Span] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1/traces"

    def named(self, name: str) -> list[Span]:
        return [span for span in self.spans if span.name == name]


class Taking(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        request = ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.server.spans += scope.spans
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def attributes(span: Span) -> dict[str, object]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.serve_forever)
    thread.start()
    yield collector
    collector.shutdown()
    thread.join()
    collector.server_close()


@pytest.fixture(scope="module")
def observed(tiny_model, forked, tmp_path_factory) -> Iterator[tuple[LiveServer, Collector]]:
    log = tmp_path_factory.mktemp("observed") / "server.log"
    flags = ("--log-format", "json", "--api-key", USER, "--poll-seconds", "0.5")
    # Spans go out in batches, by default every five seconds.
    # vLLM's own default, gRPC, does not survive that the tests' engines are forked.
    environment = {
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",
    }
    with (
        collecting() as collector,
        live_server(
            tiny_model,
            log,
            *(*flags, "--otlp-traces-endpoint", collector.endpoint),
            environment=environment,
            popen=forked,
        ) as server,
    ):
        yield server, collector


def post(server: LiveServer, headers: dict[str, str] | None = None, **body) -> httpx.Response:
    sent = {**AUTHORIZED, **(headers or {})}
    content = {"model": server.model, "prompt": SECRET, "max_tokens": 8, **body}
    return CLIENT.post(f"{server.url}/v1/completions", json=content, headers=sent)


def test_a_request_is_a_span_with_its_level_share_and_tenant(observed):
    server, collector = observed
    parent = "4bf92f3577b34da6a3ce929d0e0e4736"
    answer = post(
        server,
        {"X-Request-Id": "order-17", "traceparent": f"00-{parent}-00f067aa0ba902b7-01"},
        expert_skipping={"level": 1},
    )
    assert answer.status_code == 200 and answer.headers["x-request-id"] == "order-17"
    stated = answer.json()["usage"]["expert_skipping"]
    name = "POST /v1/completions"
    (span,) = wait_for(lambda: collector.named(name), bool, SECONDS)
    told = attributes(span)
    assert told["leanmoe.request_id"] == "order-17" and told["leanmoe.skip_level"] == 1
    assert told["leanmoe.skipped_share"] == stated["skipped"] / stated["routed"] > 0.4
    assert told["leanmoe.tenant"] and USER not in str(told["leanmoe.tenant"])
    assert told["http.response.status_code"] == 200 and told["leanmoe.whole"] is True
    assert span.trace_id.hex() == parent

    def inside() -> list[Span]:
        return [one for one in collector.named("llm_request") if one.trace_id == span.trace_id]

    (inner,) = wait_for(inside, bool, SECONDS)
    assert inner.parent_span_id == span.span_id
    assert SECRET not in str(collector.spans)


def test_refusals_are_traced_and_questions_how_the_server_is_are_not(observed):
    server, collector = observed
    before = len(collector.spans)
    for path in ("/health", "/ready", "/metrics", "/console", "/v1/expert_skipping/status"):
        server.get(path, AUTHORIZED)
    server.get("/v1/whatever-nobody-has", AUTHORIZED)
    refused = server.get("/v1/models")
    assert refused.status_code == 401 and len(refused.headers["x-request-id"]) == 32
    spans = wait_for(lambda: collector.spans[before:], lambda found: len(found) >= 2, SECONDS)
    assert [span.name for span in spans] == ["GET other", "GET other"]
    assert attributes(spans[1])["http.response.status_code"] == 401


@pytest.mark.parametrize("given", ["", "a b", "-x", "x" * 129, "ä", '{"a":1}', "a\tb"])
def test_an_id_that_a_log_could_not_hold_is_replaced(observed, given):
    server, _ = observed
    answer = httpx.get(f"{server.url}/health", headers={"X-Request-Id": given.encode()})
    made = answer.headers["x-request-id"]
    assert made != given and len(made) == 32 and made.isalnum()


# Not of any logger, and on stderr, which the tests' log holds too: torch's C++ and a progress bar.
_NOT_LOGGED = re.compile(r"\[W|Loading safetensors checkpoint shards|$")


def lines(server: LiveServer) -> list[dict[str, object]]:
    """Every line that a logger wrote; one that is no JSON fails."""
    found = server.log.read_text().splitlines()
    return [json.loads(line) for line in found if not _NOT_LOGGED.match(line.strip())]


def test_every_line_of_the_log_is_an_object_and_none_holds_a_prompt(observed):
    server, _ = observed
    post(server, {"X-Request-Id": "the-good"}, expert_skipping={"level": 1})
    post(server, {"X-Request-Id": "the-bad"}, max_tokens=-1)
    post(server, {"X-Request-Id": "the-unknown"}, model=SECRET)
    broken = httpx.post(
        f"{server.url}/v1/completions",
        content=f'{{"prompt": "{SECRET}',
        headers={**AUTHORIZED, "Content-Type": "application/json"},
    )
    assert broken.status_code == 400
    assert server.put_level({"level": 1}).status_code == 200
    found = wait_for(
        lambda: lines(server), lambda all: any("PUT" in one["message"] for one in all), SECONDS
    )
    assert all(set(one) >= LINE_KEYS for one in found)
    by_id = {one.get("request_id"): one for one in found}
    assert "/v1/completions" in by_id["the-good"]["message"]
    assert by_id["the-good"]["logger"] == "uvicorn.access"
    assert {"the-bad", "the-unknown"} <= set(by_id)
    assert {"vllm", "leanmoe_server", "uvicorn"} <= {one["logger"].split(".")[0] for one in found}
    assert {"APIServer", "EngineCore"} <= {one["process"].split("_")[0] for one in found}
    text = server.log.read_text()
    assert SECRET not in text and "marmalade" not in text and USER not in text
    assert "expert_skipping/status" not in text.replace("Route: /v1/expert_skipping/status", "")


@contextmanager
def prometheus(server: LiveServer, folder: Path) -> Iterator[str]:
    """A Prometheus that scrapes ``server`` every second; the address of its API."""
    target = server.url.removeprefix("http://")
    scrape = {"job_name": "leanmoe", "static_configs": [{"targets": [target]}]}
    config = {"global": {"scrape_interval": "1s"}, "scrape_configs": [scrape]}
    (folder / "prometheus.yml").write_text(json.dumps(config))
    port = free_port()
    command = [
        tool("prometheus", "prometheus"),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield f"http://127.0.0.1:{port}/api/v1"
    finally:
        process.terminate()
        process.wait(30)


def query(api: str, text: str) -> list[dict[str, object]]:
    try:
        answer = httpx.get(f"{api}/query", params={"query": text}, timeout=10)
    except httpx.TransportError:
        return []  # it starts
    return answer.json()["data"]["result"] if answer.status_code == 200 else []


def test_a_prometheus_scrapes_it_and_answers_the_documented_queries(observed, tmp_path):
    server, _ = observed
    assert server.put_level({"level": 1}).status_code == 200
    with prometheus(server, tmp_path) as api:
        up = wait_for(lambda: query(api, "up == 1"), bool, SECONDS)
        assert len(up) == 1, (tmp_path / "log").read_text()[-2000:]
        post(server)
        share = f"sum({names.SKIPPED_ASSIGNMENTS.name}) / sum({names.ROUTED_ASSIGNMENTS.name})"

        def skipped() -> float:
            found = query(api, f"sum(increase({names.SKIPPED_ASSIGNMENTS.name}[1m]))")
            return float(found[0]["value"][1]) if found else 0.0

        def work() -> float:
            post(server)
            return skipped()

        assert wait_for(work, lambda value: value > 0, SECONDS) > 0
        (level,) = query(api, names.SKIP_LEVEL.name)
        assert level["value"][1] == "1"
        (part,) = query(api, share)
        assert 0 < float(part["value"][1]) <= 0.5
        assert len(query(api, f"count by (layer) ({names.ROUTED_ASSIGNMENTS.name})")) == 4


def test_promtool_has_nothing_to_say_of_our_metrics(observed):
    server, _ = observed
    page = server.get("/metrics").text
    ours = [line for line in page.splitlines() if "leanmoe_" in line.partition("{")[0]]
    # The client's companion of every counter, which newer formats leave out.
    ours = [line for line in ours if "_created" not in line.partition("{")[0]]
    done = subprocess.run(
        [tool("promtool", "prometheus"), "check", "metrics"],
        input="\n".join(ours) + "\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def series(server: LiveServer) -> dict[str, int]:
    families = text_string_to_metric_families(server.get("/metrics").text)
    return {family.name: len(family.samples) for family in families}


def test_no_client_can_make_series_without_end(observed):
    server, _ = observed

    def storm(number: int) -> None:
        token = f"guess-{number}"
        post(server, {"Authorization": f"Bearer {token}", "X-Request-Id": token})
        post(server, {"X-Request-Id": token}, model=token, user=token)
        post(server, cache_salt=token, expert_skipping={"level": round(number / 100, 2)})
        for path in (f"/{token}", f"/v1/{token}", f"/console/{token}", f"/v1/models/{token}"):
            CLIENT.request(("GET", "POST", "DELETE")[number % 3], f"{server.url}{path}")

    for number in range(4):
        storm(number)
    few = series(server)
    for number in range(4, 14):
        storm(number)
    many = series(server)
    grown = {name: (few.get(name, 0), now) for name, now in many.items() if now > few.get(name, 0)}
    assert grown == {}
    labels = {label for metric in names.ALL for label in metric.labels}
    assert not labels & {"request_id", "path", "key", "model", "user", "expert"}
