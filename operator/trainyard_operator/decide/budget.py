"""One TrainingBudget: what is set aside for which execution, what was used, what is left.

Time is set aside when a service's batch has an execution, before its attempt is opened, and a job opens an attempt only when every
budget that limits it holds its reservation. A reservation is released while the attempt was never opened, and settled when it has
ended: one write takes it out and adds what was used, so that nothing is counted twice, whoever writes and however often.

An attempt that began before the budget was there, or before the budget named its service, gets its reservation afterwards: it
does not list the budget in `budgetUIDs`. One that does and has none any more was settled.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import ceil

from trainyard_api.execution import Execution
from trainyard_api.resolve import resolved_execution
from trainyard_api.status import ConditionStatus
from trainyard_api.trainingbudget import Period, Reservation, TrainingBudgetSpec, TrainingBudgetStatus
from trainyard_api.trainingjob import Attempt, End, TrainingJobSpec, TrainingJobStatus
from trainyard_api.trainingservice import TrainingServiceSpec

from trainyard_operator.decide.admission import admitted
from trainyard_operator.decide.jobs import (
    is_ready,
    next_attempt,
    next_execution,
    open_attempts,
    queue_order,
    service_name_of,
)
from trainyard_operator.decide.model import BudgetPlan, BudgetSnapshot, BudgetView, JobView, Note, ServiceView
from trainyard_operator.decide.retry import RETRIED, Count
from trainyard_operator.status import conditions

SPENT = "BudgetSpent"
"""Reason of a job that waits for training time."""
MAX_RESERVATIONS = 10_000
MAX_LISTED = 64


@dataclass(frozen=True)
class Shortage:
    """The first budget that lacks the time for a job, as of now."""

    budget: BudgetView
    needed: int
    remaining: int
    renewed: datetime | None


def limiting(budgets: tuple[BudgetView, ...], service_name: str) -> tuple[BudgetView, ...]:
    """The budgets that limit executions on the service."""
    return tuple(budget for budget in budgets if _limits(budget.spec, service_name))


def needed_seconds(spec: TrainingJobSpec, status: TrainingJobStatus, execution: Execution) -> int:
    """Training time that the next execution of a job is set aside for: what is left of `maxDurationSeconds`, else its timeout."""
    if spec.end is End.FINISH:
        return 0  # it only publishes
    if spec.training.max_duration_seconds is None:
        return execution.timeout_seconds
    return max(0, spec.training.max_duration_seconds - (status.training_seconds or 0))


def holds(budget: BudgetView, job: JobView, status: TrainingJobStatus) -> bool:
    """Whether time is set aside for the attempt that would start next."""
    wanted = (job.metadata.uid, status.run or 0, next_attempt(status))
    return any((r.job_uid, r.run, r.attempt) == wanted for r in budget.status.reservations)


def shortage(
    budgets: tuple[BudgetView, ...],
    job: JobView,
    status: TrainingJobStatus,
    service: TrainingServiceSpec,
    now: datetime,
) -> Shortage | None:
    """What keeps the job from starting; None: its time is set aside, or there is enough."""
    needed = needed_seconds(job.spec, status, resolved_execution(job.spec, service))
    for budget in limiting(budgets, service_name_of(job.spec)):
        remaining = remaining_seconds(budget.spec, in_period(budget, now))
        if needed > remaining and not holds(budget, job, status):
            return Shortage(budget, needed, remaining, period_end(budget.spec.period, now))
    return None


def has_time(budget: BudgetView, job: JobView, service: ServiceView) -> bool:
    """Whether the budget, as it is written, has the time that the job waits for."""
    needed = needed_seconds(job.spec, job.status, resolved_execution(job.spec, service.spec))
    return needed <= remaining_seconds(budget.spec, budget.status)


def said(found: Shortage) -> str:
    """The sentence for the job that waits."""
    name, spec = found.budget.metadata.name, found.budget.spec
    whole = spec.training_minutes
    if found.needed > whole * 60:
        return (
            f"The job needs {_minutes(found.needed)} and TrainingBudget {name} has {whole} min in all"
            f"{_per(spec.period)}: it never fits. Raise trainingMinutes, or make a new job with a lower training.maxDurationSeconds."
        )
    until = f" until {found.renewed:%Y-%m-%dT%H:%M:%SZ}, when it is renewed" if found.renewed else ""
    left = f"{found.remaining // 60} of {whole} min are left{until}"
    return (
        f"TrainingBudget {name} has too little training time: {left}, and the job needs {_minutes(found.needed)} "
        "(training.maxDurationSeconds, else the timeout). It starts by itself when there is enough."
    )


def remaining_seconds(spec: TrainingBudgetSpec, status: TrainingBudgetStatus) -> int:
    """What is neither used nor set aside."""
    if len(status.reservations) >= MAX_RESERVATIONS:
        return 0
    return max(0, spec.training_minutes * 60 - status.used_seconds - _reserved(status))


# --- periods --------------------------------------------------------------------------------------------------------------


def period_start(period: Period, now: datetime) -> datetime | None:
    """When the period that `now` is in began, in UTC; None: there is but one."""
    midnight = now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    match period:
        case Period.DAY:
            return midnight
        case Period.WEEK:
            return midnight - timedelta(days=midnight.weekday())
        case Period.MONTH:
            return midnight.replace(day=1)
        case Period.TOTAL:
            return None


def period_end(period: Period, now: datetime) -> datetime | None:
    """When the budget is renewed."""
    start = period_start(period, now)
    match period:
        case Period.TOTAL:
            return None
        case Period.DAY:
            days = 1
        case Period.WEEK:
            days = 7
        case Period.MONTH:
            days = 32
    assert start is not None
    end = start + timedelta(days=days)
    return end.replace(day=1) if period is Period.MONTH else end


def in_period(budget: BudgetView, now: datetime) -> TrainingBudgetStatus:
    """The status as of now: in a new period nothing is used yet; what runs stays set aside."""
    start = period_start(budget.spec.period, now) or budget.metadata.creation_time or now
    status, last = budget.status, budget.status.period_start
    if last == start:
        return status
    if last is not None and last > start:
        # The clock went back, or the period was made longer: what is used stays used.
        same = status.observed_generation == budget.metadata.generation
        return status if same else status.model_copy(update={"period_start": start})
    return status.model_copy(update={"period_start": start, "used_seconds": 0})


# --- the decision -----------------------------------------------------------------------------------------------------------


def decide_budget(snapshot: BudgetSnapshot) -> BudgetPlan:
    """The plan for one budget: its whole new status."""
    budget, now = snapshot.budget, snapshot.now
    status = in_period(budget, now)
    jobs = {job.metadata.uid: job for job in snapshot.jobs}
    services = {service.metadata.name: service for service in snapshot.services}
    kept: list[Reservation] = []
    used = status.used_seconds
    for reservation in status.reservations:
        job = jobs.get(reservation.job_uid)
        service = services.get(service_name_of(job.spec)) if job else None
        still, spent = _follow(reservation, job, service, now)
        kept += [still] if still else []
        used += spent
    status = status.model_copy(update={"reservations": tuple(kept), "used_seconds": used})
    # What runs comes first: it uses its time whether that is set aside or not.
    for job in sorted(snapshot.jobs, key=lambda job: (not open_attempts(job.status), queue_order(job))):
        status = _reserved_for(budget, job, services.get(service_name_of(job.spec)), status)
    status = _rendered(budget, status, now)
    return BudgetPlan(status, _events(budget, status), period_end(budget.spec.period, now))


def _follow(
    reservation: Reservation, job: JobView | None, service: ServiceView | None, now: datetime
) -> tuple[Reservation | None, int]:
    """The reservation while it is needed, and what the execution used when it is over."""
    if job is None:
        return None, _elapsed(reservation, now)
    key = (reservation.run, reservation.attempt)
    attempt = next((a for a in job.status.attempts if (a.run, a.number) == key), None)
    if attempt is not None and attempt.end_time is None:
        return reservation.model_copy(update={"start_time": attempt.training_start_time}), 0
    if attempt is not None:
        return None, charged_seconds(attempt)
    if next_execution(job) == key:
        waits = service is not None and is_ready(job.status) and admitted(service, job)
        return (reservation if waits and job.metadata.deletion_time is None else None), 0
    return None, _elapsed(reservation, now)


def charged_seconds(attempt: Attempt) -> int:
    """Training time that an ended attempt counts with: disruptions are nobody's fault."""
    disrupted = attempt.cause is not None and RETRIED.get(attempt.cause) is Count.DISRUPTION
    return 0 if disrupted else attempt.training_seconds


