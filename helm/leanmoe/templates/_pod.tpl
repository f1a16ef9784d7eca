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
{{- end }}

{{/* Scheduling of the serving pods: node selector, tolerations, affinity, spread. dict "root", "component". */}}
{{- define "leanmoe.placement" -}}
{{- $root := .root }}
{{- with $root.Values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with $root.Values.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $root.Values.topologySpreadConstraints }}
topologySpreadConstraints:
  {{- range . }}
  - {{ toYaml . | nindent 4 | trim }}
    labelSelector:
      matchLabels:
        {{- include "leanmoe.selectorLabels" $root | nindent 8 }}
        app.kubernetes.io/component: {{ $.component }}
    {{- if not $root.Values.multiNode.enabled }}
    matchLabelKeys: [pod-template-hash]
    {{- end }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "leanmoe.podMetadata" -}}
{{- $root := .root -}}
annotations:
  checksum/config: {{ printf "%s %s" (include "leanmoe.settings" $root) (include "leanmoe.files" $root) | sha256sum }}
  {{- with $root.Values.podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
labels:
  {{- include "leanmoe.selectorLabels" $root | nindent 2 }}
  app.kubernetes.io/component: {{ .component }}
  app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
  app.kubernetes.io/part-of: leanmoe
  {{- with $root.Values.commonLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- with $root.Values.podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
