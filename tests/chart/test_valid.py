"""Every ci file renders to manifests that Kubernetes and the operators would take."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest

from tests.chart.rendering import CI, Document, pod_templates, rendered

SCHEMAS = {
    schema["x-kind"]: schema
    for schema in map(
        json.loads, map(Path.read_text, (Path(__file__).parent / "schemas").iterdir())
    )
}
OLDEST, NEWEST = "1.30.0", "1.37.0"
# Image volumes came later, as the chart says itself, and so did the form of claims of devices.
OLDEST_OF = {"image-volume": "1.33.0", "dra": "1.31.0"}
# What every values file renders alike is validated once.
_valid: set[tuple[str, str]] = set()


def _check_own(document: Document) -> None:
    """Kinds of operators, by schemas of ours that know every field the chart may write."""
    schema = SCHEMAS.get(f"{document['apiVersion']}/{document['kind']}")
    assert schema is not None, f"nothing validates {document['apiVersion']} {document['kind']}"
    bare = copy.deepcopy(document)
    for error in jsonschema.Draft202012Validator(schema).iter_errors(bare):
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
    """Strictly: Kubernetes' own kinds by its schemas, those of operators by ours."""
    known = (version, json.dumps(document, sort_keys=True))
    if known not in _valid:
        _check_new(document, version)
        _valid.add(known)


def _check_new(document: Document, version: str) -> None:
    try:
        kubernetes_validate.validate(document, version, strict=True)
    except kubernetes_validate.SchemaNotFoundError:
        _check_own(document)
        for core in _as_core(document):
            kubernetes_validate.validate(core, version, strict=True)


@pytest.mark.parametrize("name", CI)
def test_every_manifest_validates_strictly(name):
    for version in (OLDEST_OF.get(name, OLDEST), NEWEST):
        documents = rendered(name, kubernetes=version)
        assert len(documents) >= 5
        for document in documents:
            check(document, version)


@pytest.mark.parametrize("kind", SCHEMAS)
def test_every_schema_of_ours_is_used_and_closed(kind):
    documents = [one for name in CI for one in rendered(name)]
    found = [one for one in documents if f"{one['apiVersion']}/{one['kind']}" == kind]
    assert found
    wrong = copy.deepcopy(found[0])
    wrong["spec"]["misspelt"] = 1
    with pytest.raises(pytest.fail.Exception, match="misspelt"):
        _check_own(wrong)


@pytest.mark.parametrize("name", CI)
def test_names_are_unique_and_in_the_namespace(name):
    documents = rendered(name)
    keys = [
        (one["kind"], one["metadata"]["name"], one["metadata"]["namespace"]) for one in documents
    ]
    assert len(keys) == len(set(keys))
    assert all(len(key[1]) <= 63 for key in keys)
    expected = {"models", "monitoring"} if name == "monitoring" else {"models"}
    assert {key[2] for key in keys} == expected
