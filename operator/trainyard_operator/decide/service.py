"""One TrainingService: the next batch of its queue, its counts, and how it is."""

from datetime import datetime, timedelta

from trainyard_api.trainingjob import JobState

from trainyard_operator.decide import admission
from trainyard_operator.decide.case import open_attempts
from trainyard_operator.decide.diagnosis import BLOCKED_REASONS
from trainyard_operator.decide.model import LABEL_SERVICE, JobView, Note, ServicePlan, ServiceSnapshot
from trainyard_operator.decide.nodes import lost_time
from trainyard_operator.decide.scaling import capacity, desired_instances, instances
from trainyard_operator.status import render_service

CRASH_REASONS = {"Error": "CrashLoop", "StartFailed": "CrashLoop", "OutOfMemory": "OutOfMemory", "Stalled": "CrashLoop"}
"""Causes of an attempt's end that make a service degraded when a job ends by them twice."""
SERVICE_REASONS = {"ImagePull", "OutOfMemory", "Unschedulable", "Quota"}


def decide_service(snapshot: ServiceSnapshot) -> ServicePlan:
    """The plan for one service: its whole new status, and the jobs to look at after it is written."""
    service, old = snapshot.service, snapshot.service.status
    scaling = service.spec.scaling
    running = sum(len(_running(job)) for job in snapshot.jobs)
    waiting = [job for job in snapshot.jobs if job.status.state in admission.WAITING]
    wanted = desired_instances(scaling, running + len(waiting))
    status = old.model_copy(
        update={
            "admission": admission.next_admission(snapshot),
            "running": running,
            "queued": len(waiting),
            "capacity": capacity(scaling),
            "instances": instances(scaling, running),
            "desired_instances": wanted,
            "selector": f"{LABEL_SERVICE}={service.metadata.name}",
            "observed_reset": _observed_reset(snapshot),
        }
    )
    degraded = degradation(snapshot.jobs)
    status = render_service(
        old, status, service.metadata.generation, paused=service.spec.paused, degraded=degraded, now=snapshot.now
    )
    batch = status.admission.jobs if status.admission else ()
    return ServicePlan(
        status=status,
        wake=tuple(entry.name for entry in batch),
        events=_events(old.state, status.state, degraded),
        look_again_at=_look_again_at(snapshot),
    )


def degradation(jobs: tuple[JobView, ...]) -> tuple[str, str] | None:
    """Reason and message of what is wrong with a service, as its jobs show it; None: nothing is."""
    for job in sorted(jobs, key=lambda job: job.metadata.name):
        status = job.status
        if status.state is JobState.PREPARING and status.reason in BLOCKED_REASONS:
            reason = status.reason if status.reason in SERVICE_REASONS else "CrashLoop"
            pod = next((a.pod_name for a in open_attempts(status) if a.pod_name), None)
            where = f"Pod {pod} of job" if pod else "Job"
            return reason, f"{where} {job.metadata.name} cannot start: {status.message}"
        repeated = (status.charged_attempts or 0) >= 2
        if status.state is JobState.RERUN and repeated and (reason := CRASH_REASONS.get(status.reason or "")):
            return reason, f"Job {job.metadata.name} fails again and again: {status.message}"
    return None


def _running(job: JobView) -> tuple[int, ...]:
    return tuple(attempt.number for attempt in open_attempts(job.status))


def _observed_reset(snapshot: ServiceSnapshot) -> int:
    """The reset that is carried out: nothing that it was to end lives any more."""
    spec, status = snapshot.service.spec, snapshot.service.status
    older = any(a.reset < spec.reset for job in snapshot.jobs for a in open_attempts(job.status))
    return status.observed_reset if older else max(spec.reset, status.observed_reset)


def _events(old: str | None, new: str | None, degraded: tuple[str, str] | None) -> tuple[Note, ...]:
    if old == new or new is None:
        return ()
    if degraded is not None:
        return (Note(degraded[0], degraded[1], warning=True),)
    return (Note(new, f"The service is {new}.", warning=new != "Available"),) if old is not None else ()


def _look_again_at(snapshot: ServiceSnapshot) -> datetime | None:
    times = [lost_time(pod, snapshot.nodes, snapshot.defaults, snapshot.now) for pod in snapshot.pods]
    soon = [time for time in times if time is not None and time > snapshot.now]
    if snapshot.service.status.admission and admission.pending(snapshot):
        soon.append(snapshot.now + timedelta(seconds=snapshot.defaults.queue_refresh_seconds))
    return min(soon, default=None)
