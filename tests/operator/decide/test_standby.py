"""Warm instances: as many as there should be, one execution each, replaced when something is wrong with them."""

from datetime import timedelta
from typing import Any

import pytest
from trainyard_api.report import Phase
from trainyard_api.trainingjob import Cause, JobState
from trainyard_api.trainingservice import Scaling, ScalingType, Standby, TrainingServiceStatus
from trainyard_operator.decide import admission, standby
from trainyard_operator.decide.model import (
    ContainerView,
    EventView,
    HandOver,
    ObjectCondition,
    Refusal,
    ServiceAction,
    Waiting,
)
from trainyard_operator.decide.refusals import retry_time
from trainyard_operator.decide.service import decide_service

from tests.operator.decide.world import World, job_spec, published

SERVICE = "mgmt-train-yard-nano"
MIN_ONE: dict[str, Any] = {"scaling": {"minInstances": 1, "maxInstances": 2}}


def warm_world(count: int = 1, **service: Any) -> World:
    """A service with `count` warm instances."""
    world = World()
    scaling = {"minInstances": count, "maxInstances": count + 1} | service.pop("scaling", {})
    world.serve(SERVICE, scaling=scaling, **service)
    world.settle()
    for name in list(world.attempt_jobs):
        world.warm(name)
    world.settle()
    return world


def status(world: World) -> TrainingServiceStatus:
    return world.services[SERVICE].status


def listed(world: World) -> Standby:
    return status(world).standby or Standby()


def degraded(world: World) -> tuple[str, str, str]:
    return next((c.status.value, c.reason, c.message) for c in status(world).conditions if c.type == "Degraded")


def available(world: World) -> str:
    return next(c.status.value for c in status(world).conditions if c.type == "Available")


def cold_world(**service: Any) -> tuple[World, str]:
    """A service whose only standby has been made; its Job's name."""
    world = World()
    world.serve(SERVICE, **MIN_ONE | service)
    world.settle()
    return world, listed(world).jobs[0]


def image_pull(world: World, reason: str = "ImagePullBackOff") -> None:
    """The images of all pods that there are cannot be pulled."""
    waiting = ContainerView("trainer", waiting=Waiting(reason, 'Back-off pulling image "a:1": no such host'))
    for pod in list(world.pods.values()):
        world.change(pod, node="node-0", containers=(waiting,))


def later(world: World, seconds: float = 6) -> None:
    world.tick(seconds)
    world.kubelet()
    world.settle()


def event(uid: str, reason: str, message: str) -> EventView:
    return EventView("", "", uid, reason, message)


@pytest.mark.parametrize(
    ("scaling", "busy", "count"),
    [
        (Scaling(min_instances=2, max_instances=4), 0, 2),
        (Scaling(min_instances=2, max_instances=4), 1, 1),
        (Scaling(min_instances=2, max_instances=4), 3, 0),
        (Scaling(min_instances=4, max_instances=1), 0, 1),
        (Scaling(max_instances=4), 0, 0),
        (Scaling(type=ScalingType.FIXED, max_instances=3), 1, 2),
        (Scaling(type=ScalingType.FIXED, max_instances=0), 0, 0),
    ],
)
def test_instances_above_those_that_work_are_standby(scaling: Scaling, busy: int, count: int):
    assert standby.wanted(scaling, busy) == count


@pytest.mark.parametrize(
    ("changes", "takes"),
    [
        ({}, True),
        ({"policy": {"timeoutSeconds": 60, "priority": 4}}, True),
        ({"dataset": {"sources": [{"uri": "s3://vision/b.zip"}], "secretName": "team"}}, True),
        ({"dataset": {"sources": [{"uri": "s3://vision/b.zip"}], "secretName": "mine"}}, False),
        ({"output": {"uri": "s3://vision/b", "secretName": "mine"}}, False),
        ({"policy": {"drainSeconds": 9}}, False),
        ({"resources": {"cpu": "4"}}, False),
        ({"resources": {"env": [{"name": "A", "value": "1"}]}}, False),
    ],
)
def test_a_job_that_asks_for_something_of_its_own_starts_cold(changes: dict[str, Any], takes: bool):
    world = World()
    world.serve(SERVICE, secretNames=["team", "other"])
    assert standby.eligible(job_spec(**changes), world.services[SERVICE].spec) is takes


