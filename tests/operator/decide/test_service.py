"""One service: its counts, its state, and what degrades it."""

from typing import Any

import pytest
from trainyard_api.trainingservice import Scaling, ScalingType, TrainingServiceStatus
from trainyard_operator.decide.model import EventView, ObjectCondition
from trainyard_operator.decide.scaling import capacity, desired_instances
from trainyard_operator.decide.service import decide_service

from tests.operator.decide.world import World

SERVICE = "mgmt-train-yard-nano"


def status(world: World) -> TrainingServiceStatus:
    return world.services[SERVICE].status


def conditions(world: World) -> dict[str, tuple[str, str]]:
    return {c.type: (c.status.value, c.reason) for c in status(world).conditions}


@pytest.mark.parametrize(
    ("scaling", "demand", "instances"),
    [
        (Scaling(max_instances=4), 0, 0),
        (Scaling(max_instances=4), 3, 3),
        (Scaling(max_instances=4), 9, 4),
        (Scaling(max_instances=4, concurrency=4), 5, 2),
        (Scaling(max_instances=4, min_instances=2), 0, 2),
        (Scaling(max_instances=1, min_instances=2), 0, 1),
        (Scaling(max_instances=0), 9, 0),
        (Scaling(type=ScalingType.FIXED, max_instances=3), 0, 3),
    ],
)
def test_desired_instances(scaling: Scaling, demand: int, instances: int):
    assert desired_instances(scaling, demand) == instances


def test_capacity_is_instances_times_concurrency():
    assert capacity(Scaling(max_instances=3, concurrency=4)) == 12


def test_counts_are_those_of_its_jobs():
    world = World()
    world.serve(SERVICE, scaling={"maxInstances": 2})
    for name in "abc":
        world.apply(name)
    world.settle()
    seen = status(world)
    assert (seen.running, seen.queued, seen.capacity, seen.instances, seen.desired_instances) == (2, 1, 2, 2, 2)
    assert seen.selector == f"trainyard.dev/service={SERVICE}"
    assert seen.observed_generation == world.services[SERVICE].metadata.generation


def test_a_service_is_available_or_paused():
    world = World()
    world.serve(SERVICE)
    world.reconcile_service()
    assert status(world).state == "Available"
    assert conditions(world) == {
        "Available": ("True", "Available"),
        "Degraded": ("False", "AsExpected"),
        "Paused": ("False", "NotPaused"),
    }
    world.serve(SERVICE, paused=True)
    world.reconcile_service()
    assert status(world).state == "Paused"
    assert conditions(world)["Paused"] == ("True", "Paused")
    assert conditions(world)["Available"] == ("False", "Paused")


def test_a_job_that_cannot_start_degrades_its_service_which_names_pod_and_job():
    world = World()
    world.serve(SERVICE)
    world.apply("a")
    world.apply("b")
    world.settle()
    world.wait_for("a", "ImagePullBackOff", "no such host")
    world.settle()
    assert status(world).state == "Degraded"
    assert conditions(world)["Degraded"] == ("True", "ImagePull")
    said = next(c.message for c in status(world).conditions if c.type == "Degraded")
    assert said.startswith("Pod a-r0-a1-x of job a cannot start: The image cannot be pulled: no such host")
    assert "The service is degraded: Pod a-r0-a1-x of job a" in (world.status("b").message or "")
    world.run("a")
    world.settle()
    assert status(world).state == "Available"
    assert "degraded" not in (world.status("b").message or "")


def test_a_job_that_fails_again_and_again_degrades_its_service():
    world = World()
    world.serve(SERVICE)
    world.apply("a")
    for _ in range(2):
        world.settle()
        world.run("a")
        world.settle()
        world.end("a", 137, "", "OOMKilled")
        world.settle()
        first = status(world).state
        world.tick(3600)
    assert first == "Degraded"
    assert conditions(world)["Degraded"] == ("True", "OutOfMemory")


NO_NODE = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."
NO_ROOM = "0/1 nodes are available: 1 Insufficient memory."
NO_GPU = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."
QUOTA = "exceeded quota: team, requested: requests.memory=1Ti, used: requests.memory=8Gi, limited: requests.memory=64Gi"
OWN_SECRET = {"dataset": {"sources": [{"uri": "s3://vision/a.zip"}], "secretName": "mine"}}


def trouble(world: World, name: str, kind: str, said: str) -> None:
    """What keeps the execution from starting shows on its pod, or in place of it."""
    pod = world.live_pod(name)
    assert pod
    if kind == "Unschedulable":
        world.change(pod, conditions=(ObjectCondition("PodScheduled", "False", "Unschedulable", said),))
    elif kind == "FailedCreate":
        del world.pods[pod.metadata.name]
        job = next(job for job in world.attempt_jobs.values() if job.metadata.uid == pod.owner_uid)
        world.events.append(EventView("Job", job.metadata.name, job.metadata.uid, kind, f"Error creating: {said}"))
    else:
        world.wait_for(name, kind, said)


