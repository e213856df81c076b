"""The state machine of a TrainingJob, told as stories in a small pure world."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from trainyard_api.modelversion import VersionState
from trainyard_api.report import Outcome, Phase, Result
from trainyard_api.status import Warning_
from trainyard_api.trainingjob import Cause, JobState, TrainingJobStatus
from trainyard_operator.decide import execution, lifecycle
from trainyard_operator.decide.model import (
    ContainerView,
    CreateJob,
    CreateVersion,
    DeleteJob,
    DeletePod,
    DeleteTrainingJob,
    LowerDeadline,
    NodeView,
    ObjectCondition,
    Taint,
    Wants,
    WriteVersionStatus,
)
from trainyard_operator.decide.nodes import lost_time

from tests.operator.decide.world import START, World, published

SERVICE = "mgmt-train-yard-nano"


def at(state: str, world: World | None = None, **spec: Any) -> World:
    """A world whose job `cells` is in a state: queued, preparing, started, running, stopping, stopped, canceled, rerun, done."""
    world = world or World()
    if SERVICE not in world.services:
        world.serve(SERVICE, scaling={"maxInstances": 0 if state == "queued" else 1})
    world.apply("cells", **spec)
    world.settle()
    if state in ("queued", "preparing"):
        return world
    if state == "canceled":
        world.apply("cells", suspend=True)
        world.settle()
        return world
    world.tick(5)
    world.run("cells")
    world.settle()
    if state == "started":
        return world
    world.report("cells", Phase.TRAINING, step=10, steps=300, checkpoint_step=10)
    world.settle()
    if state in ("stopping", "stopped"):
        world.apply("cells", suspend=True)
        world.settle()
        if state == "stopped":
            world.kubelet()
            world.settle()
    elif state == "rerun":
        world.end("cells", 1, "boom")
        world.settle()
    elif state == "done":
        world.succeed("cells")
        world.settle()
    return world


def state(world: World) -> tuple[str, str | None]:
    status = world.status("cells")
    return status.state.value, status.reason


# --- the straight way -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("queued", ("Queued", "NoInstances")),
        ("preparing", ("Preparing", "Starting")),
        ("started", ("Preparing", "Started")),
        ("running", ("Running", "Training")),
        ("stopping", ("Stopping", "Suspended")),
        ("stopped", ("Stopped", "Stopped")),
        ("canceled", ("Canceled", "Stopped")),
        ("rerun", ("Rerun", "Error")),
        ("done", ("Succeeded", "Completed")),
    ],
)
def test_every_state_shows_itself(name: str, shown: tuple[str, str]):
    assert state(at(name)) == shown


def test_the_default_service_is_made_on_first_use():
    world = World()
    world.apply("cells")
    world.reconcile("cells")
    assert list(world.services) == [SERVICE]
    assert state(world) == ("Queued", "CreatingService")


def test_the_chart_s_settings_go_into_the_service_that_is_made():
    world = World()
    world.defaults = replace(world.defaults, service={"instance": {"gpus": 0}})
    world.apply("cells")
    world.settle()
    assert world.services[SERVICE].spec.instance.gpus == 0


def test_the_intent_is_written_before_its_action():
    world = World()
    world.serve(SERVICE)
    world.apply("cells")
    world.reconcile("cells")
    world.reconcile_service()
    plan = world.reconcile("cells", crash_before=1)
    assert [attempt.job_name for attempt in world.status("cells").attempts] == ["cells-r0-a1"]
    assert world.status("cells").version == "cells-v1"
    assert [type(action) for action in plan.actions] == [CreateVersion, CreateJob]
    assert not world.attempt_jobs
    world.settle()
    assert list(world.attempt_jobs) == ["cells-r0-a1"]


def test_a_job_that_was_made_and_not_noted_is_adopted():
    world = World()
    world.serve(SERVICE)
    world.apply("cells")
    world.reconcile("cells")
    world.reconcile_service()
    world.reconcile("cells")
    assert world.status("cells").attempts[0].job_uid is None
    world.settle()
    world.run("cells")
    world.settle()
    assert world.status("cells").attempts[0].job_uid == world.attempt_jobs["cells-r0-a1"].metadata.uid
    assert len(world.created) == 1


def test_an_image_is_named_also_where_nobody_says_why_it_does_not_come():
    world = at("preparing")
    world.wait_for("cells", "ImagePullBackOff", 'Back-off pulling image "a.example/none:1"')
    world.settle()
    assert (world.status("cells").message or "").startswith("The image a.example/none:1 cannot be pulled. Check ")


def test_preparing_carries_the_diagnosis_then_the_phase():
    world = at("preparing")
    world.wait_for("cells", "ImagePullBackOff", 'Back-off pulling image "x": ErrImagePull: no such host')
    world.settle()
    assert state(world) == ("Preparing", "ImagePull")
    assert "no such host" in (world.status("cells").message or "")
    world.run("cells")
    world.settle()
    world.report("cells", Phase.FETCHING, message="bccd.zip 43 %")
    world.settle()
    assert state(world) == ("Preparing", "Fetching")
    assert world.status("cells").message == "Fetching: bccd.zip 43 %"


def test_running_stays_running_while_it_evaluates_and_uploads():
    world = at("running")
    for phase in (Phase.EVALUATING, Phase.SAVING, Phase.EXPORTING, Phase.UPLOADING):
        world.report("cells", phase)
        world.settle()
        assert state(world) == ("Running", "Training")


def test_a_job_succeeds_only_after_its_version_says_ready():
    world = at("running")
    world.succeed("cells", test={"mAP50": 0.85}, labels=["RBC", "WBC"])
    plan = world.reconcile("cells")
    assert plan.status.state is JobState.RUNNING
    assert isinstance(plan.actions[-1], WriteVersionStatus)
    world.settle()
    version = world.versions["cells-v1"]
    assert version.status.state is VersionState.READY
    assert version.status.labels == ("RBC", "WBC")
    assert version.status.metric == "mAP50 0.871"
    assert state(world) == ("Succeeded", "Completed")
    assert (
        world.status("cells").message
        == "Trained to the end. Version cells-v1 is ready. Validation mAP50 0.871. Test mAP50 0.850."
    )


@pytest.mark.parametrize("outcome", list(Outcome))
def test_the_outcome_of_the_training_is_the_reason(outcome: Outcome):
    world = at("running")
    world.succeed("cells", reason=outcome.value)
    world.settle()
    assert state(world) == ("Succeeded", outcome.value)


def test_a_finished_job_shows_its_results_and_nothing_stale():
    status = at("done").status("cells")
    assert status.progress
    assert (status.progress.percent, status.progress.eta_seconds, status.progress.phase) == (100, None, "Done")
    assert status.summary
    assert (status.summary.progress, status.summary.step, status.summary.metric) == ("100%", "300/300", "mAP50 0.871")
    assert status.current is None
    assert (status.training_seconds, status.queue_position, status.next_attempt_time) == (60, None, None)
    assert status.completion_time is not None
    assert status.attempts[0].image == "trainer@sha256:1"


# --- attempts, retries, limits ----------------------------------------------------------------------------------------------


def test_an_error_is_charged_and_retried_after_its_backoff():
    world = at("rerun")
    status = world.status("cells")
    assert (status.charged_attempts, status.attempts[0].charged, status.attempts[0].exit_code) == (1, True, 1)
    assert status.next_attempt_time == world.now + timedelta(seconds=10)
    world.tick(9)
    world.settle()
    assert state(world)[0] == "Rerun"
    world.tick(1)
    world.settle()
    assert world.status("cells").attempts[-1].number == 2


def test_a_retry_resumes_from_the_earlier_attempts_and_starts_with_clean_progress():
    world = at("rerun")
    world.tick(10)
    world.settle()
    run = world.created[-1].run
    assert run.resume_from == (f"s3://vision/models/cells/runs/cells-{run.uid[:8]}-r0/attempts/1/",)
    status = world.status("cells")
    assert status.progress is None
    assert status.summary
    assert (status.summary.progress, status.summary.attempt) == (None, "2/3")
    assert status.attempts[0].checkpoint_step == 10


def test_the_last_charged_attempt_fails_the_job_with_cause_and_limit():
    world = at("rerun")
    for _ in range(2):
        world.tick(3600)
        world.settle()
        world.run("cells")
        world.settle()
        world.end("cells", 1, "ValueError: boom")
        world.settle()
    status = world.status("cells")
    assert state(world) == ("Failed", "Error")
    assert "ValueError: boom" in (status.message or "")
    assert "attempt 3 of 3 that count" in (status.message or "")
    assert (status.charged_attempts, status.summary and status.summary.attempt) == (3, "3/3")
    assert world.versions["cells-v1"].status.state is VersionState.FAILED


@pytest.mark.parametrize(
    ("code", "reason"),
    [(64, "InvalidSpec"), (65, "InvalidData"), (73, "DiskFull"), (74, "StorageDenied"), (77, "TimedOut")],
)
def test_what_no_retry_mends_fails_at_once_with_the_trainer_s_words(code: int, reason: str):
    world = at("running")
    said = Result(exit_code=code, reason="x", message="Annotations/a.xml:17: xmax 10 < xmin 40")
    world.end("cells", code, said.to_termination_message())
    world.settle()
    assert state(world) == ("Failed", reason)
    assert world.status("cells").message == "Annotations/a.xml:17: xmax 10 < xmin 40"
    assert len(world.created) == 1


@pytest.mark.parametrize(
    ("limit", "code", "said"),
    [("maxAttempts", 1, "1 of 1 attempts that count"), ("maxDisruptions", 75, "maxDisruptions allows 0")],
)
def test_a_limit_that_is_lowered_while_the_next_attempt_waits_holds(limit: str, code: int, said: str):
    world = at("started")
    world.end("cells", code)
    world.settle()
    assert state(world)[0] == "Rerun"
    world.serve(SERVICE, execution={limit: {"maxAttempts": 1, "maxDisruptions": 0}[limit]})
    world.tick(60)
    world.settle()
    assert state(world) == ("Failed", {1: "Error", 75: "Interrupted"}[code])
    assert said in (world.status("cells").message or "")


def test_a_disruption_is_not_charged():
    world = at("running")
    pod = world.live_pod("cells")
    assert pod
    world.change(pod, conditions=(ObjectCondition("DisruptionTarget", "True", "EvictionByEvictionAPI", "evicting"),))
    world.end("cells", 75)
    world.settle()
    status = world.status("cells")
    assert state(world) == ("Rerun", "Disrupted")
    assert (status.charged_attempts, status.disruptions) == (0, 1)


def test_on_reset_fail_makes_a_disruption_final():
    world = at("running", policy={"onReset": "Fail"})
    pod = world.live_pod("cells")
    assert pod
    world.change(pod, conditions=(ObjectCondition("DisruptionTarget", "True", "PreemptionByScheduler", "preempting"),))
    world.end("cells", 75)
    world.settle()
    assert state(world) == ("Failed", "Disrupted")


def test_a_version_that_storage_has_already_is_left_and_the_next_one_taken():
    world = at("running")
    world.end(
        "cells",
        78,
        Result(exit_code=78, reason="VersionTaken", message="v4 is there", version=4).to_termination_message(),
    )
    world.settle()
    assert world.status("cells").version == "cells-v5"
    assert world.created[-1].run.version == 5
    assert world.versions["cells-v1"].status.reason == "VersionTaken"
    assert world.status("cells").charged_attempts == 0


def test_a_version_number_of_another_job_is_passed_over():
    world = World()
    world.serve(SERVICE, scaling={"maxInstances": 2})
    world.apply("one", model="cells")
    world.apply("two", model="cells")
    world.settle()
    assert {world.status("one").version, world.status("two").version} == {"cells-v1", "cells-v2"}
    assert {v.spec.job_name for v in world.versions.values()} == {"one", "two"}


def test_a_version_taken_between_decision_and_creation_leads_to_the_next():
    world = World()
    world.serve(SERVICE)
    world.apply("cells")
    world.reconcile("cells")
    world.reconcile_service()
    world.reconcile("cells", crash_before=1)
    other = at("preparing").versions["cells-v1"]
    world.versions["cells-v1"] = replace(other, spec=other.spec.model_copy(update={"job_uid": "somebody"}))
    world.settle()
    assert world.status("cells").version == "cells-v2"
    assert world.created[-1].run.version == 2


# --- time -------------------------------------------------------------------------------------------------------------------


def test_a_pod_starts_with_a_backstop_and_gets_its_exact_deadline_when_it_runs():
    world = at("preparing")
    pod = world.live_pod("cells")
    assert pod
    assert pod.active_deadline_seconds == 900 + 3600
    world.wait_for("cells", "ContainerCreating")
    world.tick(40)
    world.run("cells")
    world.settle()
    pod = world.live_pod("cells")
    assert pod
    assert pod.active_deadline_seconds == 900 + 3600, "what is over within moments needs no other"
    assert world.reconcile("cells").look_again_at == world.now + execution.EXACT
    world.tick(execution.EXACT.total_seconds())
    world.settle()
    pod = world.live_pod("cells")
    assert pod
    assert pod.active_deadline_seconds == 40 + 3600


def test_a_short_execution_gets_its_exact_deadline_while_it_runs():
    world = at("preparing", policy={"timeoutSeconds": 10})
    world.run("cells")
    world.settle()
    world.tick(5)
    world.settle()
    pod = world.live_pod("cells")
    assert pod
    assert pod.active_deadline_seconds == 10


def test_a_service_that_is_changed_or_deleted_does_not_change_the_time_of_what_runs():
    world = at("running")
    world.serve(SERVICE, execution={"timeoutSeconds": 60})
    world.tick(execution.EXACT.total_seconds())
    world.settle()
    pod = world.live_pod("cells")
    assert pod
    assert pod.active_deadline_seconds == 3600
    del world.services[SERVICE]
    assert lifecycle.decide_job(world.snapshot("cells")).actions == ()


def test_an_execution_that_the_kubelet_ended_for_time_is_final():
    world = at("running")
    world.end("cells", 75, reason="Error", **{"phase": "Failed"})
    pod = next(iter(world.pods.values()))
    world.pods[pod.metadata.name] = replace(pod, reason="DeadlineExceeded")
    world.settle()
    assert state(world) == ("Failed", "TimedOut")
    assert "timeoutSeconds" in (world.status("cells").message or "")


def test_a_pod_that_does_not_start_in_time_is_ended_with_the_diagnosis():
    world = at("preparing")
    world.wait_for("cells", "ImagePullBackOff", "no such host")
    world.tick(899)
    world.settle()
    assert state(world) == ("Preparing", "ImagePull")
    world.tick(1)
    world.settle()
    world.kubelet()
    world.settle()
    status = world.status("cells")
    assert state(world) == ("Rerun", "StartTimedOut")
    assert status.attempts[0].cause is Cause.START_TIMED_OUT
    assert "no such host" in (status.attempts[0].message or "")
    assert not world.attempt_jobs
    assert status.charged_attempts == 1


def test_silence_is_a_stall_except_while_uploading():
    world = at("running")
    world.tick(599)
    world.report("cells", Phase.UPLOADING)
    world.settle()
    world.tick(5000)
    world.settle()
    assert state(world)[0] == "Running"
    world.report("cells", Phase.TRAINING)
    world.settle()
    world.tick(600)
    plan = world.reconcile("cells")
    assert plan.status.attempts[0].ending is Cause.STALLED
    assert f"spec.execution.stallTimeoutSeconds of TrainingService {SERVICE}." in (plan.status.message or "")
    assert [type(action) for action in plan.actions] == [LowerDeadline]
    world.kubelet()
    world.settle()
    assert state(world) == ("Rerun", "Stalled")
    assert world.status("cells").charged_attempts == 1


@pytest.mark.parametrize(
    ("own", "named"),
    [
        ({}, f"Check spec.image of TrainingService {SERVICE},"),
        (
            {"resources": {"image": "reg/mine:1"}},
            "Check spec.resources.image of the job (which cannot be changed: make a new job),",
        ),
    ],
)
def test_what_keeps_a_job_from_starting_names_the_field_that_holds(own: dict[str, Any], named: str):
    world = World()
    world.serve(SERVICE)
    world.apply("cells", **own)
    world.settle()
    world.wait_for("cells", "ImagePullBackOff", 'Back-off pulling image "reg/mine:1": ErrImagePull: no such host')
    world.settle()
    assert named in (world.status("cells").message or "")
    assert named in world.notes[-1][1].message


def test_nobody_is_blamed_for_silence_while_the_operator_was_away():
    world = at("running")
    world.tick(5000)
    late = replace(world.snapshot("cells"), reports_since=world.now - timedelta(seconds=599))
    assert lifecycle.decide_job(late).status.attempts[0].ending is None
    later = replace(late, now=world.now + timedelta(seconds=1))
    assert lifecycle.decide_job(later).status.attempts[0].ending is Cause.STALLED


def test_a_service_that_is_made_again_blames_nobody_for_its_own_absence():
    world = at("preparing")
    world.unserve(SERVICE)
    world.tick(3600)
    world.reconcile("cells")
    assert world.status("cells").attempts[0].ending is None


def test_a_look_is_due_no_later_than_the_next_deadline():
    world = at("running")
    due = lifecycle.decide_job(world.snapshot("cells")).look_again_at
    assert due <= world.now + timedelta(seconds=600)
    waiting = at("rerun")
    assert lifecycle.decide_job(waiting.snapshot("cells")).look_again_at == waiting.status("cells").next_attempt_time


# --- stop, resume, finish, abort --------------------------------------------------------------------------------------------


def test_a_job_created_suspended_stays_created_and_is_ready():
    world = World()
    world.apply("cells", suspend=True)
    world.settle()
    assert state(world) == ("Created", "Suspended")
    assert conditions(world)["Ready"] == ("True", "Suspended")
    assert not world.created


def test_stopping_asks_first_then_tells_then_waits_for_the_end():
    world = at("running")
    world.apply("cells", suspend=True)
    plan = world.reconcile("cells", crash_before=1)
    assert plan.status.state is JobState.STOP_REQUESTED
    assert plan.status.attempts[0].ending is Cause.STOPPED
    world.settle()
    assert state(world) == ("Stopping", "Suspended")
    pod = world.live_pod("cells")
    assert pod
    assert pod.active_deadline_seconds == 1
    world.kubelet()
    world.settle()
    assert state(world) == ("Stopped", "Stopped")
    assert "checkpoint at step 10" in (world.status("cells").message or "")
    assert world.status("cells").attempts[0].charged is False
    assert world.versions["cells-v1"].status.state is VersionState.STOPPED


def test_a_stopped_job_resumes_uncharged_from_its_checkpoint():
    world = at("stopped")
    world.apply("cells", suspend=False)
    world.settle()
    assert state(world)[0] == "Preparing"
    assert world.created[-1].run.resume_from
    assert world.status("cells").charged_attempts == 0
    assert world.versions["cells-v1"].status.state is VersionState.TRAINING


def test_no_attempt_starts_while_a_pod_of_an_earlier_one_lives():
    """Its attempt ended in the ledger before the pod was seen: there are slots, yet a job never runs twice at once."""
    world = World()
    world.serve(SERVICE, scaling={"maxInstances": 2})
    at("stopped", world)
    [pod] = [each for each in world.pods.values() if each.labels.get("trainyard.dev/job") == "cells"]
    running = ContainerView("trainer", running=True, running_since=world.now)
    world.change(pod, phase="Running", containers=(running,))
    world.apply("cells", suspend=False)
    world.settle()
    status = world.status("cells")
    assert (status.state, status.reason, len(status.attempts)) == (JobState.QUEUED, "PreviousAttemptEnding", 1)
    assert pod.metadata.name in (status.message or "")
    world.end("cells", 75)
    world.settle()
    assert len(world.status("cells").attempts) == 2


def test_who_waits_for_a_pod_on_a_dead_node_looks_again_when_it_is_lost():
    world = at("started")
    world.delete_attempt_job(next(iter(world.attempt_jobs.values())))
    world.lose_node()
    world.settle()
    pod = next(iter(world.pods.values()))
    world.write("cells", world.status("cells").model_copy(update={"attempts": (), "state": JobState.QUEUED}))
    plan = lifecycle.decide_job(world.snapshot("cells"))
    assert plan.status.reason == "PreviousAttemptEnding"
    assert plan.look_again_at == lost_time(pod, world.nodes, world.defaults, world.now)


def test_a_queued_job_is_suspended_without_an_attempt():
    world = at("queued")
    world.apply("cells", suspend=True)
    world.settle()
    assert state(world) == ("Created", "Suspended")
    assert world.status("cells").queue_position is None


def test_stopping_what_never_ran_deletes_its_job():
    world = at("preparing")
    world.apply("cells", suspend=True)
    world.settle()
    assert not world.attempt_jobs
    assert state(world)[0] == "Canceled"
    world.apply("cells", suspend=False)
    world.settle()
    assert state(world)[0] == "Preparing"


def test_a_stop_during_the_backoff_takes_effect_at_once():
    world = at("rerun")
    world.apply("cells", suspend=True)
    world.settle()
    assert state(world) == ("Stopped", "Stopped")
    assert world.status("cells").next_attempt_time is None


def test_a_training_that_ends_well_while_it_is_stopped_has_succeeded():
    world = at("stopping")
    world.succeed("cells")
    world.settle()
    assert state(world)[0] == "Succeeded"


def test_abort_ends_at_once_and_for_good():
    world = at("running")
    world.apply("cells", end="Abort")
    plan = world.reconcile("cells")
    assert plan.actions == (DeletePod("cells-r0-a1-x", plan.status.attempts[0].pod_uid or "", 1),)
    world.kubelet()
    world.settle()
    assert state(world) == ("Aborted", "Aborted")
    assert world.versions["cells-v1"].status.state is VersionState.FAILED
    world.apply("cells", end=None)
    world.settle()
    assert state(world)[0] == "Aborted"


def test_a_job_whose_pod_was_gone_before_anybody_saw_it_looks_again_when_no_news_can_come():
    world = at("preparing")
    world.apply("cells", end="Abort")
    world.reconcile("cells")
    world.tick(6)
    job = next(iter(world.attempt_jobs.values()))
    gone = ObjectCondition("Failed", "True", "PodFailurePolicy", since=world.now)
    world.attempt_jobs[job.metadata.name] = replace(job, conditions=(gone,))
    world.pods.clear()
    world.settle()
    assert lifecycle.decide_job(world.snapshot("cells")).look_again_at == world.now + timedelta(seconds=10)
    world.tick(10)
    world.settle()
    assert state(world) == ("Aborted", "Aborted")


@pytest.mark.parametrize("name", ["queued", "stopped", "canceled", "rerun"])
def test_abort_of_what_does_not_run_is_immediate(name: str):
    world = at(name)
    world.apply("cells", end="Abort")
    world.reconcile("cells")
    assert state(world) == ("Aborted", "Aborted")


def test_finish_lets_the_trainer_publish_and_ends_it_only_after_the_drain_time():
    world = at("running")
    world.apply("cells", end="Finish")
    world.settle()
    assert state(world) == ("Running", "Finishing")
    pod = world.live_pod("cells")
    assert pod
    assert pod.active_deadline_seconds != 1
    world.tick(300)
    world.settle()
    pod = world.live_pod("cells")
    assert pod
    assert pod.active_deadline_seconds == 1


def test_finish_of_a_stopped_job_starts_an_attempt_that_only_publishes():
    world = at("stopped")
    world.apply("cells", end="Finish")
    world.settle()
    assert world.created[-1].run.finish is True
    world.run("cells")
    world.settle()
    world.succeed("cells", reason="FinishedEarly")
    world.settle()
    assert state(world) == ("Succeeded", "FinishedEarly")


def test_finish_without_a_checkpoint_has_nothing_to_publish():
    world = at("canceled")
    world.apply("cells", end="Finish")
    world.settle()
    assert state(world) == ("Canceled", "NothingToPublish")
    world.apply("cells", end=None, suspend=False)
    world.settle()
    assert state(world)[0] == "Preparing"


# --- runs, deletion, cleaning up --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["done", "stopped", "canceled"])
def test_a_higher_rerun_starts_a_new_run(name: str):
    world = at(name)
    world.apply("cells", rerun=2, suspend=False)
    world.settle()
    status = world.status("cells")
    assert (status.run, status.attempt_count, status.completion_time) == (2, 1, None)
    assert world.created[-1].attempt.job_name == "cells-r2-a1"
    assert status.version == "cells-v2"
    assert world.created[-1].run.resume_from == ()
    assert state(world)[0] == "Preparing"


def test_a_job_that_is_made_with_a_rerun_starts_as_soon_as_any_other():
    world = World()
    world.serve(SERVICE, scaling={"maxInstances": 2})
    at("preparing", world, rerun=3)
    assert [(a.run, a.job_name) for a in world.status("cells").attempts] == [(3, "cells-r3-a1")]


def test_a_rerun_of_a_running_job_waits_for_its_end():
    world = at("running")
    world.apply("cells", rerun=1)
    world.settle()
    assert world.status("cells").run == 0
    world.succeed("cells")
    world.settle()
    assert world.status("cells").run == 1
    assert world.versions["cells-v1"].status.state is VersionState.READY


def test_lowering_rerun_does_nothing():
    world = at("done", rerun=3)
    assert world.status("cells").run == 3
    world.apply("cells", rerun=1)
    world.settle()
    assert state(world)[0] == "Succeeded"


def test_a_finished_attempt_is_kept_for_a_day():
    world = at("done")
    world.tick(86_399)
    world.settle()
    assert world.attempt_jobs
    world.tick(1)
    world.settle()
    assert not world.attempt_jobs
    assert not world.pods


def test_a_job_is_deleted_when_its_time_to_live_is_over_and_its_version_stays():
    world = at("done", ttlSecondsAfterFinished=60)
    world.tick(60)
    plan = world.reconcile("cells")
    assert isinstance(plan.actions[-1], DeleteTrainingJob)
    assert "cells" not in world.jobs
    assert world.versions["cells-v1"].status.state is VersionState.READY


def test_no_child_is_made_once_the_job_is_being_deleted():
    world = World()
    world.serve(SERVICE)
    world.apply("cells")
    world.reconcile("cells")
    world.reconcile_service()
    snapshot = world.snapshot("cells")
    gone = replace(snapshot.job, metadata=replace(snapshot.job.metadata, deletion_time=world.now))
    assert lifecycle.decide_job(replace(snapshot, job=gone)).actions == ()


def test_a_deletion_that_a_dead_node_holds_up_says_how_to_release_it():
    world = at("running")
    world.lose_node()
    world.tick(301)
    snapshot = world.snapshot("cells")
    gone = replace(snapshot.job, metadata=replace(snapshot.job.metadata, deletion_time=world.now))
    status = lifecycle.decide_job(replace(snapshot, job=gone)).status
    assert status.reason == "DeletionBlocked"
    assert "kubectl delete node node-0" in (status.message or "")


@pytest.mark.parametrize(
    ("deleted_for", "reason", "words"),
    [
        (-200, "Deleting", "saves its checkpoint until 2026-01-01T00:03:25Z at the latest"),
        (59, "Deleting", "saves its checkpoint"),
        (60, "DeletionBlocked", "kubectl delete pod cells-r0-a1-x -n vision --grace-period=0 --force"),
    ],
)
def test_what_a_deletion_in_the_foreground_waits_for_is_said(deleted_for: int, reason: str, words: str):
    world = at("running")
    pod = world.live_pod("cells")
    assert pod
    goes = world.now - timedelta(seconds=deleted_for)
    world.change(pod, metadata=replace(pod.metadata, deletion_time=goes))
    snapshot = world.snapshot("cells")
    gone = replace(snapshot.job, metadata=replace(snapshot.job.metadata, deletion_time=world.now))
    plan = lifecycle.decide_job(replace(snapshot, job=gone))
    assert plan.status.reason == reason
    assert words in (plan.status.message or "")
    assert [(note.reason, note.warning) for note in plan.events] == [(reason, reason == "DeletionBlocked")]
    assert plan.look_again_at is not None or reason == "DeletionBlocked"


def test_a_training_that_cannot_end_in_time_is_told_early_and_does_not_flap():
    world = at("running")
    world.report("cells", Phase.TRAINING, step=20, steps=30_000, eta_seconds=9000)
    world.settle()
    assert world.status("cells").warnings == ()  # a rate of a few steps is none yet
    for eta, warned in ((9000, True), (3400, True), (9000, True), (100, False), (3000, False)):
        world.tick(60)
        world.report("cells", Phase.TRAINING, step=30, eta_seconds=eta)
        plan = world.reconcile("cells")
        assert ([w.reason for w in plan.status.warnings] == ["TooSlow"]) is warned, eta
        assert plan.look_again_at is not None
    notes = [note for _, note in world.notes if note.reason == "TooSlow"]
    assert len(notes) == 1
    assert "publishes its best model so far" in notes[0].message
    assert "policy.timeoutSeconds" in notes[0].message


def test_the_version_of_a_deleted_job_fails_unless_it_was_ready():
    world = at("running")
    plan = lifecycle.decide_version(world.versions["cells-v1"], world.now)
    assert plan.status
    assert (plan.status.state, plan.status.reason) == (VersionState.FAILED, "JobDeleted")
    assert lifecycle.decide_version(at("done").versions["cells-v1"], world.now).status is None


def test_a_job_made_again_ends_the_version_of_the_one_before():
    world = at("running")
    world.delete("cells")
    world.apply("cells")
    world.settle()
    assert world.versions["cells-v1"].status.reason == "JobDeleted"


def test_a_job_of_an_older_owner_is_waited_for():
    world = at("running")
    world.delete("cells")
    held = next(iter(at("preparing").attempt_jobs.values()))
    world.attempt_jobs["cells-r0-a1"] = replace(held, owner_uid="the one before")
    world.pods.clear()
    world.apply("cells")
    world.settle()
    assert state(world) == ("Preparing", "PreviousJobTerminating")
    del world.attempt_jobs["cells-r0-a1"]
    world.settle()
    assert state(world) == ("Preparing", "Starting")


# --- faults -----------------------------------------------------------------------------------------------------------------


def test_a_lost_node_fences_the_attempt_and_another_starts_elsewhere():
    world = at("running")
    world.lose_node()
    world.tick(300)
    world.settle()
    status = world.status("cells")
    assert (status.attempts[0].cause, status.attempts[0].fenced, status.current) == (Cause.LOST, True, None)
    assert world.report("cells") is False
    world.tick(10)
    world.settle()
    assert world.status("cells").attempts[-1].job_name == "cells-r0-a2"
    assert "cells-r0-a1" in world.attempt_jobs


def test_a_fenced_container_that_comes_back_is_ended_and_its_job_deleted():
    world = at("running")
    world.lose_node()
    world.tick(300)
    world.settle()
    world.nodes["node-0"] = NodeView("node-0", since=world.now)
    plan = world.reconcile("cells")
    assert [type(action) for action in plan.actions] == [LowerDeadline]
    world.kubelet()
    plan = world.reconcile("cells")
    assert any(isinstance(action, DeleteJob) and action.name == "cells-r0-a1" for action in plan.actions)


def test_a_reset_of_the_service_ends_what_runs_and_reruns_it():
    world = at("running")
    world.serve(SERVICE, reset=1)
    world.settle()
    world.kubelet()
    world.settle()
    status = world.status("cells")
    assert (status.attempts[0].cause, status.charged_attempts) == (Cause.RESET, 0)
    assert status.attempts[-1].number == 2
    assert world.services[SERVICE].status.observed_reset == 1


def test_a_reset_fails_the_job_where_it_says_so():
    world = at("running", policy={"onReset": "Fail"})
    world.serve(SERVICE, reset=1)
    world.settle()
    world.kubelet()
    world.settle()
    assert state(world) == ("Failed", "Reset")


def test_two_open_attempts_are_a_contradiction_that_nothing_is_done_about():
    world = at("running")
    status = world.status("cells")
    twin = status.attempts[0].model_copy(update={"number": 2, "job_name": "cells-r0-a2"})
    world.write("cells", status.model_copy(update={"attempts": (*status.attempts, twin)}))
    plan = world.reconcile("cells")
    assert state(world) == ("Unspecified", "Contradiction")
    assert "cells-r0-a1, cells-r0-a2" in (world.status("cells").message or "")
    assert plan.actions == ()


# --- what only the operator can see -----------------------------------------------------------------------------------------

BLOCKED: list[tuple[str, dict[str, Any], dict[str, Any], tuple[str, str], str]] = [
    ("an unknown architecture", {"architecture": "yard-nani"}, {}, ("Failed", "InvalidSpec"), "did you mean yard-nano?"),
    ("a service that is not there", {"serviceName": "gpu-farm"}, {}, ("Queued", "ServiceNotFound"), "no TrainingService gpu-farm"),
    ("a service of another architecture", {}, {"architecture": "resnet18"}, ("Queued", "ServiceMismatch"), "resnet18"),
    ("a version that is not there", {"startFrom": {"version": 7}}, {}, ("Queued", "StartVersionNotFound"), "cells-v7"),
    ("a job that is not there", {"startFrom": {"job": "other"}}, {}, ("Queued", "StartJobNotFound"), "no TrainingJob other"),
    ("a task that it cannot do", {"task": "Tagging"}, {}, ("Failed", "InvalidSpec"), "cannot do Tagging"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "spec", "service", "shown", "said"), BLOCKED, ids=[row[0] for row in BLOCKED])
def test_it_is_said_what_is_wrong(
    what: str, spec: dict[str, Any], service: dict[str, Any], shown: tuple[str, str], said: str
):
    world = World()
    world.serve(SERVICE, **service)
    world.apply("cells", **spec)
    world.settle()
    assert state(world) == shown
    assert said in (world.status("cells").message or "")
    assert not world.created


def test_a_service_that_comes_later_lets_the_job_start():
    world = World()
    world.apply("cells", serviceName="gpu-farm")
    world.settle()
    world.serve("gpu-farm")
    world.settle()
    assert state(world)[0] == "Preparing"


def test_start_from_another_version_waits_until_it_is_ready():
    world = World()
    world.serve(SERVICE, scaling={"maxInstances": 2})
    world.apply("first", model="cells")
    world.settle()
    world.apply("second", model="cells", startFrom={"version": 1})
    world.settle()
    assert world.status("second").reason == "StartVersionNotReady"
    world.run("first")
    world.settle()
    world.succeed("first")
    world.settle()
    start = world.created[-1].run.start
    assert (start.manifest_uri, start.parent_version) == ("s3://vision/models/cells/v1/manifest.json", "cells-v1")
    assert world.versions["cells-v2"].spec.parent_version == "cells-v1"


def test_start_from_a_stopped_job_names_its_checkpoints():
    world = at("stopped")
    world.apply("second", startFrom={"job": "cells"})
    world.settle()
    uid = world.jobs["cells"].metadata.uid
    assert world.created[-1].run.start.attempt_uris == (
        f"s3://vision/models/cells/runs/cells-{uid[:8]}-r0/attempts/1/",
    )


def test_the_trainer_s_warnings_are_folded_in_beside_the_operator_s():
    world = at("running")
    world.serve(paused=True)
    world.report("cells", Phase.TRAINING, warnings=(Warning_(reason="TooFewExamples", message="12 images"),))
    world.settle()
    assert [w.reason for w in world.status("cells").warnings] == ["ServicePaused", "TooFewExamples"]
    world.end("cells", 1)
    world.settle()
    assert [w.reason for w in world.status("cells").warnings] == ["ServicePaused", "TooFewExamples"]


# --- conditions and events --------------------------------------------------------------------------------------------------


def conditions(world: World) -> dict[str, tuple[str, str]]:
    return {c.type: (c.status.value, c.reason) for c in world.status("cells").conditions}


@pytest.mark.parametrize(
    ("name", "true", "false"),
    [
        ("queued", {"Reconciling"}, {"Admitted", "Ready"}),
        ("preparing", {"Admitted", "Reconciling"}, {"Ready"}),
        ("running", {"Admitted", "Running", "Reconciling"}, {"Ready"}),
        ("stopping", {"Admitted", "Reconciling"}, {"Running", "Ready"}),
        ("stopped", {"Suspended", "Ready"}, {"Admitted", "Running"}),
        ("canceled", {"Suspended", "Ready"}, {"Admitted"}),
        ("rerun", {"Reconciling"}, {"Admitted", "Running", "Ready"}),
        ("done", {"Admitted", "Succeeded", "Ready"}, {"Running"}),
    ],
)
def test_conditions_follow_the_state(name: str, true: set[str], false: set[str]):
    world = at(name)
    for word, types in (("True", true), ("False", false)):
        assert {type_ for type_, (status, _) in conditions(world).items() if status == word} == types
    generation = world.jobs["cells"].metadata.generation
    assert {c.observed_generation for c in world.status("cells").conditions} == {generation}


def test_a_condition_s_time_changes_with_its_status_only():
    world = at("preparing")
    before = {c.type: c.last_transition_time for c in world.status("cells").conditions}
    world.tick(100)
    world.run("cells")
    world.settle()
    after = {c.type: c.last_transition_time for c in world.status("cells").conditions}
    assert after == before
    world.report("cells", Phase.TRAINING)
    world.settle()
    changed = {c.type for c in world.status("cells").conditions if c.last_transition_time == world.now}
    assert changed == {"Running"}


def test_every_state_of_a_life_is_one_event():
    world = at("done")
    assert [note.reason for name, note in world.notes if name == "cells"] == [
        "Preparing",
        "Running",
        "Succeeded",
    ]


def test_a_repeated_look_changes_nothing_at_any_state():
    for name in ("queued", "preparing", "started", "running", "stopping", "stopped", "canceled", "rerun", "done"):
        world = at(name)
        plan = lifecycle.decide_job(world.snapshot("cells"))
        assert plan.status == world.status("cells"), name
        assert plan.events == (), name


def test_times_are_counted_at_transitions():
    world = World()
    world.serve(SERVICE, scaling={"maxInstances": 0})
    world.apply("cells")
    world.settle()
    world.tick(30)
    world.serve(SERVICE, scaling={"maxInstances": 1})
    world.settle()
    assert world.status("cells").queue_seconds == 30
    assert world.status("cells").start_time == START + timedelta(seconds=30)


def test_training_time_is_counted_from_the_first_step_when_nobody_says_it():
    world = at("running")
    world.tick(45)
    world.end("cells", 1)
    world.settle()
    assert world.status("cells").training_seconds == 45


def test_a_completion_record_is_read_from_the_last_report_when_the_message_is_lost():
    world = at("running")
    result = Result.model_validate_json(published())
    world.report("cells", Phase.DONE, result=result.to_status())
    world.settle()
    world.end("cells", 0)
    world.settle()
    assert state(world) == ("Succeeded", "Completed")


def test_a_status_of_an_older_operator_is_understood():
    world = at("running")
    status = world.status("cells").to_dict()
    status["fieldOfTheFuture"] = {"x": 1}
    assert TrainingJobStatus.model_validate(status).state is JobState.RUNNING


def test_a_job_that_waits_for_a_queueing_engine_has_all_the_time_until_it_is_unsuspended():
    world = World()
    world.serve(SERVICE, queue={"kueueQueueName": "team"}, execution={"startTimeoutSeconds": 60})
    world.apply("cells")
    world.settle()
    world.tick(3600)
    world.settle()
    assert (world.status("cells").state, len(world.status("cells").attempts)) == (JobState.PREPARING, 1)
    world.admit(world.status("cells").attempts[0].job_name)
    world.tick(59)
    world.settle()
    assert world.status("cells").attempts[0].ending is None
    world.tick(2)
    world.settle()
    assert world.status("cells").attempts[0].cause is Cause.START_TIMED_OUT


def test_whatever_keeps_it_from_starting_is_told_within_the_bounds_of_a_ledger():
    """The longest names that there may be; a status that is too long would never be written."""
    selector = {f"{'k' * 245}.example/{'l' * 60}{n:03}": "v" * 63 for n in range(32)}
    taints = (Taint(f"{'t' * 253}/{'u' * 63}", "v" * 63),)
    world = World(nodes={f"node-{n}-{'n' * 240}": NodeView(f"node-{n}-{'n' * 240}", taints=taints) for n in range(4)})
    world.serve(SERVICE, execution={"startTimeoutSeconds": 60})
    world.apply("a", resources={"nodeSelector": selector})
    world.settle()
    pod = world.live_pod("a")
    assert pod
    lacking = f"4 Insufficient {'r' * 253}/{'s' * 63}"
    wrong = f"2 node(s) didn't match Pod's node affinity/selector, 4 node(s) had untolerated taint(s), {lacking}"
    why = f"0/6 nodes are available: {wrong}."
    wants = Wants(node_selector=selector)
    world.change(pod, wants=wants, conditions=(ObjectCondition("PodScheduled", "False", "Unschedulable", why),))
    world.settle()
    world.tick(60)
    world.settle()
    attempt = world.status("a").attempts[0]
    assert (attempt.cause, len(attempt.message or "")) == ("StartTimedOut", 4096)
