"""Who starts when: by priority, then age, exactly as many as there are slots."""

from dataclasses import replace

import pytest
from trainyard_api.trainingjob import JobState
from trainyard_operator.decide import admission, lifecycle
from trainyard_operator.decide.model import NodeView
from trainyard_operator.decide.tally import Slot

from tests.operator.decide.world import World

SERVICE = "mgmt-train-yard-nano"


def world_with(*names: str, priorities: dict[str, int] | None = None, **service: object) -> World:
    """Jobs created a second apart, all looked at once, on a service of these settings."""
    world = World()
    world.serve(SERVICE, **service)
    for name in names:
        world.apply(name, policy={"priority": (priorities or {}).get(name, 0)})
        world.tick()
    for name in names:
        world.reconcile(name)
    return world


def batch(world: World) -> list[str]:
    snapshot = world.service_snapshot(SERVICE)
    kept = admission.pending(snapshot)
    return [entry.name for entry in kept] + [entry.name for entry, _ in admission.picked(snapshot, kept)]


def test_the_oldest_start_first_as_many_as_there_are_instances():
    assert batch(world_with("a", "b", "c", scaling={"maxInstances": 2})) == ["a", "b"]


def test_concurrency_multiplies_the_slots():
    assert batch(world_with("a", "b", "c", "d", scaling={"maxInstances": 1, "concurrency": 3})) == ["a", "b", "c"]


def test_a_higher_priority_goes_first_whatever_its_age():
    world = world_with("a", "b", "c", priorities={"c": 5, "b": 1}, scaling={"maxInstances": 2})
    assert batch(world) == ["c", "b"]


def test_a_priority_that_is_raised_while_waiting_counts():
    world = world_with("a", "b")
    world.apply("b", policy={"priority": 1})
    world.reconcile("b")
    assert batch(world) == ["b"]


@pytest.mark.parametrize("service", [{"paused": True}, {"scaling": {"maxInstances": 0}}])
def test_a_paused_or_zero_sized_service_starts_nothing_and_says_so(service: dict[str, object]):
    world = world_with("a", **service)
    assert batch(world) == []
    status = world.status("a")
    assert status.state is JobState.QUEUED
    assert SERVICE in (status.message or "")
    assert status.reason == ("ServicePaused" if "paused" in service else "NoInstances")


def test_jobs_that_cannot_start_do_not_hold_up_who_comes_after():
    world = World()
    world.serve(SERVICE)
    world.apply("a", startFrom={"modelVersion": "nobody-v1"})
    world.apply("b", suspend=True)
    world.tick()
    world.apply("c")
    for name in "abc":
        world.reconcile(name)
    assert batch(world) == ["c"]
    assert world.status("a").reason == "StartVersionNotFound"


def test_a_batch_is_counted_before_any_ledger_shows_it():
    world = world_with("a", "b")
    world.reconcile_service()
    assert batch(world) == ["a"]
    assert admission.occupied(world.service_snapshot(SERVICE)) == {Slot(world.jobs["a"].metadata.uid, 0, 1)}


def test_an_entry_leaves_the_batch_when_the_ledger_has_the_attempt():
    world = world_with("a", "b", scaling={"maxInstances": 2})
    world.reconcile_service()
    world.reconcile("a")
    world.reconcile_service()
    assert [entry.name for entry in world.services[SERVICE].status.admission.jobs] == ["b"]  # type: ignore[union-attr]


def test_an_entry_of_a_job_that_was_stopped_is_taken_back_only_when_its_status_shows_it():
    world = world_with("a", "b")
    world.reconcile_service()
    world.apply("a", suspend=True)
    assert batch(world) == ["a"]
    world.reconcile("a")
    assert batch(world) == ["b"]


def test_an_entry_of_a_deleted_job_is_free_again():
    world = world_with("a", "b")
    world.reconcile_service()
    world.delete("a")
    assert batch(world) == ["b"]


def test_the_revision_is_raised_by_a_new_batch_only():
    world = world_with("a")
    world.reconcile_service()
    first = world.services[SERVICE].status.admission
    world.reconcile_service()
    assert world.services[SERVICE].status.admission == first
    assert first
    assert first.revision == 1


def test_a_slot_is_taken_until_the_pods_are_really_gone():
    world = world_with("a", "b")
    world.settle()
    world.run("a")
    world.settle()
    world.delete("a")
    world.settle()
    assert world.status("b").state is JobState.QUEUED
    world.kubelet()
    world.settle()
    assert world.status("b").state is JobState.PREPARING


def test_an_ended_pod_that_is_kept_for_its_log_takes_no_slot():
    world = world_with("a", "b")
    world.settle()
    world.run("a")
    world.settle()
    world.succeed("a")
    world.settle()
    assert any(pod.over for pod in world.pods.values())
    assert world.status("b").state is JobState.PREPARING


def test_a_lost_attempt_gives_its_slot_back():
    world = world_with("a", "b")
    world.settle()
    world.run("a")
    world.settle()
    world.lose_node()
    world.tick(301)
    world.settle()
    assert world.status("a").attempts[0].fenced
    assert world.status("b").state is JobState.PREPARING


