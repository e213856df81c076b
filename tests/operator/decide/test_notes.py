"""What of a job's life becomes an Event: every new cause for which it does not go on, and no new number."""

from dataclasses import replace

import pytest
from trainyard_api.trainingjob import JobState, TrainingJobStatus
from trainyard_operator.decide.model import Note, ObjectCondition, Wants, WorkloadView
from trainyard_operator.decide.notes import job_events

from tests.operator.decide.world import World

SERVICE = "mgmt-train-yard-nano"


def preparing(**service: object) -> World:
    world = World()
    world.serve(SERVICE, **service)
    world.apply("cells")
    world.settle()
    return world


def notes(world: World) -> list[Note]:
    return [note for name, note in world.notes if name == "cells"]


def look(world: World) -> TrainingJobStatus:
    """The job's status after the next look at what its pod waits for."""
    world.tick(5)
    world.settle()
    return world.status("cells")


def suspend(world: World, **labels: str) -> None:
    """Its Job has no pod until it is let go."""
    name, held = next(iter(world.attempt_jobs.items()))
    world.pods.clear()
    world.attempt_jobs[name] = replace(held, suspended=True, start_time=None, labels={**held.labels, **labels})


def kueue_says(world: World, message: str) -> None:
    (held,) = world.attempt_jobs.values()
    lacking = ObjectCondition("QuotaReserved", "False", "Pending", message)
    world.workloads = (WorkloadView("wl", held.metadata.uid, conditions=(lacking,)),)


def unschedulable(world: World, message: str, reason: str = "Unschedulable") -> None:
    pod = world.live_pod("cells")
    assert pod
    condition = ObjectCondition("PodScheduled", "False", reason, message)
    world.change(pod, conditions=(condition,), wants=Wants({"nvidia.com/gpu": "1"}))


QUEUE = {"kueue.x-k8s.io/queue-name": "team"}


@pytest.mark.parametrize("reason", ["NotAdmitted", "JobSuspended", "SchedulingGated"])
def test_what_an_attempt_waits_for_and_that_it_goes_on_are_events(reason: str):
    world = preparing()
    pods = world.pods.copy()
    if reason == "SchedulingGated":
        unschedulable(world, "", reason)
    else:
        suspend(world, **(QUEUE if reason == "NotAdmitted" else {}))
    status = look(world)
    assert status.reason == reason
    assert notes(world)[1:] == [Note(reason, status.message or "", warning=False)]
    world.pods = pods
    world.attempt_jobs = {name: replace(job, suspended=False) for name, job in world.attempt_jobs.items()}
    assert look(world).reason == "Starting"
    assert [note.reason for note in notes(world)] == ["Preparing", reason, "Starting"]


def test_what_kueue_lacks_now_is_an_event_and_how_much_of_it_is_none():
    world = preparing()
    suspend(world, **QUEUE)
    for said in (
        "insufficient unused quota for nvidia.com/gpu in flavor a100, 2 more needed",
        "insufficient unused quota for nvidia.com/gpu in flavor a100, 1 more needed",
        "ClusterQueue gpus is inactive",
    ):
        kueue_says(world, said)
        assert said in (look(world).message or "")
    told = notes(world)[1:]
    assert [note.reason for note in told] == ["NotAdmitted", "NotAdmitted"]
    assert "2 more needed" in told[0].message
    assert "is inactive" in told[1].message


def test_a_job_that_is_admitted_at_once_has_no_event_of_it():
    world = preparing()
    pods = world.pods.copy()
    suspend(world, **QUEUE)
    world.tick(4)
    world.settle()
    world.attempt_jobs = {name: replace(job, suspended=False) for name, job in world.attempt_jobs.items()}
    world.pods = pods
    world.run("cells")
    world.settle()
    assert [note.reason for note in notes(world)] == ["Preparing"]


def test_a_new_cause_under_the_same_reason_is_a_new_event():
    world = preparing()
    said = [
        "0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
        "0/3 nodes are available: 3 node(s) had untolerated taint(s).",
    ]
    for sentence in said:
        unschedulable(world, sentence)
        assert sentence in (look(world).message or "")
    told = notes(world)[1:]
    assert [(note.reason, note.warning) for note in told] == [("Unschedulable", True)] * 2
    assert [sentence in note.message for sentence, note in zip(said, told, strict=True)] == [True, True]


def test_numbers_that_change_within_a_sentence_are_no_events():
    world = preparing()
    for nodes, lacking in ((3, 2), (4, 2), (4, 1), (11, 10)):
        parts = sorted(
            [f"{lacking} Insufficient nvidia.com/gpu", f"{nodes - lacking} node(s) had untolerated taint(s)"]
        )
        sentence = f"0/{nodes} nodes are available: {', '.join(parts)}."
        unschedulable(world, sentence)
        assert sentence in (look(world).message or "")
    assert [note.reason for note in notes(world)] == ["Preparing", "Unschedulable"]


# (reason, a sentence, a later one, whether it is another cause)
SENTENCES = [
    ("Quota", "used up (used cpu=500m of cpu=2, wanted cpu=1)", "used up (used cpu=2 of cpu=2, wanted cpu=1)", False),
    ("Quota", "ResourceQuota team is used up (used pods=3)", "ResourceQuota gpus is used up (used pods=3)", True),
    ("SecretMissing", "Secret s3 does not exist.", "Secret s4 does not exist.", True),
    ("ImagePull", "dial tcp 10.0.0.1:443: i/o timeout", "dial tcp 10.0.0.2:443: i/o timeout", False),
    ("ImagePull", "no such host", "unauthorized", True),
    ("Network", 'sandbox "3f0c9a1be2d4": no IP', 'sandbox "a91be2d43f0c": no IP', False),
    ("FailedCreate", 'Pod "cells-r0-a1-x7k2p" is invalid: a', 'Pod "cells-r0-a1-9zq4d" is invalid: a', False),
    ("NotAdmitted", "admitted yet. See it.", "admitted: inactive. See it.", True),
    ("ServiceMismatch", "does not suit the job: a.", "does not suit the job: b.", True),
    ("DeletionBlocked", "should have gone at 2026-01-01T00:00:00Z.", "should have gone at 2026-01-01T00:01:00Z.", False),
    ("Downloading", "Downloading: 43 %.", "Downloading: part b.", False),
]  # fmt: skip


@pytest.mark.parametrize(("reason", "before", "after", "another"), SENTENCES)
def test_another_cause_is_another_sentence_whatever_its_numbers(reason: str, before: str, after: str, another: bool):
    old = TrainingJobStatus(state=JobState.PREPARING, reason=reason, message=before)
    new = old.model_copy(update={"message": after})
    assert [note.message for note in job_events(old, new)] == ([after] if another else [])


def test_a_deletion_that_hangs_while_the_job_prepares_is_a_warning():
    old = TrainingJobStatus(state=JobState.PREPARING, reason="Deleting", message="saves its checkpoint")
    new = old.model_copy(update={"reason": "DeletionBlocked", "message": "waits for pod x"})
    assert job_events(old, new) == (Note("DeletionBlocked", "waits for pod x", warning=True),)
