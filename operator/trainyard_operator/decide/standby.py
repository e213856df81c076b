"""Standby instances: warm pods of a service that wait for work, and which execution takes which.

A standby is a batch/v1 Job that the service owns. Its name is written into the service's status before it is made, so that none is
made twice; one that the status does not name is deleted. An execution takes one by the batch: the same write takes the name
out of the list and puts it into the job's entry, so that no two can have it. From there the job's ledger goes on
(`execution`: owner, labels, deadline, RunSpec). One that ends by itself, or does not get warm, is replaced with a growing delay.
What is wrong with them is in the status, for the service's condition.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from trainyard_api.execution import Resources
from trainyard_api.trainingjob import TrainingJobSpec
from trainyard_api.trainingservice import (
    AdmittedJob,
    Scaling,
    ScalingType,
    Standby,
    StandbyInstance,
    TrainingServiceSpec,
)

from trainyard_operator.decide.degradation import CRASHES
from trainyard_operator.decide.denials import Diagnosis
from trainyard_operator.decide.diagnosis import diagnose
from trainyard_operator.decide.execution import DIAGNOSIS_SECONDS, QUIET
from trainyard_operator.decide.model import (
    LABEL_STANDBY,
    AttemptJob,
    AttemptPod,
    CreateStandby,
    DeleteJob,
    Metadata,
    Refusal,
    ServiceAction,
    ServiceSnapshot,
)
from trainyard_operator.decide.nodes import is_lost
from trainyard_operator.decide.refusals import diagnose_refusal, sorted_out
from trainyard_operator.decide.subject import Subject
from trainyard_operator.status import text

MAX_NAME = 36
FIRST_DELAY = timedelta(seconds=10)
LONGEST_DELAY = timedelta(hours=1)
PROVEN = timedelta(seconds=60)
"""A standby that was warm this long has shown that they can be made."""
BATCH = 20
"""Most that are begun in one look."""


@dataclass(frozen=True)
class StandbyPlan:
    status: Standby | None
    ready: int = 0
    """How many are warm."""
    actions: tuple[ServiceAction, ...] = ()
    look_again_at: datetime | None = None


@dataclass(frozen=True)
class _Seen:
    """One listed standby: its Job and pod, as far as they show."""

    name: str
    job: AttemptJob | None
    pod: AttemptPod | None

    @property
    def ready(self) -> bool:
        pod = self.pod
        return pod is not None and not pod.over and pod.metadata.deletion_time is None and bool(pod.condition("Ready"))

    @property
    def running(self) -> bool:
        return self.pod is not None and self.pod.running

    def __str__(self) -> str:
        return f"Pod {self.pod.metadata.name} of standby {self.name}" if self.pod else f"Standby {self.name}"


def wanted(scaling: Scaling, busy: int) -> int:
    """Standby instances that there should be beside `busy` instances that work."""
    floor = scaling.max_instances if scaling.type is ScalingType.FIXED else scaling.min_instances
    return max(0, min(floor, scaling.max_instances) - busy)


def eligible(job: TrainingJobSpec, service: TrainingServiceSpec) -> bool:
    """Whether a job can do with what the service's pods have; else it starts cold."""
    own = (None, *(service.secret_names or ())[:1])
    secrets = job.dataset.secret_name in own and job.output.secret_name in own
    return job.resources == Resources() and job.policy.drain_seconds is None and secrets


def warm_instances(snapshot: ServiceSnapshot, batch: tuple[AdmittedJob, ...]) -> tuple[StandbyInstance, ...]:
    """Those that an execution may take now, the oldest first; `batch` names those that are taken already."""
    if snapshot.service.status.standby is None:
        return ()
    good = (each for each in _listed(snapshot, _taken(snapshot, batch)) if each.ready)
    return tuple(_instance(each) for each in good if not _failure(snapshot, each) and not _outdated(snapshot, each))


