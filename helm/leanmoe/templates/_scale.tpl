{{/* Scale up at once, scale down slowly and one by one. */}}
{{- define "leanmoe.scaleBehavior" -}}
scaleUp:
  stabilizationWindowSeconds: 0
  policies:
    - {type: Pods, value: 2, periodSeconds: 60}
scaleDown:
  stabilizationWindowSeconds: {{ int .Values.autoscaling.scaleDownSeconds }}
  policies:
    - {type: Pods, value: 1, periodSeconds: 120}
{{- end }}

{{/* Sums over the replicas against a target for each of them, the only kind that KEDA's fallback takes. */}}
{{- define "leanmoe.kedaTriggers" -}}
{{- $scale := .Values.autoscaling }}
{{- $sums := dict "waiting-requests" (list "vllm:num_requests_waiting" $scale.waitingRequests) "kv-use" (list "vllm:kv_cache_usage_perc" $scale.kvUse) }}
{{- range $name := list "waiting-requests" "kv-use" }}
{{- $sum := get $sums $name }}
- type: prometheus
  name: {{ $name }}
  metricType: AverageValue
  metadata:
    serverAddress: {{ $scale.keda.serverAddress | quote }}
    query: {{ printf "sum(%s{%s})" (first $sum) (include "leanmoe.series" $) | quote }}
    threshold: {{ include "leanmoe.text" (last $sum) | quote }}
  {{- with $scale.keda.authenticationRef }}
  authenticationRef: {name: {{ . }}}
  {{- end }}
{{- end }}
{{- end }}
