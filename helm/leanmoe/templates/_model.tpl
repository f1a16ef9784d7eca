{{/* Source and paths of the model. Everything is under /models. */}}
{{- define "leanmoe.shared" -}}
{{- $modes := .Values.model.storage.accessModes }}
{{- $read := and (has "ReadOnlyMany" $modes) (not (include "leanmoe.written" .)) }}
{{- if or (ne .Values.model.storage.kind "pvc") (has "ReadWriteMany" $modes) $read }}true{{ end }}
{{- end }}

{{/* Whether anything of the release writes to the model's volume. */}}
{{- define "leanmoe.written" -}}
{{- if or .Values.prepare.enabled (ne .Values.model.source.kind "none") }}true{{ end }}
{{- end }}

{{/* Why the model has no curve, where that is known. */}}
{{- define "leanmoe.noCurve" -}}
{{- $told := .Values.model.hasCurve }}
{{- if .Values.prepare.enabled }}
{{- if not .Values.prepare.curve.enabled }}prepare.curve.enabled is false: set it to true{{ end }}
{{- else if eq (toString $told) "false" }}model.hasCurve is false: measure one with `leanmoe curve` and set model.hasCurve to true
{{- else if and (kindIs "invalid" $told) (eq .Values.model.source.kind "huggingface") }}models from the hub have none: set prepare.enabled, or model.hasCurve to true if `leanmoe curve` has measured this one
{{- end }}
{{- end }}

{{- define "leanmoe.claimName" -}}
{{- default (printf "%s-models" (include "leanmoe.fullname" .)) .Values.model.storage.existingClaim }}
{{- end }}

{{- define "leanmoe.origin" -}}
{{- $source := .Values.model.source }}
{{- if eq $source.kind "huggingface" }}{{ $source.huggingface.repo }}
{{- else if eq $source.kind "objectStore" }}{{ $source.objectStore.remote }}
{{- else if eq $source.kind "oci" }}{{ $source.oci.reference }}
{{- end }}
{{- end }}

{{/* Directory of the source checkpoint: each origin has its own. */}}
{{- define "leanmoe.sourceModel" -}}
{{- $source := .Values.model.source }}
{{- if eq $source.kind "none" -}}
/models/{{ .Values.model.path }}
{{- else -}}
{{- $revision := ternary $source.huggingface.revision "" (eq $source.kind "huggingface") }}
{{- $key := printf "%s %s %s" $source.kind (include "leanmoe.origin" .) $revision }}
{{- printf "/models/%s-%s" .Values.model.path ($key | sha256sum | trunc 8) }}
{{- end }}
{{- end }}

{{- define "leanmoe.scores" -}}
{{- $key := list (include "leanmoe.sourceModel" .) .Values.prepare.score | toJson }}
{{- printf "/models/scores-%s" ($key | sha256sum | trunc 8) }}
{{- end }}

{{/* Directory of the lean checkpoint: other settings get another one, so a served checkpoint is never changed. */}}
{{- define "leanmoe.prepared" -}}
{{- $prepare := .Values.prepare }}
{{- $key := list (include "leanmoe.sourceModel" .) $prepare.score $prepare.prune $prepare.curve | toJson }}
{{- printf "/models/%s-%s" $prepare.output ($key | sha256sum | trunc 8) }}
{{- end }}

{{- define "leanmoe.servedModel" -}}
{{- if .Values.prepare.enabled }}{{ include "leanmoe.prepared" . }}{{ else }}{{ include "leanmoe.sourceModel" . }}{{ end }}
{{- end }}

{{/* Names in the API, the first one being that of the answers. */}}
{{- define "leanmoe.servedNames" -}}
{{- $source := .Values.model.source }}
{{- $known := ternary $source.huggingface.repo .Values.model.path (eq $source.kind "huggingface") }}
{{- $vllm := default dict .Values.server.vllm }}
{{- $passed := default (get $vllm "served-model-name") (get $vllm "served_model_name") }}
{{- $names := default (default $known $passed) .Values.server.servedModelName }}
{{- range $name := kindIs "slice" $names | ternary $names (list $names) }}
- {{ include "leanmoe.text" $name | quote }}
{{- end }}
{{- end }}

{{- define "leanmoe.servedName" -}}
{{- include "leanmoe.servedNames" . | fromYamlArray | first }}
{{- end }}

