{{/* Levels, the governor and shadow quality: what `leanmoe serve` would refuse when it starts. */}}
{{- define "leanmoe.validateLevels" -}}
{{- $server := .Values.server }}
{{- $level := $server.skipLevel }}
{{- if and (not (kindIs "invalid" $level)) (gt (float64 $level) (float64 $server.maxSkipLevel)) }}
{{- fail (printf "server.skipLevel is %v and server.maxSkipLevel is %v: the first must not be larger" $level $server.maxSkipLevel) }}
{{- end }}
{{- $fleet := .Values.fleet.level }}
{{- if and .Values.fleet.enabled (not (kindIs "invalid" $fleet)) (gt (default 0 $fleet | float64) (float64 $server.maxSkipLevel)) }}
{{- fail (printf "fleet.level is %v and server.maxSkipLevel is %v: the first must not be larger" $fleet $server.maxSkipLevel) }}
{{- end }}
{{- if and (not (kindIs "invalid" $server.unionBudget)) (not (kindIs "invalid" $server.maxKld)) }}
{{- fail "server.maxKld promises what a curve measured, and none knows what server.unionBudget costs: leave one of them out" }}
{{- end }}
{{- $without := include "leanmoe.noCurve" . | trim }}
{{- if $without }}
{{- $kld := dict "server.maxKld" $server.maxKld "server.governor.maxKld" $server.governor.maxKld }}
{{- $levels := dict "server.skipLevel" $level "server.governor.maxLevel" $server.governor.maxLevel }}
{{- if .Values.fleet.enabled }}
{{- $_ := set $kld "fleet.maxKld" .Values.fleet.maxKld }}
{{- $_ := set $levels "fleet.level" .Values.fleet.level }}
{{- end }}
{{- range $where, $value := $kld }}
{{- if not (kindIs "invalid" $value) }}
{{- fail (printf "%s needs a model with a measured curve, and %s" $where $without) }}
{{- end }}
{{- end }}
{{- range $where, $value := $levels }}
{{- if and (not (kindIs "invalid" $value)) (not (has (float64 $value) (list 0.0 1.0))) }}
{{- fail (printf "%s is %v, and levels between 0 and 1 need a model with a measured curve; %s" $where $value $without) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{- define "leanmoe.validateGovernor" -}}
{{- $server := .Values.server }}
{{- $governor := $server.governor }}
{{- $is := "invalid" }}
{{- if not (include "leanmoe.governor" .) }}
{{- range $name, $value := omit $governor "mode" }}
{{- if not (kindIs $is $value) }}
{{- fail (printf "server.governor.%s is set and the governor is off: set server.governor.mode to observe or act, or leave it out" $name) }}
{{- end }}
{{- end }}
{{- else }}
{{- if and (kindIs $is $governor.ttftMs) (kindIs $is $governor.itlMs) }}
{{- fail (printf "server.governor.mode is %s and it has no goal: set server.governor.ttftMs or itlMs" $governor.mode) }}
{{- end }}
{{- if eq (kindIs $is $governor.maxLevel) (kindIs $is $governor.maxKld) }}
{{- fail (printf "server.governor.mode is %s and needs one floor of quality: set one of server.governor.maxLevel and maxKld" $governor.mode) }}
{{- end }}
{{- $floor := default 1 $governor.maxLevel | float64 }}
{{- if and (not (kindIs $is $server.skipLevel)) (le $floor (default 0 $server.skipLevel | float64)) }}
{{- fail (printf "server.governor.maxLevel is %v and server.skipLevel is %v, so the governor could do nothing: raise the first or lower the second" $governor.maxLevel $server.skipLevel) }}
{{- end }}
{{- if gt (default 0 $governor.maxLevel | float64) (float64 $server.maxSkipLevel) }}
{{- fail (printf "server.governor.maxLevel is %v and server.maxSkipLevel is %v: the first must not be larger" $governor.maxLevel $server.maxSkipLevel) }}
{{- end }}
{{- if ne (kindIs $is $governor.unionBudget) (kindIs $is $governor.memoryBandwidth) }}
{{- fail "server.governor.unionBudget and memoryBandwidth go together: give both or none" }}
{{- end }}
{{- if and (not (kindIs $is $governor.unionBudget)) $server.deterministic }}
{{- fail "server.deterministic refuses the budgets of server.governor.unionBudget: leave one of them out" }}
{{- end }}
{{- if and (not (kindIs $is $governor.unionBudget)) (not (and (kindIs $is $governor.maxKld) (kindIs $is $server.maxKld))) }}
{{- fail "server.governor.unionBudget has a cost that no curve measured, which maxKld promises to bound: leave one of them out" }}
{{- end }}
{{- end }}
{{- if and (eq (float64 $server.shadow.share) 0.0) (not (and (kindIs $is $server.shadow.maxKld) (kindIs $is $server.shadow.tokensPerMinute))) }}
{{- fail "server.shadow.maxKld and tokensPerMinute are about measurements, and server.shadow.share is 0: set the share of answers to score again" }}
{{- end }}
{{- end }}
