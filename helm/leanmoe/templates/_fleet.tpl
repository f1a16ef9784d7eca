{{/* One level for all pods of the release: `leanmoe fleet` on the addresses of a headless Service. */}}
{{- define "leanmoe.fleetArguments" -}}
{{- $fleet := .Values.fleet -}}
- fleet
- {{ eq $fleet.kind "job" | ternary "set" "watch" }}
{{- if not (kindIs "invalid" $fleet.level) }}
- --level
- {{ toString $fleet.level | quote }}
{{- else }}
- --max-kld
- {{ toString $fleet.maxKld | quote }}
{{- end }}
- --dns
- {{ printf "%s-fleet.%s.svc" (include "leanmoe.fullname" .) .Release.Namespace }}
- --admin-key-file
- /secrets/admin/key
- --reason
- {{ printf "helm release %s" .Release.Name }}
{{- if ne $fleet.kind "job" }}
- --every
- {{ toString $fleet.everySeconds | quote }}
{{- end }}
{{- end }}

{{- define "leanmoe.fleetPod" -}}
metadata:
  labels:
    {{- include "leanmoe.selectorLabels" . | nindent 4 }}
    app.kubernetes.io/component: fleet
spec:
  {{- include "leanmoe.podBasics" . | nindent 2 }}
  serviceAccountName: {{ include "leanmoe.serviceAccountName" . }}
  restartPolicy: {{ eq .Values.fleet.kind "job" | ternary "Never" "Always" }}
  containers:
    - name: fleet
      image: {{ include "leanmoe.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      command: [leanmoe]
      args:
        {{- include "leanmoe.fleetArguments" . | nindent 8 }}
      resources: {{- toYaml .Values.fleet.resources | nindent 8 }}
      securityContext: {{- toYaml .Values.securityContext | nindent 8 }}
      volumeMounts:
        - {name: admin-key, mountPath: /secrets/admin, readOnly: true}
        - {name: cache, mountPath: /cache}
        - {name: tmp, mountPath: /tmp}
  volumes:
    - name: admin-key
      secret:
        secretName: {{ .Values.secrets.adminKey.name }}
        items: [{key: {{ .Values.secrets.adminKey.key | quote }}, path: key}]
        defaultMode: 0440
    - name: cache
      emptyDir: {sizeLimit: 64Mi}
    - name: tmp
      emptyDir: {sizeLimit: 64Mi}
{{- end }}

{{- define "leanmoe.validateFleet" -}}
{{- $fleet := .Values.fleet }}
{{- if $fleet.enabled }}
{{- if not .Values.secrets.adminKey.name }}
{{- fail "fleet.enabled changes the level of running pods: name the Secret of the admin key in secrets.adminKey" }}
{{- end }}
{{- if eq (kindIs "invalid" $fleet.level) (kindIs "invalid" $fleet.maxKld) }}
{{- fail "fleet.enabled needs one of fleet.level and fleet.maxKld: set one, and leave the other out" }}
{{- end }}
{{- end }}
{{- end }}
