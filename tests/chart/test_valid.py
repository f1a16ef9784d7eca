"""Every ci file renders to manifests that Kubernetes and the operators would take."""

from __future__ import annotations

import copy

import pytest

from tests.chart.rendering import CI, pod_templates, rendered
from tests.chart.strictness import SCHEMAS, check, check_own

OLDEST, NEWEST = "1.30.0", "1.37.0"
# Image volumes came later, as the chart says itself, and so did the form of claims of devices.
OLDEST_OF = {"image-volume": "1.33.0", "dra": "1.31.0"}


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
        check_own(wrong)


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


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_a_misspelt_field_is_seen_in_pods_of_every_kind(version):
    for name in ("defaults", "multi-node-native", "prepare"):
        for document in copy.deepcopy(rendered(name)):
            for pod in pod_templates(document):
                pod["spec"]["containers"][0]["misspelt"] = 1
                with pytest.raises(pytest.fail.Exception, match="misspelt"):
                    check(document, version)
