"""What the end of an attempt changes: its ledger entry is closed, it is counted, and the job's next state follows."""

from datetime import datetime

from trainyard_api.report import Phase
from trainyard_api.status import Metrics
from trainyard_api.trainingjob import Attempt, AttemptResult, Cause, JobState, Progress, TrainingJobStatus

from trainyard_operator.decide.case import Case, Draft
from trainyard_operator.decide.failure import End
from trainyard_operator.decide.jobs import has_checkpoint
from trainyard_operator.decide.retry import Count, FollowUp, Then, follow_up
from trainyard_operator.decide.versions import with_version
from trainyard_operator.status import final_summary

DISRUPTIONS = frozenset({Cause.DISRUPTED, Cause.LOST})


def settle(case: Case, draft: Draft, attempt: Attempt, end: End) -> Draft:
    """The draft with the attempt closed, and the state that follows."""
    status = draft.status
    follow = follow_up(end.cause, case.execution, status.charged_attempts or 0, status.disruptions or 0)
    closed = _closed(status, attempt, end, follow)
    draft = draft.with_attempt(closed).set(
        current=None,
        charged_attempts=(status.charged_attempts or 0) + (follow.count is Count.CHARGED),
        disruptions=(status.disruptions or 0) + (follow.count is Count.DISRUPTION),
        training_seconds=(status.training_seconds or 0) + closed.training_seconds,
    )
    draft = _with_result(draft, end.result, end.cause is Cause.COMPLETED)
    if end.cause is Cause.VERSION_TAKEN:
        highest = end.result.version if end.result and end.result.version else status.version_number or 0
        draft = with_version(case, draft, above=max(highest, status.version_number or 0))
    return _next_state(case, draft, closed, end, follow)


def stop_state(status: TrainingJobStatus) -> JobState:
    """Stopped when there is something to go on from, else Canceled."""
    return JobState.STOPPED if has_checkpoint(status) else JobState.CANCELED


def _next_state(case: Case, draft: Draft, closed: Attempt, end: End, follow: FollowUp) -> Draft:
    match follow.then:
        case Then.SUCCEED:
            return draft  # it has succeeded once its ModelVersion is Ready
        case Then.RETRY:
            again = case.now + follow.delay
            said = f"Attempt {closed.number} ended: {end.message} Attempt {closed.number + 1} follows"
            said += f" at {again:%Y-%m-%dT%H:%M:%SZ}." if follow.delay else " when there is an instance."
            return draft.say(JobState.RERUN, end.cause.value, said).set(next_attempt_time=again)
        case Then.PAUSE:
            return draft.say(stop_state(draft.status), end.cause.value, end.message)
        case Then.ABORT:
            return finished(draft, JobState.ABORTED, "Aborted", "Aborted as asked; nothing was published.", case.now)
        case Then.FAIL:
            reason = Cause.DISRUPTED if end.cause in DISRUPTIONS and follow.exhausted else end.cause
            message = f"{end.message} {follow.exhausted}".strip()
            return finished(draft, JobState.FAILED, reason.value, message, case.now)


def finished(draft: Draft, state: JobState, reason: str, message: str, now: datetime) -> Draft:
    """The draft in a final state."""
    return draft.say(state, reason, message).set(
        completion_time=now, next_attempt_time=None, queue_position=None, queued_time=None, current=None
    )


def _closed(status: TrainingJobStatus, attempt: Attempt, end: End, follow: FollowUp) -> Attempt:
    progress, result = status.progress, end.result
    steps = [attempt.checkpoint_step, progress and progress.checkpoint_step, result and result.checkpoint_step]
    saved = [step for step in steps if step is not None]
    return attempt.model_copy(
        update={
            "end_time": end.end_time,
            "exit_code": end.exit_code,
            "cause": end.cause,
            "message": end.message,
            "charged": follow.count is Count.CHARGED,
            "fenced": end.fenced,
            "training_seconds": _training_seconds(attempt, progress, end),
            "checkpoint_step": max(saved, default=None),
            "resumed_from_step": result.resumed_from_step if result else attempt.resumed_from_step,
        }
    )


def _training_seconds(attempt: Attempt, progress: Progress | None, end: End) -> int:
    """What the trainer says it spent; else from the first step to the end."""
    said = [end.result.training_seconds if end.result else 0, (progress and progress.training_seconds) or 0]
    if max(said) > 0 or attempt.training_start_time is None or end.end_time is None:
        return max(said)
    return max(0, int((end.end_time - attempt.training_start_time).total_seconds()))


def _with_result(draft: Draft, result: AttemptResult | None, completed: bool) -> Draft:
    """The reports' fields brought to rest: nothing in them speaks of a training that goes on."""
    progress, summary = draft.status.progress, draft.status.summary
    if progress is not None:
        progress = progress.model_copy(update={"eta_seconds": None, "images_per_second": None})
    if summary is not None:
        summary = summary.model_copy(update={"eta": None})
    if result is None or not completed:
        return draft.set(progress=progress, summary=summary)
    base = progress or Progress(phase=Phase.DONE)
    update: dict[str, object] = {"phase": Phase.DONE.value, "message": None, "percent": 100, "result": result}
    update |= {"step": result.step or base.step, "steps": result.steps or base.steps}
    metrics = draft.status.metrics or Metrics()
    metrics = metrics.model_copy(update={"best": result.metrics or metrics.best, "test": result.test or metrics.test})
    return draft.set(
        progress=base.model_copy(update=update),
        summary=final_summary(summary, result),
        metrics=metrics if metrics != Metrics() else None,
        artifacts=result.artifacts,
    )