def test_the_name_is_written_before_the_standby_is_made():
    world = World()
    world.serve(SERVICE, **MIN_ONE)
    world.carry_out_service_plan(world.service_snapshot(SERVICE), crash_before=1)
    [name] = listed(world).jobs
    assert world.attempt_jobs == {}
    world.settle()
    assert list(world.attempt_jobs) == [name]
    assert (status(world).standby_instances, status(world).instances) == (0, 1)
    world.warm(name)
    world.settle()
    assert status(world).standby_instances == 1
    assert admission.occupied(world.service_snapshot(SERVICE)) == frozenset()


def test_a_job_takes_a_warm_instance_over():
    world = warm_world()
    [name] = world.attempt_jobs
    world.tick(500)
    world.apply("a")
    world.settle()
    [attempt] = world.status("a").attempts
    assert (attempt.job_name, attempt.standby, attempt.pod_name) == (name, True, f"{name}-x")
    assert attempt.start_time == world.now
    pod = world.pods[f"{name}-x"]
    assert world.attempt_jobs[name].owner_uid == world.jobs["a"].metadata.uid
    assert pod.labels["trainyard.dev/job"] == "a"
    assert pod.active_deadline_seconds == 500 + 3600
    assert len(admission.occupied(world.service_snapshot(SERVICE))) == 1
    assert world.report("a", Phase.TRAINING)
    world.settle()
    assert world.status("a").state is JobState.RUNNING
    world.end_pod(world.pods[f"{name}-x"], 0, published())
    world.settle()
    assert world.status("a").state is JobState.SUCCEEDED
    assert len(listed(world).jobs) == 1  # another is made in its place
    assert listed(world).jobs != (name,)


def test_two_jobs_never_take_the_same():
    world = warm_world(1, scaling={"maxInstances": 3})
    for name in "ab":
        world.apply(name)
    world.settle()
    attempts = [world.status(name).attempts[0] for name in "ab"]
    assert sorted(attempt.standby for attempt in attempts) == [False, True]
    assert len({attempt.job_name for attempt in attempts}) == 2


@pytest.mark.parametrize("crash", [0, 1, 2, 3])
def test_a_hand_over_that_is_cut_short_goes_on(crash: int):
    world = warm_world()
    world.apply("a")
    for _ in range(6):
        world.reconcile("a", crash_before=crash)
        world.reconcile_service()
    world.settle()
    [attempt] = world.status("a").attempts
    assert (attempt.standby, attempt.end_time) == (True, None)
    assert world.pods[attempt.pod_name or ""].labels["trainyard.dev/job"] == "a"


def test_a_standby_that_dies_while_it_is_handed_over_costs_nothing():
    world = warm_world()
    world.apply("a")
    world.reconcile("a")
    world.reconcile_service()
    world.reconcile("a", crash_before=1)  # in the ledger, and no further
    [name] = [a.job_name for a in world.status("a").attempts]
    world.pods.clear()
    del world.attempt_jobs[name]
    world.settle()
    world.tick(60)
    world.settle()
    first, second = world.status("a").attempts
    assert (first.cause, first.charged) == (Cause.INTERRUPTED, False)
    assert second.number == 2


def test_what_a_stopped_job_was_given_is_taken_away_and_replaced():
    world = warm_world()
    world.apply("a")
    world.reconcile("a")
    world.reconcile_service()
    assert world.services[SERVICE].status.admission.jobs[0].standby is not None  # type: ignore[union-attr]
    world.apply("a", suspend=True)
    world.settle()
    world.kubelet()
    world.settle()
    assert world.status("a").attempts == ()
    assert len(listed(world).jobs) == 1
    assert sorted(world.attempt_jobs) == sorted(listed(world).jobs)


def test_one_that_ends_by_itself_is_replaced_after_a_growing_delay_and_shows_on_the_service():
    world = World()
    world.serve(SERVICE, **MIN_ONE)
    waits: list[float] = []
    for _ in range(3):
        world.settle()
        [name] = listed(world).jobs
        world.warm(name)
        world.end_pod(world.pods[f"{name}-x"], 79, "no GPU is visible on node-0")
        world.settle()
        assert listed(world).jobs == ()
        assert degraded(world) == (
            "True",
            "CrashLoop",
            f"Standby pod {name}-x ended with exit code 79: no GPU is visible on node-0",
        )
        began = world.now
        while not listed(world).jobs:
            world.tick(5)
            world.settle()
        waits.append((world.now - began).total_seconds())
    assert waits == [10, 20, 40]
    world.warm(listed(world).jobs[0])
    world.tick(61)
    world.settle()
    assert (listed(world).failures, degraded(world)[0]) == (0, "False")