def test_pods_of_a_deleted_job_on_a_lost_node_do_not_stop_a_service_for_ever():
    world = world_with("a", "b")
    world.settle()
    world.run("a")
    world.settle()
    world.lose_node()
    world.delete("a")
    world.settle()
    assert world.status("b").state is JobState.QUEUED
    world.tick(400)
    world.settle()
    assert world.status("b").state is JobState.PREPARING


def test_a_pod_of_a_job_that_was_made_again_is_another_slot():
    world = world_with("a")
    world.settle()
    world.run("a")
    world.settle()
    world.delete("a")
    world.apply("a")
    world.settle()
    assert world.status("a").state is JobState.QUEUED
    world.kubelet()
    world.settle()
    assert world.status("a").attempts[0].number == 1
    assert world.status("a").state is JobState.PREPARING


def test_lowering_the_maximum_lets_running_executions_finish():
    world = world_with("a", "b", "c", scaling={"maxInstances": 2})
    world.settle()
    world.serve(SERVICE, scaling={"maxInstances": 1})
    world.settle()
    assert world.executing() == 2
    world.run("a")
    world.settle()
    world.succeed("a")
    world.settle()
    assert world.executing() == 1
    assert world.status("c").state is JobState.QUEUED


def test_positions_are_those_of_the_queue():
    world = world_with("a", "b", "c", scaling={"maxInstances": 1})
    world.settle()
    assert [world.status(name).queue_position for name in "abc"] == [None, 1, 2]


def test_only_the_first_twenty_have_a_position():
    names = [f"j{n:02}" for n in range(22)]
    world = world_with(*names, scaling={"maxInstances": 0})
    world.settle()
    shown = [world.status(name).queue_position for name in names]
    assert shown == [*range(1, 21), None, None]


def test_beyond_the_length_of_the_queue_jobs_try_again_later_and_enter_by_themselves():
    world = world_with("a", "b", "c", scaling={"maxInstances": 1}, queue={"maxLength": 1})
    world.settle()
    assert [world.status(name).state.value for name in "abc"] == ["Preparing", "Queued", "TryAgainLater"]
    assert "queue.maxLength 1" in (world.status("c").message or "")
    world.run("a")
    world.settle()
    world.succeed("a")
    world.settle()
    assert [world.status(name).state.value for name in "abc"] == ["Succeeded", "Preparing", "Queued"]


def test_a_batch_holds_at_most_a_hundred_jobs():
    names = [f"j{n:03}" for n in range(120)]
    assert len(batch(world_with(*names, scaling={"maxInstances": 200}))) == 100


def test_a_stale_service_cannot_use_an_entry_that_was_taken_back():
    """A leader wakes with the service as it was when `a` was admitted; meanwhile `a` was stopped and `b` has its slot."""
    world = world_with("a", "b")
    world.reconcile_service()
    old = world.snapshot("a")
    world.apply("a", suspend=True)
    world.settle()
    assert world.executing() == 1
    world.carry_out_plan(replace(old, nodes={"node-0": NodeView("node-0")}))
    assert world.executing() == 1
    assert world.status("a").attempts == ()


def blocked(**spec: object) -> World:
    """`a` has the only slot and an image that is not there; `b` waits."""
    world = World()
    world.serve(SERVICE)
    world.apply("a", **spec)
    world.tick()
    world.apply("b")
    world.settle()
    world.wait_for("a", "ImagePullBackOff", "no such host")
    return world


def test_who_cannot_start_with_what_is_its_own_gives_way_to_those_who_may():
    world = blocked(resources={"image": "reg.example/mine:1"})
    world.tick(290)
    world.settle()
    assert (world.status("a").state, world.status("b").state) == (JobState.PREPARING, JobState.QUEUED)
    world.tick(20)
    world.settle()
    world.kubelet()
    world.settle()
    a, b = world.status("a"), world.status("b")
    assert (a.state, a.attempts[0].cause, a.attempts[0].charged, a.disruptions) == (JobState.RERUN, "GaveWay", False, 1)
    assert "spec.resources.image of the job" in (a.message or "")
    assert len(b.attempts) == 1, "the slot is its"
    # It comes back, after a pause that grows, when there is room again.
    world.tick(310)
    world.settle()
    assert world.status("a").state is JobState.QUEUED
    world.run("b")
    world.succeed("b")
    world.settle()
    world.kubelet()
    world.settle()
    assert len(world.status("a").attempts) == 2


@pytest.mark.parametrize("spec", [{}, {"resources": {"image": "reg.example/mine:1"}}])
def test_nobody_gives_way_for_nothing(spec: dict[str, object]):
    """Neither for those who would not start either, nor where nobody waits."""
    world = blocked(**spec)
    if spec:
        world.delete("b")
    world.tick(600)
    world.settle()
    assert (world.status("a").state, len(world.status("a").attempts)) == (JobState.PREPARING, 1)


