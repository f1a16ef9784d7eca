"""values.schema.json is closed, and says the same as values.yaml."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.chart.rendering import CHART, HELMS, template

SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
# Objects whose keys are Kubernetes', vLLM's or the user's own.
FREE = {
    "global",
    "commonLabels",
    "podLabels",
    "podAnnotations",
    "nodeSelector",
    "affinity",
    "strategy",
    "podSecurityContext",
    "securityContext",
    "server.vllm",
    "server.env",
    "model.source.objectStore.env",
    "prepare.nodeSelector",
    "serviceAccount.annotations",
    "service.annotations",
    "ingress.annotations",
    "httpRoute.annotations",
    "serviceMonitor.labels",
    "prometheusRule.labels",
    "prometheusRule.alertLabels",
    "dashboards.labels",
    "dashboards.annotations",
    "annotations",
    "prepare.annotations",
    "prepare.podAnnotations",
    "prepare.podLabels",
    "service.labels",
    "autoscaling.keda.annotations",
    "autoscaling.keda.fallback",
    "tests.podAnnotations",
    "tests.podLabels",
}


def _resolved(node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        node = SCHEMA["definitions"][node["$ref"].removeprefix("#/definitions/")]
    return node


def _objects(node: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    node = _resolved(node)
    if node.get("type") == "object":
        yield path, node
        for key, child in node.get("properties", {}).items():
            yield from _objects(child, f"{path}.{key}".lstrip("."))


def _closed_paths() -> list[str]:
    return [path for path, node in _objects(SCHEMA) if node.get("additionalProperties") is False]


def test_every_object_is_closed_or_listed_as_free():
    opened = {
        path for path, node in _objects(SCHEMA) if node.get("additionalProperties") is not False
    }
    assert {path for path in opened if not path.endswith(("requests", "limits"))} == FREE


def _keys(value: Any, path: str = "") -> Iterator[str]:
    if isinstance(value, dict) and path not in FREE:
        for key, child in value.items():
            yield from _keys(child, f"{path}.{key}".lstrip("."))
    yield path


def test_every_setting_is_in_the_schema_and_every_property_in_the_values():
    in_schema = {
        f"{path}.{key}".lstrip(".")
        for path, node in _objects(SCHEMA)
        for key in node.get("properties", {})
    }
    in_values = {path for path in _keys(VALUES) if path}
    resources = {path for path in in_schema | in_values if "resources." in path}
    assert in_schema - resources - {"global"} == in_values - resources


@pytest.mark.parametrize("helm", HELMS)
def test_unknown_keys_are_refused_by_helm(helm):
    done = template("--set", "replicaz=3", helm=helm)
    assert done.returncode != 0
    assert "replicaz" in done.stderr


def test_unknown_keys_are_refused_at_every_level(tmp_path):
    """One values file with a stray key in every closed object: each is named."""
    stray: dict[str, Any] = {}
    paths = [path for path in _closed_paths() if path]
    for path in paths:
        node = stray
        for key in path.split("."):
            node = node.setdefault(key, {})
        node["stray"] = 1
    file = tmp_path / "stray.yaml"
    file.write_text(yaml.safe_dump(stray))
    done = template("--values", str(file))
    assert done.returncode != 0
    missed = [path for path in paths if f"'/{path.replace('.', '/')}'" not in done.stderr]
    assert len(paths) > 40
    assert not missed


@pytest.mark.parametrize(
    "wrong",
    [
        "server.skipLevel=1.5",
        "server.phases=prefill",
        "model.path=../elsewhere",
        "model.path=/absolute",
        "model.source.kind=git",
        "image.digest=sha256:short",
        "replicas=-1",
        "prepare.prune.method=magic",
        "multiNode.size=1",
        "shutdown.stopSeconds=1",
        "model.source.objectStore.remote=--config",
        "server.vllm.--max-model-len=1",
        "image.repository=a b",
        "image.repository=Upper/Case",
        "image.tag=a:b",
        "model.storage.storageClass=A B",
        "podAnnotations.a b=c",
        "nodeSelector.-a=c",
    ],
)
def test_values_out_of_range_are_refused(wrong):
    done = template("--set", wrong)
    assert done.returncode != 0
    # In the message of a bad name there is the name, in all others the path.
    assert wrong.partition("=")[0].rpartition(".")[2] in done.stderr


def test_decimals_may_come_from_the_command_line():
    sets = ("model.hasCurve=true", "server.skipLevel=0.4", "autoscaling.kvUse=.9")
    done = template(*[part for one in sets for part in ("--set", one)])
    assert done.returncode == 0, done.stderr