def test_one_that_is_evicted_is_replaced():
    world = warm_world()
    [name] = world.attempt_jobs
    target = ObjectCondition("DisruptionTarget", "True", "EvictionByEvictionAPI", "evicting")
    world.change(world.pods[f"{name}-x"], conditions=(target,))
    world.end_pod(world.pods[f"{name}-x"], 0)
    world.tick(61)
    world.settle()
    world.tick(61)
    world.settle()
    assert listed(world).jobs != (name,)
    assert len(listed(world).jobs) == 1


def test_one_that_does_not_get_warm_is_replaced_with_the_diagnosis():
    world = World()
    world.serve(SERVICE, execution={"startTimeoutSeconds": 60}, **MIN_ONE)
    world.settle()
    world.tick(61)
    world.settle()
    assert "did not get warm" in degraded(world)[2]
    assert world.attempt_jobs == {}


def test_one_of_an_old_image_is_replaced_at_once():
    world = warm_world()
    [old] = world.attempt_jobs
    world.template = "two"
    world.settle()
    assert listed(world).failures == 0
    assert old not in listed(world).jobs
    assert list(world.attempt_jobs) == list(listed(world).jobs)


def test_an_execution_that_starts_cold_makes_room_where_the_maximum_is_reached():
    world = warm_world(1, scaling={"maxInstances": 1})
    world.apply("a", resources={"cpu": "4"})
    world.settle()
    assert world.status("a").attempts[0].standby is False
    assert listed(world).jobs == ()


def test_a_surplus_is_kept_until_it_was_idle_for_long_enough():
    world = warm_world(2, scaling={"maxInstances": 4, "idleSeconds": 300})
    world.serve(SERVICE, scaling={"minInstances": 1, "maxInstances": 4, "idleSeconds": 300})
    world.settle()
    assert len(listed(world).jobs) == 2
    plan = standby.plan_standby(world.service_snapshot(SERVICE), (), 0)
    assert plan.look_again_at == world.now + timedelta(seconds=300)
    world.tick(300)
    world.settle()
    world.kubelet()
    world.settle()
    assert len(listed(world).jobs) == len(world.attempt_jobs) == 1


def test_none_is_made_beside_the_executions_that_start_in_its_place():
    world = World()
    world.serve(SERVICE, scaling={"minInstances": 1, "maxInstances": 1})
    world.apply("a")
    plan = decide_service(world.service_snapshot(SERVICE))
    assert plan.status.admission
    assert [entry.name for entry in plan.status.admission.jobs] == ["a"]
    assert plan.actions == ()


@pytest.mark.parametrize("change", [{"paused": True}, {"scaling": {"maxInstances": 0}}])
def test_a_closed_service_makes_none(change: dict[str, Any]):
    world = World()
    world.serve(SERVICE, **{"scaling": {"minInstances": 1}} | change)
    world.settle()
    assert world.attempt_jobs == {}


def test_a_repeated_look_changes_nothing():
    world = warm_world(2)
    before = status(world)
    world.reconcile_service()
    assert status(world) == before


def test_a_warm_instance_is_handed_over_by_the_look_that_follows_at_once():
    world = warm_world()
    world.apply("cells")
    world.reconcile_service()
    plan = world.reconcile("cells")
    assert (world.status("cells").attempts[0].standby, plan.look_again_at) == (True, world.now)
    assert any(isinstance(action, HandOver) for action in world.reconcile("cells").actions)


# --- what keeps one from starting shows on the service -------------------------------------------------------------------------

CREATING = 'Error creating: pods "a" is forbidden: '
NO_POD = [
    (
        CREATING + "exceeded quota: team, requested: pods=1, used: pods=4, limited: pods=4",
        "Quota",
        "ResourceQuota team",
    ),
    (
        CREATING + 'error looking up service account vision/t: serviceaccount "t" not found',
        "CrashLoop",
        "service account",
    ),
    (
        CREATING + 'violates PodSecurity "restricted:latest": runAsNonRoot != true',
        "CrashLoop",
        "does not allow the pod",
    ),
    ('Error creating: admission webhook "v.example" denied the request: no cost centre', "CrashLoop", "no cost centre"),
]


