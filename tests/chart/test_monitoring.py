"""Dashboards and alerts speak of series that exist, in queries that parse, with a runbook."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from collections.abc import Iterator
from pathlib import Path

import promql_parser
import pytest

from leanmoe.metric_names import ALL
from tests.chart.rendering import CHART, ROOT, Document, all_of, one, rendered, service

RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
# Prometheus' own, prometheus-fastapi-instrumentator's (vLLM mounts it), and the client library's.
OTHERS = {"up", "http_requests_total", "process_start_time_seconds"}
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}


def _vllm_series() -> set[str]:
    """Names the installed vLLM exports, read from its source: importing it takes ten seconds."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None
    assert spec.origin is not None
    loggers = Path(spec.origin).parent / "v1" / "metrics" / "loggers.py"
    calls = [
        node for node in ast.walk(ast.parse(loggers.read_text())) if isinstance(node, ast.Call)
    ]
    return {name for call in calls for name in _exported(call)}


def _exported(call: ast.Call) -> Iterator[str]:
    kind = re.fullmatch(r"self\._(counter|gauge|histogram)_cls", ast.unparse(call.func))
    names = [one.value for one in call.keywords if one.arg == "name"]
    if kind and names and isinstance(names[0], ast.Constant):
        bare = str(names[0].value)
        for suffix in SUFFIXES[kind[1]]:
            yield bare if bare.endswith(suffix) and kind[1] != "histogram" else bare + suffix


KNOWN = {metric.name for metric in ALL} | _vllm_series() | OTHERS
VARIABLES = {"$__rate_interval": "5m", "$namespace": "models", "$job": "demo-leanmoe"}


def _parsed(query: str) -> promql_parser.Expr:
    for variable, value in VARIABLES.items():
        query = query.replace(variable, value)
    assert "$" not in query
    return promql_parser.parse(query)


def _series(query: str) -> set[str]:
    found: set[str] = set()

    def note(node: promql_parser.Expr) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            found.add(node.name)
        return True

    promql_parser.walk(_parsed(query), note)
    return found


def _dashboards() -> dict[str, Document]:
    return {path.stem: json.loads(path.read_text()) for path in (CHART / "dashboards").iterdir()}


def _queries(board: Document) -> list[str]:
    panels = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    return [*panels, *(one["expr"] for one in board["annotations"]["list"])]


def _alerts() -> list[Document]:
    (group,) = one(rendered("monitoring"), "PrometheusRule")["spec"]["groups"]
    return group["rules"]


def test_vllms_names_are_read_as_it_exports_them():
    assert {"vllm:prompt_tokens_total", "vllm:kv_cache_usage_perc"} <= KNOWN
    assert "vllm:time_to_first_token_seconds_bucket" in KNOWN
    assert "vllm:prompt_tokens" not in KNOWN


@pytest.mark.parametrize("name", ["serving", "skipping"])
def test_dashboards_ask_for_series_that_exist(name):
    board = _dashboards()[name]
    queries = _queries(board)
    assert len(queries) > 15
    asked = {series for query in queries for series in _series(query)}
    assert asked <= KNOWN, asked - KNOWN
    assert board["title"] == f"LeanMoE / {name.capitalize()}"
    assert all(panel["description"] for panel in board["panels"] if panel["type"] != "row")


def test_every_series_of_ours_is_on_a_dashboard():
    shown = {
        one
        for board in _dashboards().values()
        for query in _queries(board)
        for one in _series(query)
    }
    assert {metric.name for metric in ALL} <= shown


def test_dashboards_are_the_files_in_configmaps_the_sidecar_finds():
    maps = [
        one
        for one in all_of(rendered("monitoring"), "ConfigMap")
        if "dashboard" in one["metadata"]["name"]
    ]
    assert len(maps) == len(_dashboards()) == 2
    for found in maps:
        assert found["metadata"]["labels"]["grafana_dashboard"] == "1"
        ((key, text),) = found["data"].items()
        assert json.loads(text) == _dashboards()[key.removeprefix("leanmoe-").removesuffix(".json")]


def test_panels_do_not_overlap():
    for board in _dashboards().values():
        cells = [
            (x, y)
            for panel in board["panels"]
            for x in range(panel["gridPos"]["x"], panel["gridPos"]["x"] + panel["gridPos"]["w"])
            for y in range(panel["gridPos"]["y"], panel["gridPos"]["y"] + panel["gridPos"]["h"])
        ]
        assert len(cells) == len(set(cells))
        assert max(x for x, _ in cells) < 24


def test_alerts_ask_for_series_that_exist_in_this_release_alone():
    assert len(_alerts()) == 17
    for alert in _alerts():
        asked = _series(alert["expr"])
        assert asked
        assert asked <= KNOWN, asked - KNOWN
        selectors = re.findall(r"\{[^}]*\}", alert["expr"])
        assert all('namespace="models",job="demo-leanmoe"' in selector for selector in selectors)
        assert alert["labels"]["severity"] in ("critical", "warning")
        assert alert["labels"]["team"] == "models"
        assert alert["labels"]["namespace"] == "models"
        assert alert["labels"]["job"] == "demo-leanmoe"
        assert alert["labels"]["release"] == "demo"


def test_every_alert_has_a_section_in_the_runbook_and_every_section_an_alert():
    sections = re.findall(r"^## (LeanMoE\w+)$", RUNBOOK, re.MULTILINE)
    assert sections == [alert["alert"] for alert in _alerts()]
    for alert in _alerts():
        base, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        assert base == "https://docs.example.org/leanmoe/runbook"
        assert anchor == alert["alert"].lower()


def test_the_alert_on_the_expected_share_is_there_only_where_one_is_given():
    assert "LeanMoESkipShareOff" in [alert["alert"] for alert in _alerts()]
    thresholds = (CHART / "values.yaml").read_text()
    assert "skipShare: null" in thresholds


def test_the_job_label_is_the_services_name():
    """Without jobLabel the operator takes the Service's name, which every query counts on."""
    documents = rendered("monitoring")
    monitor = one(documents, "ServiceMonitor")["spec"]
    assert "jobLabel" not in monitor
    assert service(documents)["metadata"]["name"] == "demo-leanmoe"
    (endpoint,) = monitor["endpoints"]
    assert (endpoint["port"], endpoint["path"]) == ("http", "/metrics")
    labels = service(documents)["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
