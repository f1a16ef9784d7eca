"""What checkov and the restricted profile ask for holds in every pod of every ci file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.chart.rendering import (
    CI,
    Document,
    all_of,
    containers,
    pod_templates,
    rendered,
    rendered_text,
)

# The example that makes a Role.
SCALES_DOWN = "mesh"
# Containers that a values file brings itself.
THEIRS = ("audit-shipper", "warm-files")
# Kinds, what keeps a level on all pods, and followers of node groups as they are handed to checkov.
ONCE = (
    "Pod",
    "Job",
    "multi-node-native-1",
    "multi-node-ray-1",
    "host-network-1",
    "demo-leanmoe-fleet",
)
# Every check that may fail, with the kinds it may fail in (None: any) and the reason.
ALLOWED = {
    "CKV_K8S_43": (None, "the operator names the digest of the image they built: image.digest"),
    "CKV_K8S_15": (
        None,
        "a tag names one build, so a node need not ask the registry at each start",
    ),
    "CKV_K8S_8": (
        ONCE,
        "test pods end by themselves, the fleet's looks; a follower's end restarts its group",
    ),
    "CKV_K8S_9": (ONCE, "test pods, followers and the fleet's pod serve nothing"),
    "CKV_K8S_11": (None, "a CPU limit throttles the engine, which shows as gaps between tokens"),
    "CKV_K8S_35": (
        None,
        "vLLM takes the API key from a variable only; the other secrets are files",
    ),
    "CKV_K8S_19": (("host-network", "host-network-0", "host-network-1"), "the example of it"),
    "CKV_K8S_40": (("openshift",), "OpenShift itself picks a high user id"),
    "CKV2_K8S_6": (
        None,
        "networkPolicy.enabled is the operator's choice: peers are not known here",
    ),
}


def _write_pods(folder: Path) -> None:
    """The manifests, and pod templates of kinds that checkov does not know as Deployments."""
    for name in CI:
        extra = [
            yaml.safe_dump(_as_deployment(f"{name}-{index}", pod))
            for document in all_of(rendered(name), "LeaderWorkerSet")
            for index, pod in enumerate(pod_templates(document))
        ]
        (folder / f"{name}.yaml").write_text("---\n".join([rendered_text(name), *extra]))


def _as_deployment(name: str, pod: Document) -> Document:
    spec = {"selector": {"matchLabels": pod["metadata"]["labels"]}, "template": pod}
    metadata = {"name": name, "namespace": "models"}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": spec}


@pytest.fixture(scope="module")
def failed(tmp_path_factory) -> list[Document]:
    folder = tmp_path_factory.mktemp("manifests")
    _write_pods(folder)
    checkov = Path(sys.prefix, "checkov", "bin", "checkov")
    flags = ["--framework", "kubernetes", "--skip-download", "--quiet", "--compact", "-o", "json"]
    environment = {**os.environ, "SKIP_PACKAGE_UPDATE_CHECK": "true", "PYTHONPATH": ""}
    done = subprocess.run(
        [checkov, "-d", folder, *flags],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    report = json.loads(done.stdout)
    assert report["summary"]["parsing_errors"] == 0
    assert report["summary"]["passed"] > 5000
    return report["results"]["failed_checks"]


def _is_allowed(check: Document) -> bool:
    where, _ = ALLOWED.get(check["check_id"], ((), ""))
    kind, _, name = check["resource"].split(".")[:3]
    file = check["file_path"].strip("/").removesuffix(".yaml")
    return where is None or bool({kind, name, file} & set(where))


def test_checkov_fails_nothing_without_a_reason(failed):
    unexpected = [
        f"{check['check_id']} {check['check_name']}: {check['resource']} in {check['file_path']}"
        for check in failed
        if not _is_allowed(check)
    ]
    assert not unexpected


def test_no_listed_reason_is_left_over(failed):
    assert set(ALLOWED) == {check["check_id"] for check in failed}


@pytest.mark.parametrize("name", CI)
def test_every_pod_is_restricted(name):
    pods = [pod for document in rendered(name) for pod in pod_templates(document)]
    assert len(pods) >= 4
    for pod in pods:
        spec = pod["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsGroup"] == 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(pod):
            _check_restricted(container)


def _check_restricted(container: Document) -> None:
    context = container["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert "memory" in container["resources"]["limits"]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert {"/cache", "/tmp"} <= set(mounts) or container["name"] in THEIRS


def test_users_are_not_root_unless_the_platform_picks_them():
    for name in CI:
        for document in rendered(name):
            for pod in pod_templates(document):
                user = pod["spec"]["securityContext"].get("runAsUser")
                assert user is None if name == "openshift" else user >= 10000


@pytest.mark.parametrize("name", CI)
def test_no_secret_is_made_or_written_out(name):
    documents = rendered(name)
    assert not all_of(documents, "Secret")
    roles = [one for one in documents if one["kind"] in ("Role", "RoleBinding")]
    assert not [one for one in documents if one["kind"].startswith("ClusterRole")]
    assert bool(roles) == (name == SCALES_DOWN)


def test_the_only_role_may_change_the_replicas_of_one_workload():
    documents = rendered(SCALES_DOWN)
    (role,) = all_of(documents, "Role")
    (workload,) = all_of(documents, "Deployment")
    (rule,) = role["rules"]
    assert rule == {
        "apiGroups": ["apps"],
        "resources": ["deployments/scale"],
        "resourceNames": [workload["metadata"]["name"]],
        "verbs": ["patch"],
    }
    (binding,) = all_of(documents, "RoleBinding")
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    spec = workload["spec"]["template"]["spec"]
    assert binding["subjects"][0]["name"] == spec["serviceAccountName"]
    # Its token is in the container that waits, and in no other.
    holders = [
        container["name"]
        for container in containers(workload["spec"]["template"])
        if any(mount["name"] == "api" for mount in container["volumeMounts"])
    ]
    assert holders == ["wait-for-model"]
