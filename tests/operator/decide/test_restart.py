"""`rerunAsProcess`: the next attempt begins in the pod of the one that failed, and is an attempt like any other."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import Phase as Stage
from hypothesis import strategies as st
from trainyard_api.report import Phase
from trainyard_api.trainingjob import AttemptResult, Cause, JobState
from trainyard_operator.decide import admission, lifecycle
from trainyard_operator.decide.model import CreateJob, DeleteJob, LowerDeadline

from tests.operator.decide.world import World

SERVICE = "mgmt-train-yard-nano"
CRASHED = AttemptResult(exit_code=1, reason="RankKilled", message="process 1 of 1 was killed by SIGSEGV")


def training(spec: dict[str, Any] | None = None, **execution: Any) -> World:
    """A job that trains for 100 s, where a process may be started again."""
    world = World()
    world.serve(execution={"rerunAsProcess": True, "timeoutSeconds": 1000, "maxAttempts": 3} | execution)
    world.apply("cells", **(spec or {}))
    world.settle()
    world.run("cells")
    world.settle()
    world.tick(100)
    assert world.report("cells", Phase.TRAINING, step=50, checkpointStep=40, sequence=7)
    world.settle()
    return world


def crash(world: World) -> None:
    assert world.report("cells", Phase.RESTARTING, result=CRASHED, checkpointStep=40, sequence=8)
    world.settle()


def test_the_failed_attempt_counts_and_the_next_one_has_its_pod():
    world = training()
    pod = world.live_pod("cells")
    assert pod
    crash(world)
    status = world.status("cells")
    first, second = status.attempts
    assert (first.cause, first.charged, first.exit_code, first.message) == (Cause.ERROR, True, 1, CRASHED.message)
    assert (first.checkpoint_step, first.end_time) == (40, world.now)
    assert (second.number, second.process, second.end_time) == (2, 2, None)
    assert (second.job_name, second.job_uid, second.pod_uid) == (first.job_name, first.job_uid, pod.metadata.uid)
    assert status.current is not None
    assert (status.current.attempt, status.current.pod_uid) == (2, pod.metadata.uid)
    assert (status.state, status.charged_attempts, status.progress) == (JobState.PREPARING, 1, None)
    assert "started again in the same pod" in (status.message or "")
    assert world.live_pod("cells") == pod, "nothing was done to it"
    assert "AttemptError" in [note.reason for _, note in world.notes]


def test_both_attempts_take_one_slot_and_what_shares_the_pod_keeps_it():
    world = training()
    crash(world)
    assert len(admission.occupied(world.service_snapshot(SERVICE))) == 1
    world.tick(120)
    plan = lifecycle.decide_job(world.snapshot("cells"))
    assert not [action for action in plan.actions if isinstance(action, DeleteJob | CreateJob | LowerDeadline)]


def test_the_attempts_of_a_pod_share_its_time():
    world = training()
    crash(world)
    second = world.status("cells").attempts[1]
    assert (second.start_time, second.timeout_seconds) == (world.now, 900)


def test_the_next_one_can_succeed_or_fail_with_its_pod():
    world = training()
    crash(world)
    assert world.report("cells", Phase.TRAINING, step=45)
    world.settle()
    assert world.status("cells").state is JobState.RUNNING
    world.succeed("cells")
    world.settle()
    status = world.status("cells")
    assert (status.state, [a.cause for a in status.attempts]) == (JobState.SUCCEEDED, [Cause.ERROR, Cause.COMPLETED])

    world = training()
    crash(world)
    world.end("cells", 1)
    world.settle()
    assert [(a.number, a.charged) for a in world.status("cells").attempts] == [(1, True), (2, True)]
    assert world.status("cells").next_attempt_time is not None, "the third one has a pod of its own"


@pytest.mark.parametrize(
    ("spec", "execution"),
    [
        ({}, {"rerunAsProcess": False}),
        ({"policy": {"rerunAsProcess": False}}, {}),
        ({}, {"maxAttempts": 1}),
        ({}, {"timeoutSeconds": 100}),
    ],
    ids=["not asked for", "not for this job", "the last one that counts", "no time is left"],
)
def test_nobody_answers_where_no_attempt_follows_at_once(spec: dict[str, Any], execution: dict[str, Any]):
    world = training(spec, **execution)
    crash(world)
    assert [a.number for a in world.status("cells").attempts] == [1]


def test_a_stop_comes_first():
    world = training()
    world.apply("cells", suspend=True)
    crash(world)
    [attempt] = world.status("cells").attempts
    assert attempt.ending is Cause.STOPPED


def test_with_a_budget_the_next_attempt_waits_for_its_time():
    world = World()
    world.limit(trainingMinutes=600, period="Day")
    world.serve(execution={"rerunAsProcess": True})
    world.apply("cells")
    world.settle()
    assert world.created[-1].run.max_process_starts == 1


def test_the_trainer_is_told_how_many_starts_are_left():
    world = training()
    assert world.created[-1].run.max_process_starts == 3
    world.end("cells", 1)
    world.settle()
    world.tick(60)
    world.settle()
    assert world.created[-1].run.max_process_starts == 2


def test_a_lost_pod_frees_its_slot_whichever_attempt_it_names():
    world = training()
    crash(world)
    world.lose_node()
    world.tick(400)
    world.settle()
    assert world.status("cells").attempts[1].fenced
    taken = admission.occupied(world.service_snapshot(SERVICE))
    assert all(slot.attempt == 3 for slot in taken)


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 3)), max_size=14))
@settings(
    max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), phases=(Stage.explicit, Stage.generate)
)
def test_whatever_happens_around_a_crash(steps: list[tuple[int, int]]):
    """An operator that dies before any of its writes, one that wakes up with what it knew, users, a node: a crash loses and doubles nothing."""
    world = training(maxAttempts=4)
    old = [world.snapshot("cells")]

    def one_step(which: int, n: int) -> None:
        job, pod = world.jobs["cells"], world.live_pod("cells")
        runs = pod is not None and pod.trainer is not None and pod.trainer.running
        match which:
            case 0 | 1 if runs:
                world.report("cells", Phase.RESTARTING, result=CRASHED, checkpointStep=40)
            case 2:
                world.reconcile("cells", crash_before=(None, 0, 1, 2)[n])
            case 3:
                world.settle()
            case 4:
                old.append(world.snapshot("cells"))
            case 5:
                world.carry_out_plan(old[n % len(old)])
            case 6 if n == 0:
                world.apply("cells", suspend=not job.spec.suspend)
            case 6:
                world.tick((1, 30, 200)[n - 1])
            case 7 if runs and n < 2:
                world.end("cells", (1, 137)[n])
            case 8 if pod is not None and pod.node is None:
                world.run("cells")
            case 8:
                world.kubelet()
            case _:
                pass

    for which, n in [(0, 0), *steps]:
        one_step(which, n)
        status = world.status("cells")
        assert len(admission.occupied(world.service_snapshot(SERVICE))) <= 1
        assert sum(a.end_time is None for a in status.attempts) <= 1
        assert (status.charged_attempts or 0) == sum(bool(a.charged) for a in status.attempts) <= 4
        assert status.state is not JobState.UNSPECIFIED, status.message
        assert [a.number for a in status.attempts] == list(range(1, len(status.attempts) + 1))
        processes = [(a.job_uid, a.process) for a in status.attempts if a.job_uid]
        assert len(set(processes)) == len(processes), "two attempts are the same process"
        assert sum(not p.over for p in world.pods.values()) <= 1, "two pods train"
