"""One TrainingService: the next batch of its queue, its counts, and how it is."""

from datetime import datetime, timedelta

from trainyard_api.status import Condition, ConditionStatus
from trainyard_api.trainingjob import Cause, JobState, TrainingJobStatus
from trainyard_api.trainingservice import Admission, AdmittedJob, Standby

from trainyard_operator.decide import admission
from trainyard_operator.decide.case import open_attempts, run_attempts
from trainyard_operator.decide.diagnosis import BLOCKED_REASONS
from trainyard_operator.decide.model import LABEL_SERVICE, JobView, Note, ServicePlan, ServiceSnapshot
from trainyard_operator.decide.nodes import lost_time
from trainyard_operator.decide.scaling import capacity, desired_instances, instances
from trainyard_operator.decide.standby import StandbyPlan, plan_standby, take
from trainyard_operator.status import TERMINAL, render_service

CRASH_REASONS = {Cause.ERROR: "CrashLoop", Cause.OUT_OF_MEMORY: "OutOfMemory", Cause.STALLED: "CrashLoop"}
"""Causes of an attempt's end that make a service degraded when a job ends by them twice."""
CRASHES = frozenset(CRASH_REASONS.values())
NOT_STARTED = frozenset({Cause.START_TIMED_OUT, Cause.START_FAILED})
OVER = TERMINAL | {JobState.STOPPED, JobState.CANCELED}
SERVICE_REASONS = {"ImagePull", "OutOfMemory", "Unschedulable", "Quota"}


def decide_service(snapshot: ServiceSnapshot) -> ServicePlan:
    """The plan for one service: its whole new status, and the jobs to look at after it is written."""
    service, old = snapshot.service, snapshot.service.status
    scaling = service.spec.scaling
    running = sum(len(_running(job)) for job in snapshot.jobs)
    waiting = [job for job in snapshot.jobs if job.status.state in admission.WAITING]
    wanted = desired_instances(scaling, running + len(waiting))
    batch, warm = _admitted(snapshot)
    status = old.model_copy(
        update={
            "admission": batch,
            "standby": warm.status,
            "standby_instances": len(warm.ready),
            "running": running,
            "queued": len(waiting),
            "capacity": capacity(scaling),
            "instances": instances(scaling, running) + len(warm.status.jobs if warm.status else ()),
            "desired_instances": wanted,
            "selector": f"{LABEL_SERVICE}={service.metadata.name}",
            "observed_reset": _observed_reset(snapshot),
        }
    )
    degraded = degradation(snapshot.jobs, old.conditions) or _standby_trouble(warm.status)
    status = render_service(
        old, status, service.metadata.generation, paused=service.spec.paused, degraded=degraded, now=snapshot.now
    )
    return ServicePlan(
        status=status,
        wake=tuple(entry.name for entry in batch.jobs),
        actions=warm.actions,
        events=_events(old.conditions, status.conditions, service.metadata.name),
        look_again_at=min((t for t in (_look_again_at(snapshot), warm.look_again_at) if t), default=None),
    )


def _admitted(snapshot: ServiceSnapshot) -> tuple[Admission, StandbyPlan]:
    """The next batch, its new entries with the warm instances that they take."""
    old = snapshot.service.status
    kept = admission.pending(snapshot)
    busy = instances(snapshot.service.spec.scaling, len(admission.occupied(snapshot)))
    warm = plan_standby(snapshot, kept, busy)
    batch = admission.next_admission(snapshot)
    views = {job.metadata.uid: job for job in snapshot.jobs}
    entries: list[AdmittedJob] = []
    for entry in batch.jobs:
        if entry in kept:
            entries.append(entry)
            continue
        warm, taken = take(warm, views[entry.uid].spec, snapshot.service.spec)
        entries.append(entry.model_copy(update={"standby": taken}) if taken else entry)
    current = old.admission or Admission()
    changed = tuple(entries) != current.jobs or warm.status != old.standby
    return Admission(revision=current.revision + changed, jobs=tuple(entries)), warm


def _standby_trouble(standby: Standby | None) -> tuple[str, str] | None:
    if standby is None or not standby.failures:
        return None
    reason = standby.reason if standby.reason in SERVICE_REASONS else "CrashLoop"
    return reason, standby.message or ""


