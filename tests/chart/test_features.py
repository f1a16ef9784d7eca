"""Each ci file shows its feature in the manifests."""

from __future__ import annotations

import pytest

from leanmoe.cli import LEANMOE
from leanmoe.command import parser_of
from tests.chart.rendering import (
    CI,
    Document,
    all_of,
    containers,
    is_servers,
    one,
    pod_templates,
    rendered,
    rendered_with,
    server,
    server_pod,
    service,
    variables,
)


def _init(documents: list[Document]) -> Document:
    steps = server_pod(documents)["spec"].get("initContainers", [])
    assert len(steps) == 1
    return steps[0]


def _volume(documents: list[Document], name: str) -> Document:
    volumes = server_pod(documents)["spec"]["volumes"]
    return next(volume for volume in volumes if volume["name"] == name)


def _served(documents: list[Document]) -> str:
    arguments = server(documents)["args"]
    assert arguments[0] == "serve"
    return arguments[1]


@pytest.mark.parametrize("name", CI)
def test_labels_and_selectors_hold_together(name):
    """Every label of the convention, and only the server behind the Service."""
    documents = rendered(name)
    wanted = {f"app.kubernetes.io/{key}" for key in ("name", "instance", "version", "managed-by")}
    assert all(wanted <= set(document["metadata"]["labels"]) for document in documents)
    selector = service(documents)["spec"]["selector"]
    chosen = [
        pod["spec"]["containers"][0]["name"]
        for document in documents
        for pod in pod_templates(document)
        if selector.items() <= pod["metadata"]["labels"].items()
    ]
    assert chosen == ["server"]


@pytest.mark.parametrize("name", CI)
def test_probes_ask_the_right_route_and_wait_for_the_weights(name):
    container = server(rendered(name))
    routes = {
        probe: container[probe]["httpGet"]
        for probe in ("startupProbe", "livenessProbe", "readinessProbe")
    }
    assert [route["path"] for route in routes.values()] == ["/health", "/health", "/ready"]
    assert {route["port"] for route in routes.values()} == {"http"}
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 3600


