{{/* The Job: fetch, score, prune and curve are separate containers, so that `kubectl get pod` shows its progress. */}}
{{- define "leanmoe.prepareStep" -}}
{{- $root := .root -}}
- name: {{ .step }}
  image: {{ include "leanmoe.image" $root }}
  imagePullPolicy: {{ $root.Values.image.pullPolicy }}
  command: [/bin/sh, /scripts/prepare.sh, {{ .step }}]
  {{- with .args }}
  args:
    {{- range . }}
    - {{ toString . | quote }}
    {{- end }}
  {{- end }}
  env:
    - {name: MODEL, value: {{ include "leanmoe.sourceModel" $root | quote }}}
    - {name: SCORES, value: {{ include "leanmoe.scores" $root | quote }}}
    - {name: OUTPUT, value: {{ include "leanmoe.prepared" $root | quote }}}
  envFrom:
    - configMapRef: {name: {{ include "leanmoe.settingsName" $root }}}
  resources: {{- toYaml $root.Values.prepare.resources | nindent 4 }}
  securityContext: {{- toYaml $root.Values.securityContext | nindent 4 }}
  volumeMounts:
    - {name: models, mountPath: /models}
    {{- include "leanmoe.commonMounts" $root | nindent 4 }}
{{- end }}

{{- define "leanmoe.prepareSteps" -}}
{{- $prepare := .Values.prepare }}
{{- if $prepare.score.enabled }}
{{- $args := concat (list "--data" $prepare.score.data) $prepare.score.extraArgs }}
{{ include "leanmoe.prepareStep" (dict "root" . "step" "score" "args" $args) }}
{{- end }}
{{- $prune := list "--method" $prepare.prune.method }}
{{- if not (kindIs "invalid" $prepare.prune.keep) }}
{{- $prune = concat $prune (list "--keep" (toString (int $prepare.prune.keep))) }}
{{- else if not (kindIs "invalid" $prepare.prune.ratio) }}
{{- $prune = concat $prune (list "--ratio" (toString $prepare.prune.ratio)) }}
{{- end }}
{{- if $prepare.score.enabled }}
{{- $prune = concat $prune (list "--scores" (include "leanmoe.scores" .)) }}
{{- end }}
{{ include "leanmoe.prepareStep" (dict "root" . "step" "prune" "args" (concat $prune $prepare.prune.extraArgs)) }}
{{- if $prepare.curve.enabled }}
{{- $args := concat (list "--data" $prepare.curve.data) $prepare.curve.extraArgs }}
{{ include "leanmoe.prepareStep" (dict "root" . "step" "curve" "args" $args) }}
{{- end }}
{{- end }}

{{- define "leanmoe.prepareSpec" -}}
{{- $prepare := .Values.prepare -}}
backoffLimit: {{ int $prepare.backoffLimit }}
activeDeadlineSeconds: {{ int $prepare.activeDeadlineSeconds }}
ttlSecondsAfterFinished: {{ int $prepare.ttlSecondsAfterFinished }}
template:
  metadata:
    labels:
      {{- include "leanmoe.selectorLabels" . | nindent 6 }}
      app.kubernetes.io/component: prepare
  spec:
    {{- include "leanmoe.podBasics" . | nindent 4 }}
    {{- if not .hook }}
    serviceAccountName: {{ include "leanmoe.serviceAccountName" . }}
    {{- else if not .Values.serviceAccount.create }}
    serviceAccountName: {{ include "leanmoe.serviceAccountName" . }}
    {{- end }}
    restartPolicy: Never
    {{- with $prepare.nodeSelector }}
    nodeSelector: {{- toYaml . | nindent 6 }}
    {{- end }}
    {{- with $prepare.tolerations }}
    tolerations: {{- toYaml . | nindent 6 }}
    {{- end }}
    initContainers:
      {{- with include "leanmoe.fetchContainer" . | trim }}
      {{- . | nindent 6 }}
      {{- end }}
      {{- include "leanmoe.prepareSteps" . | trim | nindent 6 }}
    containers:
      {{- include "leanmoe.prepareStep" (dict "root" . "step" "publish" "args" list) | nindent 6 }}
    volumes:
      {{- include "leanmoe.modelVolume" . | nindent 6 }}
      {{- include "leanmoe.commonVolumes" . | nindent 6 }}
      {{- include "leanmoe.fetchVolumes" . | trim | nindent 6 }}
{{- end }}
