{{/* The Job: fetch, score, prune and curve are separate containers, so that `kubectl get pod` shows its progress. */}}
{{- define "leanmoe.scalesDown" -}}
{{- $prepare := .Values.prepare }}
{{- if and $prepare.enabled $prepare.scaleDownOnFailure (not $prepare.hook) }}true{{ end }}
{{- end }}

{{- define "leanmoe.prepareStep" -}}
{{- $root := .root -}}
- name: {{ .step }}
  image: {{ include "leanmoe.image" $root }}
  imagePullPolicy: {{ $root.Values.image.pullPolicy }}
  command: [/bin/sh, /scripts/prepare.sh, {{ .step }}]
  {{- with .args }}
  args:
    {{- range . }}
    - {{ include "leanmoe.text" . | quote }}
    {{- end }}
  {{- end }}
  env:
    - {name: MODEL, value: {{ include "leanmoe.sourceModel" $root | quote }}}
    - {name: SCORES, value: {{ include "leanmoe.scores" $root | quote }}}
    - {name: OUTPUT, value: {{ include "leanmoe.prepared" $root | quote }}}
    - name: JOB
      valueFrom: {fieldRef: {fieldPath: "metadata.labels['batch.kubernetes.io/job-name']"}}
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
{{- $prune = concat $prune (list "--ratio" (include "leanmoe.text" $prepare.prune.ratio)) }}
{{- end }}
{{- if $prepare.score.enabled }}
{{- $prune = concat $prune (list "--scores" (include "leanmoe.scores" .)) }}
{{- end }}
{{ include "leanmoe.prepareStep" (dict "root" . "step" "prune" "args" (concat $prune (default list $prepare.prune.extraArgs))) }}
{{- if $prepare.curve.enabled }}
{{- $args := concat (list "--data" $prepare.curve.data) $prepare.curve.extraArgs }}
{{ include "leanmoe.prepareStep" (dict "root" . "step" "curve" "args" $args) }}
{{- end }}
{{- end }}

{{/* A Job cannot be changed: another specification is another Job. */}}
{{- define "leanmoe.prepareJob" -}}
{{- $root := dict "hook" .Values.prepare.hook "Values" .Values "Release" .Release "Chart" .Chart "Files" .Files "Template" .Template }}
{{- printf "%s-prepare-%s" (include "leanmoe.fullname" .) (include "leanmoe.prepareSpec" $root | sha256sum | trunc 8) }}
{{- end }}

{{- define "leanmoe.prepareSpec" -}}
{{- $prepare := .Values.prepare -}}
backoffLimit: {{ int $prepare.backoffLimit }}
activeDeadlineSeconds: {{ int $prepare.activeDeadlineSeconds }}
ttlSecondsAfterFinished: {{ int $prepare.ttlSecondsAfterFinished }}
# What a command refuses, it refuses again.
podFailurePolicy:
  rules:
    - action: FailJob
      onExitCodes: {operator: In, values: [2]}
    # An evicted pod is no failed attempt.
    - action: Ignore
      onPodConditions: [{type: DisruptionTarget, status: "True"}]
template:
  metadata:
    {{- with include "leanmoe.map" (list $prepare.podAnnotations) }}
    annotations: {{- . | nindent 6 }}
    {{- end }}
    labels: {{- include "leanmoe.podLabels" (list . "prepare" $prepare.podLabels) | nindent 6 }}
  spec:
    {{- include "leanmoe.podBasics" . | nindent 4 }}
    {{- if not .hook }}
    serviceAccountName: {{ include "leanmoe.serviceAccountName" . }}
    {{- else if not .Values.serviceAccount.create }}
    serviceAccountName: {{ include "leanmoe.serviceAccountName" . }}
    {{- end }}
    restartPolicy: Never
    {{- with include "leanmoe.map" (list $prepare.nodeSelector) }}
    nodeSelector: {{- . | nindent 6 }}
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
