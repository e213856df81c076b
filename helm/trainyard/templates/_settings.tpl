{{/* The operator's settings as environment variables. Lists and objects are JSON. */}}
{{- define "trainyard.settings" -}}
{{- $name := include "trainyard.fullname" . -}}
{{- $services := .Values.services -}}
- {name: TRAINYARD_LEASE_NAME, value: {{ $name }}-operator}
- {name: TRAINYARD_LEASE_SECONDS, value: {{ .Values.operator.leaseSeconds | int64 | quote }}}
- {name: TRAINYARD_WATCH_NAMESPACES, value: {{ join "," .Values.watchNamespaces | quote }}}
- {name: TRAINYARD_WATCH_NODES, value: {{ empty .Values.watchNamespaces | quote }}}
- {name: TRAINYARD_WORKERS, value: {{ .Values.operator.workers | int64 | quote }}}
- {name: TRAINYARD_RESYNC_SECONDS, value: {{ .Values.operator.resyncSeconds | int64 | quote }}}
- {name: TRAINYARD_KEEP_FINISHED_SECONDS, value: {{ .Values.operator.keepFinishedSeconds | int64 | quote }}}
- {name: TRAINYARD_LOST_NODE_SECONDS, value: {{ .Values.operator.lostNodeSeconds | int64 | quote }}}
- {name: TRAINYARD_LOG_LEVEL, value: {{ .Values.operator.logLevel | quote }}}
- {name: TRAINYARD_LOG_FORMAT, value: {{ .Values.operator.logFormat | quote }}}
{{- if .Values.operator.settings }}
- {name: TRAINYARD_SETTINGS_FILE, value: /etc/trainyard/settings/settings.yaml}
{{- end }}
- {name: TRAINYARD_REPLICAS, value: {{ max 1 (.Values.replicas | int64) | quote }}}
- {name: TRAINYARD_PROGRESS_WRITES_PER_SECOND, value: {{ .Values.intake.progressWritesPerSecond | quote }}}
- {name: TRAINYARD_INTAKE_URL, value: {{ printf "https://%s-intake.%s.svc:8443" $name .Release.Namespace | quote }}}
- {name: TRAINYARD_INTAKE_SECRET, value: {{ $name }}-intake-tls}
- {name: TRAINYARD_REPORT_SECONDS, value: {{ .Values.intake.reportSeconds | quote }}}
{{- if include "trainyard.certificateSecretName" . }}
- {name: TRAINYARD_INTAKE_CERTIFICATE_DIR, value: /etc/trainyard/intake}
{{- end }}
- {name: TRAINYARD_TRAINER_IMAGE, value: {{ include "trainyard.image" (list $services.image .) | quote }}}
{{- with $services.image.pullPolicy }}
- {name: TRAINYARD_TRAINER_PULL_POLICY, value: {{ . }}}
{{- end }}
- {name: TRAINYARD_DEFAULT_CPU, value: {{ $services.cpu | quote }}}
- {name: TRAINYARD_DEFAULT_MEMORY, value: {{ $services.memory | quote }}}
- {name: TRAINYARD_DEFAULT_SHARED_MEMORY, value: {{ $services.sharedMemory | quote }}}
{{- with $services.ephemeralStorage }}
- {name: TRAINYARD_DEFAULT_EPHEMERAL_STORAGE, value: {{ . | quote }}}
{{- end }}
- {name: TRAINYARD_DEFAULT_SECRET_NAMES, value: {{ toJson $services.secretNames | quote }}}
- {name: TRAINYARD_DEFAULT_SERVICE, value: {{ toJson $services.template | quote }}}
- {name: TRAINYARD_TRAINER_ENV, value: {{ toJson $services.env | quote }}}
- {name: TRAINYARD_PREEMPTIBLE_TOLERATIONS, value: {{ toJson $services.preemptible.tolerations | quote }}}
- {name: TRAINYARD_PREEMPTIBLE_NODE_SELECTOR, value: {{ toJson $services.preemptible.nodeSelector | quote }}}
- {name: TRAINYARD_MACHINE_TYPES, value: {{ toJson $services.machineTypes | quote }}}
- {name: TRAINYARD_HOST_PATH_PREFIXES, value: {{ toJson $services.hostPathPrefixes | quote }}}
- {name: TRAINYARD_RUN_AS_USER, value: {{ ternary ($services.runAsUser | int64) "null" (not (empty $services.runAsUser)) | quote }}}
{{- end }}

{{/* The Secret with the intake's certificate when somebody else makes it; empty: the operator makes its own. */}}
{{- define "trainyard.certificateSecretName" -}}
{{- if .Values.intake.certManager.create }}{{ include "trainyard.fullname" . }}-intake-cert
{{- else }}{{ .Values.intake.certificateSecretName }}
{{- end }}
{{- end }}
