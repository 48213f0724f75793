{{- define "headwater.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "headwater.peers" -}}
{{ include "headwater.fullname" . }}-peers
{{- end -}}

{{- define "headwater.secret" -}}
{{ .Values.existingSecret | default (include "headwater.fullname" .) }}
{{- end -}}

{{- define "headwater.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "headwater.fullname" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end -}}

{{- define "headwater.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}

{{- define "headwater.selectorLabels" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: engine
{{- end -}}

{{- define "headwater.labels" -}}
{{ include "headwater.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{/* The path of the configuration file in a pod. */}}
{{- define "headwater.config" -}}
/etc/headwater/config/headwater.toml
{{- end -}}

{{/* Sets the owner of what a pod writes, and takes all rights that the program does not need. */}}
{{- define "headwater.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
# The group may read the files of the Secret, and write to the volume.
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: { type: RuntimeDefault }
{{- end -}}

{{- define "headwater.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end -}}

{{- define "headwater.isAutoscaled" -}}
{{- if or .Values.autoscaling.hpa.enabled .Values.autoscaling.keda.enabled -}}true{{- end -}}
{{- end -}}

{{/* The greatest number of pods that the values allow. */}}
{{- define "headwater.maxReplicas" -}}
{{- if include "headwater.isAutoscaled" . -}}
{{- max (int .Values.replicas) (int .Values.autoscaling.maxReplicas) -}}
{{- else -}}
{{- int .Values.replicas -}}
{{- end -}}
{{- end -}}

{{/* Not empty if there can be several processes. */}}
{{- define "headwater.isCluster" -}}
{{- if gt (include "headwater.maxReplicas" . | int) 1 -}}true{{- end -}}
{{- end -}}

{{/* Fails on values that do not fit together, which the schema cannot express. */}}
{{- define "headwater.validate" -}}
{{- $v := .Values -}}
{{- $most := include "headwater.maxReplicas" . | int -}}
{{- if gt (mul $v.workers $most) 64 -}}
{{- fail (printf "workers: at most 64 for all replicas together, but there are up to %d with %d each: state is divided into 64 shards" $most (int $v.workers)) -}}
{{- end -}}
{{- if le (int $v.terminationGracePeriodSeconds) (int $v.shutdownTimeout) -}}
{{- fail (printf "terminationGracePeriodSeconds: %d is not above shutdownTimeout, %d: the pod would be killed before it has finished what it read" (int $v.terminationGracePeriodSeconds) (int $v.shutdownTimeout)) -}}
{{- end -}}
{{- if regexMatch "(?m)^\\s*\\[\\s*http\\s*\\]" $v.config -}}
{{- fail "config: the chart sets the section [http]; use the values `http.port`, `http.tokenKey` and `http.insecure`" -}}
{{- end -}}
{{- if regexMatch "(?m)^\\s*shutdown_timeout\\s*=" $v.config -}}
{{- fail "config: the chart sets limits.shutdown_timeout; use the value `shutdownTimeout`" -}}
{{- end -}}
{{- if and $v.secrets $v.existingSecret -}}
{{- fail "secrets: a Secret of your own (existingSecret) already has them; set one of the two" -}}
{{- end -}}
{{- if and $v.autoscaling.hpa.enabled $v.autoscaling.keda.enabled -}}
{{- fail "autoscaling: an HPA and a ScaledObject would both set the number of pods; enable one of the two" -}}
{{- end -}}
{{- if include "headwater.isAutoscaled" . -}}
{{- $least := include "headwater.minReplicas" . | int -}}
{{- if lt (int $v.autoscaling.maxReplicas) (max $least 1 | int) -}}
{{- fail (printf "autoscaling.maxReplicas: %d is below the minimum, %d" (int $v.autoscaling.maxReplicas) $least) -}}
{{- end -}}
{{- if and $v.autoscaling.hpa.enabled (lt $least 1) -}}
{{- fail "autoscaling.minReplicas: an HPA cannot stop the last pod; use autoscaling.keda, or a minimum of 1" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "headwater.minReplicas" -}}
{{- if kindIs "invalid" .Values.autoscaling.minReplicas -}}
{{ .Values.replicas }}
{{- else -}}
{{ .Values.autoscaling.minReplicas }}
{{- end -}}
{{- end -}}
