"""The objects that the operator makes, as plain dictionaries. Pure functions: the same input gives the same manifest.

What a user writes goes into the pod as data: the RunSpec is an annotation that the trainer reads through a downward-API file.
Environment, command and arguments expand `$(VAR)`, so no user text goes there, save values of `env`, with every `$` doubled.
The pod passes the `restricted` Pod Security Standard and holds one token, bound to it and to the intake's audience.
"""

import posixpath
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from trainyard_api import GROUP
from trainyard_api.execution import Instance
from trainyard_api.report import NEVER_RETRIED, TOKEN_AUDIENCE
from trainyard_api.run import (
    RUN_SPEC_ANNOTATION,
    RUN_SPEC_ENV,
    RUN_SPEC_FILE,
    Intake,
    RunSpec,
)
from trainyard_api.trainingjob import TrainingJobSpec
from trainyard_api.trainingservice import TrainingServiceSpec

from trainyard_operator.decide.kueue import LABEL_DEMAND, LABEL_PRIORITY, LABEL_QUEUE, demand
from trainyard_operator.decide.model import (
    LABEL_ARCHITECTURE,
    LABEL_ATTEMPT,
    LABEL_JOB,
    LABEL_JOB_UID,
    LABEL_MODEL,
    LABEL_RUN,
    LABEL_SERVICE,
    TRAINER_CONTAINER,
    CreateJob,
)
from trainyard_operator.decide.subject import OF_THE_JOB
from trainyard_operator.settings import Settings

Object = dict[str, Any]

TOKEN_FILE = "/var/run/secrets/trainyard.dev/token"  # noqa: S105 a path
TOKEN_SECONDS = 3600

# A pod annotation may be 256 KiB with all others together; etcd takes 1.5 MiB.
MAX_RUN_SPEC_BYTES = 128 * 1024


class ManifestError(ValueError):
    """The spec asks for something that this installation does not allow; the text says what to change."""

    expected = True


@dataclass(frozen=True)
class Owner:
    """The TrainingJob that an object belongs to; of a standby the TrainingService."""

    name: str
    namespace: str
    uid: str

    @property
    def reference(self) -> Object:
        return {
            "apiVersion": f"{GROUP}/v1alpha1",
            "kind": "TrainingJob",
            "name": self.name,
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }


def attempt_job(
    owner: Owner,
    job: TrainingJobSpec,
    service_name: str,
    service: TrainingServiceSpec,
    create: CreateJob,
    intake: Intake,
    settings: Settings,
    priority_class: str | None = None,
) -> Object:
    """The batch/v1 Job of one attempt; `priority_class` is one of Kueue's. Raises `ManifestError`."""
    run = create.run.model_copy(update={"intake": intake})
    labels = attempt_labels(owner, service_name, run)
    subdomain = run.rendezvous.host.split(".")[1] if run.rendezvous else ""
    spec: Object = {
        "backoffLimit": 0,
        "completions": 1,
        "parallelism": 1,
        "podReplacementPolicy": "Failed",
        "podFailurePolicy": pod_failure_policy(),
        "template": {
            "metadata": {"labels": labels, "annotations": POD_ANNOTATIONS | {RUN_SPEC_ANNOTATION: run_spec_text(run)}},
            "spec": pod_spec(
                job,
                service,
                create.instance,
                create.execution.drain_seconds,
                create.active_deadline_seconds,
                settings,
            ),
        },
    }
    if create.instance.nodes > 1:
        # One gang: the pods are named by their index, and one that fails ends them all.
        spec |= {
            "completionMode": "Indexed",
            "completions": create.instance.nodes,
            "parallelism": create.instance.nodes,
        }
        spec["template"]["spec"]["subdomain"] = subdomain
    labels = labels | {LABEL_DEMAND: demand(service, priority_class)}
    if queue := service.queue.kueue_queue_name:
        labels |= {LABEL_QUEUE: queue} | ({LABEL_PRIORITY: priority_class} if priority_class else {})
        spec["suspend"] = True
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": create.attempt.job_name,
            "namespace": owner.namespace,
            "labels": labels,
            "ownerReferences": [owner.reference],
        },
        "spec": spec,
    }