@pytest.mark.parametrize("name", CI)
def test_caches_are_writable_and_named(name):
    documents = rendered(name)
    settings = one(documents, "ConfigMap", _name(documents, "settings"))["data"]
    mounts = {mount["mountPath"] for mount in server(documents)["volumeMounts"]}
    assert "/dev/shm" in mounts
    assert _volume(documents, "shm")["emptyDir"]["medium"] == "Memory"
    caches = ("VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "HF_HOME")
    for variable in (*caches, "XDG_CACHE_HOME", "HOME", "TMPDIR", "CUDA_CACHE_PATH"):
        assert any(settings[variable].startswith(mount) for mount in ("/cache", "/tmp")), variable


def _name(documents: list[Document], suffix: str) -> str:
    return f"{service(documents)['metadata']['name']}-{suffix}"


def test_defaults_serve_a_hub_model_exactly_on_one_gpu():
    documents = rendered("defaults")
    container = server(documents)
    assert container["image"] == "leanmoe:0.1.0-cuda"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert not any(
        argument.startswith(("--skip-level", "--max-kld")) for argument in container["args"]
    )
    assert one(documents, "Deployment")["spec"]["replicas"] == 1
    assert one(documents, "Deployment")["spec"]["strategy"] == {"type": "Recreate"}
    assert variables(_init(documents))["TARGET"] == _served(documents)
    claim = one(documents, "PersistentVolumeClaim")
    assert claim["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    assert {one["kind"] for one in documents} == {
        *("PodDisruptionBudget", "ServiceAccount", "ConfigMap", "PersistentVolumeClaim"),
        *("Service", "Deployment", "Pod"),
    }


def test_a_deployment_does_not_give_up_before_the_weights_can_be_there():
    for name in CI:
        for document in all_of(rendered(name), "Deployment"):
            if not is_servers(document):
                continue  # it loads no weights
            startup = server(rendered(name))["startupProbe"]
            seconds = startup["periodSeconds"] * startup["failureThreshold"]
            assert document["spec"]["progressDeadlineSeconds"] > seconds


def test_changed_settings_restart_the_pods():
    def digest(*sets: str) -> str:
        return server_pod(rendered_with(*sets))["metadata"]["annotations"]["checksum/config"]

    assert digest() == digest("replicas=1")
    assert len({digest(), digest("server.vllm.dtype=half"), digest("server.env.A=1")}) == 3


def test_hub_models_are_fetched_with_the_token_in_a_file():
    documents = rendered("huggingface")
    step, settings = _init(documents), variables(_init(documents))
    assert settings["ORIGIN"] == "mistralai/Mixtral-8x7B-Instruct-v0.1"
    assert settings["REVISION"].startswith("eba92302")
    assert settings["HF_ENDPOINT"] == "https://hub.example.org"
    assert settings["HF_TOKEN_PATH"] == "/secrets/huggingface/token"
    assert settings["HF_HUB_OFFLINE"] == "0"
    assert step["args"][:2] == ["--exclude", "*.pth"]
    assert _volume(documents, "huggingface-token")["secret"]["secretName"] == "hub"
    # The server itself never sees the token.
    assert "/secrets/huggingface" not in {
        one["mountPath"] for one in server(documents)["volumeMounts"]
    }
    assert "emptyDir" in _volume(documents, "models")


def test_a_claim_of_ones_own_is_mounted_read_only():
    documents = rendered("claim")
    assert not all_of(documents, "PersistentVolumeClaim")
    assert _volume(documents, "models")["persistentVolumeClaim"]["claimName"] == "models"
    mount = next(one for one in server(documents)["volumeMounts"] if one["name"] == "models")
    assert mount["readOnly"] is True
    assert _served(documents) == "/models/olmoe/lean"
    assert "initContainers" not in server_pod(documents)["spec"]
    assert one(documents, "Deployment")["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert one(documents, "PodDisruptionBudget")["spec"]["maxUnavailable"] == "34%"


def test_object_stores_are_read_with_rclone():
    documents = rendered("object-store")
    step = _init(documents)
    assert step["image"] == "docker.io/rclone/rclone:1.68.2"
    assert variables(step)["ORIGIN"] == "s3:models/qwen3-30b-a3b"
    assert variables(step)["RCLONE_CONFIG_S3_PROVIDER"] == "Minio"
    assert {"secretRef": {"name": "object-store"}} in step["envFrom"]
    claim = one(documents, "PersistentVolumeClaim")
    assert "annotations" not in claim["metadata"]
    assert claim["spec"]["storageClassName"] == "fast"
    assert one(documents, "ServiceAccount")["metadata"]["annotations"]


def test_oci_artefacts_are_pulled_with_the_registry_secret():
    documents = rendered("oci")
    step = _init(documents)
    assert step["image"] == f"ghcr.io/oras-project/oras@sha256:{'2' * 64}"
    assert step["args"] == ["--registry-config", "/secrets/registry/.dockerconfigjson"]
    assert variables(step)["ORIGIN"].endswith("1" * 64)


def test_oci_images_are_mounted_without_a_step():
    documents = rendered("image-volume")
    assert _volume(documents, "models")["image"]["reference"].endswith("3" * 64)
    assert "initContainers" not in server_pod(documents)["spec"]
    assert _served(documents) == "/models/models/olmoe"


def test_the_job_scores_prunes_and_measures_and_the_pods_wait_for_it():
    documents = rendered("prepare")
    steps = containers(one(documents, "Job")["spec"]["template"])
    assert [step["name"] for step in steps] == ["fetch-model", "score", "prune", "curve", "publish"]
    score, prune, curve = (step["args"] for step in steps[1:4])
    assert score == ["--data", "builtin:gen:32,builtin:py:32", "--window", "512"]
    scores = variables(steps[1])["SCORES"]
    assert prune == ["--method", "reap", "--keep", "48", "--scores", scores, "--budget", "adaptive"]
    assert curve[-2:] == ["--levels", "21"]
    assert variables(steps[4])["OUTPUT"] == _served(documents)
    wait = _init(documents)
    assert (wait["name"], variables(wait)["MODEL"]) == ("wait-for-model", _served(documents))
    assert "--max-kld=0.05" in server(documents)["args"]
    assert not any("nvidia.com/gpu" in step["resources"].get("limits", {}) for step in steps)


def test_other_settings_leave_the_served_checkpoint_alone():
    base = "prepare"
    served = _served(rendered(base))
    recut = rendered_with("prepare.prune.keep=40", base=base)
    assert _served(recut) != served
    # A new cut reads the scores that are there.
    job, old = (one(documents, "Job")["spec"]["template"] for documents in (recut, rendered(base)))
    assert variables(containers(job)[1])["SCORES"] == variables(containers(old)[1])["SCORES"]
    other = rendered_with("model.source.huggingface.revision=v2", base=base)
    job = one(other, "Job")["spec"]["template"]
    assert variables(containers(job)[1])["SCORES"] != variables(containers(old)[1])["SCORES"]
    # What does not change the cut changes neither.
    assert _served(rendered_with("server.maxKld=0.1", "image.tag=next", base=base)) == served


def test_a_changed_job_is_another_job():
    names = {
        one(rendered_with(*sets, base="prepare"), "Job")["metadata"]["name"]
        for sets in ((), ("image.tag=next",), ("prepare.prune.keep=9",))
    }
    assert len(names) == 3


def test_the_hook_needs_nothing_of_the_release():
    documents = rendered("prepare-hook")
    job = one(documents, "Job")
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    spec = job["spec"]["template"]["spec"]
    assert "serviceAccountName" not in spec
    used = {volume["configMap"]["name"] for volume in spec["volumes"] if "configMap" in volume}
    used |= {
        one["configMapRef"]["name"] for step in spec["initContainers"] for one in step["envFrom"]
    }
    for name in used:
        annotations = one(documents, "ConfigMap", name)["metadata"]["annotations"]
        assert annotations["helm.sh/hook"] == "pre-install,pre-upgrade"
        assert int(annotations["helm.sh/hook-weight"]) < 0
    steps = containers(job["spec"]["template"])
    assert [step["name"] for step in steps] == ["prune", "publish"]
    assert steps[0]["args"] == ["--method", "magnitude", "--pattern", "2:4"]
    assert "initContainers" not in server_pod(documents)["spec"]


def test_settings_reach_the_server():
    documents = rendered("settings")
    arguments = server(documents)["args"]
    for expected in (
        *("--skip-level=1", "--phases=decode", "--skip-verify", "--poll-seconds=2.5"),
        *("--served-model-name=olmoe", "--drain-seconds=300"),
    ):
        assert expected in arguments
    table = "E=64,N=1024,device_name=NVIDIA_H200,dtype=fp8_w8a8,block_shape=[128,128].json"
    assert f"--tuned-table=/models/tables/{table}" in arguments
    files = one(documents, "ConfigMap", "demo-leanmoe-files")["data"]
    assert "max-model-len: 4096" in files["vllm.yaml"]
    assert one(documents, "ConfigMap", "demo-leanmoe-settings")["data"]["OMP_NUM_THREADS"] == "4"
    assert server(documents)["startupProbe"]["failureThreshold"] == 361


def test_keys_come_from_existing_secrets():
    documents = rendered("keys")
    container = server(documents)
    reference = {"secretKeyRef": {"name": "leanmoe-keys", "key": "user"}}
    assert {"name": "VLLM_API_KEY", "valueFrom": reference} in container["env"]
    assert "--admin-key-file=/secrets/admin/key" in container["args"]
    secret = _volume(documents, "admin-key")["secret"]
    assert secret["items"] == [{"key": "admin", "path": "key"}]
    assert "--keys=/secrets/keys/keys.toml" in container["args"]
    file = _volume(documents, "key-file")["secret"]
    assert file["items"] == [{"key": "keys.toml", "path": "keys.toml"}]
    checks = [one["spec"]["containers"][0] for one in all_of(documents, "Pod")]
    assert all({"name": "LEANMOE_API_KEY", "valueFrom": reference} in one["env"] for one in checks)


def test_an_autoscaler_owns_the_replicas():
    for name, kind in (
        ("hpa", "Deployment"),
        ("keda", "Deployment"),
        ("multi-node-ray", "LeaderWorkerSet"),
    ):
        assert "replicas" not in one(rendered(name), kind)["spec"]


def test_hpa_scales_on_waiting_requests_and_kv_use():
    spec = one(rendered("hpa"), "HorizontalPodAutoscaler")["spec"]
    metrics = {
        one["pods"]["metric"]["name"]: one["pods"]["target"]["averageValue"]
        for one in spec["metrics"]
    }
    assert metrics == {"vllm_waiting": "8", "vllm_kv_cache_usage_perc": "750m"}
    assert (spec["minReplicas"], spec["maxReplicas"]) == (2, 6)
    assert spec["scaleTargetRef"]["name"] == "demo-leanmoe"
    assert spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"] == 600


def test_keda_scales_on_waiting_requests_and_kv_use():
    spec = one(rendered("keda"), "ScaledObject")["spec"]
    triggers = {one["name"]: one for one in spec["triggers"]}
    waiting, kv = triggers["waiting-requests"], triggers["kv-use"]
    series = '{namespace="models",job="demo-leanmoe"}'
    assert waiting["metadata"]["query"] == f"sum(vllm:num_requests_waiting{series})"
    assert (waiting["metricType"], waiting["metadata"]["threshold"]) == ("AverageValue", "5")
    assert kv["metadata"]["query"] == f"sum(vllm:kv_cache_usage_perc{series})"
    assert (kv["metricType"], kv["metadata"]["threshold"]) == ("AverageValue", "0.8")
    assert all(one["authenticationRef"] == {"name": "prometheus"} for one in triggers.values())


def test_a_node_group_is_scaled_as_a_whole():
    target = one(rendered("multi-node-ray"), "ScaledObject")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["apiVersion"]) == (
        "LeaderWorkerSet",
        "leaderworkerset.x-k8s.io/v1",
    )


def test_the_network_is_closed_but_for_the_named():
    spec = one(rendered("network-policy"), "NetworkPolicy")["spec"]
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    peers = [
        next(iter(one["namespaceSelector"]["matchLabels"].values()))
        for one in spec["ingress"][0]["from"]
    ]
    assert peers == ["gateway", "monitoring"]
    assert spec["ingress"][0]["ports"] == [{"port": "http", "protocol": "TCP"}]
    ports = [port["port"] for rule in spec["egress"] for port in rule.get("ports", [])]
    assert ports == [53, 53, 5353, 5353, 443, 4317]


def test_outsiders_reach_v1_alone():
    (rule,) = one(rendered("ingress"), "Ingress")["spec"]["rules"]
    assert rule["host"] == "llm.example.org"
    assert [path["path"] for path in rule["http"]["paths"]] == ["/v1"]
    (rule,) = one(rendered("gateway"), "HTTPRoute")["spec"]["rules"]
    assert [match["path"]["value"] for match in rule["matches"]] == ["/v1"]
    assert rule["timeouts"] == {"request": "1h"}
    assert rule["backendRefs"] == [{"name": "demo-leanmoe", "port": 80}]


def _group(name: str) -> tuple[Document, Document, Document]:
    documents = rendered(name)
    assert not all_of(documents, "Deployment")
    group = one(documents, "LeaderWorkerSet")["spec"]["leaderWorkerTemplate"]
    return group, *(
        group[key]["spec"]["containers"][0] for key in ("leaderTemplate", "workerTemplate")
    )


def test_several_nodes_by_vllms_own_process_group():
    group, leader, follower = _group("multi-node-native")
    assert (group["size"], group["restartPolicy"]) == (2, "RecreateGroupOnPodRestart")
    shared = [
        *("--tensor-parallel-size=8", "--pipeline-parallel-size=2", "--nnodes=2"),
        *("--master-addr=$(LWS_LEADER_ADDRESS)", "--master-port=29501"),
    ]
    assert all(
        argument in container["args"] for container in (leader, follower) for argument in shared
    )
    assert "--node-rank=0" in leader["args"]
    assert follower["command"] == ["vllm"]
    assert {"--headless", "--node-rank=$(LWS_WORKER_INDEX)"} <= set(follower["args"])
    assert follower["args"][1] == leader["args"][1]
    assert variables(follower)["VLLM_PLUGINS"] == "leanmoe"
    assert "VLLM_API_KEY" not in variables(follower)
    assert leader["resources"]["limits"] == follower["resources"]["limits"]
    assert leader["resources"]["limits"]["nvidia.com/gpu"] == 8
    assert leader["resources"]["limits"]["rdma/ib"] == 1


def test_several_nodes_by_ray():
    group, leader, follower = _group("multi-node-ray")
    assert group["size"] == 3
    assert leader["command"][-1] == "/scripts/lead-ray.sh"
    assert leader["args"][0] == "serve"
    assert "--distributed-executor-backend=ray" in leader["args"]
    assert follower["command"][-1] == "/scripts/follow-ray.sh"
    assert not any(argument.startswith("--nnodes") for argument in leader["args"])


def test_a_machine_without_devices():
    documents = rendered("cpu")
    assert "nvidia.com/gpu" not in server(documents)["resources"]["limits"]
    assert "tolerations" not in server_pod(documents)["spec"]
    assert server(documents)["image"] == "leanmoe:0.1.0-cpu"


def test_placement_and_names_are_the_users():
    documents = rendered("scheduling")
    spec = server_pod(documents)["spec"]
    assert spec["runtimeClassName"] == "nvidia"
    assert spec["priorityClassName"] == "models"
    assert spec["tolerations"] == [
        {"key": "example.org/gpu", "operator": "Equal", "value": "yes", "effect": "NoExecute"}
    ]
    (spread,) = spec["topologySpreadConstraints"]
    assert spread["topologyKey"] == "example.org/rack"
    selector = one(documents, "Deployment")["spec"]["selector"]["matchLabels"]
    assert spread["labelSelector"]["matchLabels"] == selector
    assert "affinity" in spec
    assert spec["serviceAccountName"] == "mine"
    assert not all_of(documents, "ServiceAccount")
    assert not all_of(documents, "PodDisruptionBudget")
    assert server(documents)["image"] == f"registry.example.org/leanmoe@sha256:{'4' * 64}"
    assert one(documents, "Deployment")["metadata"]["name"] == "moe-a"
    assert all(one["metadata"]["labels"]["example.org/team"] == "models" for one in documents)
    assert {"name": "certificates", "configMap": {"name": "certificates"}} in spec["volumes"]


def test_openshift_picks_the_user():
    context = server_pod(rendered("openshift"))["spec"]["securityContext"]
    assert "runAsUser" not in context
    assert context["runAsGroup"] == 0


def test_helm_test_asks_for_readiness_an_answer_and_metrics():
    pods = all_of(rendered("defaults"), "Pod")
    assert [pod["spec"]["containers"][0]["command"][-1] for pod in pods] == [
        "ready",
        "answer",
        "metrics",
    ]
    assert all(pod["metadata"]["annotations"]["helm.sh/hook"] == "test" for pod in pods)
    url = variables(pods[0]["spec"]["containers"][0])["LEANMOE_URL"]
    assert url == "http://demo-leanmoe:80"


def test_notes_name_what_to_do():
    from tests.chart.rendering import CHART, run_helm

    values = ("--values", str(CI["monitoring"]))
    done = run_helm(
        "install", "demo", str(CHART), "--dry-run=client", "--namespace", "models", *values
    )
    assert done.returncode == 0, done.stderr
    notes = done.stdout.partition("NOTES:")[2]
    assert "helm test demo -n models" in notes
    assert '"LeanMoE / Serving" and "LeanMoE / Skipping"' in notes
    assert "WARNING: no API key" in notes
    assert "NVIDIA's driver 580 or newer" in notes


def test_notes_speak_of_a_driver_only_where_there_is_a_device():
    from tests.chart.rendering import CHART, run_helm

    done = run_helm("install", "demo", str(CHART), "--dry-run=client", "--set", "gpu.count=0")
    assert done.returncode == 0, done.stderr
    assert "driver" not in done.stdout.partition("NOTES:")[2]


@pytest.mark.parametrize("kind", ["job", "watch"])
def test_a_level_is_brought_to_all_pods_by_their_own_addresses(kind):
    documents = rendered({"job": "fleet-job", "watch": "fleet"}[kind])
    headless = one(documents, "Service", "demo-leanmoe-fleet")
    assert headless["spec"]["clusterIP"] == "None"
    pods = server_pod(documents)["metadata"]["labels"]
    assert headless["spec"]["selector"].items() <= pods.items()
    holder = [d for d in documents if d["metadata"]["name"].startswith("demo-leanmoe-fleet")][1]
    assert holder["kind"] == {"job": "Job", "watch": "Deployment"}[kind]
    (container,) = containers(pod_templates(holder)[0])
    arguments = container["args"]
    assert arguments[0] == "fleet"
    told = parser_of(LEANMOE.load("fleet").load(arguments[1])).parse_args(arguments[2:])
    assert told.dns == "demo-leanmoe-fleet.models.svc"
    assert (told.level, told.max_kld) == {"job": (0.4, None), "watch": (None, 0.05)}[kind]
    assert "leanmoe-keys" not in str(container), "the key is mounted, never an argument"
    labels = pod_templates(holder)[0]["metadata"]["labels"]
    assert not headless["spec"]["selector"].items() <= labels.items()
