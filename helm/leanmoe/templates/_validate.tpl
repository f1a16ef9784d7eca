{{/* Checks that the schema cannot express: settings that exclude or require each other. One sentence each. */}}
{{- define "leanmoe.validate" -}}
{{- include "leanmoe.validateNames" . }}
{{- include "leanmoe.validateLabels" . }}
{{- include "leanmoe.validateSecrets" . }}
{{- include "leanmoe.validateVolumes" . }}
{{- include "leanmoe.validateDevices" . }}
{{- include "leanmoe.validateResources" . }}
{{- include "leanmoe.validateModel" . }}
{{- include "leanmoe.validatePrepare" . }}
{{- include "leanmoe.validateServer" . }}
{{- include "leanmoe.validateGovernor" . }}
{{- include "leanmoe.validateMonitoring" . }}
{{- include "leanmoe.validateScale" . }}
{{- include "leanmoe.validateNetwork" . }}
{{- include "leanmoe.validateFleet" . }}
{{- include "leanmoe.validateLevels" . }}
{{- end }}

{{- define "leanmoe.validateModel" -}}
{{- $storage := .Values.model.storage }}
{{- $source := .Values.model.source }}
{{- if and (eq $storage.kind "image") (not $storage.image.reference) }}
{{- fail "model.storage.kind is image and model.storage.image.reference is empty: name the OCI image that holds the model" }}
{{- end }}
{{- if and (eq $storage.kind "image") (ne $source.kind "none") }}
{{- fail (printf "model.storage.kind is image, which is read-only, and model.source.kind is %s: set the source to none" $source.kind) }}
{{- end }}
{{- if and (eq $storage.kind "image") (semverCompare "<1.33.0-0" .Capabilities.KubeVersion.Version) }}
{{- fail (printf "model.storage.kind is image, which needs Kubernetes 1.33 or newer, and this is %s" .Capabilities.KubeVersion.Version) }}
{{- end }}
{{- if and (eq $source.kind "none") (eq $storage.kind "emptyDir") }}
{{- fail "model.source.kind is none and model.storage.kind is emptyDir: the volume would be empty; name a source" }}
{{- end }}
{{- if and (eq $source.kind "none") (eq $storage.kind "pvc") (not $storage.existingClaim) }}
{{- fail "model.source.kind is none and the chart makes the claim: it would be empty; set model.storage.existingClaim to the claim that holds the model, or name a source" }}
{{- end }}
{{- $modes := $storage.accessModes }}
{{- if and (eq $storage.kind "pvc") (include "leanmoe.written" .) (eq (join "" $modes) "ReadOnlyMany") }}
{{- fail (printf "model.storage.accessModes is [ReadOnlyMany], and %s writes to the claim: use ReadWriteMany, or a claim that holds the model with model.source.kind none" (ternary "prepare" "fetching the model" .Values.prepare.enabled)) }}
{{- end }}
{{- if and (ne $source.kind "none") (not (include "leanmoe.origin" .)) }}
{{- $key := get (dict "huggingface" "huggingface.repo" "objectStore" "objectStore.remote" "oci" "oci.reference") $source.kind }}
{{- fail (printf "model.source.kind is %s and model.source.%s is empty: say what to fetch" $source.kind $key) }}
{{- end }}
{{- end }}

