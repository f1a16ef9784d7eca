{{/* Source and paths of the model. Everything is under /models. */}}
{{- define "leanmoe.shared" -}}
{{- $modes := .Values.model.storage.accessModes }}
{{- if or (ne .Values.model.storage.kind "pvc") (has "ReadWriteMany" $modes) (has "ReadOnlyMany" $modes) }}true{{ end }}
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

{{- define "leanmoe.servedName" -}}
{{- $source := .Values.model.source }}
{{- $known := ternary $source.huggingface.repo .Values.model.path (eq $source.kind "huggingface") }}
{{- default $known .Values.server.servedModelName }}
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
    - {name: {{ $name }}, value: {{ $value | quote }}}
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