@pytest.mark.parametrize(("said", "reason", "words"), NO_POD)
def test_why_its_pod_is_not_made_is_told_at_once_and_when_its_time_is_over(said: str, reason: str, words: str):
    world, name = cold_world(execution={"startTimeoutSeconds": 60})
    world.pods.clear()
    world.events.append(event(world.attempt_jobs[name].metadata.uid, "FailedCreate", said))
    assert degraded(world)[0] == "False"
    later(world)
    assert (*degraded(world)[:2], available(world)) == ("True", reason, "False")
    assert degraded(world)[2].startswith(f"Standby {name} cannot start: ")
    assert words in degraded(world)[2]
    later(world, 60)
    assert (listed(world).jobs, listed(world).failures) == ((), 1)
    assert f"Standby {name} did not get warm: " in degraded(world)[2]
    assert words in degraded(world)[2]


@pytest.mark.parametrize(
    ("reason", "message", "words"),
    [
        ("FailedMount", 'MountVolume.SetUp failed for volume "secret-5" : secret "s3" not found', "Secret s3"),
        (
            "FailedMount",
            'MountVolume.SetUp failed for volume "cache" : no such device',
            "cannot be mounted on node node-0",
        ),
        ("FailedCreatePodSandBox", "plugin type=calico failed", "cannot set the pod's network up"),
    ],
)
def test_why_its_pod_is_not_set_up_is_told(reason: str, message: str, words: str):
    world, name = cold_world()
    pod = world.pods[f"{name}-x"]
    world.change(pod, node="node-0", containers=(ContainerView("trainer", waiting=Waiting("ContainerCreating")),))
    world.events.append(event(pod.metadata.uid, reason, message))
    later(world)
    assert degraded(world)[0] == "True"
    assert degraded(world)[2].startswith(f"Pod {name}-x of standby {name} cannot start: ")
    assert words in degraded(world)[2]


def test_an_image_that_cannot_be_pulled_shows_soon_and_until_one_starts():
    world, name = cold_world()
    image_pull(world)
    world.settle()
    assert degraded(world)[0] == "False"  # it has its quiet time
    later(world)
    said = degraded(world)
    assert said[:2] == ("True", "ImagePull")
    for reason in ("ErrImagePull", "ContainerCreating", "ImagePullBackOff"):
        image_pull(world, reason)
        later(world)
        assert degraded(world) == said
    waiting = world.pods[f"{name}-x"]
    world.change(waiting, containers=(ContainerView("trainer", running=True),))
    world.settle()
    assert (degraded(world)[0], available(world), status(world).standby_instances) == ("False", "True", 0)
    assert [note.reason for of, note in world.notes if of == SERVICE] == ["Available", "ImagePull", "Recovered"]


def test_the_trouble_shows_from_one_standby_to_the_next_until_one_is_warm():
    world, first = cold_world(execution={"startTimeoutSeconds": 60})
    seen: list[tuple[str, str]] = []
    for _ in range(40):
        image_pull(world)
        later(world)
        seen.append(degraded(world)[:2])
    assert set(seen) == {("True", "ImagePull")}
    assert listed(world).number > 2
    while not listed(world).jobs:
        later(world)
    [name] = listed(world).jobs
    assert name != first
    world.warm(name)
    world.settle()
    assert (degraded(world)[0], listed(world).failures > 0) == ("False", True)


def test_after_one_that_ended_by_itself_the_next_does_not_make_the_service_healthy_by_merely_starting():
    world, first = cold_world()
    world.warm(first)
    world.end_pod(world.pods[f"{first}-x"], 79, "no GPU is visible on node-0")
    world.settle()
    later(world, 10)
    image_pull(world)
    later(world)
    assert degraded(world)[:2] == ("True", "ImagePull")
    world.change(world.pods[f"{listed(world).jobs[0]}-x"], containers=(ContainerView("trainer", running=True),))
    world.settle()
    assert degraded(world)[0] == "True"  # it may end as the one before it did


def test_a_standby_that_nobody_wants_any_more_is_no_trouble():
    world, _ = cold_world(execution={"startTimeoutSeconds": 60})
    image_pull(world)
    later(world, 61)
    assert (listed(world).failures, degraded(world)[0]) == (1, "True")
    world.serve(SERVICE)
    world.settle()
    assert (listed(world).failures, degraded(world)[0]) == (0, "False")


def test_a_job_that_takes_the_place_of_one_that_cannot_start_does_not_make_the_service_healthy_before_it_runs():
    world, _ = cold_world(scaling={"minInstances": 1, "maxInstances": 1})
    image_pull(world)
    later(world)
    world.apply("a")
    seen: list[str] = []
    for _ in range(8):
        world.reconcile("a")
        world.reconcile_service()
        seen.append(degraded(world)[0])
        world.tick(1)
    assert world.status("a").attempts
    assert set(seen) == {"True"}
    world.run("a")
    later(world)
    assert degraded(world)[0] == "False"


