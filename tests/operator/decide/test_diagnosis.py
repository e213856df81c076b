"""Why a pod does not start, where the recordings have no case."""

from dataclasses import replace
from typing import Any

import pytest
from trainyard_api.trainingservice import TrainingServiceSpec
from trainyard_operator.decide.diagnosis import BLOCKED_REASONS, diagnose
from trainyard_operator.decide.model import (
    AttemptJob,
    AttemptPod,
    ContainerView,
    EventView,
    Metadata,
    NodeView,
    ObjectCondition,
    Taint,
    Terminated,
    Toleration,
    Waiting,
    Wants,
)
from trainyard_operator.decide.scheduling import quantity
from trainyard_operator.decide.subject import Subject

from tests.operator.decide.world import START, job_spec

SUBJECT = Subject("vision", "mgmt-train-yard-nano")
JOB = AttemptJob(Metadata("vision", "cells-r0-a1", "bj", 1, START))
POD = AttemptPod(Metadata("vision", "cells-r0-a1-x", "pod", 1, START), owner_uid="bj")


def waiting(reason: str, message: str = "", **container: Any) -> AttemptPod:
    return replace(
        POD, node="node-0", containers=(ContainerView("trainer", waiting=Waiting(reason, message), **container),)
    )


def unscheduled(message: str, reason: str = "Unschedulable") -> AttemptPod:
    return replace(POD, conditions=(ObjectCondition("PodScheduled", "False", reason, message),))


def about_pod(reason: str, message: str) -> tuple[EventView, ...]:
    return (EventView("Pod", POD.metadata.name, "pod", reason, message),)


def about_job(message: str) -> tuple[EventView, ...]:
    return (EventView("Job", "cells-r0-a1", "bj", "FailedCreate", message),)


SCHEDULED = replace(POD, node="node-0")
ROWS: list[tuple[str, AttemptPod | None, tuple[EventView, ...], str, str]] = [
    ("the Job has no pod yet", None, (), "Starting", "being created"),
    ("a LimitRange", None, about_job('Error creating: pods "a-x" is forbidden: maximum cpu usage per Pod is 1, but limit is 2'),
     "LimitRange", "maximum cpu usage per Pod"),
    ("a quota that wants limits", None, about_job('Error creating: pods "a-x" is forbidden: failed quota: team: must specify limits.cpu for: trainer'),
     "Quota", "ResourceQuota team of namespace vision wants every pod to say limits.cpu"),
    ("a used up quota", None, about_job('Error creating: pods "a-x" is forbidden: exceeded quota: team, requested: pods=1, used: pods=3, limited: pods=3'),
     "Quota", "(used pods=3 of pods=3, wanted pods=1). Raise it (`kubectl edit resourcequota team -n vision`)"),
    ("pod security", None, about_job('Error creating: pods "a-x" is forbidden: violates PodSecurity "restricted:latest": seccomp'),
     "PodSecurity", "pod-security.kubernetes.io"),
    ("an admission webhook", None, about_job('Error creating: admission webhook "v.example" denied the request: no'),
     "AdmissionDenied", "Job cells-r0-a1 cannot create its pod: admission webhook v.example denies it: no."),
    ("a policy", None, about_job("Error creating: pods \"a-x\" is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no GPUs"),
     "AdmissionDenied", "ValidatingAdmissionPolicy p denies it: no GPUs"),
    ("a dead webhook", None, about_job('Error creating: Internal error occurred: failed calling webhook "v.example": no endpoints'),
     "WebhookUnavailable", "webhook v.example does not answer"),
    ("a priority class", None, about_job('Error creating: pods "a-x" is forbidden: no PriorityClass with name fast was found'),
     "PriorityClassMissing", "instance.priorityClassName"),
    ("scheduling gates", unscheduled("", "SchedulingGated"), (), "SchedulingGated", "gates"),
    ("a claim that is not there", unscheduled('persistentvolumeclaim "cache" not found'), (), "Unschedulable", "spec.cache"),
    ("too little memory", unscheduled("0/3 nodes are available: 3 Insufficient memory."), (), "Unschedulable", "add memory"),
    ("a slow pull", SCHEDULED, about_pod("Pulling", 'Pulling image "x"'), "PullingImage", "Node node-0 is pulling"),
    ("no network", SCHEDULED, about_pod("FailedCreatePodSandBox", "cni plugin not initialized"), "Network", "cni plugin"),
    ("a ConfigMap", SCHEDULED, about_pod("FailedMount", 'configmap "c" not found'), "ConfigMissing", "ConfigMap c does not exist"),
    ("a volume", SCHEDULED, about_pod("FailedMount", "hostPath type check failed: /data is not a directory"), "Volume",
     "A volume of pod cells-r0-a1-x cannot be mounted on node node-0: hostPath type check failed"),
    ("a volume held elsewhere", SCHEDULED, about_pod("FailedAttachVolume", "Multi-Attach error for volume pvc-1"), "Volume", "Multi-Attach"),
    ("a hook", waiting("PostStartHookError", "exit 1"), (), "StartFailed", "exit 1"),
    ("noise after a kubelet restart", SCHEDULED, about_pod("FailedMount", 'object "v"/"kube-root-ca.crt" not registered'),
     "Starting", "is starting the pod"),
    ("a missing key", waiting("CreateContainerConfigError", "couldn't find key k in Secret v/s3"), (), "ConfigMissing",
     "Secret s3 in namespace vision has no key k. Add it: kubectl edit secret s3."),
    ("a container that cannot be made", waiting("CreateContainerError", "no command specified"), (), "StartFailed", "no command"),
    ("a crash loop of a sidecar", waiting("CrashLoopBackOff", "", last_terminated=Terminated(1, "Error")), (), "CrashLoop",
     "with exit code 1 Error again and again"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "pod", "events", "reason", "said"), ROWS, ids=[row[0] for row in ROWS])
