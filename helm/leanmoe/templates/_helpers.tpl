{{/* Names and labels. */}}
{{- define "leanmoe.name" -}}
{{- include "leanmoe.cut" (list 63 (default .Chart.Name .Values.nameOverride)) }}
{{- end }}

{{/* A name of at most so many characters; what is cut off lives on as a digest, so that two long names stay two. */}}
{{- define "leanmoe.cut" -}}
{{- $length := index . 0 | int }}
{{- $name := index . 1 }}
{{- if le (len $name) $length }}
{{- $name }}
{{- else }}
{{- printf "%s-%s" ($name | trunc (int (sub $length 9)) | trimSuffix "-" | trimSuffix ".") ($name | sha256sum | trunc 8) }}
{{- end }}
{{- end }}

{{/* 40 characters leave room for what resources and their pods append: a label takes 63. */}}
{{- define "leanmoe.fullname" -}}
{{- $name := printf "%s-%s" .Release.Name (include "leanmoe.name" .) }}
{{- if .Values.fullnameOverride }}
{{- $name = .Values.fullnameOverride }}
{{- else if contains (include "leanmoe.name" .) .Release.Name }}
{{- $name = .Release.Name }}
{{- end }}
{{- include "leanmoe.cut" (list 40 $name) }}
{{- end }}

{{- define "leanmoe.selectorLabels" -}}
app.kubernetes.io/name: {{ include "leanmoe.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end }}

{{/* A value as text: Go would write 1000000 as 1e+06. */}}
{{- define "leanmoe.text" -}}
{{- if kindIs "string" . }}{{ . }}{{ else if not (kindIs "invalid" .) }}{{ toJson . }}{{ end }}
{{- end }}

{{/* Maps of names to text as one map; the later win, and no key stands twice. */}}
{{- define "leanmoe.map" -}}
{{- $all := dict }}
{{- range $one := . }}
{{- range $name, $value := $one }}
{{- $_ := set $all $name (include "leanmoe.text" $value) }}
{{- end }}
{{- end }}
{{- with $all }}{{ toYaml . }}{{ end }}
{{- end }}

{{- define "leanmoe.chartLabels" -}}
{{ include "leanmoe.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: leanmoe
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "leanmoe.labels" -}}
{{- include "leanmoe.map" (list (include "leanmoe.chartLabels" . | fromYaml) .Values.commonLabels) }}
{{- end }}

{{/* Labels of one resource: the chart's, everybody's and its own. list root, its own. */}}
{{- define "leanmoe.labelsAnd" -}}
{{- $root := index . 0 }}
{{- include "leanmoe.map" (list (include "leanmoe.chartLabels" $root | fromYaml) $root.Values.commonLabels (index . 1)) }}
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

{{/* Whether the pods have GPUs, of a device plugin or by resource claims. */}}
{{- define "leanmoe.devices" -}}
{{- if or (gt (int .Values.gpu.count) 0) .Values.resourceClaims }}true{{ end }}
{{- end }}

{{/* Without a tag: the image of this version for GPUs, or for none. */}}
{{- define "leanmoe.image" -}}
{{- $tag := printf "%s-%s" .Chart.AppVersion (ternary "cuda" "cpu" (include "leanmoe.devices" . | eq "true")) }}
{{- include "leanmoe.imageOf" (dict "image" .Values.image "default" $tag) }}
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
