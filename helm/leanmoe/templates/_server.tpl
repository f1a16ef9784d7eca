{{/* The server's container and pod, for the Deployment and for leaders of several nodes. */}}
{{/* Options that are passed where they are set. dict of an option's name and its value; null, false and "" are not set. */}}
{{- define "leanmoe.options" -}}
{{- range $name, $value := . }}
{{- if and (kindIs "bool" $value) $value }}
- --{{ $name }}
{{- else if not (or (kindIs "invalid" $value) (kindIs "bool" $value) (eq (toString $value) "")) }}
- {{ printf "--%s=%s" $name (include "leanmoe.text" $value) | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- define "leanmoe.governor" -}}
{{- with .Values.server.governor.mode }}{{ if ne . "off" }}{{ . }}{{ end }}{{ end }}
{{- end }}

{{- define "leanmoe.loadArgs" -}}
{{- $server := .Values.server }}
{{- $governor := $server.governor }}
{{- $shadow := $server.shadow }}
{{- $admission := dict "max-waiting" $server.maxWaiting "max-body-mib" $server.maxBodyMib "client-seconds" $server.clientSeconds "keep-alive-seconds" $server.keepAliveSeconds }}
{{- $log := dict "log-format" (ternary "" $server.logFormat (eq $server.logFormat "text")) "audit-file" $server.auditFile "share-prefix-cache" $server.sharePrefixCache }}
{{- include "leanmoe.options" (merge $admission $log) }}
{{- with include "leanmoe.governor" . }}
{{- include "leanmoe.options" (dict "governor" . "slo-ttft" $governor.ttftMs "slo-itl" $governor.itlMs "governor-max-level" $governor.maxLevel "governor-max-kld" $governor.maxKld "governor-union-budget" $governor.unionBudget "memory-bandwidth" $governor.memoryBandwidth "governor-dwell" $governor.dwellSeconds) }}
{{- end }}
{{- if gt (float64 $shadow.share) 0.0 }}
{{- include "leanmoe.options" (dict "shadow-share" $shadow.share "shadow-tokens-per-minute" $shadow.tokensPerMinute "shadow-max-kld" $shadow.maxKld) }}
{{- end }}
{{- end }}

{{- define "leanmoe.serveArgs" -}}
{{- $server := .Values.server -}}
- serve
- {{ include "leanmoe.servedModel" . | quote }}
- --host=0.0.0.0
- --port=8000
- --drain-seconds={{ .Values.shutdown.drainSeconds }}
- --poll-seconds={{ $server.pollSeconds }}
{{- include "leanmoe.options" (dict "skip-level" $server.skipLevel "max-kld" $server.maxKld) }}
- --max-skip-level={{ $server.maxSkipLevel }}
- --phases={{ $server.phases }}
{{- if not (kindIs "invalid" $server.unionBudget) }}
- --union-budget={{ int $server.unionBudget }}
- --union-mode={{ $server.unionMode }}
{{- end }}
{{- include "leanmoe.options" (dict "deterministic" $server.deterministic "skip-verify" $server.skipVerify) }}
{{- range $server.tunedTables }}
- {{ printf "--tuned-table=%s" . | quote }}
{{- end }}
{{- if .Values.secrets.adminKey.name }}
- --admin-key-file=/secrets/admin/key
{{- end }}
{{- if .Values.secrets.keyFile.name }}
- --keys=/secrets/keys/keys.toml
{{- end }}
{{- include "leanmoe.loadArgs" . }}
{{- $names := include "leanmoe.servedNames" . | fromYamlArray }}
{{- if eq (len $names) 1 }}
- {{ printf "--served-model-name=%s" (first $names) | quote }}
{{- else }}
- --served-model-name
{{- include "leanmoe.servedNames" . }}
{{- end }}
{{ include "leanmoe.engineArgs" . }}
{{- if .Values.multiNode.enabled }}
{{- if eq .Values.multiNode.backend "ray" }}
- --distributed-executor-backend=ray
{{- else }}
- --node-rank=0
{{- end }}
{{- end }}
{{- end }}

{{/* Arguments of vLLM that leader and followers share. */}}
{{- define "leanmoe.engineArgs" -}}
- --tensor-parallel-size={{ .Values.server.tensorParallelSize }}
- --pipeline-parallel-size={{ .Values.server.pipelineParallelSize }}
- --config
- /scripts/vllm.yaml
{{- if and .Values.multiNode.enabled (eq .Values.multiNode.backend "native") }}
- --nnodes={{ .Values.multiNode.size }}
- --master-addr=$(LWS_LEADER_ADDRESS)
- --master-port={{ .Values.multiNode.masterPort }}
{{- end }}
{{- end }}

{{- define "leanmoe.resources" -}}
{{- $devices := dict }}
{{- if gt (int .Values.gpu.count) 0 }}
{{- $_ := set $devices .Values.gpu.resource (int .Values.gpu.count) }}
{{- end }}
{{- $limits := merge (dict) (default (dict) .Values.resources.limits) $devices }}
{{- toYaml (merge (dict "limits" $limits) .Values.resources) }}
{{- end }}

