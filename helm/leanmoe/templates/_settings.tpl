{{/* Content of the ConfigMaps; its digest is a pod annotation, so that a change restarts the pods. */}}
{{- define "leanmoe.environment" -}}
HOME: /cache
USER: leanmoe
TMPDIR: /tmp
XDG_CACHE_HOME: /cache/xdg
XDG_CONFIG_HOME: /cache/config
HF_HOME: /cache/huggingface
VLLM_CACHE_ROOT: /cache/vllm
VLLM_CONFIG_ROOT: /cache/config/vllm
TRITON_CACHE_DIR: /cache/triton
TORCHINDUCTOR_CACHE_DIR: /cache/inductor
CUDA_CACHE_PATH: /cache/cuda
FLASHINFER_WORKSPACE_BASE: /cache
NUMBA_CACHE_DIR: /cache/numba
MPLCONFIGDIR: /cache/matplotlib
PYTHONDONTWRITEBYTECODE: "1"
# The model is on the volume: no requests to the hub.
HF_HUB_OFFLINE: "1"
VLLM_NO_USAGE_STATS: "1"
DO_NOT_TRACK: "1"
VLLM_WORKER_MULTIPROC_METHOD: spawn
{{- end }}

{{- define "leanmoe.settings" -}}
{{- $own := include "leanmoe.environment" . | fromYaml -}}
{{- range $name, $value := .Values.server.env }}
{{- $_ := set $own $name (include "leanmoe.text" $value) }}
{{- end }}
{{- toYaml $own }}
{{- end }}

{{/* vLLM's arguments with dashes, as it prints them; what the chart passes itself is not among them. */}}
{{- define "leanmoe.vllm" -}}
{{- $own := dict }}
{{- range $name, $value := .Values.server.vllm }}
{{- $_ := set $own ($name | replace "_" "-") $value }}
{{- end }}
{{- toYaml (omit $own "served-model-name") }}
{{- end }}

{{- define "leanmoe.files" -}}
vllm.yaml: |
  {{- include "leanmoe.vllm" . | nindent 2 }}
{{- range $path, $_ := .Files.Glob "files/*" }}
{{ base $path }}: |
  {{- $.Files.Get $path | trim | nindent 2 }}
{{- end }}
{{- end }}

{{/* Two ConfigMaps: environment variables, and files under /scripts. dict "root", "annotations". */}}
{{- define "leanmoe.configMaps" -}}
{{- $root := .root -}}
{{- $annotations := .annotations -}}
{{- range $kind := list "settings" "files" }}
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ include "leanmoe.configName" (dict "root" $root "kind" $kind) }}
  namespace: {{ $root.Release.Namespace }}
  labels: {{- include "leanmoe.labels" $root | nindent 4 }}
  {{- with $annotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
data:
  {{- regexReplaceAll "(?m)^ +$" (include (printf "leanmoe.%s" $kind) $root | nindent 2) "" }}
{{- end }}
{{- end }}

{{- define "leanmoe.configName" -}}
{{- $suffix := ternary "-hook" "" (eq (toString .root.hook) "true") }}
{{- printf "%s-%s%s" (include "leanmoe.fullname" .root) .kind $suffix }}
{{- end }}

{{- define "leanmoe.settingsName" -}}
{{- include "leanmoe.configName" (dict "root" . "kind" "settings") }}
{{- end }}