def take(
    warm: tuple[StandbyInstance, ...], job: TrainingJobSpec, service: TrainingServiceSpec
) -> tuple[tuple[StandbyInstance, ...], StandbyInstance | None]:
    """Those that are left, and the one that the job takes; None: it starts cold."""
    if not warm or not eligible(job, service):
        return warm, None
    return warm[1:], warm[0]


def plan_standby(snapshot: ServiceSnapshot, batch: tuple[AdmittedJob, ...], busy: int) -> StandbyPlan:
    """What becomes of the standby instances beside the `busy` ones, those that `batch` gives work included."""
    possible = snapshot.standby_template or snapshot.standby_refused
    if not (possible or snapshot.standby_jobs or snapshot.service.status.standby):
        return StandbyPlan(None)  # the usual service: nothing to look through its jobs for
    old = snapshot.service.status.standby or Standby()
    taken = _taken(snapshot, batch)
    status, kept = old, list[_Seen]()
    for each in _listed(snapshot, taken):
        if trouble := _failure(snapshot, each):
            status = _failed(status, trouble, snapshot.now)
        elif not _outdated(snapshot, each):
            kept.append(each)
    status, kept, look = _trimmed(snapshot, status, kept, busy)
    scaling = snapshot.service.spec.scaling
    count, needless = wanted(scaling, busy), not possible or wanted(scaling, 0) == 0
    proven = [each for each in kept if (time := _proven_at(each)) and time <= snapshot.now]
    if needless or (proven and len(proven) >= count):
        status = status.model_copy(update={"failures": 0, "next_time": None, "reason": None, "message": None})
    names = tuple(each.name for each in kept)
    made = _new(snapshot, status, kept, count - len(kept))
    status = status.model_copy(update={"jobs": names + made, "number": status.number + len(made)})
    actions, refused = sorted_out(_wished(snapshot, status, taken), snapshot.refusals, snapshot.now)
    if not needless:
        refusals = [refusal for action, refusal in refused if isinstance(action, CreateStandby)]
        starting = bool(batch) or snapshot.tally.starting > 0
        status = _told(status, _troubles(snapshot, kept, refusals), kept, count, starting=starting)
    times = [look, status.next_time, *(refusal.retry_at for _, refusal in refused)]
    times += [time for each in kept for time in _start_looks(snapshot, each)]
    times += [_proven_at(each) for each in kept if status.failures]
    soon = min((time for time in times if time and time > snapshot.now), default=None)
    return StandbyPlan(status if status != Standby() else None, sum(each.ready for each in kept), actions, soon)


# --- one standby ----------------------------------------------------------------------------------------------------------


def _taken(snapshot: ServiceSnapshot, batch: tuple[AdmittedJob, ...]) -> set[str]:
    names = {entry.standby.job_name for entry in batch if entry.standby}
    for share in snapshot.tally.active.values():
        names.update(share.standby)
    return names


def _listed(snapshot: ServiceSnapshot, taken: set[str]) -> list[_Seen]:
    """Those of the service's status that no execution has taken."""
    names = snapshot.service.status.standby.jobs if snapshot.service.status.standby else ()
    return [_seen(snapshot, name) for name in names if name not in taken]


def _seen(snapshot: ServiceSnapshot, name: str) -> _Seen:
    job = next((job for job in snapshot.standby_jobs if job.metadata.name == name), None)
    uid = job.metadata.uid if job else None
    return _Seen(name, job, snapshot.tally.standby_pods.get(uid or ""))


def _instance(each: _Seen) -> StandbyInstance:
    assert each.job
    assert each.pod
    return StandbyInstance(
        job_name=each.name,
        jobUID=each.job.metadata.uid,
        pod_name=each.pod.metadata.name,
        podUID=each.pod.metadata.uid,
        node=each.pod.node,
    )


def _proven_at(each: _Seen) -> datetime | None:
    """When it has been warm for long enough, if it stays so."""
    ready = each.pod.condition("Ready") if each.pod and each.ready else None
    return ready.since + PROVEN if ready and ready.since else None