def test_what_is_said_about(what: str, pod: AttemptPod | None, events: tuple[EventView, ...], reason: str, said: str):
    found = diagnose(JOB, (pod,) if pod else (), events, SUBJECT)
    assert found
    assert (found.reason, said in found.message) == (reason, True), found
    assert found.blocked is (reason in BLOCKED_REASONS)


def test_a_job_that_somebody_suspended_names_the_command_that_lets_it_go_on():
    found = diagnose(replace(JOB, suspended=True), (), (), SUBJECT)
    assert found
    assert (found.reason, found.blocked) == ("JobSuspended", False)
    assert "kubectl patch job cells-r0-a1 -n vision" in found.message


def test_a_pod_that_runs_needs_no_diagnosis():
    running = replace(
        SCHEDULED, phase="Running", containers=(ContainerView("trainer", running=True, running_since=START),)
    )
    assert diagnose(JOB, (running,), about_pod("FailedMount", 'secret "s" not found'), SUBJECT) is None


def test_of_a_gang_the_one_that_is_blocked_is_named():
    stuck = unscheduled("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.")
    found = diagnose(JOB, (SCHEDULED, stuck), (), SUBJECT)
    assert found
    assert found.reason == "Unschedulable"


def test_only_the_latest_event_counts():
    events = (*about_pod("FailedMount", 'secret "s3" not found'), *about_pod("Pulling", "Pulling image"))
    found = diagnose(JOB, (SCHEDULED,), events, SUBJECT)
    assert found
    assert found.reason == "PullingImage"


# --- the scheduler's sentence, with what the nodes add -----------------------------------------------------------------------

NODES = {
    "cpu-1": NodeView("cpu-1", taints=(Taint("dedicated", "web"),), allocatable={"cpu": "16", "memory": "64Gi"}),
    "gpu-1": NodeView("gpu-1", allocatable={"cpu": "32", "memory": "128Gi", "nvidia.com/gpu": "4"}),
    "gpu-2": NodeView("gpu-2", allocatable={"cpu": "32", "memory": "128Gi", "nvidia.com/gpu": "2"}),
    "off": NodeView("off", taints=(Taint("node.kubernetes.io/unschedulable"),), allocatable={"cpu": "8"}),
}
SENTENCES: list[tuple[str, Wants, tuple[str, ...]]] = [
    ("0/4 nodes are available: 4 Insufficient nvidia.com/gpu.", Wants({"nvidia.com/gpu": "8"}),
     ("The pod asks for 8 nvidia.com/gpu, and the largest node, gpu-1, has 4: add a larger node",)),
    ("0/4 nodes are available: 4 Insufficient nvidia.com/gpu.", Wants({"nvidia.com/gpu": "2"}),
     ("2 nodes are large enough and in use: it starts when that much is free",)),
    ("0/4 nodes are available: 4 Insufficient amd.com/gpu.", Wants({"amd.com/gpu": "1"}), ("no node has any", "device plugin")),
    ("0/4 nodes are available: 4 Insufficient memory.", Wants({"memory": "256Gi"}), ("asks for 256Gi memory", "has 128Gi")),
    ("0/4 nodes are available: 4 Insufficient cpu.", Wants({"cpu": "500m"}), ("4 nodes are large enough",)),
    ("0/4 nodes are available: 1 node(s) had untolerated taint(s), 3 Insufficient cpu.", Wants({"cpu": "64"}),
     ("asks for 64 cpu", "Remove the taint (cpu-1 has dedicated=web:NoSchedule), or add a toleration")),
    ("0/4 nodes are available: 1 node(s) had untolerated taint {spot: true}.", Wants(tolerations=(Toleration("", "Exists"),)),
     ("spot=true:NoSchedule",)),
    ("0/4 nodes are available: 1 node(s) were unschedulable.", Wants(), ("Cordoned: off; `kubectl uncordon off`",)),
    ("0/4 nodes are available: 4 node(s) didn't match Pod's node affinity/selector.", Wants(node_selector={"gpu": "a100"}),
     ("Label a node with gpu=a100 (`kubectl label node NAME gpu=a100`)",)),
    ("0/4 nodes are available: 4 Too many pods.", Wants(), ("as many pods as they may",)),
    ("0/4 nodes are available: 4 node(s) didn't match pod topology spread constraints.", Wants(), ("Mend spec.instance.affinity",)),
    ("pod has unbound immediate PersistentVolumeClaims.", Wants(), ("spec.cache", "kubectl describe pvc")),
    ("no nodes available to schedule pods", Wants(), ("The cluster has no node",)),
]  # fmt: skip