{{- define "leanmoe.engineEnvironment" -}}
{{- if .Values.multiNode.enabled }}
- name: VLLM_HOST_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- {name: RAY_PORT, value: {{ .Values.multiNode.rayPort | quote }}}
{{- end }}
{{- with .Values.server.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "leanmoe.engineEnvFrom" -}}
- configMapRef: {name: {{ include "leanmoe.settingsName" . }}}
{{- with .Values.server.envFrom }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "leanmoe.serverEnvironment" -}}
{{- include "leanmoe.engineEnvironment" . }}
{{- with .Values.secrets.apiKey }}
{{- if .name }}
- name: VLLM_API_KEY
  valueFrom:
    secretKeyRef: {name: {{ .name }}, key: {{ .key | quote }}}
{{- end }}
{{- end }}
{{- end }}

{{- define "leanmoe.engineMounts" -}}
- {name: models, mountPath: /models, readOnly: true}
{{ include "leanmoe.commonMounts" . }}
- {name: shm, mountPath: /dev/shm}
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "leanmoe.serverContainer" -}}
{{- $probes := .Values.probes -}}
- name: server
  image: {{ include "leanmoe.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  {{- if and .Values.multiNode.enabled (eq .Values.multiNode.backend "ray") }}
  command: [/bin/sh, /scripts/lead-ray.sh]
  {{- end }}
  args: {{- include "leanmoe.serveArgs" . | nindent 4 }}
  {{- with include "leanmoe.serverEnvironment" . | trim }}
  env: {{- . | nindent 4 }}
  {{- end }}
  envFrom: {{- include "leanmoe.engineEnvFrom" . | nindent 4 }}
  ports:
    - {name: http, containerPort: 8000, protocol: TCP}
  # The port opens once the weights are loaded; until then only the startup probe runs.
  startupProbe:
    httpGet: {path: /health, port: http}
    {{- with $probes.startup.initialDelaySeconds }}
    initialDelaySeconds: {{ int . }}
    {{- end }}
    periodSeconds: {{ $probes.startup.periodSeconds }}
    timeoutSeconds: {{ $probes.liveness.timeoutSeconds }}
    failureThreshold: {{ divf $probes.startup.seconds $probes.startup.periodSeconds | ceil }}
  livenessProbe:
    httpGet: {path: /health, port: http}
    {{- with $probes.liveness.initialDelaySeconds }}
    initialDelaySeconds: {{ int . }}
    {{- end }}
    periodSeconds: {{ $probes.liveness.periodSeconds }}
    timeoutSeconds: {{ $probes.liveness.timeoutSeconds }}
    failureThreshold: {{ $probes.liveness.failureThreshold }}
  readinessProbe:
    httpGet: {path: /ready, port: http}
    {{- with $probes.readiness.initialDelaySeconds }}
    initialDelaySeconds: {{ int . }}
    {{- end }}
    periodSeconds: {{ $probes.readiness.periodSeconds }}
    timeoutSeconds: {{ $probes.readiness.timeoutSeconds }}
    failureThreshold: {{ $probes.readiness.failureThreshold }}
  # After SIGTERM the server refuses new requests, so the pod must be out of the endpoints first.
  lifecycle:
    preStop:
      sleep: {seconds: {{ .Values.shutdown.preStopSeconds }}}
  resources: {{- include "leanmoe.resources" . | nindent 4 }}
  securityContext: {{- toYaml .Values.securityContext | nindent 4 }}
  volumeMounts:
    {{- include "leanmoe.engineMounts" . | nindent 4 }}
    {{- if .Values.secrets.adminKey.name }}
    - {name: admin-key, mountPath: /secrets/admin, readOnly: true}
    {{- end }}
    {{- if .Values.secrets.keyFile.name }}
    - {name: key-file, mountPath: /secrets/keys, readOnly: true}
    {{- end }}
{{- end }}

{{/* Init containers: fetch the model, or wait for the Job. */}}
{{- define "leanmoe.initContainers" -}}
{{- if not .Values.prepare.enabled }}
{{- include "leanmoe.fetchContainer" . }}
{{- else if not .Values.prepare.hook }}
- name: wait-for-model
  image: {{ include "leanmoe.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  command: [/bin/sh, /scripts/wait.sh]
  env:
    - {name: MODEL, value: {{ include "leanmoe.servedModel" . | quote }}}
    - {name: JOB, value: {{ include "leanmoe.prepareJob" . | quote }}}
    - {name: RETRIES, value: {{ .Values.prepare.backoffLimit | quote }}}
    - {name: SECONDS_LEFT, value: {{ add (int .Values.prepare.activeDeadlineSeconds) 600 | quote }}}
    {{- if include "leanmoe.scalesDown" . }}
    - {name: SCALE_URL, value: {{ printf "https://kubernetes.default.svc/apis/%s/namespaces/%s/%ss/%s/scale" (include "leanmoe.targetVersion" .) .Release.Namespace (lower (include "leanmoe.targetKind" .)) (include "leanmoe.fullname" .) | quote }}}
    {{- end }}
  resources:
    requests: {cpu: 10m, memory: 16Mi}
    limits: {memory: 64Mi}
  securityContext: {{- toYaml .Values.securityContext | nindent 4 }}
  volumeMounts:
    - {name: models, mountPath: /models, readOnly: true}
    {{- include "leanmoe.commonMounts" . | nindent 4 }}
    {{- if include "leanmoe.scalesDown" . }}
    - {name: api, mountPath: /secrets/api, readOnly: true}
    {{- end }}
{{- end }}
{{- end }}

{{- define "leanmoe.listed" -}}
{{- with . }}{{ toYaml . }}{{ end }}
{{- end }}

{{- define "leanmoe.engineVolumes" -}}
{{ include "leanmoe.modelVolume" . }}
{{ include "leanmoe.commonVolumes" . }}
- name: shm
  emptyDir: {medium: Memory, sizeLimit: {{ .Values.shmSize }}}
{{- if not .Values.prepare.enabled }}
{{- include "leanmoe.fetchVolumes" . }}
{{- end }}
{{- if include "leanmoe.scalesDown" . }}
# For the container that waits: its token may change the replicas of this workload alone.
- name: api
  projected:
    defaultMode: 0440
    sources:
      - serviceAccountToken: {path: token, expirationSeconds: 3600}
      - configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}
{{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "leanmoe.graceSeconds" -}}
{{- $shutdown := .Values.shutdown }}
{{- add $shutdown.preStopSeconds $shutdown.drainSeconds $shutdown.stopSeconds }}
{{- end }}

{{- define "leanmoe.serverPod" -}}
metadata:
  {{- include "leanmoe.podMetadata" (dict "root" . "component" "server") | nindent 2 }}
spec:
  {{- include "leanmoe.podBasics" . | nindent 2 }}
  {{- with include "leanmoe.placement" (dict "root" . "component" "server") | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  serviceAccountName: {{ include "leanmoe.serviceAccountName" . }}
  terminationGracePeriodSeconds: {{ include "leanmoe.graceSeconds" . }}
  {{- with printf "%s\n%s" (include "leanmoe.initContainers" .) (include "leanmoe.listed" .Values.extraInitContainers) | trim }}
  initContainers: {{- . | nindent 4 }}
  {{- end }}
  containers:
    {{- include "leanmoe.serverContainer" . | nindent 4 }}
    {{- with .Values.extraContainers }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  volumes:
    {{- include "leanmoe.engineVolumes" . | nindent 4 }}
    {{- with .Values.secrets.adminKey }}
    {{- if .name }}
    - name: admin-key
      secret:
        secretName: {{ .name }}
        items: [{key: {{ .key | quote }}, path: key}]
        defaultMode: 0440
    {{- end }}
    {{- end }}
    {{- with .Values.secrets.keyFile }}
    {{- if .name }}
    - name: key-file
      secret:
        secretName: {{ .name }}
        items: [{key: {{ .key | quote }}, path: keys.toml}]
        defaultMode: 0440
    {{- end }}
    {{- end }}
{{- end }}

{{/* A follower: a pod that adds its GPUs to the leader's. */}}
{{- define "leanmoe.followerPod" -}}
metadata:
  {{- include "leanmoe.podMetadata" (dict "root" . "component" "follower") | nindent 2 }}
spec:
  {{- include "leanmoe.podBasics" . | nindent 2 }}
  {{- with include "leanmoe.placement" (dict "root" . "component" "follower") | trim }}
  {{- . | nindent 2 }}
  {{- end }}
  serviceAccountName: {{ include "leanmoe.serviceAccountName" . }}
  # The leader still answers while it drains: followers must run longer.
  terminationGracePeriodSeconds: {{ include "leanmoe.graceSeconds" . }}
  {{- with include "leanmoe.initContainers" . | trim }}
  initContainers: {{- . | nindent 4 }}
  {{- end }}
  containers:
    - name: follower
      image: {{ include "leanmoe.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      {{- if eq .Values.multiNode.backend "ray" }}
      command: [/bin/sh, /scripts/follow-ray.sh]
      {{- else }}
      command: [vllm]
      args:
        - serve
        - {{ include "leanmoe.servedModel" . | quote }}
        - --headless
        - --node-rank=$(LWS_WORKER_INDEX)
        - --seed=0
        {{- include "leanmoe.engineArgs" . | nindent 8 }}
      {{- end }}
      env:
        {{- include "leanmoe.engineEnvironment" . | trim | nindent 8 }}
        - {name: VLLM_PLUGINS, value: leanmoe}
      envFrom: {{- include "leanmoe.engineEnvFrom" . | nindent 8 }}
      lifecycle:
        preStop:
          sleep: {seconds: {{ add .Values.shutdown.preStopSeconds .Values.shutdown.drainSeconds }}}
      resources: {{- include "leanmoe.resources" . | nindent 8 }}
      securityContext: {{- toYaml .Values.securityContext | nindent 8 }}
      volumeMounts: {{- include "leanmoe.engineMounts" . | nindent 8 }}
  volumes:
    {{- include "leanmoe.engineVolumes" . | nindent 4 }}
{{- end }}
