"""What Kueue does with Jobs, by what it wrote (`tests/fixtures/kueue/`): why one is held back, and what follows when it is taken back."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from trainyard_api.trainingjob import Cause, JobState
from trainyard_api.trainingservice import TrainingServiceSpec
from trainyard_operator.decide.diagnosis import diagnose
from trainyard_operator.decide.kueue import LABEL_DEMAND, LABEL_PRIORITY, LABEL_QUEUE, demand, why_taken_back
from trainyard_operator.decide.model import AttemptJob, Metadata, ObjectCondition, WorkloadView
from trainyard_operator.decide.parse import parse_workload
from trainyard_operator.decide.subject import Subject

from tests.operator.decide.world import World, job_spec

RECORDINGS = Path(__file__).resolve().parents[2] / "fixtures" / "kueue"
SERVICE = "mgmt-train-yard-nano"
SUBJECT = Subject(
    "vision", "fake", job=job_spec(resources={"cpu": "3"}), spec=TrainingServiceSpec(architecture="yard-nano")
)


def recorded(name: str) -> WorkloadView:
    return parse_workload(json.loads((RECORDINGS / f"{name}.json").read_text()))


def said(workload: WorkloadView | None, **labels: str) -> str:
    """The sentence for the Job of the Workload."""
    uid = workload.job_uid if workload else "bj"
    job = AttemptJob(Metadata("vision", "cells-r0-a1", uid), labels, suspended=True)
    found = diagnose(job, (), (), SUBJECT, (workload,) if workload else ())
    assert found
    assert (found.reason, found.blocked) == ("NotAdmitted", False)
    return found.message


# (recording, what is said, the object to look at)
HELD_BACK = [
    ("quota-in-use", "insufficient unused quota for cpu in flavor default-flavor, 1 more needed.", "describe workload job-f-wait-r0-a1-1f64c -n vision"),
    ("more-than-the-quota", "It never fits: raise the quota of the ClusterQueue, or change spec.resources.cpu of the job", "describe workload"),
    ("resource-not-covered", "Give the ClusterQueue quota for memory, which the pods ask for.", "describe workload"),
    ("local-queue-missing", "LocalQueue not-there doesn't exist. Create it, or change spec.queue.kueueQueueName of TrainingService fake.",
     "get localqueues -n vision"),
    ("cluster-queue-missing", "ClusterQueue nocq doesn't exist.", "describe localqueue team -n vision"),
    ("cluster-queue-stopped", "ClusterQueue held is inactive.", "describe clusterqueue held"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "sentence", "look"), HELD_BACK)
def test_a_job_that_kueue_holds_back_says_what_it_lacks_and_where_to_look(name: str, sentence: str, look: str):
    message = said(recorded(name), **{LABEL_QUEUE: "team"})
    assert message.startswith("LocalQueue team has not admitted Job cells-r0-a1: ")
    assert sentence in message
    assert message.endswith("`.")
    assert f"See `kubectl {look}" in message


def test_a_job_that_kueue_manages_without_a_queue_names_the_field():
    message = said(recorded("no-queue-name"))
    assert (
        "(manageJobsWithoutQueueName): name a LocalQueue in spec.queue.kueueQueueName of TrainingService fake."
        in message
    )


def test_a_job_that_kueue_has_not_seen_asks_whether_it_runs_and_for_its_priority_class():
    assert "Kueue has not taken up Job cells-r0-a1 for LocalQueue team: does it run" in said(
        None, **{LABEL_QUEUE: "team"}
    )
    assert "is there a WorkloadPriorityClass urgent?" in said(None, **{LABEL_QUEUE: "team", LABEL_PRIORITY: "urgent"})


def test_reserved_quota_names_the_admission_checks_that_are_pending():
    reserved = ObjectCondition("QuotaReserved", "True")
    workload = WorkloadView(
        "wl", "bj", conditions=(reserved,), pending_checks=(("nodes", "Provisioning."), ("site", ""))
    )
    assert "its quota is reserved, and admission checks are pending (nodes: Provisioning; site)" in said(
        workload, **{LABEL_QUEUE: "team"}
    )


def test_a_deactivated_workload_has_the_command_that_queues_it_again():
    message = said(replace(recorded("quota-in-use"), active=False), **{LABEL_QUEUE: "team"})
    assert (
        """kubectl patch workload job-f-wait-r0-a1-1f64c -n vision --type=merge -p '{"spec":{"active":true}}'"""
        in message
    )


def test_what_was_preempted_says_for_whom():
    job = AttemptJob(Metadata("vision", "cells-r0-a1", "bj"), suspended=True)
    message = why_taken_back(job, recorded("preempted"))
    assert message.startswith("Kueue took its quota back (Preempted): Preempted to accommodate a workload")
    assert why_taken_back(job, recorded("quota-in-use")) == "Job cells-r0-a1 was suspended by somebody else."


def running() -> World:
    """A job whose attempt has its pod."""
    world = World()
    world.serve(SERVICE)
    world.apply("cells")
    world.settle()
    world.run("cells")
    world.settle()
    return world


def test_a_job_that_is_taken_back_says_so_while_it_drains():
    world = running()
    name = world.status("cells").attempts[0].job_name
    held = world.attempt_jobs[name]
    world.attempt_jobs[name] = replace(held, suspended=True)
    world.workloads = (replace(recorded("preempted"), job_uid=held.metadata.uid),)
    world.reconcile("cells")
    status = world.status("cells")
    assert (status.reason, status.attempts[0].end_time) == ("Disrupted", None)
    assert "Kueue took its quota back (Preempted)" in (status.message or "")
    assert (status.message or "").endswith("It has 300 s to save a checkpoint.")


def test_another_size_or_queue_is_another_demand_and_another_maximum_is_not():
    def of(**changes: Any) -> str:
        return demand(TrainingServiceSpec.model_validate({"architecture": "yard-nano", **changes}), None)

    same = ({"scaling": {"maxInstances": 9}}, {"paused": True}, {"reset": 1}, {"queue": {"maxLength": 5}})
    assert {of(**changes) for changes in same} == {of()}
    others = ({"queue": {"kueueQueueName": "team"}}, {"instance": {"gpus": 2}}, {"image": "reg/a:2"})
    assert len({of(), *(of(**changes) for changes in others)}) == 4


# --- in the life of a job ---------------------------------------------------------------------------------------------------


def held_back(**service: Any) -> World:
    """A job whose attempt Kueue has not admitted."""
    world = World()
    world.serve(SERVICE, queue={"kueueQueueName": "team"}, **service)
    world.apply("cells")
    world.settle()
    world.pods.clear()
    let_go(world, suspended=True, start_time=None)
    world.tick(5)
    world.settle()
    return world


def let_go(world: World, **changes: Any) -> None:
    name = world.status("cells").attempts[-1].job_name
    held = world.attempt_jobs[name]
    labels = {**held.labels, LABEL_QUEUE: "team", LABEL_DEMAND: demand(world.services[SERVICE].spec, None)}
    world.attempt_jobs[name] = replace(held, **{"labels": labels} | changes)


def test_a_job_is_not_admitted_before_kueue_has_admitted_it():
    status = held_back().status("cells")
    assert (status.state, status.reason) == (JobState.PREPARING, "NotAdmitted")
    (admitted,) = (condition for condition in status.conditions if condition.type == "Admitted")
    assert admitted.status == "False"


def test_its_time_to_start_begins_when_the_job_controller_has_let_it_go():
    world = held_back(execution={"startTimeoutSeconds": 60})
    world.tick(3600)
    let_go(world, suspended=False, conditions=(ObjectCondition("Suspended", "True", "JobSuspended"),))
    world.settle()
    assert world.status("cells").attempts[0].ending is None
    let_go(world, suspended=False, start_time=world.now, conditions=())
    world.tick(59)
    world.settle()
    assert world.status("cells").attempts[0].ending is None


@pytest.mark.parametrize(
    "change", [{"queue": {"kueueQueueName": "other"}}, {"queue": {}}, {"instance": {"gpus": 2}}, {"paused": True}]
)
def test_a_service_that_is_changed_while_its_job_waits_has_it_queued_anew(change: dict[str, Any]):
    world = held_back()
    world.serve(SERVICE, **{"queue": {"kueueQueueName": "team"}} | change)
    world.settle()
    first = world.status("cells").attempts[0]
    assert (first.cause, first.charged) == (Cause.REQUEUED, False)
    assert first.job_name not in world.attempt_jobs
    started = len(world.status("cells").attempts) == 2
    assert started is not change.get("paused", False)


def test_a_change_that_nobody_waits_for_leaves_a_job_its_place():
    world = held_back()
    world.serve(SERVICE, queue={"kueueQueueName": "team"}, scaling={"maxInstances": 9})
    world.settle()
    assert [attempt.cause for attempt in world.status("cells").attempts] == [None]


def test_a_job_that_was_taken_back_and_let_go_again_unseen_goes_on_in_another_attempt():
    world = running()
    old = world.live_pod("cells")
    assert old
    del world.pods[old.metadata.name]
    world.pods["another"] = replace(old, metadata=replace(old.metadata, name="another", uid="another"))
    world.settle()
    (first,) = world.status("cells").attempts
    assert (first.ending, first.end_time) == (Cause.DISRUPTED, None), "the other one still runs"
    world.kubelet()
    world.settle()
    assert world.status("cells").state is JobState.RERUN
    (first,) = world.status("cells").attempts
    assert (first.cause, first.charged, first.pod_uid) == (Cause.DISRUPTED, False, old.metadata.uid)
    assert "has made another one" in (first.message or "")