@pytest.mark.parametrize(
    ("own", "kind", "said"),
    [
        ({"resources": {"image": "reg.example/mine:1"}}, "ImagePullBackOff", "no such host"),
        ({"resources": {"image": "reg.example/mine:1"}}, "CreateContainerError", "no such executable"),
        ({"resources": {"nodeSelector": {"gpu": "h100"}}}, "Unschedulable", NO_NODE),
        ({"resources": {"memory": "1Ti"}}, "Unschedulable", NO_ROOM),
        ({"resources": {"gpus": 8}}, "Unschedulable", NO_GPU),
        ({"resources": {"memory": "1Ti"}}, "FailedCreate", QUOTA),
        (OWN_SECRET, "CreateContainerConfigError", 'secret "mine" not found'),
    ],
)
def test_what_a_job_itself_asks_for_does_not_degrade_the_service_of_all(own: dict[str, Any], kind: str, said: str):
    """Neither while it waits for what there is not, nor between its attempts; one that asks for nothing of its own does."""
    for spec, states in ((own, {"Available"}), ({}, {"Degraded"})):
        world = World()
        world.serve(SERVICE, execution={"startTimeoutSeconds": 60, "backoffSeconds": 30, "maxAttempts": 9})
        world.apply("a", **spec)
        world.settle()
        seen: set[str | None] = set()
        for _ in range(24):
            if world.live_pod("a"):
                trouble(world, "a", kind, said)
                world.settle()
            seen.add(status(world).state)
            world.tick(10)
            world.kubelet()
            world.settle()
        assert len(world.status("a").attempts) >= 2
        assert seen == states, spec


def test_a_job_with_an_own_memory_or_secret_still_shows_what_is_wrong_with_the_service():
    for own in ({"resources": {"memory": "1Gi"}}, OWN_SECRET):
        world = World()
        world.serve(SERVICE)
        world.apply("a", **own)
        world.settle()
        world.wait_for("a", "ImagePullBackOff", "no such host")
        world.settle()
        assert conditions(world)["Degraded"] == ("True", "ImagePull")


@pytest.mark.parametrize(
    ("own", "exit_code", "reason"),
    [
        ({"image": "reg.example/mine:1"}, 1, ""),
        ({"memory": "1Gi"}, 137, "OOMKilled"),
    ],
)
def test_a_trainer_or_a_size_of_its_own_that_fails_again_and_again_degrades_no_service(
    own: dict[str, Any], exit_code: int, reason: str
):
    world = World()
    world.serve(SERVICE)
    world.apply("a", resources=own)
    for _ in range(2):
        world.settle()
        world.run("a")
        world.settle()
        world.end("a", exit_code, "boom", reason)
        world.settle()
        assert status(world).state == "Available"
        world.tick(3600)


def test_a_service_recovers_although_somebody_still_waits_for_an_image_of_its_own():
    world = World()
    world.serve(SERVICE, scaling={"maxInstances": 2})
    world.apply("a")
    world.apply("b", resources={"image": "reg.example/mine:1"})
    world.settle()
    for name in "ab":
        world.wait_for(name, "ImagePullBackOff", "no such host")
    world.settle()
    assert status(world).state == "Degraded"
    world.delete("a")
    world.settle()
    world.kubelet()
    world.settle()
    assert status(world).state == "Available"


def test_a_repeated_look_changes_nothing():
    world = World()
    world.serve(SERVICE)
    for name in "ab":
        world.apply(name)
    world.settle()
    plan = decide_service(world.service_snapshot(SERVICE))
    assert plan.status == status(world)
    assert plan.events == ()


def notes(world: World) -> list[str]:
    return [note.reason for name, note in world.notes if name == SERVICE]


def test_a_service_stays_degraded_from_one_attempt_to_the_next_until_something_starts():
    world = World()
    world.serve(SERVICE, execution={"startTimeoutSeconds": 60, "backoffSeconds": 30})
    world.apply("a")
    world.settle()
    world.wait_for("a", "ImagePullBackOff", "no such host")
    world.settle()
    seen: list[tuple[str, str]] = []
    for _ in range(12):
        world.tick(10)
        world.kubelet()
        world.settle()
        seen.append(conditions(world)["Degraded"])
    assert len(world.status("a").attempts) == 2
    assert set(seen) == {("True", "ImagePull")}
    world.run("a")
    world.settle()
    assert conditions(world)["Degraded"] == ("False", "AsExpected")
    assert notes(world) == ["Available", "ImagePull", "Recovered"]


def test_a_service_stays_degraded_while_the_next_attempt_repeats_what_failed():
    world = World()
    world.serve(SERVICE, execution={"maxAttempts": 9})
    world.apply("a")
    for _ in range(2):
        world.settle()
        world.run("a")
        world.settle()
        world.report("a", checkpoint_step=10)
        world.end("a", 1, "boom")
        world.settle()
        world.tick(3600)
    world.settle()
    world.run("a")
    world.settle()
    assert conditions(world)["Degraded"] == ("True", "CrashLoop")
    world.report("a", checkpoint_step=20)
    world.settle()
    assert conditions(world)["Degraded"] == ("False", "AsExpected")


def test_a_service_recovers_when_the_job_in_trouble_is_gone():
    world = World()
    world.serve(SERVICE)
    world.apply("a")
    world.settle()
    world.wait_for("a", "ImagePullBackOff", "no such host")
    world.settle()
    world.delete("a")
    world.settle()
    assert status(world).state == "Available"


def test_every_change_of_a_service_is_one_event():
    world = World()
    world.serve(SERVICE)
    for spec in ({}, {"paused": True}, {"paused": True}, {}, {"scaling": {"maxInstances": 0}}, {}):
        world.serve(SERVICE, **spec)
        world.reconcile_service()
        world.reconcile_service()
    assert notes(world) == ["Available", "Paused", "Resumed", "ZeroInstances", "Available"]
