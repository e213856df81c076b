"""Why the pod of an attempt does not start: one word, and one sentence that names the object to look at.

None of this ends an attempt by itself: an image that cannot be pulled or a missing Secret leaves a pod `Pending` for ever. The
waiting reasons flip with every retry of the kubelet (`ErrImagePull`, `ImagePullBackOff`, `ContainerCreating`), and a Job's
`FailedCreate` names another pod each time, so the sentences are made of what stays the same.
"""

import re
from datetime import UTC, datetime

from trainyard_operator.decide.denials import MAX_DETAIL, Diagnosis, diagnose_denial
from trainyard_operator.decide.kueue import why_suspended, workload_of
from trainyard_operator.decide.model import AttemptJob, AttemptPod, ContainerView, EventView, WorkloadView
from trainyard_operator.decide.scheduling import no_node_fits
from trainyard_operator.decide.subject import Subject

BLOCKED_REASONS = frozenset(
    {
        "AdmissionDenied",
        "ConfigMissing",
        "CrashLoop",
        "FailedCreate",
        "Forbidden",
        "ImagePull",
        "Invalid",
        "LimitRange",
        "NameTaken",
        "NamespaceTerminating",
        "Network",
        "NotAllowed",
        "PodSecurity",
        "PriorityClassMissing",
        "Quota",
        "RightMissing",
        "SecretMissing",
        "ServiceAccountMissing",
        "StartFailed",
        "Unschedulable",
        "Volume",
        "WebhookUnavailable",
    }
)
"""Reasons of a diagnosis, `refusals` included, that somebody has to mend."""


def diagnose(
    job: AttemptJob | None,
    pods: tuple[AttemptPod, ...],
    events: tuple[EventView, ...],
    subject: Subject,
    workloads: tuple[WorkloadView, ...] = (),
) -> Diagnosis | None:
    """Why the attempt's trainer does not run; None when it runs, or has run, in every pod."""
    if job is None:
        return Diagnosis("Starting", "The Job is being created.", blocked=False)
    if not pods and job.suspended:
        return why_suspended(job, workload_of(job, workloads), subject)
    if not pods:
        return _without_pod(job, events, subject)
    found = [d for pod in sorted(pods, key=lambda pod: pod.index) if (d := _of_pod(pod, events, subject))]
    return next((d for d in found if d.blocked), found[0] if found else None)


# --- no pod ---------------------------------------------------------------------------------------------------------------


def _without_pod(job: AttemptJob, events: tuple[EventView, ...], subject: Subject) -> Diagnosis:
    if not (event := _latest(events, job.metadata.uid, {"FailedCreate"})):
        return Diagnosis("Starting", "The pod is being created.", blocked=False)
    detail = re.sub(r'^Error creating: (pods "[^"]*" is forbidden: )?', "", event.message)[:MAX_DETAIL]
    if found := diagnose_denial(f"Job {job.metadata.name} cannot create its pod", detail, subject):
        return found
    if "service account" in detail:
        return Diagnosis(
            "ServiceAccountMissing",
            f"The pod cannot be created: {detail}. Create it, or mend {subject.field('service_account_name')}.",
        )
    if "violates PodSecurity" in detail:
        return Diagnosis(
            "PodSecurity",
            f"Namespace {subject.namespace} does not allow the pod: {detail}. See its pod-security.kubernetes.io labels.",
        )
    if "PriorityClass" in detail:
        return Diagnosis(
            "PriorityClassMissing",
            f"The pod cannot be created: {detail}. Mend {subject.field('priority_class_name')}.",
        )
    return Diagnosis("FailedCreate", f"Job {job.metadata.name} cannot create its pod: {detail}")


# --- a pod that does not run ------------------------------------------------------------------------------------------------


def _of_pod(pod: AttemptPod, events: tuple[EventView, ...], subject: Subject) -> Diagnosis | None:
    trainer = pod.trainer
    if trainer is not None and (trainer.running or trainer.terminated):
        return None
    if pod.over and not (trainer and trainer.waiting):
        return None
    if pod.node is None:
        return _unscheduled(pod, events, subject)
    for container in pod.containers:
        if container.waiting and (found := _waiting(container, pod, subject)):
            return found
    return _creating(pod, events, subject)


def _unscheduled(pod: AttemptPod, events: tuple[EventView, ...], subject: Subject) -> Diagnosis:
    condition = next((c for c in pod.conditions if c.type == "PodScheduled" and c.status == "False"), None)
    if condition is not None and condition.reason == "SchedulingGated":
        return Diagnosis("SchedulingGated", "The pod waits for its scheduling gates to be removed.", blocked=False)
    event = _latest(events, pod.metadata.uid, {"FailedScheduling"})
    detail = condition.message if condition else (event.message if event else "")
    if not detail:
        return Diagnosis("Starting", "The pod waits to be scheduled.", blocked=False)
    detail = re.split(r"\.? (?:no new claims to deallocate|preemption:)", detail)[0].rstrip(". ")[:MAX_DETAIL]
    return Diagnosis("Unschedulable", no_node_fits(detail, pod, subject))


IMAGE_REASONS = frozenset(
    {
        "ErrImagePull",
        "ImagePullBackOff",
        "ErrImageNeverPull",
        "InvalidImageName",
        "ImageInspectError",
        "RegistryUnavailable",
        "SignatureValidationFailed",
    }
)


