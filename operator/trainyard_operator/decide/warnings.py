"""What a user should know that does not stop the job: the operator's own warnings, and the trainer's."""

from datetime import datetime, timedelta

from trainyard_api.execution import OnTimeout
from trainyard_api.resolve import planned_drain
from trainyard_api.status import Warning_
from trainyard_api.trainingjob import Attempt, TrainingJobStatus

from trainyard_operator.decide.case import Case
from trainyard_operator.decide.jobs import open_attempts
from trainyard_operator.status import text

TOO_SLOW = "TooSlow"
OWN_REASONS = frozenset({"ServicePaused", TOO_SLOW})
FIRST_RATE_SECONDS = 60
"""A rate is believed after this much training; then it is looked at again every so often."""
RATE_SECONDS = 300
MARGIN = 0.05
"""Share of the time left by which the need must be over, or under, before a warning comes, or goes: it must not flap."""
MAX_WARNINGS = 32


def job_warnings(case: Case, status: TrainingJobStatus) -> tuple[Warning_, ...]:
    """The operator's warnings, then the trainer's: those of its last report, else those that are there already."""
    kept = tuple(warning for warning in status.warnings if warning.reason not in OWN_REASONS)
    trainer = status.progress.warnings if status.progress and status.progress.warnings else kept
    return (*_own(case, status), *trainer)[:MAX_WARNINGS]


def rate_look(case: Case, status: TrainingJobStatus) -> datetime | None:
    """When to look at the rate of the running attempt next; mere progress wakes nobody."""
    began = next((a.training_start_time for a in open_attempts(status)), None)
    if began is None:
        return None
    first = began + timedelta(seconds=FIRST_RATE_SECONDS)
    return first if case.now < first else case.now + timedelta(seconds=RATE_SECONDS)


def _own(case: Case, status: TrainingJobStatus) -> tuple[Warning_, ...]:
    return (*_paused(case), *_too_slow(case, status))


def _too_slow(case: Case, status: TrainingJobStatus) -> tuple[Warning_, ...]:
    """At the present rate the training does not end within the execution's time."""
    attempt = next(iter(open_attempts(status)), None)
    eta = status.progress.eta_seconds if status.progress else None
    if attempt is None or attempt.training_start_time is None or attempt.start_time is None or eta is None:
        return ()
    told = next((w for w in status.warnings if w.reason == TOO_SLOW and w.message.startswith(_who(attempt))), None)
    execution = case.execution.model_copy(
        update={"timeout_seconds": attempt.timeout_seconds or case.execution.timeout_seconds}
    )
    ends = attempt.start_time + timedelta(seconds=execution.timeout_seconds - planned_drain(execution))
    reported = (status.progress.updated_at if status.progress else None) or case.now
    left = (ends - reported).total_seconds()
    if told is not None:
        return (told,) if eta > left * (1 - MARGIN) else ()
    if case.now < attempt.training_start_time + timedelta(seconds=FIRST_RATE_SECONDS) or eta <= left * (1 + MARGIN):
        return ()
    done = reported + timedelta(seconds=eta)
    if execution.on_timeout is OnTimeout.FINISH:
        follows = "it stops then and publishes its best model so far"
    else:
        follows = "the job fails then (onTimeout: Fail)"
    message = (
        f"{_who(attempt)} needs until about {done:%Y-%m-%d %H:%M} UTC at the present rate, and its time "
        f"(timeoutSeconds {execution.timeout_seconds}, less the time to drain) is over at {ends:%H:%M}: {follows}. "
        "To train to the end make a new job with startFrom.job and a higher policy.timeoutSeconds, or with fewer epochs."
    )
    return (Warning_(reason=TOO_SLOW, message=text(message)),)


def _who(attempt: Attempt) -> str:
    return f"Attempt {attempt.number} of run {attempt.run}"


def _paused(case: Case) -> tuple[Warning_, ...]:
    service = case.snapshot.service
    if service is None or not service.spec.paused:
        return ()
    message = f"TrainingService {case.service_name} is paused: no new execution starts on it."
    return (Warning_(reason="ServicePaused", message=message),)
