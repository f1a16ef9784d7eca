"""What clusters need beside a model: containers, objects, schedulers, devices, meshes, routers."""

from __future__ import annotations

import pytest
import yaml

from tests.chart.rendering import (
    CHART,
    Document,
    all_of,
    containers,
    one,
    pod_templates,
    rendered,
    rendered_with,
    run_helm,
    server,
    server_pod,
    service,
    template,
    variables,
)

PROBES = ("startup", "liveness", "readiness")
LONG = "a-release-for-the-team-that-likes-to-say"


def _labels(document: Document) -> dict[str, str]:
    labels: dict[str, str] = document["metadata"]["labels"]
    return labels


def test_containers_objects_and_variables_are_the_users():
    documents = rendered("extras")
    pod = server_pod(documents)["spec"]
    assert [one["name"] for one in pod["containers"]] == ["server", "audit-shipper"]
    # The model is there when they run.
    assert [one["name"] for one in pod["initContainers"]] == ["fetch-model", "warm-files"]
    links = one(documents, "ConfigMap", "demo-leanmoe-links")
    assert links["data"]["console"] == "http://demo-leanmoe.models.svc/console"
    container = server(documents)
    (tracing,) = [one for one in container["env"] if one["name"] == "OTEL_EXPORTER_OTLP_HEADERS"]
    assert tracing["valueFrom"]["secretKeyRef"] == {"name": "tracing", "key": "headers"}
    assert {"secretRef": {"name": "leanmoe-environment"}} in container["envFrom"]
    assert "--audit-file=/audit/levels.jsonl" in container["args"]


def test_numbers_become_text_as_they_were_written():
    """Go writes 1000000 as 1e+06, and labels take text only."""
    documents = rendered("extras")
    labels = _labels(server_pod(documents))
    assert (labels["example.org/generation"], labels["example.org/canary"]) == ("2", "true")
    notes = server_pod(documents)["metadata"]["annotations"]
    assert notes["example.org/build"] == "1000000"
    assert _labels(service(documents))["example.org/cost-centre"] == "4711"
    settings = one(documents, "ConfigMap", "demo-leanmoe-settings")["data"]
    assert settings["NCCL_BUFFSIZE"] == "16777216"


def test_delays_and_annotations_of_the_deployment():
    documents = rendered("extras")
    delays = [server(documents)[f"{one}Probe"]["initialDelaySeconds"] for one in PROBES]
    assert delays == [60, 5, 5]
    assert one(documents, "Deployment")["metadata"]["annotations"] == {
        "reloader.stakater.com/auto": "true"
    }


def test_a_job_keeps_out_of_meshes_unless_told_otherwise():
    job = one(rendered("mesh"), "Job")
    assert job["metadata"]["annotations"] == {"example.org/owner": "models"}
    pod = pod_templates(job)[0]["metadata"]
    assert pod["labels"]["sidecar.istio.io/inject"] == "false"
    assert pod["annotations"] == {
        "linkerd.io/inject": "disabled",
        "traffic.sidecar.istio.io/excludeOutboundPorts": "443",
    }
    for test in all_of(rendered("mesh"), "Pod"):
        assert test["metadata"]["labels"]["sidecar.istio.io/inject"] == "true"
        assert test["metadata"]["annotations"]["helm.sh/hook"] == "test"


def test_devices_may_come_by_claims():
    documents = rendered("dra")
    assert server(documents)["image"] == "leanmoe:0.1.0-cuda"
    spec = server_pod(documents)["spec"]
    claim = {"name": "gpus", "resourceClaimTemplateName": "two-gpus"}
    assert spec["resourceClaims"] == [claim]
    assert server(documents)["resources"]["claims"] == [{"name": "gpus"}]
    assert "tolerations" not in spec
    assert spec["schedulerName"] == "kueue-scheduler"


@pytest.mark.parametrize(
    ("resource", "taint"),
    [
        ("amd.com/gpu", "amd.com/gpu"),
        ("nvidia.com/mig-1g.10gb", "nvidia.com/gpu"),
        ("gpu.intel.com/xe", "gpu.intel.com/xe"),
    ],
)
def test_the_taint_of_the_gpus_vendor_is_tolerated(resource, taint):
    documents = rendered_with(f"gpu.resource={resource}")
    expected = [{"key": taint, "operator": "Exists", "effect": "NoSchedule"}]
    assert server_pod(documents)["spec"]["tolerations"] == expected


def test_the_hosts_network_and_keys_of_spreading():
    group = one(rendered("host-network"), "LeaderWorkerSet")
    for pod in pod_templates(group):
        spec = pod["spec"]
        assert spec["hostNetwork"] is True
        assert spec["dnsPolicy"] == "ClusterFirstWithHostNet"
        (spread,) = spec["topologySpreadConstraints"]
        assert spread["matchLabelKeys"] == ["leaderworkerset.sigs.k8s.io/group-index"]


def test_disruptions_count_followers_too():
    documents = rendered("multi-node-native")
    selector = one(documents, "PodDisruptionBudget")["spec"]["selector"]
    (expression,) = selector["matchExpressions"]
    assert expression["operator"] == "In"
    for pod in pod_templates(one(documents, "LeaderWorkerSet")):
        assert selector["matchLabels"].items() <= _labels(pod).items()
        assert _labels(pod)[expression["key"]] in expression["values"]
    single = one(rendered("defaults"), "PodDisruptionBudget")["spec"]["selector"]
    assert single["matchLabels"].items() <= _labels(server_pod(rendered("defaults"))).items()