{{- define "leanmoe.validatePrepare" -}}
{{- $prepare := .Values.prepare }}
{{- if $prepare.enabled }}
{{- if ne .Values.model.storage.kind "pvc" }}
{{- fail (printf "prepare.enabled needs a volume that the Job and the pods share, and model.storage.kind is %s: use pvc" .Values.model.storage.kind) }}
{{- end }}
{{- if and $prepare.hook (not .Values.model.storage.existingClaim) }}
{{- fail "prepare.hook runs before anything of the release exists: set model.storage.existingClaim to a claim of yours, or prepare.hook to false" }}
{{- end }}
{{- if and $prepare.scaleDownOnFailure $prepare.hook }}
{{- fail "prepare.scaleDownOnFailure is about pods that wait for the Job, and with prepare.hook none do: leave one of them out" }}
{{- end }}
{{- if and (not (kindIs "invalid" $prepare.prune.keep)) (not (kindIs "invalid" $prepare.prune.ratio)) }}
{{- fail "prepare.prune.keep and prepare.prune.ratio are both set: leave one of them out" }}
{{- end }}
{{- if and (kindIs "invalid" $prepare.prune.keep) (kindIs "invalid" $prepare.prune.ratio) (not $prepare.prune.extraArgs) }}
{{- fail "prepare.enabled and nothing says how much to cut: set prepare.prune.keep, prepare.prune.ratio, or extraArgs such as [--sparsity, \"0.5\"]" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "leanmoe.validateServer" -}}
{{- $server := .Values.server }}
{{- if and (not (kindIs "invalid" $server.skipLevel)) (not (kindIs "invalid" $server.maxKld)) }}
{{- fail "server.skipLevel and server.maxKld are both set: leave one of them out" }}
{{- end }}
{{- if and $server.deterministic (not (kindIs "invalid" $server.unionBudget)) }}
{{- fail "server.deterministic refuses any server.unionBudget: set it to null, or deterministic to false" }}
{{- end }}
{{- $own := list "model" "port" "host" "seed" "tensor-parallel-size" "pipeline-parallel-size" "config" "nnodes" "node-rank" "master-addr" "master-port" "distributed-executor-backend" "middleware" "uds" }}
{{- /* Options of leanmoe serve, which refuses them in a configuration of vLLM. */}}
{{- $serves := list "admin-key-file" "audit-file" "client-seconds" "deterministic" "drain-seconds" "governor" "governor-dwell" "governor-max-kld" "governor-max-level" "governor-union-budget" "keep-alive-seconds" "keys" "log-format" "max-body-mib" "max-kld" "max-skip-level" "max-waiting" "memory-bandwidth" "phases" "poll-seconds" "shadow-max-kld" "shadow-share" "shadow-tokens-per-minute" "share-prefix-cache" "skip-level" "skip-rule" "skip-verify" "slo-itl" "slo-ttft" "tuned-table" "union-budget" "union-mode" }}
{{- $refused := list "headless" "grpc" "kv-transfer-config" "kv-offloading-size" "hf-overrides" "hf-config-path" "enable-return-routed-experts" "data-parallel-rank" "data-parallel-start-rank" "data-parallel-external-lb" "data-parallel-hybrid-lb" "data-parallel-multi-port-external-lb" "data-parallel-size-local" "enable-elastic-ep" }}
{{- $seen := dict }}
{{- $vllm := default dict $server.vllm }}
{{- range $given, $_ := $server.vllm }}
{{- $name := $given | replace "_" "-" }}
{{- if hasKey $seen $name }}
{{- fail (printf "server.vllm.%s and server.vllm.%s are one argument: leave one of them out" (get $seen $name) $given) }}
{{- end }}
{{- $_ := set $seen $name $given }}
{{- if or (has $name $own) (has $name $serves) }}
{{- fail (printf "server.vllm.%s is set by the chart: use the chart's own setting" $given) }}
{{- end }}
{{- if has $name $refused }}
{{- fail (printf "server.vllm.%s: leanmoe serve refuses it, see docs/serving.md" $given) }}
{{- end }}
{{- if hasPrefix "ssl-" $name }}
{{- fail (printf "server.vllm.%s: the probes, the tests and the scrapes of the chart speak HTTP; end TLS in front of the pods, at an Ingress, a Gateway or a mesh" $given) }}
{{- end }}
{{- if has $name (list "api-key" "hf-token") }}
{{- fail (printf "server.vllm.%s would stand in a ConfigMap: name a Secret in secrets" $given) }}
{{- end }}
{{- end }}
{{- if and $server.servedModelName (hasKey $seen "served-model-name") }}
{{- fail (printf "server.servedModelName and server.vllm.%s are both set: leave one of them out" (get $seen "served-model-name")) }}
{{- end }}
{{- if contains "mtp" (get $vllm (get $seen "speculative-config" | default "-") | toJson) }}
{{- fail (printf "server.vllm.%s asks for multi-token prediction, which leanmoe serve refuses: use the method ngram, suffix or draft_model" (get $seen "speculative-config")) }}
{{- end }}
{{- include "leanmoe.validateWithoutDevices" . }}
{{- $processes := get $vllm (get $seen "api-server-count" | default "-") | default 1 | int }}
{{- range $name := list "VLLM_SERVER_DEV_MODE" "VLLM_ENABLE_RESPONSES_API_STORE" "VLLM_ALLOW_RUNTIME_LORA_UPDATING" "VLLM_USE_RUST_FRONTEND" }}
{{- $on := not (has (get (default dict $server.env) $name | include "leanmoe.text") (list "" "0")) }}
{{- if and $on (or (eq $name "VLLM_SERVER_DEV_MODE") (gt $processes 1)) }}
{{- fail (printf "server.env.%s%s: leanmoe serve refuses it, see docs/serving.md" $name (ternary "" (printf " with %d API processes" $processes) (eq $name "VLLM_SERVER_DEV_MODE"))) }}
{{- end }}
{{- end }}
{{- $engines := get $vllm (get $seen "data-parallel-size" | default "-") | default 1 | int }}
{{- $ranks := mul $server.tensorParallelSize $server.pipelineParallelSize $engines | int }}
{{- $devices := int .Values.gpu.count }}
{{- if .Values.multiNode.enabled }}
{{- $all := mul .Values.multiNode.size $devices | int }}
{{- if and (gt $devices 0) (ne $ranks $all) }}
{{- fail (printf "server.tensorParallelSize times pipelineParallelSize is %d, and multiNode.size times gpu.count is %d: they must be equal" $ranks $all) }}
{{- end }}
{{- else if and (gt $devices 0) (gt $ranks $devices) }}
{{- fail (printf "server.tensorParallelSize times pipelineParallelSize is %d, and gpu.count is %d: give as many devices, or enable multiNode" $ranks $devices) }}
{{- end }}
{{- end }}