def _elapsed(reservation: Reservation, now: datetime) -> int:
    """What a job used that was deleted while it ran: its own account is gone with it."""
    if reservation.start_time is None:
        return 0
    return min(reservation.seconds, max(0, int((now - reservation.start_time).total_seconds())))


def _reserved_for(
    budget: BudgetView, job: JobView, service: ServiceView | None, status: TrainingBudgetStatus
) -> TrainingBudgetStatus:
    """With a reservation for the job's execution, where one is due and there is time."""
    if not _limits(budget.spec, service_name_of(job.spec)):
        return status
    had = {(r.run, r.attempt) for r in status.reservations if r.job_uid == job.metadata.uid}
    execution = resolved_execution(job.spec, service.spec) if service else job.spec.policy.over(Execution())
    seconds = needed_seconds(job.spec, job.status, execution)
    for attempt in open_attempts(job.status):
        if budget.metadata.uid not in attempt.budget_uids and (attempt.run, attempt.number) not in had:
            return _with(status, job, attempt.run, attempt.number, seconds, attempt.training_start_time)
    wanted = next_execution(job)
    waits = service is not None and is_ready(job.status) and admitted(service, job)
    if not waits or wanted in had or job.metadata.deletion_time is not None:
        return status
    if seconds > remaining_seconds(budget.spec, status):
        return status
    return _with(status, job, *wanted, seconds)


