"""Settings that exclude or need each other are refused in one sentence that says what to do."""

from __future__ import annotations

import pytest

from tests.chart.rendering import CI, template

# ruff: noqa: E501 - a case is one line
KEDA = "autoscaling.keda.enabled=true,autoscaling.keda.serverAddress=http://a,autoscaling.keda.scraped=true"
CASES = {
    "autoscaling.hpa.enabled=true,autoscaling.keda.enabled=true": "enable one",
    "autoscaling.keda.enabled=true,model.storage.kind=emptyDir": "address of Prometheus",
    "autoscaling.keda.enabled=true,autoscaling.keda.serverAddress=http://a,model.storage.kind=emptyDir": "enable serviceMonitor",
    "autoscaling.hpa.enabled=true,autoscaling.minReplicas=0,model.storage.kind=emptyDir": "use 1, or autoscaling.keda",
    "autoscaling.keda.enabled=true,autoscaling.keda.serverAddress=http://a,autoscaling.keda.scraped=true,autoscaling.minReplicas=0": "needs no pod",
    "model.storage.accessModes={ReadOnlyMany}": "use ReadWriteMany, or a claim that holds the model",
    "model.storage.accessModes={ReadWriteOnce,ReadOnlyMany},replicas=2": "use ReadWriteMany",
    "server.skipLevel=0.8,server.maxSkipLevel=0.5,model.hasCurve=true": "must not be larger",
    "server.skipLevel=0.4": "model.hasCurve to true",
    "server.maxKld=0.05": "a measured curve",
    "server.maxKld=0.05,model.storage.existingClaim=a,model.source.kind=none,model.hasCurve=false": "measure one",
    "server.maxKld=0.05,prepare.enabled=true,prepare.prune.keep=4,prepare.curve.enabled=false": "set it to true",
    "fleet.enabled=true,fleet.level=0.4,secrets.adminKey.name=a": "a measured curve",
    "server.vllm.skip-level=1": "use the chart's own setting",
    "server.vllm.max_kld=1": "use the chart's own setting",
    "server.vllm.ssl-certfile=/a": "end TLS in front of the pods",
    "server.vllm.hf_token=a": "name a Secret in secrets",
    "server.vllm.max-model-len=1,server.vllm.max_model_len=2": "are one argument",
    "server.vllm.served_model_name=a,server.servedModelName=b": "leave one of them out",
    "server.env.HF_TOKEN=a": "server.extraEnv with valueFrom",
    "server.env.vllm_api_key=a": "server.extraEnv with valueFrom",
    "model.source.objectStore.env.RCLONE_CONFIG_S3_SECRET_ACCESS_KEY=a": "objectStore.existingSecret",
    "server.extraEnv[0].name=DB_PASSWORD,server.extraEnv[0].value=a": "valueFrom.secretKeyRef",
    "server.extraEnv[0].name=VLLM_API_KEY,secrets.apiKey.name=a": "which the chart sets",
    "server.extraEnv[0].name=A,server.extraEnv[1].name=A": "twice",
    "serviceMonitor.scrapeTimeout=1m1s,serviceMonitor.interval=1m": "a timeout above the interval",
    "shmSize=64Gi": "raise the limit or lower shmSize",
    "shmSize=1T,resources.limits.memory=900000000000": "raise the limit or lower shmSize",
    "fullnameOverride=My_Model": "lower-case letters",
    "fullnameOverride=7b": "a letter first",
    "nameOverride=my model,fullnameOverride=a": "no value of a label",
    "podLabels.app\\.kubernetes\\.io/name=a": "whose selectors count on it",
    "commonLabels.app\\.kubernetes\\.io/instance=a": "whose selectors count on it",
    "service.labels.app\\.kubernetes\\.io/component=a": "whose selectors count on it",
    "commonLabels.team=a b": "no value of a label",
    "prometheusRule.alertLabels.namespace=a": "tells releases apart",
    "extraVolumes[0].name=cache": "a volume of the chart",
    "extraVolumes[0].name=a,extraVolumes[1].name=a": "twice",
    "extraVolumeMounts[0].name=a,extraVolumeMounts[0].mountPath=/a": "no such volume",
    "extraVolumeMounts[0].name=models,extraVolumeMounts[0].mountPath=/cache/": "choose another path",
    "extraContainers[0].name=server": "another name",
    "service.loadBalancerClass=a": "for the type LoadBalancer",
    "service.externalTrafficPolicy=Local": "service.type is ClusterIP",
    "server.governor.ttftMs=100": "the governor is off",
    "server.governor.mode=act,server.governor.maxLevel=1": "it has no goal",
    "server.governor.mode=act,server.governor.itlMs=50": "one floor of quality",
    "server.governor.mode=act,server.governor.itlMs=50,server.governor.maxLevel=1,server.skipLevel=1": "could do nothing",
    "server.governor.mode=act,server.governor.itlMs=50,server.governor.maxLevel=1,server.governor.unionBudget=9": "go together",
    "server.shadow.maxKld=0.1": "server.shadow.share is 0",
    "autoscaling.minReplicas=5": "must not be larger",
    "server.skipLevel=0.4,server.maxKld=0.05": "leave one of them out",
    "server.deterministic=true,server.unionBudget=8": "set it to null",
    "server.vllm.port=1": "the chart's own setting",
    "server.vllm.grpc=true": "leanmoe serve refuses it",
    "server.env.VLLM_SERVER_DEV_MODE=1": "leanmoe serve refuses it",
    "server.vllm.api_server_count=2,server.env.VLLM_ENABLE_RESPONSES_API_STORE=1": "with 2 API processes",
    "server.vllm.speculative_config.method=deepseek_mtp": "multi-token prediction",
    "server.unionBudget=16,server.maxKld=0.1,model.hasCurve=true": "leave one of them out",
    "server.governor.mode=act,server.governor.itlMs=50,server.governor.maxLevel=1,server.maxSkipLevel=0.5": "must not be larger",
    "server.tensorParallelSize=2": "enable multiNode",
    "multiNode.enabled=true,model.storage.kind=emptyDir": "must be equal",
    "replicas=2": "use ReadWriteMany",
    "autoscaling.hpa.enabled=true": "use ReadWriteMany",
    "prepare.enabled=true": "how much to cut",
    "prepare.enabled=true,prepare.prune.keep=4,prepare.prune.ratio=0.5": "leave one of them out",
    "prepare.enabled=true,prepare.prune.keep=4,prepare.hook=true": "existingClaim",
    "prepare.enabled=true,prepare.prune.keep=4,model.storage.kind=emptyDir": "use pvc",
    "prepare.enabled=true,prepare.prune.keep=4,prepare.hook=true,prepare.scaleDownOnFailure=true,model.storage.existingClaim=a": "with prepare.hook none do",
    "model.source.kind=none": "existingClaim",
    "model.source.kind=none,model.storage.kind=emptyDir": "name a source",
    "model.source.kind=objectStore": "objectStore.remote is empty",
    "model.source.kind=oci": "oci.reference is empty",
    "model.source.huggingface.repo=": "huggingface.repo is empty",
    "model.storage.kind=image": "name the OCI image",
    "model.storage.kind=image,model.storage.image.reference=a": "set the source to none",
    "fleet.enabled=true,fleet.level=1": "secrets.adminKey",
    "fleet.enabled=true,fleet.level=1,secrets.adminKey.name=a,server.maxSkipLevel=0.5": "must not be larger",
    "fleet.enabled=true,secrets.adminKey.name=a": "one of fleet.level and fleet.maxKld",
    "fleet.enabled=true,fleet.level=1,fleet.maxKld=1,secrets.adminKey.name=a": "set one",
    "server.vllm.data-parallel-size=2,gpu.count=1": "give as many devices",
    "gpu.count=0,server.vllm.enable-expert-parallel=true": "server.vllm.enable-expert-parallel is true, which needs GPUs, and gpu.count is 0: leave it out",
    "gpu.count=0,server.vllm.enable_lora=true": "server.vllm.enable_lora is true, which needs GPUs",
    "gpu.count=0,server.vllm.data-parallel-backend=ray": "server.vllm.data-parallel-backend is ray, which needs GPUs",
    "gpu.count=0,multiNode.enabled=true,model.storage.kind=emptyDir,multiNode.backend=ray": "multiNode.backend is ray, which needs GPUs",
    "ingress.enabled=true": "name at least one host",
    "httpRoute.enabled=true": "name the Gateway",
    "httpRoute.hostnames={LLM.example.org}": "no host name",
    "httpRoute.hostnames={10.0.0.1}": "no host name",
    f"httpRoute.hostnames={{{','.join(f'a{index}.org' for index in range(17))}}}": "takes 16",
    "httpRoute.paths={/v1//chat}": "no plain path",
    "httpRoute.paths={/v1/..}": "no plain path",
    f"httpRoute.paths={{{','.join(f'/{index}' for index in range(65))}}}": "a rule takes 64",
    "ingress.hosts={llm.example.org:443}": "no host name",
    "ingress.hosts[0].host=a_b": "no host name",
    "ingress.hosts[0].host=a.org,ingress.hosts[0].paths[0].path=/a b": "no plain path",
    "ingress.hosts[0]=a.org,ingress.paths={/v1/%2fa}": "no plain path",
    f"{KEDA},autoscaling.keda.fallback.replicas=2": "give them",
    f"{KEDA},autoscaling.keda.triggers[0].name=kv-use,autoscaling.keda.triggers[0].type=cron,autoscaling.keda.triggers[0].metadata.start=1": "another name",
    f"{KEDA},autoscaling.minReplicas=0,autoscaling.keda.triggers[0].type=cpu,autoscaling.keda.triggers[0].metadata.value=1": "needs no pod",
    "resources.limits.nvidia\\.com/gpu=2": "set gpu.count alone",
    "resources.requests.memory=64Gi": "must not be larger",
    "prepare.resources.limits.cpu=500m": "must not be larger",
}