{{- define "leanmoe.modelVolume" -}}
{{- $storage := .Values.model.storage -}}
- name: models
  {{- if eq $storage.kind "pvc" }}
  persistentVolumeClaim: {claimName: {{ include "leanmoe.claimName" . | quote }}}
  {{- else if eq $storage.kind "image" }}
  image: {reference: {{ $storage.image.reference | quote }}, pullPolicy: {{ $storage.image.pullPolicy }}}
  {{- else }}
  emptyDir: {sizeLimit: {{ $storage.size }}}
  {{- end }}
{{- end }}

{{/* The init container that fetches the model; empty if it is already on the volume. */}}
{{- define "leanmoe.fetchContainer" -}}
{{- $source := .Values.model.source }}
{{- if ne $source.kind "none" }}
- name: fetch-model
  {{- if eq $source.kind "huggingface" }}
  image: {{ include "leanmoe.image" . }}
  imagePullPolicy: {{ .Values.image.pullPolicy }}
  {{- else }}
  {{- $image := (get $source $source.kind).image }}
  image: {{ include "leanmoe.imageOf" (dict "image" $image "default" "") }}
  imagePullPolicy: IfNotPresent
  {{- end }}
  command: [/bin/sh, /scripts/fetch.sh]
  {{- if eq $source.kind "huggingface" }}
  {{- with $source.huggingface.exclude }}
  args:
    {{- range . }}
    - --exclude
    - {{ . | quote }}
    {{- end }}
  {{- end }}
  {{- else if and (eq $source.kind "oci") $source.oci.existingSecret }}
  args: [--registry-config, /secrets/registry/.dockerconfigjson]
  {{- end }}
  env:
    - {name: KIND, value: {{ $source.kind }}}
    - {name: ORIGIN, value: {{ include "leanmoe.origin" . | quote }}}
    - {name: TARGET, value: {{ include "leanmoe.sourceModel" . | quote }}}
    - {name: HF_HUB_OFFLINE, value: "0"}
    {{- if .Values.prepare.enabled }}
    - {name: OUTPUT, value: {{ include "leanmoe.prepared" . | quote }}}
    - name: JOB
      valueFrom: {fieldRef: {fieldPath: "metadata.labels['batch.kubernetes.io/job-name']"}}
    {{- end }}
    {{- if eq $source.kind "huggingface" }}
    - {name: REVISION, value: {{ $source.huggingface.revision | quote }}}
    {{- with $source.huggingface.endpoint }}
    - {name: HF_ENDPOINT, value: {{ . | quote }}}
    {{- end }}
    {{- if .Values.secrets.huggingfaceToken.name }}
    - {name: HF_TOKEN_PATH, value: /secrets/huggingface/token}
    {{- end }}
    {{- end }}
    {{- if eq $source.kind "objectStore" }}
    {{- range $name, $value := $source.objectStore.env }}
    - {name: {{ $name }}, value: {{ include "leanmoe.text" $value | quote }}}
    {{- end }}
    {{- end }}
  envFrom:
    - configMapRef: {name: {{ include "leanmoe.settingsName" . }}}
    {{- if and (eq $source.kind "objectStore") $source.objectStore.existingSecret }}
    - secretRef: {name: {{ $source.objectStore.existingSecret }}}
    {{- end }}
  resources: {{- toYaml $source.resources | nindent 4 }}
  securityContext: {{- toYaml .Values.securityContext | nindent 4 }}
  volumeMounts:
    - {name: models, mountPath: /models}
    {{- include "leanmoe.commonMounts" . | nindent 4 }}
    {{- if and (eq $source.kind "huggingface") .Values.secrets.huggingfaceToken.name }}
    - {name: huggingface-token, mountPath: /secrets/huggingface, readOnly: true}
    {{- end }}
    {{- if and (eq $source.kind "oci") $source.oci.existingSecret }}
    - {name: registry-credentials, mountPath: /secrets/registry, readOnly: true}
    {{- end }}
{{- end }}
{{- end }}

{{/* Volumes of the fetching init container only. */}}
{{- define "leanmoe.fetchVolumes" -}}
{{- $source := .Values.model.source }}
{{- if and (eq $source.kind "huggingface") .Values.secrets.huggingfaceToken.name }}
- name: huggingface-token
  secret:
    secretName: {{ .Values.secrets.huggingfaceToken.name }}
    items: [{key: {{ .Values.secrets.huggingfaceToken.key | quote }}, path: token}]
    defaultMode: 0440
{{- end }}
{{- if and (eq $source.kind "oci") $source.oci.existingSecret }}
- name: registry-credentials
  secret: {secretName: {{ $source.oci.existingSecret }}, defaultMode: 0440}
{{- end }}
{{- end }}
