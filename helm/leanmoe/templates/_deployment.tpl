{{/* A volume that only one node can mount cannot be shared by the old pod and the new one. */}}
{{- define "leanmoe.strategy" -}}
{{- if .Values.strategy }}
{{- toYaml .Values.strategy }}
{{- else if include "leanmoe.shared" . -}}
type: RollingUpdate
rollingUpdate: {maxSurge: 1, maxUnavailable: 0}
{{- else -}}
type: Recreate
{{- end }}
{{- end }}

{{- define "leanmoe.progressSeconds" -}}
{{- $before := 0 }}
{{- if and .Values.prepare.enabled (not .Values.prepare.hook) }}
{{- $before = int .Values.prepare.activeDeadlineSeconds }}
{{- else if ne .Values.model.source.kind "none" }}
{{- $before = 7200 }}
{{- end }}
{{- add (int .Values.probes.startup.seconds) $before 600 }}
{{- end }}
