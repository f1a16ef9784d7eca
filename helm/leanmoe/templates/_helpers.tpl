{{/* Names and labels. */}}
{{- define "leanmoe.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "leanmoe.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "leanmoe.name" .) .Release.Name }}
{{- .Release.Name | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "leanmoe.name" .) | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "leanmoe.selectorLabels" -}}
app.kubernetes.io/name: {{ include "leanmoe.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "leanmoe.labels" -}}
{{ include "leanmoe.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: leanmoe
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "leanmoe.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "leanmoe.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* One image: dict "image" values, "default" tag. */}}
{{- define "leanmoe.imageOf" -}}
{{- if .image.digest }}
{{- printf "%s@%s" .image.repository .image.digest }}
{{- else }}
{{- printf "%s:%s" .image.repository (default .default .image.tag) }}
{{- end }}
{{- end }}

{{- define "leanmoe.image" -}}
{{- include "leanmoe.imageOf" (dict "image" .Values.image "default" .Chart.AppVersion) }}
{{- end }}

{{/* Label matchers in Prometheus for this release only. */}}
{{- define "leanmoe.series" -}}
namespace={{ .Release.Namespace | quote }},job={{ include "leanmoe.fullname" . | quote }}
{{- end }}

{{- define "leanmoe.autoscaled" -}}
{{- if or .Values.autoscaling.hpa.enabled .Values.autoscaling.keda.enabled }}true{{ end }}
{{- end }}

{{- define "leanmoe.targetKind" -}}
{{- if .Values.multiNode.enabled }}LeaderWorkerSet{{ else }}Deployment{{ end }}
{{- end }}

{{- define "leanmoe.targetVersion" -}}
{{- if .Values.multiNode.enabled }}leaderworkerset.x-k8s.io/v1{{ else }}apps/v1{{ end }}
{{- end }}
