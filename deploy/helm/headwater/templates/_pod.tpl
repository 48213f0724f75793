{{/* The environment of the program: what the chart decides, and the name of the process in its cluster. */}}
{{- define "headwater.env" -}}
- name: HEADWATER_WORKERS
  value: {{ .Values.workers | quote }}
{{- if include "headwater.isCluster" . }}
# The pods of the StatefulSet are the processes; a change of their number is followed.
- name: HEADWATER_PEERS
  value: dns:{{ include "headwater.peers" . }}:{{ .Values.clusterPort }}
- name: HEADWATER_PROCESS
  valueFrom:
    fieldRef: { fieldPath: metadata.name }
- name: HEADWATER_SETTLE
  value: {{ .Values.settleSeconds }}s
{{- end }}
- name: HEADWATER__HTTP__LISTEN
  value: "0.0.0.0:{{ .Values.http.port }}"
{{- if .Values.http.insecure }}
- name: HEADWATER__HTTP__INSECURE
  value: "true"
{{- else }}
- name: HEADWATER__HTTP__TOKEN_FILE
  value: /etc/headwater/secrets/{{ .Values.http.tokenKey }}
{{- end }}
{{- if include "headwater.isCluster" . }}
- name: HEADWATER__CLUSTER__SECRET_FILE
  value: /etc/headwater/secrets/{{ .Values.clusterSecretKey }}
{{- end }}
- name: HEADWATER__LIMITS__SHUTDOWN_TIMEOUT
  value: {{ .Values.shutdownTimeout }}s
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "headwater.mounts" -}}
- { name: config, mountPath: /etc/headwater/config, readOnly: true }
- { name: secrets, mountPath: /etc/headwater/secrets, readOnly: true }
- { name: data, mountPath: /var/lib/headwater }
- { name: tmp, mountPath: /tmp }
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}