def degradation(jobs: tuple[JobView, ...], old: tuple[Condition, ...]) -> tuple[str, str] | None:
    """Reason and message of what is wrong with a service, as its jobs show it; None: nothing is.

    It lasts from the first sight of the trouble until something starts, or until nobody is in trouble any more: between two
    attempts of a job, and while a reason flips, the service does not become healthy.
    """
    before = next(
        ((c.reason, c.message) for c in old if c.type == "Degraded" and c.status is ConditionStatus.TRUE), None
    )
    ordered = sorted(jobs, key=lambda job: job.metadata.name)
    found = [trouble for job in ordered if (trouble := _trouble(job, before))]
    if found:
        return before if before in found else found[0]
    starting = any(attempt.start_time is None for job in jobs for attempt in open_attempts(job.status))
    return before if before and before[0] not in CRASHES and starting else None


def _trouble(job: JobView, before: tuple[str, str] | None) -> tuple[str, str] | None:
    status, name = job.status, job.metadata.name
    if status.state in OVER or job.metadata.deletion_time is not None:
        return None
    attempts = open_attempts(status)
    if status.state is JobState.PREPARING and status.reason in BLOCKED_REASONS:
        reason = status.reason if status.reason in SERVICE_REASONS else "CrashLoop"
        pod = next((a.pod_name for a in attempts if a.pod_name), None)
        return reason, f"{f'Pod {pod} of job' if pod else 'Job'} {name} cannot start: {status.message}"
    if any(attempt.start_time is not None and attempt.cause is None for attempt in attempts) and _gets_on(status):
        return None
    last = next((attempt for attempt in reversed(run_attempts(status)) if attempt.cause is not None), None)
    if last is None or last.cause is None:
        return None
    if last.cause in NOT_STARTED and not any(attempt.start_time for attempt in attempts):
        said = f"Job {name} cannot start: {last.message}"
        return before[0] if before and before[0] not in CRASHES else "CrashLoop", said
    if (status.charged_attempts or 0) >= 2 and (reason := CRASH_REASONS.get(last.cause)):
        return reason, f"Job {name} fails again and again: {last.message}"
    return None


def _gets_on(status: TrainingJobStatus) -> bool:
    """Whether the attempt that runs is past the point at which the one before it ended."""
    steps = [a.checkpoint_step or 0 for a in run_attempts(status) if a.cause is not None]
    now = status.progress.checkpoint_step if status.progress else None
    return now is not None and now > max(steps, default=0)


def _running(job: JobView) -> tuple[int, ...]:
    return tuple(attempt.number for attempt in open_attempts(job.status))


def _observed_reset(snapshot: ServiceSnapshot) -> int:
    """The reset that is carried out: nothing that it was to end lives any more."""
    spec, status = snapshot.service.spec, snapshot.service.status
    older = any(a.reset < spec.reset for job in snapshot.jobs for a in open_attempts(job.status))
    return status.observed_reset if older else max(spec.reset, status.observed_reset)


def _events(old: tuple[Condition, ...], new: tuple[Condition, ...], name: str) -> tuple[Note, ...]:
    """One Event for each condition that changed, or that is bad for another reason."""
    before = {c.type: (c.status, c.reason) for c in old}
    notes: list[Note] = []
    for condition in sorted(new, key=lambda condition: condition.type == "Available"):
        seen = before.get(condition.type)
        if seen is None and condition.status is ConditionStatus.FALSE and condition.type != "Available":
            continue  # a new service that is as expected
        if seen == (condition.status, condition.reason):
            continue
        if condition.type != "Available" or not notes:  # else it follows from what is said already
            notes += _note(condition, name)
    return tuple(notes)


def _note(condition: Condition, name: str) -> list[Note]:
    holds = condition.status is ConditionStatus.TRUE
    match condition.type:
        case "Degraded" if holds:
            return [Note(condition.reason, condition.message, warning=True)]
        case "Degraded":
            return [Note("Recovered", f"TrainingService {name} is not degraded any more.")]
        case "Paused":
            return [Note("Paused" if holds else "Resumed", condition.message or "New executions start again.")]
        case "Available" if condition.reason in ("Available", "ZeroInstances"):
            return [Note(condition.reason, condition.message)]
        case _:
            return []


def _look_again_at(snapshot: ServiceSnapshot) -> datetime | None:
    times = [lost_time(pod, snapshot.nodes, snapshot.defaults, snapshot.now) for pod in snapshot.pods]
    soon = [time for time in times if time is not None and time > snapshot.now]
    if snapshot.service.status.admission and admission.pending(snapshot):
        soon.append(snapshot.now + timedelta(seconds=snapshot.defaults.queue_refresh_seconds))
    return min(soon, default=None)
