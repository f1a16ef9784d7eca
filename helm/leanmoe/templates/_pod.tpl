{{/* Common fields of every pod. */}}
{{- define "leanmoe.commonMounts" -}}
- {name: files, mountPath: /scripts, readOnly: true}
- {name: cache, mountPath: /cache}
- {name: tmp, mountPath: /tmp}
{{- end }}

{{- define "leanmoe.commonVolumes" -}}
- name: files
  configMap: {name: {{ include "leanmoe.configName" (dict "root" . "kind" "files") }}}
- name: cache
  emptyDir: {sizeLimit: {{ .Values.cacheSize }}}
- name: tmp
  emptyDir: {sizeLimit: {{ .Values.cacheSize }}}
{{- end }}

{{- define "leanmoe.podBasics" -}}
automountServiceAccountToken: false
# A Service called `vllm` would otherwise set VLLM_PORT to an address.
enableServiceLinks: false
securityContext: {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.schedulerName }}
schedulerName: {{ . }}
{{- end }}
{{- end }}

{{/* The taint of the GPUs' vendor, unless tolerations are given (an empty list is given, too). */}}
{{- define "leanmoe.tolerations" -}}
{{- if not (kindIs "invalid" .Values.tolerations) }}
{{- with .Values.tolerations }}{{ toYaml . }}{{ end }}
{{- else if gt (int .Values.gpu.count) 0 }}
{{- $domain := first (splitList "/" .Values.gpu.resource) }}
{{- $taint := get (dict "nvidia.com" "nvidia.com/gpu" "amd.com" "amd.com/gpu" "habana.ai" "habana.ai/gaudi") $domain }}
{{- toYaml (list (dict "key" (default .Values.gpu.resource $taint) "operator" "Exists" "effect" "NoSchedule")) }}
{{- end }}
{{- end }}

{{/* Scheduling of the serving pods: node selector, tolerations, affinity, spread. dict "root", "component". */}}
{{- define "leanmoe.placement" -}}
{{- $root := .root }}
{{- with $root.Values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with include "leanmoe.map" (list $root.Values.nodeSelector) }}
nodeSelector: {{- . | nindent 2 }}
{{- end }}
{{- with include "leanmoe.tolerations" $root }}
tolerations: {{- . | nindent 2 }}
{{- end }}
{{- with $root.Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range . }}
  {{- $labels := set (include "leanmoe.selectorLabels" $root | fromYaml) "app.kubernetes.io/component" $.component }}
  {{- $own := dict "labelSelector" (dict "matchLabels" $labels) }}
  {{- if not $root.Values.multiNode.enabled }}
  {{- $_ := set $own "matchLabelKeys" (list "pod-template-hash") }}
  {{- end }}
  {{- range $key, $value := . }}
  {{- $_ := set $own $key $value }}
  {{- end }}
  - {{ toYaml $own | nindent 4 | trim }}
  {{- end }}
{{- end }}
{{- with $root.Values.resourceClaims }}
resourceClaims: {{- toYaml . | nindent 2 }}
{{- end }}
{{- if $root.Values.hostNetwork }}
hostNetwork: true
{{- end }}
{{- with default (ternary "ClusterFirstWithHostNet" "" $root.Values.hostNetwork) $root.Values.dnsPolicy }}
dnsPolicy: {{ . }}
{{- end }}
{{- end }}

{{- define "leanmoe.podMetadata" -}}
{{- $root := .root -}}
{{- $digest := printf "%s %s" (include "leanmoe.settings" $root) (include "leanmoe.files" $root) | sha256sum -}}
annotations:
  {{- include "leanmoe.map" (list $root.Values.podAnnotations (dict "checksum/config" $digest)) | nindent 2 }}
labels:
  {{- include "leanmoe.podLabels" (list $root .component $root.Values.podLabels) | nindent 2 }}
{{- end }}

{{/* Labels of a pod, without the chart's version: a new one alone is no reason to start anew. list root, component, its own. */}}
{{- define "leanmoe.podLabels" -}}
{{- $root := index . 0 }}
{{- $own := omit (include "leanmoe.chartLabels" $root | fromYaml) "helm.sh/chart" "app.kubernetes.io/managed-by" }}
{{- $component := dict "app.kubernetes.io/component" (index . 1) }}
{{- include "leanmoe.map" (list $own $component $root.Values.commonLabels (index . 2)) }}
{{- end }}
