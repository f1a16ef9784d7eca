"""Strict validation: of Kubernetes' own kinds by its schemas, of operators' by ours."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from referencing import Registry, Resource

from tests.chart.rendering import Document, pod_templates

# Every field that the chart may write, and no other.
SCHEMAS = {
    schema["x-kind"]: schema
    for schema in map(
        json.loads, map(Path.read_text, (Path(__file__).parent / "schemas").iterdir())
    )
}
_KUBERNETES = files("kubernetes_validate").joinpath("kubernetes-json-schema")
# What every values file renders alike is validated once.
_valid: set[tuple[str, str]] = set()


@cache
def _contents(version: str, name: str) -> Any:
    """A schema of the package; its own functions read the largest again for every document."""
    file = _KUBERNETES.joinpath(f"v{version}-local-strict", f"{name}.json")
    return json.loads(file.read_text()) if file.is_file() else None


@cache
def _validator(version: str, api_version: str, kind: str) -> jsonschema.Draft202012Validator | None:
    group, _, api = api_version.rpartition("/")
    name = "-".join(part for part in (kind.lower(), group.partition(".")[0], api) if part)
    schema = _contents(version, name)
    if schema is None:
        return None
    parts = [Resource.from_contents(schema)]
    parts.append(Resource.from_contents(_contents(version, "_definitions")))
    return jsonschema.Draft202012Validator(schema, registry=parts @ Registry())


def check_own(document: Document) -> None:
    """A kind of an operator."""
    schema = SCHEMAS.get(f"{document['apiVersion']}/{document['kind']}")
    assert schema is not None, f"nothing validates {document['apiVersion']} {document['kind']}"
    _judge(jsonschema.Draft202012Validator(schema), document)


def _judge(validator: jsonschema.Draft202012Validator, document: Document) -> None:
    for error in validator.iter_errors(document):
        pytest.fail(f"{document['kind']} {error.json_path}: {error.message}")


def _as_core(document: Document) -> Iterator[Document]:
    """Pod templates of other kinds, as a core kind that is validated strictly."""
    for index, pod in enumerate(pod_templates(document)):
        yield {
            "apiVersion": "v1",
            "kind": "PodTemplate",
            "metadata": {"name": f"{document['metadata']['name']}-{index}"},
            "template": pod,
        }


def check(document: Document, version: str) -> None:
    """Fails with the path and the reason where a server of that version would refuse it."""
    known = (version, json.dumps(document, sort_keys=True))
    if known not in _valid:
        _check_new(document, version)
        _valid.add(known)


def _check_new(document: Document, version: str) -> None:
    validator = _validator(version, document["apiVersion"], document["kind"])
    if validator is not None:
        return _judge(validator, document)
    check_own(document)
    for core in _as_core(document):
        _check_new(core, version)
    return None