# What only GPUs can do passes where the pods have some; a switch that is off passes everywhere.
TAKEN = (
    "server.vllm.enable-expert-parallel=true",
    "gpu.count=0,server.vllm.enable-expert-parallel=true,resourceClaims[0].name=a,resourceClaims[0].resourceClaimTemplateName=b",
    "gpu.count=0,server.vllm.enable-expert-parallel=false,server.vllm.enable-lora=false",
    "gpu.count=0,server.vllm.data-parallel-backend=mp,server.tensorParallelSize=2",
)


@pytest.mark.parametrize("sets", CASES)
def test_one_sentence_says_what_to_do(sets):
    done = template("--set", sets)
    assert done.returncode != 0
    message = next(line for line in done.stderr.splitlines() if line.startswith("Error:"))
    assert CASES[sets] in message, message


@pytest.mark.parametrize("sets", TAKEN)
def test_what_the_server_takes_passes(sets):
    done = template("--set", sets)
    assert done.returncode == 0, done.stderr


def test_image_volumes_need_a_cluster_that_has_them():
    done = template("--values", str(CI["image-volume"]), kubernetes="1.31.0")
    assert "needs Kubernetes 1.33 or newer" in done.stderr


def test_clusters_before_1_30_are_refused():
    assert "1.29" in template(kubernetes="1.29.0").stderr
