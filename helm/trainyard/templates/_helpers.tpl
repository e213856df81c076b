{{- define "trainyard.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" }}
{{- end }}

{{/* The name of everything: the release's, with the chart's when it does not contain it already. */}}
{{- define "trainyard.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else if contains (include "trainyard.name" .) .Release.Name }}
{{- .Release.Name | replace "." "-" | trunc 40 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "trainyard.name" .) | replace "." "-" | trunc 40 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "trainyard.selectorLabels" -}}
app.kubernetes.io/name: {{ include "trainyard.name" . }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "trainyard.labels" -}}
{{ include "trainyard.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "trainyard.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "trainyard.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- required "serviceAccount.create is false: set serviceAccount.name to the account that the operator runs as" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{/* An image reference: the digest when there is one, else the tag, else the chart's appVersion. */}}
{{- define "trainyard.image" -}}
{{- $image := index . 0 }}{{ $root := index . 1 -}}
{{- if $image.digest }}{{ $image.repository }}@{{ $image.digest }}
{{- else }}{{ $image.repository }}:{{ default $root.Chart.AppVersion $image.tag }}
{{- end }}
{{- end }}

{{/* What the operator does in every namespace that it looks after. */}}
{{- define "trainyard.rules" -}}
# Specs are the users': of the four kinds the operator writes status alone, save what it makes and what it clears away.
- apiGroups: [trainyard.dev]
  resources: [trainingjobs, trainingservices, trainingbudgets, modelversions]
  verbs: [get, list, watch]
- apiGroups: [trainyard.dev]
  resources: [trainingjobs/status, trainingservices/status, trainingbudgets/status, modelversions/status]
  verbs: [patch]
- apiGroups: [trainyard.dev]
  resources: [trainingjobs] # ttlSecondsAfterFinished
  verbs: [delete]
- apiGroups: [trainyard.dev]
  resources: [trainingservices, modelversions] # the default service on first use; the version when a run starts
  verbs: [create]
- apiGroups: [trainyard.dev]
  resources: [trainingjobs/finalizers] # ownerReferences with blockOwnerDeletion
  verbs: [update]
# Changing and deleting is held to those of TrainingServices by the ValidatingAdmissionPolicy.
- apiGroups: [batch]
  resources: [jobs]
  verbs: [get, list, watch, create, patch, delete] # patch: a standby's Job becomes that of the attempt that takes it
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, patch, delete]
# Headless Services: names for the pods of one training over several nodes.
- apiGroups: [""]
  resources: [services]
  verbs: [get, create]
# Written, and read for why a pod does not start.
- apiGroups: [""]
  resources: [events]
  verbs: [get, list, create, patch]
# Why Kueue does not admit a Job, or takes it back.
- apiGroups: [kueue.x-k8s.io]
  resources: [workloads]
  verbs: [list]
{{- end }}