@pytest.mark.parametrize(("detail", "wants", "words"), SENTENCES, ids=[row[0][:60] for row in SENTENCES])
def test_the_scheduler_s_sentence_is_told_with_amounts_nodes_and_taints(
    detail: str, wants: Wants, words: tuple[str, ...]
):
    pod = replace(unscheduled(detail), wants=wants)
    found = diagnose(JOB, (pod,), (), replace(SUBJECT, nodes=NODES))
    assert found
    assert detail.rstrip(".") in found.message
    assert [word for word in words if word not in found.message] == [], found.message


def test_of_many_node_labels_the_first_are_named_and_still_whose_they_are():
    selector = {f"{'k' * 40}/{n:03}": "v" * 40 for n in range(32)}
    pod = replace(none_of("node(s) didn't match Pod's node affinity/selector"), wants=Wants(node_selector=selector))
    found = diagnose(JOB, (pod,), (), replace(SUBJECT, job=job_spec(resources={"nodeSelector": selector})))
    assert found
    assert f"{'k' * 40}/002={'v' * 40} and 29 more, or mend spec.resources.nodeSelector of the job" in found.message
    assert f"{'k' * 40}/003" not in found.message


def test_a_tolerated_taint_is_not_named():
    wants = Wants(tolerations=(Toleration("dedicated", "Equal", "web"),))
    pod = replace(unscheduled("0/4 nodes are available: 1 node(s) had untolerated taint(s)."), wants=wants)
    found = diagnose(JOB, (pod,), (), replace(SUBJECT, nodes=NODES))
    assert found
    assert "dedicated" not in found.message


@pytest.mark.parametrize(
    ("text", "number"),
    [("1", 1), ("500m", 0.5), ("8Gi", 8 * 2**30), ("1e3", 1000), ("2k", 2000), ("1.5", 1.5), ("x", None)],
)
def test_quantities_are_read_as_kubernetes_reads_them(text: str, number: float | None):
    assert quantity(text) == number


# --- whose field it is -------------------------------------------------------------------------------------------------------

SERVICE = {
    "architecture": "yard-nano",
    "image": "reg/theirs:1",
    "secretNames": ["s3"],
    "serviceAccountName": "nope",
    "cache": {"claimName": "cache"},
    "instance": {
        "gpus": 8,
        "cpu": "64",
        "memory": "1Ti",
        "ephemeralStorage": "1Ti",
        "nodeSelector": {"gpu": "a100"},
        "priorityClassName": "fast",
        "affinity": {"podAffinity": {}},
    },
}


def none_of(what: str) -> AttemptPod:
    return unscheduled(f"0/4 nodes are available: 4 {what}.")


def not_made(why: str) -> tuple[EventView, ...]:
    return about_job(f'Error creating: pods "a-x" is forbidden: {why}')


