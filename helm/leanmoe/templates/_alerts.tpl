{{/* Seconds until a first replica must answer, fetching and preparing included. */}}
{{- define "leanmoe.firstStartSeconds" -}}
{{- default (include "leanmoe.progressSeconds" .) .Values.prometheusRule.thresholds.startSeconds | int }}
{{- end }}

{{/* Seconds until another replica must answer: the model is there, unless each pod has a volume of its own. */}}
{{- define "leanmoe.startSeconds" -}}
{{- $fetch := 0 }}
{{- if and (eq .Values.model.storage.kind "emptyDir") (ne .Values.model.source.kind "none") }}
{{- $fetch = 7200 }}
{{- end }}
{{- default (add (int .Values.probes.startup.seconds) $fetch 600) .Values.prometheusRule.thresholds.startSeconds | int }}
{{- end }}

{{/* Replicas that are wanted at all times. */}}
{{- define "leanmoe.leastReplicas" -}}
{{- if include "leanmoe.autoscaled" . }}{{ int .Values.autoscaling.minReplicas }}{{ else }}{{ int .Values.replicas }}{{ end }}
{{- end }}

{{/* Nobody answers. Where none may be wanted, only if there are pods that should. */}}
{{- define "leanmoe.nobody" -}}
{{- $series := include "leanmoe.series" . }}
{{- if eq (include "leanmoe.leastReplicas" .) "0" -}}
max(up{ {{- $series -}} }) == 0
{{- else -}}
absent(up{ {{- $series -}} } == 1)
{{- end }}
{{- end }}

{{/* Every alert; docs/runbook.md has a section for each. */}}
{{- define "leanmoe.alerts" -}}
{{- $series := include "leanmoe.series" . }}
{{- $limits := .Values.prometheusRule.thresholds }}
{{- $first := include "leanmoe.firstStartSeconds" . }}
{{- $least := include "leanmoe.leastReplicas" . }}
{{- /* Looking back longer than LeanMoENotStarted waits leaves no gap between the two. */}}
{{- $past := printf "[%ds]" (add $first 3600) }}
- name: LeanMoEDown
  severity: critical
  for: 5m
  summary: No replica answers a scrape any more.
  expr: >-
    {{ include "leanmoe.nobody" . }}
    and on () max(max_over_time(up{ {{- $series -}} }{{ $past }}) {{ if eq $least "0" }}and up{ {{- $series -}} } == 0{{ end }}) == 1
- name: LeanMoENotStarted
  severity: critical
  for: {{ $first }}s
  summary: No replica has answered a scrape in the time that a first start may take.
  expr: {{ include "leanmoe.nobody" . }}
- name: LeanMoEReplicaDown
  severity: warning
  for: {{ include "leanmoe.startSeconds" . }}s
  summary: A replica has not answered for longer than a start may take, or there are too few, while others answer.
  expr: >-
    (up{ {{- $series -}} } == 0 {{ if gt (int $least) 1 }}or on () count(up{ {{- $series -}} } == 1) < {{ $least }}{{ end }})
    and on () count(up{ {{- $series -}} } == 1) > 0
- name: LeanMoENotReady
  severity: critical
  for: 2m
  summary: A replica refuses all requests because a layer would not skip or a level is not in force everywhere.
  expr: leanmoe_handshake_complete{ {{- $series -}} } == 0
- name: LeanMoERestarting
  severity: warning
  for: 0m
  summary: A replica's server started more than twice within an hour.
  # Several API processes have no series of one; a counter that begins anew tells of them.
  expr: >-
    max by (pod) (changes(process_start_time_seconds{ {{- $series -}} }[1h])) > 2
    or max by (pod) (resets(vllm:prompt_tokens_total{ {{- $series -}} }[1h])) > 2
- name: LeanMoECountsStale
  severity: warning
  for: 5m
  summary: The workers no longer report what they skip.
  expr: leanmoe_snapshot_age_seconds{ {{- $series -}} } > 60
- name: LeanMoESkippingSavesNothing
  severity: warning
  for: 10m
  summary: A level above 0 is in force and layers compute what they skip.
  expr: >-
    sum by (pod) (leanmoe_wrapped_layers{ {{- $series -}} ,mode="zero"}) > 0
    and on (pod) leanmoe_skip_level{ {{- $series -}} } > 0
- name: LeanMoENonfiniteRouterTokens
  severity: critical
  for: 0m
  summary: Routers gave weights that are not numbers.
  expr: sum by (pod) (increase(leanmoe_nonfinite_router_tokens_total{ {{- $series -}} }[10m])) > 0
- name: LeanMoEQualityBreach
  severity: critical
  for: 0m
  summary: Measured quality fell below its floor and the level was forced down.
  expr: max by (pod) (leanmoe_shadow_breach{ {{- $series -}} }) == 1
- name: LeanMoELevelsDiffer
  severity: warning
  for: 15m
  summary: Replicas run at different skip levels.
  expr: max(leanmoe_skip_level{ {{- $series -}} }) - min(leanmoe_skip_level{ {{- $series -}} }) > 0.005
{{- if not (kindIs "invalid" $limits.skipShare) }}
- name: LeanMoESkipShareOff
  severity: warning
  for: 30m
  summary: The share of skipped assignments is far from the one the curve was measured with.
  expr: >-
    abs(sum(rate(leanmoe_skipped_assignments_total{ {{- $series -}} }[30m]))
    / sum(rate(leanmoe_routed_assignments_total{ {{- $series -}} }[30m])) - {{ include "leanmoe.text" $limits.skipShare }})
    > {{ include "leanmoe.text" $limits.skipShareTolerance }}
{{- end }}
- name: LeanMoEQueueLong
  severity: warning
  for: 10m
  summary: Requests wait for a place in the batch.
  expr: avg(vllm:num_requests_waiting{ {{- $series -}} }) > {{ include "leanmoe.text" $limits.waitingRequests }}
- name: LeanMoEKVCacheFull
  severity: warning
  for: 15m
  summary: The KV cache is nearly full.
  expr: avg(vllm:kv_cache_usage_perc{ {{- $series -}} }) > {{ include "leanmoe.text" $limits.kvUse }}
- name: LeanMoEPreemptions
  severity: warning
  for: 15m
  summary: Requests lose their place in the KV cache and are computed again.
  expr: avg(rate(vllm:num_preemptions_total{ {{- $series -}} }[10m])) > {{ include "leanmoe.text" $limits.preemptionsPerSecond }}
- name: LeanMoESlowFirstToken
  severity: warning
  for: 10m
  summary: One request in twenty waits too long for its first token.
  expr: >-
    histogram_quantile(0.95, sum by (le)
    (rate(vllm:time_to_first_token_seconds_bucket{ {{- $series -}} }[10m]))) > {{ include "leanmoe.text" $limits.firstTokenSeconds }}
- name: LeanMoESlowTokens
  severity: warning
  for: 10m
  summary: One gap between tokens in twenty is too long.
  expr: >-
    histogram_quantile(0.95, sum by (le)
    (rate(vllm:inter_token_latency_seconds_bucket{ {{- $series -}} }[10m]))) > {{ include "leanmoe.text" $limits.interTokenSeconds }}
- name: LeanMoEErrors
  severity: critical
  for: 5m
  summary: Too many requests end in an error of the server.
  expr: >-
    sum(rate(http_requests_total{ {{- $series -}} ,status="5xx"}[5m]))
    / sum(rate(http_requests_total{ {{- $series -}} }[5m])) > {{ include "leanmoe.text" $limits.errorShare }}
{{- end }}
