"""The state machine of a TrainingJob: from what is observed to the whole new status, and the actions that follow from it.

Created → Queued ⇄ TryAgainLater → Preparing → Running → Succeeded | Failed
Preparing, Running → Rerun → Queued                      (an attempt ended, another follows)
Preparing, Running → StopRequested → Stopping → Stopped | Canceled → Queued      (suspend, and back)
any but the final ones → Aborted;  a final one → Queued only by a higher `rerun`
"""

from dataclasses import replace
from datetime import datetime

from trainyard_api.modelversion import VersionState
from trainyard_api.report import Outcome
from trainyard_api.trainingjob import Attempt, Cause, End, JobState, TrainingJobStatus

from trainyard_operator.decide.case import Case, Draft
from trainyard_operator.decide.cleanup import clean_up
from trainyard_operator.decide.deletion import deletion_said
from trainyard_operator.decide.execution import end_facts, ending, observe, supervise
from trainyard_operator.decide.failure import End as AttemptEnd
from trainyard_operator.decide.failure import classify_end
from trainyard_operator.decide.jobs import has_checkpoint, open_attempts, run_attempts
from trainyard_operator.decide.model import (
    Action,
    CreateHeadless,
    CreateJob,
    CreateService,
    CreateVersion,
    DeleteJob,
    DeletePod,
    DeleteTrainingJob,
    HandOver,
    JobPlan,
    JobSnapshot,
    LowerDeadline,
    VersionPlan,
    VersionView,
    WriteVersionStatus,
)
from trainyard_operator.decide.notes import job_events
from trainyard_operator.decide.queued import queue_up
from trainyard_operator.decide.refusals import with_refusals
from trainyard_operator.decide.restart import restarted
from trainyard_operator.decide.settle import finished, settle, stop_state
from trainyard_operator.decide.versions import orphaned, present_version, version_actions
from trainyard_operator.decide.warnings import job_warnings, rate_look
from trainyard_operator.status import OVER, TERMINAL, render_job, success_message, text

ORDER: tuple[type[Action], ...] = (
    CreateService,
    CreateVersion,
    CreateHeadless,
    CreateJob,
    HandOver,
    LowerDeadline,
    DeletePod,
    DeleteJob,
    WriteVersionStatus,
    DeleteTrainingJob,
)
"""What is made comes before what needs it, and the job itself goes last."""


def decide_job(snapshot: JobSnapshot) -> JobPlan:
    """The plan for one TrainingJob. Deciding again on its own status, with nothing else changed, changes nothing."""
    case = Case(snapshot)
    if snapshot.job.metadata.deletion_time is not None:
        return _deleting(case)
    draft = _first_look(case, Draft(snapshot.job.status))
    draft = _new_run(case, draft)
    draft = _step(case, draft)
    if _to_be_rerun(case, draft):
        # Its end is written first, so that nobody misses it; the new run is the next look's.
        draft = draft.look_at(case.now)
    draft = draft.set(warnings=job_warnings(case, draft.status)).look_at(rate_look(case, draft.status))
    draft = clean_up(case, draft)
    draft = draft.act(*version_actions(case, draft.publishing or draft.status))
    ordered = sorted(draft.actions, key=lambda action: ORDER.index(type(action)))
    draft, actions = with_refusals(case, draft, ordered)
    if draft.untold:
        return JobPlan(snapshot.job.status, actions, look_again_at=min(draft.looks, default=None))
    status = render_job(
        snapshot.job.status,
        draft.status,
        snapshot.job.metadata.generation,
        case.execution.max_attempts,
        case.now,
    )
    return JobPlan(status, actions, job_events(snapshot.job.status, status), min(draft.looks, default=None))


def decide_version(version: VersionView, now: datetime) -> VersionPlan:
    """The plan for a ModelVersion whose TrainingJob is gone."""
    return orphaned(version, now)


# --- runs -------------------------------------------------------------------------------------------------------------------


def _first_look(case: Case, draft: Draft) -> Draft:
    draft = draft.set(service_name=case.service_name, model=case.model)
    return draft if draft.status.run is not None else draft.set(run=case.snapshot.job.spec.rerun)


def _new_run(case: Case, draft: Draft) -> Draft:
    """A finished job whose `rerun` was raised starts anew; the ledger keeps its earlier attempts."""
    status, rerun = draft.status, case.snapshot.job.spec.rerun
    if not _to_be_rerun(case, draft):
        return draft
    kept = {"attempts": status.attempts, "conditions": status.conditions, "revision": status.revision}
    fresh = TrainingJobStatus(service_name=status.service_name, model=status.model, run=rerun)
    return Draft(fresh.model_copy(update=kept), draft.actions, draft.looks)


def _to_be_rerun(case: Case, draft: Draft) -> bool:
    status = draft.status
    ended = status.state in OVER
    return ended and case.snapshot.job.spec.rerun > (status.run or 0) and not open_attempts(status)


# --- one step ---------------------------------------------------------------------------------------------------------------