def test_keda_goes_to_zero_with_a_trigger_of_ones_own():
    spec = one(rendered("keda-zero"), "ScaledObject")["spec"]
    assert (spec["minReplicaCount"], spec["cooldownPeriod"]) == (0, 1800)
    assert spec["fallback"] == {"failureThreshold": 3, "replicas": 2}
    names = [trigger["name"] for trigger in spec["triggers"]]
    assert names == ["waiting-requests", "kv-use", "gateway-queue"]
    # A fallback takes averages only, and KEDA takes text only.
    assert {trigger["metricType"] for trigger in spec["triggers"]} == {"AverageValue"}
    assert spec["triggers"][2]["metadata"]["threshold"] == "1"


def test_hosts_have_paths_of_their_own():
    first, second = one(rendered("ingress-paths"), "Ingress")["spec"]["rules"]
    assert [(one["path"], one["pathType"]) for one in first["http"]["paths"]] == [
        ("/v1", "ImplementationSpecific")
    ]
    assert second["host"] == "chat.example.org"
    assert [(one["path"], one["pathType"]) for one in second["http"]["paths"]] == [
        ("/v1/models", "ImplementationSpecific"),
        ("/v1/chat/completions", "Exact"),
    ]


def test_load_balancers_have_a_class_and_sources():
    spec = service(rendered("scheduling"))["spec"]
    assert spec["loadBalancerClass"] == "example.org/internal"
    assert spec["loadBalancerSourceRanges"] == ["10.0.0.0/8"]
    assert spec["externalTrafficPolicy"] == "Local"


def test_scrapes_are_relabelled():
    (endpoint,) = one(rendered("monitoring"), "ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["honorLabels"] is True
    assert endpoint["relabelings"][0]["targetLabel"] == "node"
    assert endpoint["metricRelabelings"][0]["action"] == "drop"


def test_names_are_resolved_by_whoever_does_it_in_the_cluster():
    spec = one(rendered("network-policy"), "NetworkPolicy")["spec"]
    peers = str(spec["egress"][1]["to"])
    assert all(name in peers for name in ("kube-dns", "openshift-dns", "169.254.20.10/32"))


def test_the_router_stands_in_front_of_this_release_and_another():
    documents = rendered("router")
    router = one(documents, "Deployment", "models-router")["spec"]["template"]
    (container,) = containers(router)
    known = dict(argument.lstrip("-").split("=", 1) for argument in container["args"])
    backends, models = known["static-backends"].split(","), known["static-models"].split(",")
    own = f"http://{service(documents)['metadata']['name']}"
    assert dict(zip(models, backends, strict=True))["olmoe"] == own
    assert "--served-model-name=olmoe" in server(documents)["args"]


def test_what_the_server_does_under_load_is_set_by_values():
    arguments = server(rendered("governor"))["args"]
    for expected in (
        *("--max-waiting=200", "--max-body-mib=8", "--client-seconds=120"),
        *("--keep-alive-seconds=75.5", "--share-prefix-cache", "--log-format=json"),
        *("--governor=act", "--slo-ttft=1500", "--slo-itl=60", "--governor-max-level=0.6"),
        *("--governor-union-budget=24", "--memory-bandwidth=3350", "--governor-dwell=20"),
        *("--shadow-share=0.02", "--shadow-tokens-per-minute=40000", "--shadow-max-kld=0.08"),
        *("--max-skip-level=0.8", "--keys=/secrets/keys/keys.toml"),
    ):
        assert expected in arguments
    at = arguments.index("--served-model-name")
    assert arguments[at + 1 : at + 3] == ["olmoe", "default"]
    untouched = server(rendered("defaults"))["args"]
    assert not any("governor" in one or "shadow" in one for one in untouched)
    # YAML reads a bare off as false.
    assert rendered_with("server.governor.mode=false") == rendered("defaults")


def test_names_that_are_cut_stay_apart():
    def name(release: str) -> str:
        done = run_helm("template", release, str(CHART), "--show-only", "templates/service.yaml")
        assert done.returncode == 0, done.stderr
        found: str = yaml.safe_load(done.stdout)["metadata"]["name"]
        return found

    first, second = name(f"{LONG}-one"), name(f"{LONG}-two")
    assert first != second
    assert len(first) <= 40
    assert name("moe") == "moe-leanmoe"


def test_nothing_is_rendered_where_it_is_switched_off():
    assert template("--set", "enabled=false").stdout.strip() == ""


def test_tests_reach_the_service_past_proxies():
    """The variables of the server are the test pods' too, those of a proxy among them."""
    documents = rendered("mesh")
    settings = one(documents, "ConfigMap", "demo-leanmoe-settings")["data"]
    assert settings["HTTPS_PROXY"] == "http://proxy.example.org:3128"
    script = (CHART / "files" / "check.py").read_text()
    assert "ProxyHandler({})" in script
    assert "urlopen" not in script


def test_waiting_pods_know_their_job_and_its_end():
    documents = rendered("mesh")
    (wait,) = server_pod(documents)["spec"]["initContainers"]
    job = one(documents, "Job")
    told = variables(wait)
    assert told["JOB"] == job["metadata"]["name"]
    assert told["RETRIES"] == str(job["spec"]["backoffLimit"])
    assert int(told["SECONDS_LEFT"]) > job["spec"]["activeDeadlineSeconds"]
    first, *_ = job["spec"]["podFailurePolicy"]["rules"]
    assert first == {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2]}}