def headless_service(owner: Owner, name: str) -> Object:
    """The Service of a multi-node TrainingService: it gives pods names, before they are ready too, and forwards nothing."""
    reference = owner.reference | {"kind": "TrainingService", "blockOwnerDeletion": False}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name,
            "namespace": owner.namespace,
            "labels": {"app.kubernetes.io/managed-by": "trainyard", LABEL_SERVICE: owner.name},
            "ownerReferences": [reference],
        },
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {LABEL_SERVICE: owner.name}},
    }


def attempt_labels(owner: Owner, service_name: str, run: RunSpec) -> dict[str, str]:
    """Labels of everything that an attempt makes. A slash is no label value: `private/x` becomes `private.x`."""
    return {
        "app.kubernetes.io/name": "trainyard-trainer",
        "app.kubernetes.io/managed-by": "trainyard",
        LABEL_JOB: owner.name,
        LABEL_JOB_UID: owner.uid,
        LABEL_SERVICE: service_name,
        LABEL_MODEL: run.model,
        LABEL_ARCHITECTURE: run.architecture.replace("/", "."),
        LABEL_RUN: str(run.run),
        LABEL_ATTEMPT: str(run.attempt),
    }


def pod_failure_policy() -> Object:
    """Disruptions first (they win over the exit code), then what is never retried, then every other failure.

    With `backoffLimit: 0` every failure ends the Job; the rules only make its reason and message say which it was.
    """
    return {
        "rules": [
            {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
            {
                "action": "FailJob",
                "onExitCodes": {
                    "containerName": TRAINER_CONTAINER,
                    "operator": "In",
                    "values": sorted(int(code) for code in NEVER_RETRIED),
                },
            },
            {
                "action": "FailJob",
                "onExitCodes": {"containerName": TRAINER_CONTAINER, "operator": "NotIn", "values": [0]},
            },
        ]
    }


POD_ANNOTATIONS = {
    "kubectl.kubernetes.io/default-container": TRAINER_CONTAINER,
    # An attempt that is moved starts again from its last checkpoint: it is not to be moved to save a node.
    "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
    "karpenter.sh/do-not-disrupt": "true",
}


def run_spec_text(run: RunSpec) -> str:
    """The RunSpec as an annotation. Raises `ManifestError` when it is larger than a pod can be told."""
    text = run.model_dump_json(by_alias=True, exclude_none=True)
    if len(text.encode()) > MAX_RUN_SPEC_BYTES:
        raise ManifestError(
            f"spec {OF_THE_JOB} takes {len(text.encode())} bytes, more than the {MAX_RUN_SPEC_BYTES} that a pod can be told; "
            "use fewer labels, class weights or sources"
        )
    return text


def pod_spec(
    job: TrainingJobSpec,
    service: TrainingServiceSpec,
    instance: Instance,
    drain_seconds: int,
    deadline_seconds: int | None,
    settings: Settings,
) -> Object:
    """The pod of one execution; its first volume shows what it is told. Raises `ManifestError`."""
    machine = _machine_type(instance, settings)
    volumes, mounts = _volumes(job, service, instance, settings)
    image = job.resources.image or service.image or settings.trainer_image
    container: Object = {
        "name": TRAINER_CONTAINER,
        "image": image,
        "env": _environment(job, service, settings),
        "resources": _resources(instance, service.scaling.concurrency, machine, settings),
        "volumeMounts": mounts,
        # The termination message is the trainer's own record; where it wrote none, the tail of the log says more than nothing.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    if settings.trainer_pull_policy:
        container["imagePullPolicy"] = settings.trainer_pull_policy
    security: Object = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    if settings.run_as_user is not None:
        user = settings.run_as_user
        security |= {"runAsUser": user, "runAsGroup": user, "fsGroup": user, "fsGroupChangePolicy": "OnRootMismatch"}
    spec: Object = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": drain_seconds,
        "securityContext": security,
        "containers": [container],
        "volumes": volumes,
    }
    if deadline_seconds is not None:
        # A backstop that the kubelet enforces even while no operator runs; lowered to the exact value when the trainer runs.
        spec["activeDeadlineSeconds"] = deadline_seconds
    if service.service_account_name:
        spec["serviceAccountName"] = service.service_account_name
    return spec | _placement(instance, machine, settings)


def _placement(instance: Instance, machine: Mapping[str, Any], settings: Settings) -> Object:
    """Where the pod may run: the service's or job's own words, the machine type, and what preemptible nodes ask for."""
    selector = dict(machine.get("nodeSelector") or {})
    tolerations: list[Object] = list(machine.get("tolerations") or ())
    if instance.preemptible:
        selector |= settings.preemptible_node_selector
        tolerations += settings.preemptible_tolerations
    selector |= instance.node_selector or {}
    tolerations += [toleration.to_dict() for toleration in instance.tolerations or ()]
    placement: Object = {}
    if selector:
        placement["nodeSelector"] = selector
    if tolerations:
        placement["tolerations"] = tolerations
    if instance.affinity:
        placement["affinity"] = instance.affinity.to_dict()
    if instance.priority_class_name:
        placement["priorityClassName"] = instance.priority_class_name
    if instance.runtime_class_name:
        placement["runtimeClassName"] = instance.runtime_class_name
    return placement


def _machine_type(instance: Instance, settings: Settings) -> Mapping[str, Any]:
    if instance.machine_type is None:
        return {}
    try:
        return settings.machine_types[instance.machine_type]
    except KeyError:
        known = ", ".join(sorted(settings.machine_types)) or "none is set up"
        raise ManifestError(
            f"machineType {instance.machine_type} is not in the chart's machineTypes ({known})"
        ) from None


def _resources(instance: Instance, concurrency: int, machine: Mapping[str, Any], settings: Settings) -> Object:
    """Requests and limits. CPU is not limited: throttling a step helps nobody, and the request is the fair share."""
    requests = {
        "cpu": instance.cpu or machine.get("cpu") or settings.default_cpu,
        "memory": instance.memory or machine.get("memory") or settings.default_memory,
    }
    limits = {"memory": requests["memory"]}
    if storage := instance.ephemeral_storage or settings.default_ephemeral_storage:
        requests["ephemeral-storage"] = limits["ephemeral-storage"] = storage
    if instance.gpus:
        if concurrency > 1 and instance.shared_gpu_resource_name:
            limits[instance.shared_gpu_resource_name] = "1"
        else:
            limits[instance.gpu_resource_name] = str(instance.gpus)
    return {"requests": requests, "limits": limits}


def _environment(job: TrainingJobSpec, service: TrainingServiceSpec, settings: Settings) -> list[Object]:
    values: dict[str, str] = dict(settings.trainer_env)
    for variable in (*(service.env or ()), *(job.resources.env or ())):
        values[variable.name] = variable.value
    own: dict[str, Object] = {
        RUN_SPEC_ENV: {"value": RUN_SPEC_FILE},
        "HOME": {"value": "/tmp"},  # noqa: S108 the pod's own, the image's user may have no home
        "TRAINYARD_POD_NAME": {"valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        "TRAINYARD_NODE_NAME": {"valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
    }
    users = [{"name": name, "value": escaped(value)} for name, value in sorted(values.items()) if name not in own]
    return [*({"name": name} | source for name, source in own.items()), *users]


def escaped(value: str) -> str:
    """`value` as the container sees it unchanged: Kubernetes expands `$(NAME)` and reads `$$` as `$`."""
    return value.replace("$", "$$")


def _volumes(
    job: TrainingJobSpec, service: TrainingServiceSpec, instance: Instance, settings: Settings
) -> tuple[list[Object], list[Object]]:
    """The pod's volumes and the trainer's mounts."""
    # Files of a volume belong to fsGroup; where the platform chooses the user, they must be readable to anyone in the pod.
    mode = 0o440 if settings.run_as_user is not None else 0o444
    volumes: list[Object] = [
        annotation_volume(RUN_SPEC_FILE, RUN_SPEC_ANNOTATION),
        {
            "name": "token",
            "projected": {
                "defaultMode": mode,
                "sources": [
                    {
                        "serviceAccountToken": {
                            "audience": TOKEN_AUDIENCE,
                            "expirationSeconds": TOKEN_SECONDS,
                            "path": posixpath.basename(TOKEN_FILE),
                        }
                    }
                ],
            },
        },
        {
            "name": "shm",
            "emptyDir": {"medium": "Memory", "sizeLimit": instance.shared_memory or settings.default_shared_memory},
        },
        {"name": "tmp", "emptyDir": {}},
        {"name": "cache"} | _cache(service, settings),
    ]
    mounts: list[Object] = [
        {"name": "run-spec", "mountPath": posixpath.dirname(RUN_SPEC_FILE), "readOnly": True},
        {"name": "token", "mountPath": posixpath.dirname(TOKEN_FILE), "readOnly": True},
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108
        {"name": "cache", "mountPath": "/cache"},
    ]
    for folder, secret in _secrets(job, service):
        name = f"secret-{len(volumes)}"
        volumes.append({"name": name, "secret": {"secretName": secret, "defaultMode": mode}})
        mounts.append({"name": name, "mountPath": f"/secrets/{folder}", "readOnly": True})
    return volumes, mounts


def annotation_volume(file: str, annotation: str) -> Object:
    """The volume, first of the pod, whose file shows an annotation."""
    item = {"path": posixpath.basename(file), "fieldRef": {"fieldPath": f"metadata.annotations['{annotation}']"}}
    return {"name": "run-spec", "downwardAPI": {"defaultMode": 0o444, "items": [item]}}


def _secrets(job: TrainingJobSpec, service: TrainingServiceSpec) -> Iterable[tuple[str, str]]:
    """(folder under /secrets, Secret), each folder once.

    Never envFrom: the Secrets of dataset and output hold the same keys. The service's first one is the default for storage;
    without any, the output takes the dataset's.
    """
    folders: dict[str, str] = {}
    if job.dataset.secret_name:
        folders["dataset"] = job.dataset.secret_name
    if job.output.secret_name:
        folders["output"] = job.output.secret_name
    names = (*(service.secret_names or ()), *(job.resources.secret_names or ()))
    if names:
        folders["service"] = names[0]
    elif job.dataset.secret_name:
        folders.setdefault("output", job.dataset.secret_name)
    for name in names:
        folders.setdefault(name, name)
    return folders.items()


def _cache(service: TrainingServiceSpec, settings: Settings) -> Object:
    cache = service.cache
    if cache.claim_name:
        return {"persistentVolumeClaim": {"claimName": cache.claim_name}}
    if cache.host_path:
        path = posixpath.normpath(cache.host_path)
        allowed = [posixpath.normpath(prefix) for prefix in settings.host_path_prefixes]
        if not any(path == prefix or path.startswith(prefix.rstrip("/") + "/") for prefix in allowed):
            raise ManifestError(
                f"cache.hostPath {cache.host_path} is not under a folder that the chart allows "
                f"({', '.join(allowed) or 'none is allowed'}); use emptyDir or claimName"
            )
        return {"hostPath": {"path": path, "type": "DirectoryOrCreate"}}
    return {"emptyDir": cache.empty_dir.to_dict() if cache.empty_dir else {}}