def test_who_cannot_start_with_a_machine_that_there_is_not_gives_way_too():
    world = World()
    world.serve(SERVICE, scaling={"maxInstances": 1}, execution={"startTimeoutSeconds": 3600})
    for name, resources in (("a", {"machineType": "none"}), ("b", {})):
        world.apply(name, resources=resources)
        world.tick()
    world.settle()
    assert world.status("a").reason == "NotAllowed"
    world.tick(300)
    world.settle()
    assert world.status("a").attempts[0].cause == "GaveWay"
    assert "machineType none" in (world.status("a").attempts[0].message or "")
    assert [a.job_name for a in world.status("b").attempts] == ["b-r0-a1"]


@pytest.mark.parametrize("waiting", [1, 2])
def test_no_more_give_way_at_once_than_wait_and_those_that_have_been_stuck_for_longest(waiting: int):
    world = World()
    world.serve(SERVICE, scaling={"maxInstances": 3})
    stuck = ["a", "b", "c"]
    for name in stuck:
        world.apply(name, resources={"image": "reg.example/mine:1"})
        world.settle()
        world.wait_for(name, "ImagePullBackOff", "no such host")
        world.settle()
        world.tick()
    others = [f"w{n}" for n in range(waiting)]
    for name in others:
        world.apply(name)
    world.tick(310)
    for name in reversed(stuck):  # whoever looks first
        world.reconcile(name)
    world.settle()
    world.kubelet()
    world.settle()
    gave = [name for name in stuck if world.status(name).attempts[0].ending == "GaveWay"]
    assert gave == stuck[:waiting]
    assert [len(world.status(name).attempts) for name in others] == [1] * waiting
    world.tick(60)
    world.settle()
    assert world.status("c").state is JobState.PREPARING


def test_nobody_gives_way_to_who_has_a_slot_already():
    world = blocked(resources={"image": "reg.example/mine:1"})
    world.serve(SERVICE, scaling={"maxInstances": 2})
    world.reconcile_service()
    assert batch(world) == ["b"]
    world.tick(300)
    assert lifecycle.decide_job(world.snapshot("a")).status.attempts[0].ending is None


def draining(*names: str, priorities: dict[str, int] | None = None) -> World:
    """Everyone runs, on as many instances as there are jobs."""
    scaling = {"maxInstances": len(names), "onScaleDown": "Drain"}
    world = world_with(*names, priorities=priorities, scaling=scaling)
    for name in names:  # in this order, a second apart
        world.reconcile_service()
        world.reconcile(name)
        world.tick()
    world.settle()
    for name in names:
        world.run(name)
    world.settle()
    return world


def ended(world: World) -> list[str]:
    return sorted(name for name, job in world.jobs.items() if any(a.ending for a in job.status.attempts))


def test_scaling_down_drains_the_lowest_priority_and_of_it_the_youngest():
    world = draining("a", "b", "c", "d", priorities={"a": -1, "d": 5})
    world.serve(SERVICE, scaling={"maxInstances": 2, "onScaleDown": "Drain"})
    world.settle()
    assert ended(world) == ["a", "c"]
    world.kubelet()
    world.settle()
    status = world.status("c")
    assert (status.state, status.attempts[0].cause, status.attempts[0].charged) == (
        JobState.QUEUED,
        "ScaledDown",
        False,
    )
    assert (status.charged_attempts, status.disruptions) == (0, 0)
    assert world.executing() == 2
    world.serve(SERVICE, scaling={"maxInstances": 3, "onScaleDown": "Drain"})
    world.settle()
    assert world.status("c").attempts[-1].number == 2  # c goes on before a, whose priority is lower


def test_what_ends_already_counts_as_drained():
    world = draining("a", "b", "c")
    world.apply("a", suspend=True)
    world.settle()
    world.serve(SERVICE, scaling={"maxInstances": 2, "onScaleDown": "Drain"})
    world.settle()
    assert ended(world) == ["a"]


def test_scaling_to_zero_drains_everybody():
    world = draining("a", "b")
    world.serve(SERVICE, scaling={"maxInstances": 0, "onScaleDown": "Drain"})
    world.settle()
    assert ended(world) == ["a", "b"]


def test_scaling_down_ends_nobody_where_it_waits():
    world = draining("a", "b")
    world.serve(SERVICE, scaling={"maxInstances": 0, "onScaleDown": "Wait"})
    world.settle()
    assert ended(world) == []


def test_the_places_that_have_changed_are_those_of_the_first_twenty_and_of_who_was_one():
    names = [f"j{n:02}" for n in range(22)]
    world = world_with(*names, scaling={"maxInstances": 0})
    world.settle()
    assert admission.misplaced(world.service_snapshot(SERVICE)) == ()
    world.apply("first", policy={"priority": 5})
    assert admission.misplaced(world.service_snapshot(SERVICE)) == tuple(names[:20])
    world.settle()
    assert [world.status(name).queue_position for name in ("first", "j00", "j18", "j19")] == [1, 2, 20, None]