def _outdated(snapshot: ServiceSnapshot, each: _Seen) -> bool:
    """Made of an image or an instance that the service does not have any more, or being deleted by somebody."""
    if each.job is None:
        return not snapshot.standby_template
    old = each.job.labels.get(LABEL_STANDBY) != snapshot.standby_template
    return old or each.job.metadata.deletion_time is not None


def _failure(snapshot: ServiceSnapshot, each: _Seen) -> tuple[str, str] | None:
    """Reason and sentence of a standby that ended by itself, or did not get warm in time."""
    job, pod = each.job, each.pod
    if job is None or job.metadata.deletion_time is not None:
        return None
    if pod is not None and is_lost(pod, snapshot.nodes, snapshot.defaults, snapshot.now):
        return "CrashLoop", f"Node {pod.node} of standby pod {pod.metadata.name} is lost."
    if pod is not None and pod.over:
        return _ended(pod)
    if job.finished:
        return "CrashLoop", f"Standby Job {each.name} ended: {job.finished.message or job.finished.reason}."
    deadline = _start_deadline(snapshot, each)
    if deadline is None or deadline > snapshot.now:
        return None
    found = _diagnosis(snapshot, each)
    why = found.message if found else "its trainer runs and does not say that it is warm; look at its log."
    return (found.reason if found and found.blocked else "CrashLoop"), f"{each} did not get warm: {why}"


def _diagnosis(snapshot: ServiceSnapshot, each: _Seen) -> Diagnosis | None:
    return diagnose(each.job, (each.pod,) if each.pod else (), snapshot.events, _subject(snapshot), snapshot.workloads)


def _subject(snapshot: ServiceSnapshot) -> Subject:
    service = snapshot.service
    return Subject(service.metadata.namespace, service.metadata.name, snapshot.nodes, spec=service.spec)


def _ended(pod: AttemptPod) -> tuple[str, str]:
    ended = pod.trainer.terminated if pod.trainer else None
    disruption = pod.condition("DisruptionTarget")
    if disruption:
        return "CrashLoop", f"Standby pod {pod.metadata.name} was taken away by the cluster ({disruption.reason})."
    if ended is None:
        return "CrashLoop", f"Standby pod {pod.metadata.name} ended ({pod.reason or pod.phase})."
    lines = [line for line in ended.message.strip().splitlines() if line.strip()]
    said = f": {lines[-1].strip()[:400]}" if lines else "; look at its log."
    reason = "OutOfMemory" if ended.reason == "OOMKilled" else "CrashLoop"
    return reason, f"Standby pod {pod.metadata.name} ended with exit code {ended.exit_code}{said}"


def _start_deadline(snapshot: ServiceSnapshot, each: _Seen) -> datetime | None:
    if each.ready or each.job is None or each.job.metadata.creation_time is None:
        return None
    return each.job.metadata.creation_time + timedelta(seconds=snapshot.service.spec.execution.start_timeout_seconds)


def _start_looks(snapshot: ServiceSnapshot, each: _Seen) -> tuple[datetime, ...]:
    """When to look again at one that is not warm: what keeps it from starting may show in Events alone."""
    deadline = _start_deadline(snapshot, each)
    if deadline is None or each.running:
        return (deadline,) if deadline else ()
    return deadline, snapshot.now + timedelta(seconds=DIAGNOSIS_SECONDS)


# --- what is wrong --------------------------------------------------------------------------------------------------------


def _troubles(snapshot: ServiceSnapshot, kept: list[_Seen], refusals: list[Refusal]) -> list[tuple[str, str]]:
    """Reason and sentence of all that somebody has to mend before a standby can start."""
    subject = _subject(snapshot)
    denied = [diagnose_refusal(refusal, subject) for refusal in refusals]
    if snapshot.standby_refused:
        said = f"TrainingService {subject.service} can have no standby: {snapshot.standby_refused}."
        denied.append(Diagnosis("NotAllowed", said))
    found = [(each, _diagnosis(snapshot, each)) for each in kept if _had_time(each, snapshot.now)]
    return [(d.reason, text(d.message)) for d in denied if d.blocked] + [
        (d.reason, text(f"{each} cannot start: {d.message}")) for each, d in found if d and d.blocked
    ]