{{/* What needs a GPU: the server's build for CPUs refuses it when it starts. */}}
{{- define "leanmoe.validateWithoutDevices" -}}
{{- if not (include "leanmoe.devices" .) }}
{{- $given := dict }}
{{- range $name, $value := .Values.server.vllm }}
{{- $_ := set $given ($name | replace "_" "-") (dict "name" $name "value" (include "leanmoe.text" $value)) }}
{{- end }}
{{- range $name, $bad := dict "enable-expert-parallel" "true" "enable-lora" "true" "data-parallel-backend" "ray" }}
{{- if eq (dig $name "value" "" $given) $bad }}
{{- fail (printf "server.vllm.%s is %s, which needs GPUs, and gpu.count is 0: leave it out, or give devices by gpu.count or resourceClaims" (dig $name "name" "" $given) $bad) }}
{{- end }}
{{- end }}
{{- if and .Values.multiNode.enabled (eq .Values.multiNode.backend "ray") }}
{{- fail "multiNode.backend is ray, which needs GPUs, and gpu.count is 0: use native, or give devices by gpu.count or resourceClaims" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "leanmoe.validateScale" -}}
{{- $scale := .Values.autoscaling }}
{{- if and $scale.hpa.enabled $scale.keda.enabled }}
{{- fail "autoscaling.hpa and autoscaling.keda are both enabled and would scale against each other: enable one" }}
{{- end }}
{{- $keda := $scale.keda }}
{{- if $keda.enabled }}
{{- if not (or $keda.serverAddress $keda.triggers) }}
{{- fail "autoscaling.keda.serverAddress is empty: give the address of Prometheus, or triggers of your own" }}
{{- end }}
{{- if and $keda.serverAddress (not .Values.serviceMonitor.enabled) (not $keda.scraped) }}
{{- fail "autoscaling.keda asks Prometheus for metrics that nothing collects: enable serviceMonitor, or set autoscaling.keda.scraped to true if you collect them otherwise" }}
{{- end }}
{{- $elsewhere := list }}
{{- $names := list }}
{{- if $keda.serverAddress }}
{{- $names = list "waiting-requests" "kv-use" }}
{{- end }}
{{- range $keda.triggers }}
{{- if not (has .type (list "cpu" "memory")) }}
{{- $elsewhere = append $elsewhere .type }}
{{- end }}
{{- if and .name (has .name $names) }}
{{- fail (printf "autoscaling.keda.triggers has two triggers called %s, those of the chart counted: give it another name" .name) }}
{{- end }}
{{- $names = append $names .name }}
{{- end }}
{{- if and $keda.fallback (not (and (hasKey $keda.fallback "failureThreshold") (hasKey $keda.fallback "replicas"))) }}
{{- fail "autoscaling.keda.fallback needs both failureThreshold and replicas: give them" }}
{{- end }}
{{- if and (eq (int $scale.minReplicas) 0) (not $elsewhere) }}
{{- fail "autoscaling.minReplicas is 0, and without pods nothing measures that requests wait: give autoscaling.keda.triggers one that needs no pod, such as the queue of a gateway" }}
{{- end }}
{{- else if and $scale.hpa.enabled (eq (int $scale.minReplicas) 0) }}
{{- fail "autoscaling.minReplicas is 0, and a HorizontalPodAutoscaler on metrics of pods cannot start the first one: use 1, or autoscaling.keda" }}
{{- end }}
{{- if gt (int $scale.minReplicas) (int $scale.maxReplicas) }}
{{- fail (printf "autoscaling.minReplicas is %d and maxReplicas is %d: the first must not be larger" (int $scale.minReplicas) (int $scale.maxReplicas)) }}
{{- end }}
{{- $pods := int .Values.replicas }}
{{- if include "leanmoe.autoscaled" . }}
{{- $pods = int $scale.maxReplicas }}
{{- end }}
{{- if .Values.multiNode.enabled }}
{{- $pods = mul $pods .Values.multiNode.size | int }}
{{- end }}
{{- if and (gt $pods 1) (not (include "leanmoe.shared" .)) }}
{{- fail (printf "%d pods would mount the claim %s, whose model.storage.accessModes is [%s]: use ReadWriteMany, or emptyDir" $pods (include "leanmoe.claimName" .) (join ", " .Values.model.storage.accessModes)) }}
{{- end }}
{{- end }}

