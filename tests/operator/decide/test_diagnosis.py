"""Why a pod does not start, where the recordings have no case."""

from dataclasses import replace
from typing import Any

import pytest
from trainyard_operator.decide.denials import Subject
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

from tests.operator.decide.world import START

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


def about_workload(*messages: str) -> tuple[EventView, ...]:
    made = EventView("Job", "cells-r0-a1", "bj", "CreatedWorkload", "Created Workload: vision/job-cells-1f2e3", False)
    return (made, *(EventView("Workload", "job-cells-1f2e3", "wl", "Pending", said, True) for said in messages))


QUEUED = replace(JOB, suspended=True, labels={"kueue.x-k8s.io/queue-name": "team-a"})
ADMISSIONS: list[tuple[AttemptJob, tuple[EventView, ...], str, str]] = [
    (replace(JOB, suspended=True), (), "JobSuspended", "kubectl patch job cells-r0-a1 -n vision"),
    (QUEUED, (), "NotAdmitted", "is there such a LocalQueue (`kubectl get localqueue team-a -n vision`)?"),
    (QUEUED, about_workload(), "NotAdmitted", "LocalQueue team-a has not admitted Job cells-r0-a1 yet. See `kubectl describe workload"),
    (QUEUED, about_workload("LocalQueue team-a doesn't exist"), "NotAdmitted", "Job cells-r0-a1: LocalQueue team-a doesn't exist. See"),
    (QUEUED, about_workload("couldn't assign flavors: insufficient unused quota for nvidia.com/gpu in flavor a100, 2 more needed"),
     "NotAdmitted", "insufficient unused quota for nvidia.com/gpu in flavor a100, 2 more needed. See `kubectl describe workload job-cells-1f2e3"),
]  # fmt: skip


@pytest.mark.parametrize(("job", "events", "reason", "said"), ADMISSIONS)
def test_a_suspended_job_names_its_queue_and_what_the_queue_lacks(
    job: AttemptJob, events: tuple[EventView, ...], reason: str, said: str
):
    found = diagnose(job, (), events, SUBJECT)
    assert found
    assert (found.reason, found.blocked) == (reason, False)
    assert said in found.message, found.message


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
    ("0/4 nodes are available: 4 node(s) didn't match pod topology spread constraints.", Wants(), ("Mend affinity",)),
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