def _had_time(each: _Seen, now: datetime) -> bool:
    """Whether it has had its time to start quietly: one may wait for a moment for what another leaves."""
    made = each.job.metadata.creation_time if each.job else None
    return made is not None and now >= made + QUIET


def _told(
    status: Standby, troubles: list[tuple[str, str]], kept: list[_Seen], count: int, *, starting: bool
) -> Standby:
    """The status that tells the trouble. As with jobs (`degradation`) it lasts until something starts: all of the `count` that there
    should be run, after a failure are warm; an execution counts where none is left. What ended one by itself lasts longer."""
    before = (status.reason or "", status.message or "")
    if troubles:
        reason, message = before if before in troubles else troubles[0]
        return status.model_copy(update={"reason": reason, "message": message})
    well = all(each.ready or (each.running and not status.failures) for each in kept)
    started = well and len(kept) >= count and (bool(kept) or not starting)
    if started and status.reason not in CRASHES:
        return status.model_copy(update={"reason": None, "message": None})
    return status


# --- how many -------------------------------------------------------------------------------------------------------------


def _failed(status: Standby, trouble: tuple[str, str], now: datetime) -> Standby:
    waits = status.next_time is not None and status.next_time > now
    failures = status.failures + (not waits)  # several that were made together are one failure
    delay = min(FIRST_DELAY * 2 ** min(failures - 1, 20), LONGEST_DELAY)
    reason, message = trouble
    return status.model_copy(
        update={"failures": failures, "next_time": now + delay, "reason": reason, "message": text(message)}
    )


def _trimmed(
    snapshot: ServiceSnapshot, status: Standby, kept: list[_Seen], busy: int
) -> tuple[Standby, list[_Seen], datetime | None]:
    """Without those above what there should be: above the maximum at once, else when they were idle for long enough."""
    scaling, now = snapshot.service.spec.scaling, snapshot.now
    over = len(kept) - wanted(scaling, busy)
    if over <= 0:
        return status.model_copy(update={"surplus_time": None}), kept, None
    since = status.surplus_time or now
    idle_until = since + timedelta(seconds=scaling.idle_seconds)
    room = max(0, scaling.max_instances - busy)
    order = sorted(kept, key=lambda each: (not each.ready, each.name))
    if idle_until <= now:
        keep = order[: len(kept) - over]
        since = None
    else:
        keep = order[:room]
    left = [each for each in kept if each in keep]
    still = since if len(left) > wanted(scaling, busy) else None
    return status.model_copy(update={"surplus_time": still}), left, idle_until if still else None


def _new(snapshot: ServiceSnapshot, status: Standby, kept: list[_Seen], missing: int) -> tuple[str, ...]:
    """Names of those to make now."""
    service = snapshot.service
    closed = service.spec.paused or service.metadata.deletion_time is not None or not snapshot.standby_template
    if closed or (status.next_time is not None and status.next_time > snapshot.now):
        return ()
    # After a failure one at a time shows whether it is mended.
    tried = status.failures > 0 and any(not each.ready for each in kept)
    count = min(missing, 0 if tried else 1 if status.failures else BATCH)
    return tuple(f"{_stem(service.metadata)}-{status.number + 1 + n}" for n in range(max(0, count)))


def _wished(snapshot: ServiceSnapshot, status: Standby, taken: set[str]) -> list[ServiceAction]:
    """What brings the Jobs to those that the status lists, refused or not."""
    known = {job.metadata.name for job in snapshot.standby_jobs}
    made = [CreateStandby(name) for name in status.jobs if name not in known]
    gone = [
        DeleteJob(job.metadata.name, job.metadata.uid)
        for job in snapshot.standby_jobs
        if job.metadata.name not in taken.union(status.jobs) and job.metadata.deletion_time is None
    ]
    return [*made, *gone]


def _stem(service: Metadata) -> str:
    """Of its own even where two long names begin alike, or a service was made again."""
    return f"{service.name[:MAX_NAME].rstrip('-')}-standby-{service.uid[:4]}"
