"""Settings that exclude or need each other are refused in one sentence that says what to do."""

from __future__ import annotations

import pytest

from tests.chart.rendering import CI, template

CASES = {
    "autoscaling.hpa.enabled=true,autoscaling.keda.enabled=true": "enable one",
    "autoscaling.keda.enabled=true,model.storage.kind=emptyDir": "address of Prometheus",
    "autoscaling.minReplicas=5": "must not be larger",
    "server.skipLevel=0.4,server.maxKld=0.05": "leave one of them out",
    "server.deterministic=true,server.unionBudget=8": "set it to null",
    "server.vllm.port=1": "the chart's own setting",
    "server.vllm.api-server-count=2": "leanmoe serve refuses it",
    "server.tensorParallelSize=2": "enable multiNode",
    "multiNode.enabled=true,model.storage.kind=emptyDir": "must be equal",
    "replicas=2": "use ReadWriteMany",
    "autoscaling.hpa.enabled=true": "use ReadWriteMany",
    "prepare.enabled=true": "how much to cut",
    "prepare.enabled=true,prepare.prune.keep=4,prepare.prune.ratio=0.5": "leave one of them out",
    "prepare.enabled=true,prepare.prune.keep=4,prepare.hook=true": "existingClaim",
    "prepare.enabled=true,prepare.prune.keep=4,model.storage.kind=emptyDir": "use pvc",
    "model.source.kind=none": "existingClaim",
    "model.source.kind=none,model.storage.kind=emptyDir": "name a source",
    "model.source.kind=objectStore": "objectStore.remote is empty",
    "model.source.kind=oci": "oci.reference is empty",
    "model.source.huggingface.repo=": "huggingface.repo is empty",
    "model.storage.kind=image": "name the OCI image",
    "model.storage.kind=image,model.storage.image.reference=a": "set the source to none",
    "fleet.enabled=true,fleet.level=1": "secrets.adminKey",
    "fleet.enabled=true,secrets.adminKey.name=a": "one of fleet.level and fleet.maxKld",
    "fleet.enabled=true,fleet.level=1,fleet.maxKld=1,secrets.adminKey.name=a": "set one",
    "server.vllm.data-parallel-size=2,gpu.count=1": "give as many devices",
    "ingress.enabled=true": "name at least one host",
    "httpRoute.enabled=true": "name the Gateway",
}


@pytest.mark.parametrize("sets", CASES)
def test_one_sentence_says_what_to_do(sets):
    done = template("--set", sets)
    assert done.returncode != 0
    message = next(line for line in done.stderr.splitlines() if line.startswith("Error:"))
    assert CASES[sets] in message


def test_image_volumes_need_a_cluster_that_has_them():
    done = template("--values", str(CI["image-volume"]), kubernetes="1.31.0")
    assert "needs Kubernetes 1.33 or newer" in done.stderr


def test_clusters_before_1_30_are_refused():
    assert "1.29" in template(kubernetes="1.29.0").stderr