def test_one_that_ends_again_and_again_beside_a_warm_one_is_no_busy_loop():
    world = warm_world(2)
    later(world, 120)
    for delay in (10, 20):
        name = next(name for name in listed(world).jobs if name != listed(world).jobs[0])
        world.warm(name)
        world.end_pod(world.pods[f"{name}-x"], 79, "no GPU is visible on node-0")
        world.settle()
        assert (len(listed(world).jobs), degraded(world)[:2]) == (1, ("True", "CrashLoop"))
        later(world, delay - 1)
        assert len(listed(world).jobs) == 1
        later(world, 1)
        assert len(listed(world).jobs) == 2
    world.warm(listed(world).jobs[1])
    later(world, 61)
    assert (listed(world).failures, degraded(world)[0]) == (0, "False")


def test_several_that_fail_together_are_one_failure():
    world = World()
    world.serve(SERVICE, scaling={"minInstances": 8, "maxInstances": 8}, execution={"startTimeoutSeconds": 60})
    world.settle()
    image_pull(world)
    later(world, 60)
    assert (listed(world).jobs, listed(world).failures) == ((), 1)
    assert listed(world).next_time == world.now + standby.FIRST_DELAY


def test_after_a_failure_the_next_is_made_when_the_one_before_is_warm():
    world = warm_world(2)
    for name in list(world.attempt_jobs):
        world.end_pod(next(pod for pod in world.pods.values() if pod.owner_name == name), 1)
    world.settle()
    later(world, 11)
    (tried,) = listed(world).jobs
    world.warm(tried)
    world.settle()
    assert len(listed(world).jobs) == 2


def test_a_service_looks_again_when_a_standby_has_proven_itself():
    world, name = cold_world()
    world.end_pod(next(pod for pod in world.pods.values() if pod.owner_name == name), 1)
    world.settle()
    later(world, 11)
    world.warm(listed(world).jobs[0])
    world.settle()
    assert degraded(world)[0] == "True"
    due = decide_service(world.service_snapshot(SERVICE)).look_again_at
    assert due == world.now + standby.PROVEN
    world.tick(60)
    world.settle()
    assert degraded(world)[0] == "False"


def test_what_the_installation_does_not_allow_shows_on_the_service_while_a_standby_is_wanted():
    world = World(template_refused="machineType a100 is not in the chart's machineTypes (none is set up)")
    world.serve(SERVICE, **MIN_ONE)
    world.settle()
    assert world.attempt_jobs == {}
    assert (*degraded(world)[:2], available(world)) == ("True", "CrashLoop", "False")
    assert f"TrainingService {SERVICE} can have no standby: machineType a100 is not in" in degraded(world)[2]
    assert listed(world).reason == "NotAllowed"
    world.serve(SERVICE)
    world.settle()
    assert (degraded(world)[0], status(world).standby) == ("False", None)
    world.serve(SERVICE, **MIN_ONE)
    world.settle()
    world.template_refused = ""
    world.settle()
    world.warm(listed(world).jobs[0])
    world.settle()
    assert degraded(world)[0] == "False"


def test_a_creation_that_is_refused_shows_on_the_service_and_is_tried_again_when_it_is_time():
    world = World()
    world.serve(SERVICE, scaling={"minInstances": 2, "maxInstances": 2})
    world.carry_out_service_plan(world.service_snapshot(SERVICE), crash_before=1)
    first, second = listed(world).jobs
    said = 'POST /apis/x: 403 jobs.batch "a" is forbidden: exceeded quota: team, requested: count/jobs.batch=1, used: '
    said += "count/jobs.batch=3, limited: count/jobs.batch=3"
    world.refusals = (Refusal("CreateStandby", first, said, retry_time(world.now, 3), 403),)

    def planned() -> tuple[ServiceAction, ...]:
        return decide_service(world.service_snapshot(SERVICE)).actions

    plan = decide_service(world.service_snapshot(SERVICE))
    assert (plan.actions, plan.look_again_at) == ((), world.now + timedelta(seconds=4))
    world.reconcile_service()
    assert (*degraded(world)[:2], available(world)) == ("True", "Quota", "False")
    assert f"The operator cannot create standby Job {first}: ResourceQuota team" in degraded(world)[2]
    world.tick(4)
    assert [action.name for action in planned()] == [first, second]
    world.refusals = ()
    world.settle()
    assert degraded(world)[0] == "True"
    for name in (first, second):
        world.warm(name)
    world.settle()
    assert degraded(world)[0] == "False"
