"""When the jobs of a service show that it does not do its work: they cannot start, or fail again and again.

A job that brings its own image, sizes, nodes or Secrets, and cannot start for that, says nothing about its service: others do.
Whose it is tells the sentence by the field that it names (`Subject`), as the ledger keeps it from one attempt to the next.
"""

from collections.abc import Iterable

from trainyard_api.status import Condition, ConditionStatus
from trainyard_api.trainingjob import Attempt, Cause, JobState, TrainingJobStatus

from trainyard_operator.decide.diagnosis import BLOCKED_REASONS
from trainyard_operator.decide.jobs import open_attempts, run_attempts
from trainyard_operator.decide.model import JobView
from trainyard_operator.decide.subject import OF_THE_JOB
from trainyard_operator.status import OVER

CRASH_REASONS = {Cause.ERROR: "CrashLoop", Cause.OUT_OF_MEMORY: "OutOfMemory", Cause.STALLED: "CrashLoop"}
"""Causes of an attempt's end that make a service degraded when a job ends by them twice."""
CRASHES = frozenset(CRASH_REASONS.values())
NOT_STARTED = frozenset({Cause.START_TIMED_OUT, Cause.START_FAILED})
SERVICE_REASONS = {"ImagePull", "OutOfMemory", "Unschedulable", "Quota"}


def degradation(suspects: Iterable[JobView], *, starting: bool, old: tuple[Condition, ...]) -> tuple[str, str] | None:
    """Reason and message of what is wrong with a service, as its jobs show it; None: nothing is. `suspects` are at least those
    for which `may_degrade` holds, `starting` says whether an execution has not run yet.

    It lasts from the first sight of the trouble until something starts, or until nobody is in trouble any more: between two
    attempts of a job, and while a reason flips, the service does not become healthy.
    """
    before = next(
        ((c.reason, c.message) for c in old if c.type == "Degraded" and c.status is ConditionStatus.TRUE), None
    )
    ordered = sorted(suspects, key=lambda job: job.metadata.name)
    found = [trouble for job in ordered if (trouble := _trouble(job, before))]
    if found:
        return before if before in found else found[0]
    return before if before and before[0] not in CRASHES and starting else None


def may_degrade(job: JobView) -> bool:
    """Whether the job is a reason for its service to be degraded."""
    return _trouble(job, None) is not None


def is_blocked(job: JobView) -> bool:
    """Whether somebody has to mend something before the job's execution can start."""
    return job.status.state is JobState.PREPARING and job.status.reason in BLOCKED_REASONS


def is_own_doing(job: JobView) -> bool:
    """Whether it is what the job itself asks for that keeps its execution from starting."""
    return is_blocked(job) and OF_THE_JOB in (job.status.message or "")


def _trouble(job: JobView, before: tuple[str, str] | None) -> tuple[str, str] | None:
    status, name = job.status, job.metadata.name
    if status.state in OVER or job.metadata.deletion_time is not None:
        return None
    attempts = open_attempts(status)
    if is_own_doing(job):
        return None
    if is_blocked(job):
        reason = status.reason if status.reason in SERVICE_REASONS else "CrashLoop"
        pod = next((a.pod_name for a in attempts if a.pod_name), None)
        return reason, f"{f'Pod {pod} of job' if pod else 'Job'} {name} cannot start: {status.message}"
    if any(attempt.start_time is not None and attempt.cause is None for attempt in attempts) and _gets_on(status):
        return None
    ends = (end for attempt in reversed(run_attempts(status)) if (end := _end(attempt)))
    cause, message = next(ends, (None, ""))
    if cause is None or OF_THE_JOB in message:
        return None
    if cause in NOT_STARTED and not any(attempt.start_time for attempt in attempts):
        said = f"Job {name} cannot start: {message}"
        return before[0] if before and before[0] not in CRASHES else "CrashLoop", said
    if (
        (status.charged_attempts or 0) >= 2
        and job.spec.resources.image is None
        and (reason := CRASH_REASONS.get(cause))
    ):
        return reason, f"Job {name} fails again and again: {message}"
    return None


def _end(attempt: Attempt) -> tuple[Cause, str] | None:
    """Cause and sentence of an attempt that has ended, or is being ended because it has not started."""
    if attempt.cause is not None:
        return attempt.cause, attempt.message or ""
    if attempt.ending is not None and attempt.ending in NOT_STARTED:
        return attempt.ending, attempt.ending_message or ""
    return None


def _gets_on(status: TrainingJobStatus) -> bool:
    """Whether the attempt that runs is past the point at which the one before it ended."""
    steps = [a.checkpoint_step or 0 for a in run_attempts(status) if a.cause is not None]
    now = status.progress.checkpoint_step if status.progress else None
    return now is not None and now > max(steps, default=0)