{{- define "leanmoe.validateNetwork" -}}
{{- if and (ne .Values.service.type "LoadBalancer") (or .Values.service.loadBalancerClass .Values.service.loadBalancerSourceRanges) }}
{{- fail (printf "service.loadBalancerClass and loadBalancerSourceRanges are for the type LoadBalancer, and service.type is %s: change it, or leave them out" .Values.service.type) }}
{{- end }}
{{- if and (eq .Values.service.type "ClusterIP") .Values.service.externalTrafficPolicy }}
{{- fail "service.externalTrafficPolicy is for the types NodePort and LoadBalancer, and service.type is ClusterIP: leave it out" }}
{{- end }}
{{- if and .Values.ingress.enabled (not .Values.ingress.hosts) }}
{{- fail "ingress.enabled and ingress.hosts is empty: name at least one host" }}
{{- end }}
{{- if and .Values.httpRoute.enabled (not .Values.httpRoute.parentRefs) }}
{{- fail "httpRoute.enabled and httpRoute.parentRefs is empty: name the Gateway" }}
{{- end }}
{{- include "leanmoe.validateHosts" . }}
{{- include "leanmoe.validatePaths" . }}
{{- end }}

{{/* Host names as an Ingress and an HTTPRoute take them: no address, port or upper case. */}}
{{- define "leanmoe.validateHosts" -}}
{{- $hosts := dict "ingress.hosts" list "httpRoute.hostnames" (default list .Values.httpRoute.hostnames) }}
{{- range .Values.ingress.hosts }}
{{- $host := kindIs "string" . | ternary . (get (kindIs "map" . | ternary . dict) "host") }}
{{- $_ := set $hosts "ingress.hosts" (append (get $hosts "ingress.hosts") (default "" $host)) }}
{{- end }}
{{- range $where, $names := $hosts }}
{{- if and (eq $where "httpRoute.hostnames") (gt (len $names) 16) }}
{{- fail (printf "httpRoute.hostnames has %d names, and an HTTPRoute takes 16: use a wildcard, or another route in extraObjects" (len $names)) }}
{{- end }}
{{- range $name := $names }}
{{- $label := "[a-z0-9]([-a-z0-9]*[a-z0-9])?" }}
{{- if or (not (regexMatch (printf "^((\\*\\.)?%s(\\.%s)*)?$" $label $label) $name)) (regexMatch "^[0-9.]+$" $name) (gt (len $name) 253) }}
{{- fail (printf "%s has %q, which is no host name: use lower-case letters, digits, dashes and dots, at most *. in front, no port and no address" $where $name) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Paths that are prefixes or exact; what ImplementationSpecific means, the controller says. */}}
{{- define "leanmoe.validatePaths" -}}
{{- $ingress := .Values.ingress }}
{{- $plain := dict "httpRoute.paths" .Values.httpRoute.paths "ingress.paths" list }}
{{- $given := list }}
{{- range $host := $ingress.hosts }}
{{- $given = concat $given (default $ingress.paths (get (kindIs "map" $host | ternary $host dict) "paths")) }}
{{- end }}
{{- range $path := $given }}
{{- $entry := kindIs "string" $path | ternary (dict "path" $path) $path }}
{{- if ne (default $ingress.pathType $entry.pathType) "ImplementationSpecific" }}
{{- $_ := set $plain "ingress.paths" (append (get $plain "ingress.paths") $entry.path) }}
{{- end }}
{{- end }}
{{- range $where, $paths := $plain }}
{{- range $path := $paths }}
{{- if or (not (regexMatch "^/([-A-Za-z0-9/._~!$&'()*+,;=:@]|%[0-9a-fA-F]{2})*$" $path)) (regexMatch "//|/\\.{1,2}(/|$)|%2[fF]" $path) (gt (len $path) 1024) }}
{{- fail (printf "%s has %q, which is no plain path: leave out //, /./, /../, %%2F and characters that a path does not have" $where $path) }}
{{- end }}
{{- end }}
{{- end }}
{{- if gt (len .Values.httpRoute.paths) 64 }}
{{- fail (printf "httpRoute.paths has %d paths, and a rule takes 64: use shorter prefixes" (len .Values.httpRoute.paths)) }}
{{- end }}
{{- end }}