def _with(
    status: TrainingBudgetStatus, job: JobView, run: int, attempt: int, seconds: int, start: datetime | None = None
) -> TrainingBudgetStatus:
    made = Reservation(
        job_name=job.metadata.name, jobUID=job.metadata.uid, run=run, attempt=attempt, seconds=seconds, start_time=start
    )
    return status.model_copy(update={"reservations": (*status.reservations, made)})


def _rendered(budget: BudgetView, status: TrainingBudgetStatus, now: datetime) -> TrainingBudgetStatus:
    left = remaining_seconds(budget.spec, status)
    used = status.used_seconds > budget.spec.training_minutes * 60 - 60
    end = period_end(budget.spec.period, now)
    until = f" It is renewed at {end:%Y-%m-%dT%H:%M:%SZ}." if end else ""
    reason = "Used" if used else "SetAside" if left < 60 else "TimeLeft"
    message = {
        "Used": f"All {budget.spec.training_minutes} min are used.{until}",
        "SetAside": f"What is left is set aside for executions that run; they give back what they do not use.{until}",
        "TimeLeft": "",
    }[reason]
    generation = budget.metadata.generation
    return status.model_copy(
        update={
            "observed_generation": generation,
            "used_minutes": ceil(status.used_seconds / 60),
            "reserved_minutes": ceil(_reserved(status) / 60),
            "remaining_minutes": left // 60,
            "conditions": conditions(budget.status.conditions, {"Exhausted": used}, reason, message, generation, now),
        }
    )


def _events(budget: BudgetView, new: TrainingBudgetStatus) -> tuple[Note, ...]:
    """One Event when the budget is used up, and one when there is time again."""
    before = [c.status is ConditionStatus.TRUE for c in budget.status.conditions]
    used = [c.status is ConditionStatus.TRUE for c in new.conditions]
    if used == (before or [False]):
        return ()
    if used == [True]:
        return (Note("BudgetExhausted", new.conditions[0].message, warning=True),)
    return (Note("BudgetAvailable", f"{new.remaining_minutes} min are left."),)


def _limits(spec: TrainingBudgetSpec, service_name: str) -> bool:
    return spec.services is None or service_name in spec.services


def _reserved(status: TrainingBudgetStatus) -> int:
    return sum(reservation.seconds for reservation in status.reservations)


def _minutes(seconds: int) -> str:
    return f"{ceil(seconds / 60)} min"


def _per(period: Period) -> str:
    return "" if period is Period.TOTAL else f" per {period.value.lower()}"
