"""Training over several nodes: one gang is one execution; it starts when all of it runs, and ends together."""

from typing import Any

from trainyard_api.report import Phase
from trainyard_api.trainingjob import Cause, JobState
from trainyard_operator.decide import admission, lifecycle
from trainyard_operator.decide.model import ContainerView, CreateHeadless, CreateJob, LowerDeadline

from tests.operator.decide.world import World

SERVICE = "mgmt-train-yard-nano"


def gang(*names: str, **service: Any) -> World:
    world = World()
    settings: dict[str, Any] = {"instance": {"nodes": 2}, "scaling": {"maxInstances": 1}} | service
    world.serve(SERVICE, **settings)
    for name in names or ("cells",):
        world.apply(name)
        world.tick()
    world.settle()
    return world


def run(world: World, pod: str) -> None:
    running = ContainerView("trainer", running=True, running_since=world.now)
    world.change(world.pods[pod], node="node-0", phase="Running", start_time=world.now, containers=(running,))
    world.settle()


def test_names_are_made_before_the_pods_and_the_first_one_is_where_they_meet():
    world = World()
    world.serve(SERVICE, instance={"nodes": 2})
    world.apply("cells")
    world.reconcile("cells")
    world.reconcile_service()
    plan = lifecycle.decide_job(world.snapshot("cells"))
    headless, job = [action for action in plan.actions if isinstance(action, CreateHeadless | CreateJob)]
    assert isinstance(headless, CreateHeadless)
    assert isinstance(job, CreateJob)
    assert job.run.rendezvous is not None
    assert job.run.rendezvous.host == f"cells-r0-a1-0.{headless.name}.vision.svc"
    assert (job.run.nodes, job.instance.nodes) == (2, 2)


def test_a_gang_takes_one_slot_until_all_of_it_is_gone():
    world = gang("a", "b")
    assert len(world.pods) == 2
    assert len(admission.occupied(world.service_snapshot(SERVICE))) == 1
    for pod in ("a-r0-a1-x", "a-r0-a1-x1"):
        run(world, pod)
    world.end_pod(world.pods["a-r0-a1-x1"], 0)
    world.settle()
    assert world.status("b").state is JobState.QUEUED


def test_a_gang_has_started_when_all_of_it_runs():
    world = gang(execution={"startTimeoutSeconds": 60})
    run(world, "cells-r0-a1-x")
    assert world.status("cells").attempts[0].start_time is None
    run(world, "cells-r0-a1-x1")
    assert world.status("cells").attempts[0].start_time == world.now


def test_half_a_gang_is_ended_when_the_other_half_does_not_start_in_time():
    world = gang(execution={"startTimeoutSeconds": 60})
    run(world, "cells-r0-a1-x1")
    world.tick(61)
    plan = lifecycle.decide_job(world.snapshot("cells"))
    assert plan.status.attempts[0].ending is Cause.START_TIMED_OUT
    lowered = {action.pod for action in plan.actions if isinstance(action, LowerDeadline)}
    assert "cells-r0-a1-x1" in lowered


def test_only_the_first_node_reports():
    world = gang()
    run(world, "cells-r0-a1-x1")
    run(world, "cells-r0-a1-x")
    current = world.status("cells").current
    assert current is not None
    assert current.pod_uid == world.pods["cells-r0-a1-x"].metadata.uid
    assert world.report("cells", Phase.TRAINING)


def test_the_node_that_failed_first_gives_the_cause():
    world = gang()
    for pod in ("cells-r0-a1-x", "cells-r0-a1-x1"):
        run(world, pod)
    world.tick(10)
    world.end_pod(world.pods["cells-r0-a1-x1"], 65, "Annotations/a.xml:17: no box")
    world.settle()
    assert world.status("cells").attempts[0].end_time is None  # the other one is being ended
    world.tick(2)
    world.end_pod(world.pods["cells-r0-a1-x"], 75)
    world.settle()
    assert world.status("cells").attempts[0].cause is Cause.INVALID_DATA


def test_an_execution_has_as_many_pods_as_it_was_made_with_whatever_its_service_becomes():
    world = World()
    world.serve(SERVICE, execution={"startTimeoutSeconds": 60})
    world.apply("cells")
    world.settle()
    world.serve(SERVICE, instance={"nodes": 2}, execution={"startTimeoutSeconds": 60})
    run(world, "cells-r0-a1-x")
    assert world.status("cells").attempts[0].start_time == world.now
    world.tick(61)
    world.settle()
    assert world.status("cells").attempts[0].ending is None
