{{/* Names, labels, volumes and environment variables that would break what the chart makes. */}}
{{- define "leanmoe.validateNames" -}}
{{- $name := include "leanmoe.fullname" . }}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) }}
{{- fail (printf "the resources would be called %q: a Service takes lower-case letters, digits and dashes, a letter first; set fullnameOverride to such a name" $name) }}
{{- end }}
{{- if not (regexMatch "^[A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?$" (include "leanmoe.name" .)) }}
{{- fail (printf "nameOverride is %q, which is no value of a label: use letters, digits and dashes" .Values.nameOverride) }}
{{- end }}
{{- end }}

{{/* Selectors and Helm itself find what they look for by these. */}}
{{- define "leanmoe.validateLabels" -}}
{{- $kept := list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" "app.kubernetes.io/managed-by" "helm.sh/chart" }}
{{- $rule := .Values.prometheusRule }}
{{- $maps := dict "commonLabels" .Values.commonLabels "podLabels" .Values.podLabels "prepare.podLabels" .Values.prepare.podLabels "tests.podLabels" .Values.tests.podLabels "service.labels" .Values.service.labels "serviceMonitor.labels" .Values.serviceMonitor.labels "prometheusRule.labels" $rule.labels "dashboards.labels" .Values.dashboards.labels }}
{{- range $where, $labels := $maps }}
{{- range $name, $value := $labels }}
{{- if has $name $kept }}
{{- fail (printf "%s.%s is set by the chart, whose selectors count on it: choose another name" $where $name) }}
{{- end }}
{{- if not (regexMatch "^(([A-Za-z0-9]([-._A-Za-z0-9]{0,61}[A-Za-z0-9])?)?)$" (include "leanmoe.text" $value)) }}
{{- fail (printf "%s.%s is %q, which is no value of a label: use at most 63 letters, digits, dashes, dots and underscores, a letter or digit first and last" $where $name (include "leanmoe.text" $value)) }}
{{- end }}
{{- end }}
{{- end }}
{{- range $name := list "namespace" "job" "release" }}
{{- if hasKey $rule.alertLabels $name }}
{{- fail (printf "prometheusRule.alertLabels.%s is set by the chart, which tells releases apart by it: choose another name" $name) }}
{{- end }}
{{- end }}
{{- end }}

{{/* What would stand in a ConfigMap or a manifest for everybody to read. */}}
{{- define "leanmoe.isSecret" -}}
{{- if regexMatch "(?i)(TOKEN|KEYS?|PASSWORD|PASSWD|SECRET|CREDENTIALS)$" . }}true{{ end }}
{{- end }}

{{- define "leanmoe.validateSecrets" -}}
{{- $plain := dict "server.env" (dict "maps" .Values.server.env "instead" "server.extraEnv with valueFrom, or server.envFrom") "model.source.objectStore.env" (dict "maps" .Values.model.source.objectStore.env "instead" "model.source.objectStore.existingSecret") }}
{{- range $where, $one := $plain }}
{{- range $name, $_ := $one.maps }}
{{- if include "leanmoe.isSecret" $name }}
{{- fail (printf "%s.%s looks like a secret and would stand in plain text: put it into a Secret and name that in %s" $where $name $one.instead) }}
{{- end }}
{{- end }}
{{- end }}
{{- $own := list "VLLM_HOST_IP" "RAY_PORT" "VLLM_PLUGINS" }}
{{- if .Values.secrets.apiKey.name }}
{{- $own = append $own "VLLM_API_KEY" }}
{{- end }}
{{- $seen := list }}
{{- range .Values.server.extraEnv }}
{{- if has .name $own }}
{{- fail (printf "server.extraEnv has %s, which the chart sets: leave it out" .name) }}
{{- end }}
{{- if has .name $seen }}
{{- fail (printf "server.extraEnv has %s twice: leave one out" .name) }}
{{- end }}
{{- $seen = append $seen .name }}
{{- if and (not (kindIs "invalid" .value)) (include "leanmoe.isSecret" .name) }}
{{- fail (printf "server.extraEnv has %s in plain text, which looks like a secret: use valueFrom.secretKeyRef" .name) }}
{{- end }}
{{- end }}
{{- end }}

{{- define "leanmoe.validateVolumes" -}}
{{- $volumes := list "models" "files" "cache" "tmp" "shm" "huggingface-token" "registry-credentials" "admin-key" "key-file" "api" }}
{{- $folders := list "/models" "/scripts" "/cache" "/tmp" "/dev/shm" "/secrets/admin" "/secrets/keys" "/secrets/huggingface" "/secrets/registry" "/secrets/api" }}
{{- $given := list }}
{{- range .Values.extraVolumes }}
{{- if has .name $volumes }}
{{- fail (printf "extraVolumes has %s, a volume of the chart: choose another name" .name) }}
{{- end }}
{{- if has .name $given }}
{{- fail (printf "extraVolumes has %s twice: leave one out" .name) }}
{{- end }}
{{- $given = append $given .name }}
{{- end }}
{{- range .Values.extraVolumeMounts }}
{{- if not (has .name (concat $volumes $given)) }}
{{- fail (printf "extraVolumeMounts has %s, and extraVolumes has no such volume: add it there" .name) }}
{{- end }}
{{- $path := trimSuffix "/" .mountPath }}
{{- if has $path $folders }}
{{- fail (printf "extraVolumeMounts mounts something at %s, where the chart has a mount: choose another path" $path) }}
{{- end }}
{{- $folders = append $folders $path }}
{{- end }}
{{- $containers := list "server" "fetch-model" "wait-for-model" }}
{{- range concat (default list .Values.extraInitContainers) (default list .Values.extraContainers) }}
{{- if has .name $containers }}
{{- fail (printf "a container is called %s already: give the one in extraContainers or extraInitContainers another name" .name) }}
{{- end }}
{{- $containers = append $containers .name }}
{{- end }}
{{- $shm := include "leanmoe.bytes" .Values.shmSize }}
{{- $memory := include "leanmoe.bytes" (dig "limits" "memory" "" .Values.resources) }}
{{- if and $shm $memory (gt (float64 $shm) (float64 $memory)) }}
{{- fail (printf "shmSize is %s and resources.limits.memory is %v, which it counts towards: raise the limit or lower shmSize" .Values.shmSize .Values.resources.limits.memory) }}
{{- end }}
{{- end }}

{{/* Kubernetes wants as many devices requested as allowed. */}}
{{- define "leanmoe.validateDevices" -}}
{{- $name := .Values.gpu.resource }}
{{- range $where, $one := dict "requests" .Values.resources.requests "limits" .Values.resources.limits }}
{{- $given := get (default dict $one) $name }}
{{- if and $given (ne (include "leanmoe.text" $given) (include "leanmoe.text" $.Values.gpu.count)) }}
{{- fail (printf "resources.%s has %s of %s, and gpu.count is %d: set gpu.count alone" $where (include "leanmoe.text" $given) $name (int $.Values.gpu.count)) }}
{{- end }}
{{- end }}
{{- end }}

{{/* What asks for more than it may use: such pods are never made, and a Deployment does not say so. */}}
{{- define "leanmoe.validateResources" -}}
{{- $all := dict "resources" .Values.resources "prepare.resources" .Values.prepare.resources "model.source.resources" .Values.model.source.resources "fleet.resources" .Values.fleet.resources "tests.resources" .Values.tests.resources }}
{{- range $where, $one := $all }}
{{- range $name, $asked := default dict $one.requests }}
{{- $limit := get (default dict $one.limits) $name }}
{{- $least := include "leanmoe.bytes" $asked }}
{{- $most := include "leanmoe.bytes" $limit }}
{{- if and $least $most (gt (float64 $least) (float64 $most)) }}
{{- fail (printf "%s.requests.%s is %s and limits.%s is %s: a request must not be larger" $where $name (include "leanmoe.text" $asked) $name (include "leanmoe.text" $limit)) }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

{{/* Bytes of a quantity such as 8Gi; empty for what is none. */}}
{{- define "leanmoe.bytes" -}}
{{- $text := include "leanmoe.text" . }}
{{- if regexMatch "^[0-9]+([.][0-9]+)?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$" $text }}
{{- $unit := regexFind "[A-Za-z]+$" $text }}
{{- $factor := get (dict "m" 0.001 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 "Pi" 1125899906842624) $unit }}
{{- mulf (trimSuffix $unit $text | float64) (default 1 $factor) | printf "%.3f" }}
{{- end }}
{{- end }}

{{/* Milliseconds of one of Prometheus' durations such as 1m30s. */}}
{{- define "leanmoe.milliseconds" -}}
{{- $sum := 0 }}
{{- range regexFindAll "[0-9]+(ms|s|m|h)" . -1 }}
{{- $factor := get (dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000) (regexFind "[a-z]+$" .) }}
{{- $sum = add $sum (mul (regexFind "^[0-9]+" . | int64) $factor) }}
{{- end }}
{{- $sum }}
{{- end }}

{{- define "leanmoe.validateMonitoring" -}}
{{- $monitor := .Values.serviceMonitor }}
{{- if gt (include "leanmoe.milliseconds" $monitor.scrapeTimeout | int64) (include "leanmoe.milliseconds" $monitor.interval | int64) }}
{{- fail (printf "serviceMonitor.scrapeTimeout is %s and interval is %s: Prometheus refuses a timeout above the interval" $monitor.scrapeTimeout $monitor.interval) }}
{{- end }}
{{- end }}