def _step(case: Case, draft: Draft) -> Draft:
    if seen := _contradiction(case, draft.status):
        return draft.say(JobState.UNSPECIFIED, "Contradiction", seen)
    for attempt in open_attempts(draft.status):
        seen = observe(case, draft, attempt)
        (observed,) = open_attempts(seen.status)
        end = _end_of(case, seen, observed)
        if end is None:
            return restarted(case, seen, observed) or supervise(case, seen, observed)
        settled = settle(case, seen, observed, end)
        if end.cause is Cause.COMPLETED and not _is_published(case, settled.status):
            # The version first; then one write says how the attempt went, that it is over, and that the job has succeeded.
            return replace(draft, publishing=settled.status)
        draft = settled
    if draft.status.state in TERMINAL:
        return draft
    attempts = run_attempts(draft.status)
    if attempts and attempts[-1].cause is Cause.COMPLETED:
        return _publish(case, draft)
    return _at_rest(case, draft)


def _contradiction(case: Case, status: TrainingJobStatus) -> str | None:
    """What is observed and cannot all be true, for an administrator."""
    opened = open_attempts(status)
    if len(opened) > 1:
        names = ", ".join(attempt.job_name for attempt in opened)
        return f"status.attempts has more than one attempt that has not ended ({names}); nothing is done until one has."
    if opened and status.state in TERMINAL:
        return f"The job was {status.state} while attempt {opened[0].number} of its ledger has not ended."
    for attempt in opened:
        job = case.job_of(attempt)
        if job is not None and attempt.job_uid is not None and job.metadata.uid != attempt.job_uid:
            return (
                f"Job {attempt.job_name} has uid {job.metadata.uid}, and the ledger says {attempt.job_uid}: it was deleted "
                f"and made again by somebody. Delete it: kubectl delete job {attempt.job_name}."
            )
    return None


def _end_of(case: Case, draft: Draft, attempt: Attempt) -> AttemptEnd | None:
    """How the attempt ended; one that is to end before anything was made of it ends in the ledger alone."""
    if attempt.job_uid is None and case.job_of(attempt) is None and (wanted := ending(case, draft, attempt)):
        cause, message = wanted
        return AttemptEnd(cause, text(message), end_time=case.now)
    end = classify_end(end_facts(case, draft, attempt))
    if end is None and case.job_of(attempt) is None and attempt.job_uid is None and _is_published(case, draft.status):
        return AttemptEnd(Cause.COMPLETED, "Trained.", end_time=case.now)  # its Job was deleted since
    if end is not None and end.cause is not Cause.COMPLETED and _is_published(case, draft.status):
        # Its record was read, for the version was written from it, and went before the job's status was written.
        return AttemptEnd(Cause.COMPLETED, "Trained.", end_time=end.end_time, exit_code=end.exit_code)
    return end


def _is_published(case: Case, status: TrainingJobStatus) -> bool:
    """Whether the ModelVersion of this run says Ready."""
    view = present_version(case, status)
    return view is not None and view.status.state is VersionState.READY


def _publish(case: Case, draft: Draft) -> Draft:
    """Trained and stored: the job has succeeded once its ModelVersion says Ready."""
    status = draft.status
    if not _is_published(case, status):
        return draft
    result = status.progress.result if status.progress else None
    reason = result.reason if result and result.reason in set(Outcome) else Outcome.COMPLETED
    return finished(draft, JobState.SUCCEEDED, reason, success_message(result, status.version), case.now)


def _at_rest(case: Case, draft: Draft) -> Draft:
    """No attempt lives: what the user wants now decides."""
    spec, status = case.snapshot.job.spec, draft.status
    if spec.end is End.ABORT:
        return finished(draft, JobState.ABORTED, "Aborted", "Aborted as asked; nothing was published.", case.now)
    if spec.end is End.FINISH and not has_checkpoint(status):
        if status.completion_time is not None:
            return draft
        said = "spec.end is Finish, and no attempt has saved a checkpoint that could be published."
        return finished(draft, JobState.CANCELED, "NothingToPublish", said, case.now)
    if spec.suspend and spec.end is not End.FINISH:
        return _suspended(draft)
    return queue_up(case, draft)


def _suspended(draft: Draft) -> Draft:
    draft = draft.set(next_attempt_time=None, queue_position=None, queued_time=None)
    if not draft.status.attempt_count:
        return draft.say(JobState.CREATED, "Suspended", "Created suspended; set spec.suspend to false to start it.")
    state = stop_state(draft.status)
    if state is JobState.STOPPED:
        steps = [a.checkpoint_step for a in run_attempts(draft.status) if a.checkpoint_step is not None]
        at = f" at step {steps[-1]}" if steps else ""
        return draft.say(
            state, "Stopped", f"Stopped as asked, with a checkpoint{at}. spec.suspend: false goes on from it."
        )
    return draft.say(state, "Stopped", "Stopped as asked, before any checkpoint. spec.suspend: false starts it again.")


# --- deletion --------------------------------------------------------------------------------------------------------------


def _deleting(case: Case) -> JobPlan:
    """No child is made any more; garbage collection drains what runs. Only what holds it up is said."""
    status = case.snapshot.job.status
    stopped = status.model_copy(
        update={"state": JobState.FAILED, "reason": "JobDeleted", "message": f"Job {case.name} was deleted."}
    )
    completed = any(attempt.cause is Cause.COMPLETED for attempt in run_attempts(status))
    actions = () if completed else version_actions(case, stopped)
    draft = deletion_said(case, Draft(status))
    kept = tuple(action for action in actions if isinstance(action, WriteVersionStatus))
    return JobPlan(draft.status, kept, job_events(status, draft.status), min(draft.looks, default=None))