NO_MATCH = none_of("node(s) didn't match Pod's node affinity/selector")
LIMITS = "maximum memory usage per Pod is 1Gi, but limit is 8Gi"
PLACE = "spec.instance.nodeSelector and spec.instance.affinity"
SECRET = about_pod("FailedMount", 'secret "mine" not found')
# (What is wrong, the fields of the service, what a job says of its own, the job's fields, what is left of the service's)
Row = tuple[AttemptPod | None, tuple[EventView, ...], str, dict[str, Any], str, str]
OWNERS: list[Row] = [
    (waiting("ErrImagePull", "no such host"), (), "spec.image", {"resources": {"image": "reg/mine:1"}}, "spec.resources.image", ""),
    (waiting("CreateContainerError", "no sh"), (), "spec.image", {"resources": {"image": "reg/mine:1"}}, "spec.resources.image", ""),
    (none_of("Insufficient nvidia.com/gpu"), (), "spec.instance.gpus", {"resources": {"gpus": 8}}, "spec.resources.gpus", ""),
    (none_of("Insufficient cpu"), (), "spec.instance.cpu", {"resources": {"cpu": "64"}}, "spec.resources.cpu", ""),
    (none_of("Insufficient memory"), (), "spec.instance.memory", {"resources": {"memory": "1Ti"}}, "spec.resources.memory", ""),
    (NO_MATCH, (), PLACE, {"resources": {"nodeSelector": {"gpu": "h100"}}}, "spec.resources.nodeSelector", "spec.instance.affinity"),
    (NO_MATCH, (), PLACE, {"resources": {"machineType": "huge"}}, "spec.resources.machineType", PLACE),
    (NO_MATCH, (), PLACE, {"resources": {"preemptible": True}}, "spec.resources.preemptible", PLACE),
    (none_of("node(s) had untolerated taint {spot: true}"), (), "spec.instance.tolerations", {"resources": {"tolerations": []}},
     "spec.resources.tolerations", ""),
    (none_of("something new"), (), "spec", {"resources": {"gpus": 2}}, "spec.resources.gpus", "spec"),
    (None, not_made(LIMITS), "spec.instance.memory", {"resources": {"memory": "8Gi"}}, "spec.resources.memory", ""),
    (None, not_made("failed quota: team: must specify requests.nvidia.com/gpu for: trainer"), "spec.instance.gpus",
     {"resources": {"gpus": 0}}, "spec.resources.gpus", ""),
    (None, about_job('admission webhook "v.example" denied the request: no'), "spec",
     {"resources": {"image": "reg/mine:1"}, "policy": {"timeoutSeconds": 60, "priority": 1}},
     "spec.resources.image and spec.policy.timeoutSeconds", "spec"),
    (SCHEDULED, SECRET, "spec.secretNames", {"resources": {"secretNames": ["mine"]}}, "spec.resources.secretNames", ""),
    (SCHEDULED, SECRET, "spec.secretNames", {"dataset": {"sources": [{"uri": "s3://vision/a.zip"}], "secretName": "mine"}},
     "spec.dataset.secretName", ""),
    (SCHEDULED, SECRET, "spec.secretNames", {"output": {"uri": "s3://vision/models", "secretName": "mine"}},
     "spec.output.secretName", ""),
    (SCHEDULED, about_pod("FailedMount", 'secret "s3" not found'), "spec.secretNames", {"resources": {"secretNames": ["s3"]}},
     "spec.resources.secretNames", "spec.secretNames"),
]  # fmt: skip


@pytest.mark.parametrize("row", OWNERS, ids=[f"{row[4]}-{number}" for number, row in enumerate(OWNERS)])
def test_the_field_that_is_named_is_the_one_that_holds(row: Row):
    pod, events, theirs, own, mine, left = row
    service = "of TrainingService mgmt-train-yard-nano"
    subject = replace(SUBJECT, spec=TrainingServiceSpec.model_validate(SERVICE))
    found = diagnose(JOB, (pod,) if pod else (), events, replace(subject, job=job_spec()))
    assert found
    assert f" {theirs} {service}" in found.message
    assert "new job" not in found.message
    found = diagnose(JOB, (pod,) if pod else (), events, replace(subject, job=job_spec(**own)))
    assert found
    said = f"{left} {service} and {mine}" if left else mine
    assert f" {said} of the job (which cannot be changed: make a new job)" in found.message
    assert "TrainingService" not in found.message.replace(said, "")


@pytest.mark.parametrize(
    ("pod", "events", "field"),
    [
        (None, not_made('error looking up service account vision/nope: serviceaccount "nope" not found'), "spec.serviceAccountName"),
        (None, not_made("no PriorityClass with name fast was found"), "spec.instance.priorityClassName"),
        (SCHEDULED, about_pod("FailedAttachVolume", "Multi-Attach error"), "spec.cache"),
        (unscheduled('persistentvolumeclaim "cache" not found'), (), "spec.cache"),
        (none_of("node(s) didn't match pod affinity rules"), (), "spec.instance.affinity"),
        (none_of("Insufficient ephemeral-storage"), (), "spec.instance.ephemeralStorage"),
    ],
)  # fmt: skip
def test_what_no_job_can_override_is_the_service_s(pod: AttemptPod | None, events: tuple[EventView, ...], field: str):
    whole = {"image": "a", "gpus": 1, "cpu": "1", "memory": "1Gi", "machineType": "m", "nodeSelector": {"a": "b"}}
    service = TrainingServiceSpec.model_validate(SERVICE)
    found = diagnose(JOB, (pod,) if pod else (), events, replace(SUBJECT, job=job_spec(resources=whole), spec=service))
    assert found
    assert f"{field} of TrainingService mgmt-train-yard-nano" in found.message
    assert "new job" not in found.message
