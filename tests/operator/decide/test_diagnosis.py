"""Why a pod does not start, where the recordings have no case."""

from dataclasses import replace
from typing import Any

import pytest
from trainyard_operator.decide.diagnosis import BLOCKED_REASONS, Subject, diagnose
from trainyard_operator.decide.model import (
    AttemptJob,
    AttemptPod,
    ContainerView,
    EventView,
    Metadata,
    ObjectCondition,
    Terminated,
    Waiting,
)

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
     "FailedCreate", "maximum cpu usage per Pod"),
    ("pod security", None, about_job('Error creating: pods "a-x" is forbidden: violates PodSecurity "restricted:latest": seccomp'),
     "PodSecurity", "pod-security.kubernetes.io"),
    ("an admission webhook", None, about_job('Error creating: admission webhook "v.example" denied the request: no'),
     "FailedCreate", 'admission webhook "v.example" denied'),
    ("a priority class", None, about_job('Error creating: pods "a-x" is forbidden: no PriorityClass with name fast was found'),
     "PriorityClassMissing", "instance.priorityClassName"),
    ("scheduling gates", unscheduled("", "SchedulingGated"), (), "SchedulingGated", "gates"),
    ("a claim that is not there", unscheduled('persistentvolumeclaim "cache" not found'), (), "Unschedulable", "spec.cache"),
    ("too little memory", unscheduled("0/3 nodes are available: 3 Insufficient memory."), (), "Unschedulable", "add memory"),
    ("a slow pull", SCHEDULED, about_pod("Pulling", 'Pulling image "x"'), "PullingImage", "Node node-0 is pulling"),
    ("no network", SCHEDULED, about_pod("FailedCreatePodSandBox", "cni plugin not initialized"), "Network", "cni plugin"),
    ("a volume", SCHEDULED, about_pod("FailedMount", 'configmap "c" not found'), "Volume", 'configmap "c" not found'),
    ("noise after a kubelet restart", SCHEDULED, about_pod("FailedMount", 'object "v"/"kube-root-ca.crt" not registered'),
     "Starting", "is starting the pod"),
    ("a missing key", waiting("CreateContainerConfigError", "couldn't find key k in Secret v/s3"), (), "ConfigMissing", "key k"),
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


def test_a_suspended_job_waits_for_its_queue():
    found = diagnose(replace(JOB, suspended=True), (), (), SUBJECT)
    assert found
    assert (found.reason, found.blocked) == ("JobSuspended", False)


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