def _waiting(container: ContainerView, pod: AttemptPod, subject: Subject) -> Diagnosis | None:
    """What the waiting reason of a container tells; None when it tells nothing."""
    assert container.waiting
    reason, detail = container.waiting.reason, container.waiting.message.strip()
    if reason in IMAGE_REASONS:
        return _image(detail or reason, subject)
    match reason:
        case "CreateContainerConfigError":
            return _missing_object(detail, subject)
        case (
            "CreateContainerError"
            | "RunContainerError"
            | "PostStartHookError"
            | "PreCreateHookError"
            | "PreStartHookError"
        ):
            return Diagnosis(
                "StartFailed",
                f"Container {container.name} cannot be created: {detail[:MAX_DETAIL]}. Check {subject.field('image')}.",
            )
        case "CrashLoopBackOff":
            last = container.last_terminated
            how = f" with exit code {last.exit_code} {last.reason}" if last else ""
            return Diagnosis(
                "CrashLoop", f"Container {container.name} of pod {pod.metadata.name} ends{how} again and again."
            )
        case _:
            return None


def _image(detail: str, subject: Subject) -> Diagnosis:
    """`Back-off pulling image "a:1": ErrImagePull: no such host`; an Event, or an older kubelet, says no more than that it backs off."""
    named = re.search(r'image "([^"]+)"', detail)
    detail = re.sub(r'^(Back-off pulling image|Failed to pull image) "[^"]*":? ?(ErrImagePull: )?', "", detail)
    detail = re.sub(r"^Error: ", "", detail)[:MAX_DETAIL]
    name = f" {named[1]}" if named and named[1] not in detail else ""
    why = f": {detail}" if detail else ""
    return Diagnosis(
        "ImagePull",
        f"The image{name} cannot be pulled{why}. Check {subject.field('image')}, the registry, and "
        "the pull Secret of the pod's service account.",
    )


def _missing_object(detail: str, subject: Subject) -> Diagnosis:
    """`secret "s3" not found`, `configmap "c" not found`, `couldn't find key k in Secret ns/s3`."""
    detail = detail[:MAX_DETAIL]
    if secret := re.search(r'secret "([^"]+)" not found', detail):
        mend = subject.secret(secret[1])
        said = f"Secret {secret[1]} does not exist in namespace {subject.namespace}. Create it, or mend {mend}."
        return Diagnosis("SecretMissing", said)
    if config := re.search(r'configmap "([^"]+)" not found', detail):
        said = f"ConfigMap {config[1]} does not exist in namespace {subject.namespace}. Create it, or remove what asks for it."
        return Diagnosis(
            "ConfigMissing", f"{said} The operator asks for none: a webhook of the cluster may have added it."
        )
    if key := re.search(r"couldn't find key (\S+) in (Secret|ConfigMap) (\S+)", detail):
        kind, name = key[2], key[3].rpartition("/")[2]
        said = f"{kind} {name} in namespace {subject.namespace} has no key {key[1]}. Add it: kubectl edit {kind.lower()} {name}."
        return Diagnosis("ConfigMissing", said)
    return Diagnosis("ConfigMissing", f"The container cannot be set up: {detail}.")


# --- ContainerCreating: only the events tell --------------------------------------------------------------------------------

ECHO = re.compile(r"^Error: [A-Za-z]+$")
"""A `Failed` event that only repeats the waiting reason; the one before it says more."""
CREATING_EVENTS = frozenset(
    {
        "FailedMount",
        "FailedAttachVolume",
        "FailedCreatePodSandBox",
        "NetworkNotReady",
        "ErrImageNeverPull",
        "Failed",
        "BackOff",
        "InspectFailed",
        "Pulling",
        "Pulled",
        "Created",
    }
)


def _creating(pod: AttemptPod, events: tuple[EventView, ...], subject: Subject) -> Diagnosis:
    event = _latest(events, pod.metadata.uid, CREATING_EVENTS)
    detail = event.message if event else ""
    match event.reason if event else "":
        case "Pulling":
            return Diagnosis("PullingImage", f"Node {pod.node} is pulling the image.", blocked=False)
        case "FailedMount" | "FailedAttachVolume" if "not registered" not in detail:
            return _volume(pod, detail, subject)
        case "FailedCreatePodSandBox" | "NetworkNotReady":
            return Diagnosis("Network", f"Node {pod.node} cannot set the pod's network up: {detail[:MAX_DETAIL]}")
        case "Failed" | "BackOff" | "InspectFailed" | "ErrImageNeverPull":
            return _failed_event(detail, subject)
        case _:
            return Diagnosis("Starting", f"Node {pod.node} is starting the pod.", blocked=False)


def _failed_event(detail: str, subject: Subject) -> Diagnosis:
    if "not found" in detail and re.match(r"Error: (secret|configmap) ", detail):
        return _missing_object(detail, subject)
    if re.search(r"image|Image|ErrImage", detail):
        return _image(detail, subject)
    said = f"The container cannot be started: {detail[:MAX_DETAIL].rstrip('. ')}. Check {subject.field('image')}."
    return Diagnosis("StartFailed", said)


def _volume(pod: AttemptPod, detail: str, subject: Subject) -> Diagnosis:
    if re.search(r'(secret|configmap) "[^"]+" not found', detail):
        return _missing_object(detail, subject)
    return Diagnosis(
        "Volume",
        f"A volume of pod {pod.metadata.name} cannot be mounted on node {pod.node}: {detail[:MAX_DETAIL].rstrip('. ')}. Check "
        f"{subject.field('cache')}.",
    )


def _latest(events: tuple[EventView, ...], uid: str, reasons: set[str] | frozenset[str]) -> EventView | None:
    """The latest event about the object among `reasons`; of equally late ones the last given."""
    found = [e for e in events if e.uid == uid and e.reason in reasons and not ECHO.match(e.message)]
    if not found:
        return None
    start = datetime.min.replace(tzinfo=UTC)
    return max(enumerate(found), key=lambda pair: (pair[1].last_time or start, pair[0]))[1]
