"""One TrainingService: the next batch of its queue, its counts, and how it is."""

from datetime import datetime, timedelta

from trainyard_api.status import Condition, ConditionStatus
from trainyard_api.trainingservice import Admission, AdmittedJob, Standby

from trainyard_operator.decide import admission
from trainyard_operator.decide.degradation import SERVICE_REASONS, degradation
from trainyard_operator.decide.model import LABEL_SERVICE, Note, ServicePlan, ServiceSnapshot
from trainyard_operator.decide.nodes import lost_time
from trainyard_operator.decide.scaling import capacity, desired_instances, instances
from trainyard_operator.decide.standby import StandbyPlan, plan_standby, take, warm_instances
from trainyard_operator.status import render_service


def decide_service(snapshot: ServiceSnapshot) -> ServicePlan:
    """The plan for one service: its whole new status. Who is new in the batch is woken by its write."""
    service, old = snapshot.service, snapshot.service.status
    scaling = service.spec.scaling
    running, waiting = snapshot.tally.running, snapshot.tally.waiting
    wanted = desired_instances(scaling, running + waiting)
    batch, warm = _admitted(snapshot)
    status = old.model_copy(
        update={
            "admission": batch,
            "standby": warm.status,
            "standby_instances": warm.ready,
            "running": running,
            "queued": waiting,
            "capacity": capacity(scaling),
            "instances": instances(scaling, running) + len(warm.status.jobs if warm.status else ()),
            "desired_instances": wanted,
            "selector": f"{LABEL_SERVICE}={service.metadata.name}",
            "observed_reset": _observed_reset(snapshot),
        }
    )
    suspects, starting = snapshot.tally.suspects.values(), snapshot.tally.starting > 0
    degraded = degradation(suspects, starting=starting, old=old.conditions) or _standby_trouble(warm.status)
    status = render_service(
        old, status, service.metadata.generation, paused=service.spec.paused, degraded=degraded, now=snapshot.now
    )
    return ServicePlan(
        status=status,
        misplaced=admission.misplaced(snapshot),
        actions=warm.actions,
        events=_events(old.conditions, status.conditions, service.metadata.name),
        look_again_at=min((t for t in (_look_again_at(snapshot), warm.look_again_at) if t), default=None),
    )


def _admitted(snapshot: ServiceSnapshot) -> tuple[Admission, StandbyPlan]:
    """The next batch, its new entries with the warm instances that they take, and what becomes of the others."""
    old, spec = snapshot.service.status, snapshot.service.spec
    kept = admission.pending(snapshot)
    new, warm = list[AdmittedJob](), warm_instances(snapshot, kept)
    for entry, job in admission.picked(snapshot, kept):
        warm, taken = take(warm, job.spec, spec)
        new.append(entry.model_copy(update={"standby": taken}) if taken else entry)
    batch = (*kept, *new)
    standby = plan_standby(snapshot, batch, instances(spec.scaling, admission.occupied_count(snapshot) + len(new)))
    current = old.admission or Admission()
    changed = batch != current.jobs or standby.status != old.standby
    return Admission(revision=current.revision + changed, jobs=batch), standby


def _standby_trouble(standby: Standby | None) -> tuple[str, str] | None:
    if standby is None or standby.reason is None:
        return None
    reason = standby.reason if standby.reason in SERVICE_REASONS else "CrashLoop"
    return reason, standby.message or ""


def _observed_reset(snapshot: ServiceSnapshot) -> int:
    """The reset that is carried out: nothing that it was to end lives any more."""
    spec, status, oldest = snapshot.service.spec, snapshot.service.status, snapshot.tally.oldest_reset()
    older = oldest is not None and oldest < spec.reset
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
    # Of a pod that has a job, that job's ledger tells.
    pods = (*snapshot.tally.orphans(), *snapshot.tally.standby_pods.values())
    times = [lost_time(pod, snapshot.nodes, snapshot.defaults, snapshot.now) for pod in pods]
    soon = [time for time in times if time is not None and time > snapshot.now]
    if snapshot.service.status.admission and admission.pending(snapshot):
        soon.append(snapshot.now + timedelta(seconds=snapshot.defaults.queue_refresh_seconds))
    return min(soon, default=None)
