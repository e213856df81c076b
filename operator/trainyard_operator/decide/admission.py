"""Which waiting jobs start now: per service by priority, then age, while there are slots.

A slot is one execution of one job, known by (job uid, run, attempt). It is occupied from the moment its job is in the batch that
the service's status announces (`status.admission`), through the ledger, until the attempt's pods are really gone; pods of
deleted jobs count too, those on a lost node do not. The batch is written before anything else, tested on its revision, and
an entry leaves it only when the job's own status shows the attempt or shows that the job does not wait any more. So a leader
that wakes from a pause can neither add to a batch nor use an entry that was taken back: both writes are refused.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from trainyard_api.trainingjob import JobState, TrainingJobSpec, TrainingJobStatus
from trainyard_api.trainingservice import Admission, AdmittedJob, OnScaleDown, default_service_name

from trainyard_operator.decide.model import (
    LABEL_ATTEMPT,
    LABEL_JOB,
    LABEL_JOB_UID,
    LABEL_RUN,
    LABEL_STANDBY,
    AttemptPod,
    JobView,
    QueuePlace,
    ServiceSnapshot,
    ServiceView,
)
from trainyard_operator.decide.nodes import is_lost
from trainyard_operator.decide.scaling import capacity

MAX_BATCH = 100
WAITING = frozenset({JobState.QUEUED, JobState.TRY_AGAIN_LATER})
READY_REASONS = frozenset({"WaitingForInstance", "QueueFull", "ServicePaused", "NoInstances"})
"""Reasons of a waiting job that nothing but a slot is missing to; the others do not hold up who comes after."""


@dataclass(frozen=True)
class Slot:
    job_uid: str
    run: int
    attempt: int


def service_name_of(spec: TrainingJobSpec) -> str:
    """The TrainingService that a job runs on, existing or not."""
    return spec.service_name or default_service_name(spec.architecture)


def next_attempt(status: TrainingJobStatus) -> int:
    """Number of the attempt that would start next in this run."""
    return (status.attempt_count or 0) + 1


def is_new(status: TrainingJobStatus) -> bool:
    """Whether nothing has been written to it yet."""
    return status.state is JobState.CREATED and status.revision is None


def is_ready(status: TrainingJobStatus) -> bool:
    """Whether a job's written status says that nothing but a slot is missing: only then an entry of the batch holds for it.

    A new one counts: with a slot free, that it waits is never written. What else it lacks takes the entry back, by a write.
    """
    return is_new(status) or (status.state in WAITING and status.reason in READY_REASONS)


def is_waiting(job: JobView) -> bool:
    """Whether the job is to be put into a batch: ready, and by the spec as it is now."""
    if is_new(job.status):
        wanted = not job.spec.suspend and job.spec.end is None
    else:
        wanted = job.status.observed_generation == job.metadata.generation and is_ready(job.status)
    return wanted and job.metadata.deletion_time is None


def queue(jobs: tuple[JobView, ...]) -> list[JobView]:
    """The waiting jobs in the order in which they start: priority, then age."""
    return sorted((job for job in jobs if is_waiting(job)), key=queue_order)


def queue_order(job: JobView) -> tuple[int, datetime, str]:
    """Priority, then age."""
    created = job.metadata.creation_time or datetime.max.replace(tzinfo=UTC)
    return -(job.spec.policy.priority or 0), created, job.metadata.name


def queue_place(snapshot: ServiceSnapshot, job: JobView) -> QueuePlace:
    """How the queue looks from `job`, which is counted in whether its status says already that it waits or not."""
    others = tuple(other for other in snapshot.jobs if other.metadata.uid != job.metadata.uid and is_waiting(other))
    ahead = sum(queue_order(other) < queue_order(job) for other in others)
    limit = snapshot.service.spec.queue.max_length
    return QueuePlace(
        position=ahead + 1,
        length=len(others) + 1,
        occupied=len(occupied(snapshot)),
        capacity=capacity(snapshot.service.spec.scaling),
        full=limit is not None and ahead >= limit and not _admitted(snapshot, job),
        surplus=any(slot.job_uid == job.metadata.uid for slot in surplus(snapshot)),
    )


def _admitted(snapshot: ServiceSnapshot, job: JobView) -> bool:
    return admitted(snapshot.service, job)


def admitted(service: ServiceView, job: JobView) -> bool:
    """Whether the batch of the service holds this very attempt of the job."""
    return entry_of(service, job) is not None


def entry_of(service: ServiceView, job: JobView) -> AdmittedJob | None:
    """The entry of the batch for this very attempt of the job."""
    batch = service.status.admission
    key = (job.metadata.uid, job.status.run or 0, next_attempt(job.status))
    entries = batch.jobs if batch is not None else ()
    return next((entry for entry in entries if (entry.uid, entry.run, entry.attempt) == key), None)


# --- slots ----------------------------------------------------------------------------------------------------------------


def occupied(snapshot: ServiceSnapshot) -> frozenset[Slot]:
    """The slots in use: the batch, unfinished attempts of the ledgers, and pods that are not gone."""
    batch = {Slot(entry.uid, entry.run, entry.attempt) for entry in pending(snapshot)}
    ledgers: set[Slot] = set()
    fenced: set[Slot] = set()
    known: set[str] = set()
    for job in snapshot.jobs:
        for attempt in job.status.attempts:
            slot = Slot(job.metadata.uid, attempt.run, attempt.number)
            if attempt.fenced:
                fenced.add(slot)
            elif attempt.end_time is None:
                ledgers.add(slot)
            else:
                continue
            if attempt.job_uid is not None:
                known.add(attempt.job_uid)
    pods = {
        slot_of(pod)
        for pod in snapshot.pods
        # A pod's labels name the first of the attempts that share it.
        if not pod.over and pod.owner_uid not in known and not is_standby(pod) and not _on_lost_node(pod, snapshot)
    }
    return frozenset((batch | ledgers | pods) - fenced)


def surplus(snapshot: ServiceSnapshot) -> frozenset[Slot]:
    """The executions that a lowered maximum ends (`onScaleDown: Drain`): the lowest priority, of it the youngest first.

    What ends already, whatever for, counts first, so that nothing is ended twice over.
    """
    scaling = snapshot.service.spec.scaling
    if scaling.on_scale_down is not OnScaleDown.DRAIN:
        return frozenset()
    over = len(taken := occupied(snapshot)) - capacity(scaling)
    if over <= 0:
        return frozenset()
    live = {
        Slot(job.metadata.uid, attempt.run, attempt.number): (job, attempt)
        for job in snapshot.jobs
        for attempt in job.status.attempts
        if attempt.end_time is None and attempt.ending is None and job.metadata.deletion_time is None
    }
    waiting = {Slot(entry.uid, entry.run, entry.attempt) for entry in pending(snapshot)}
    ending = taken - live.keys() - waiting
    # From the one that is ended first to the one that is kept longest.
    order = sorted(
        (slot for slot in taken if slot in live),
        key=lambda slot: (-queue_order(live[slot][0])[0], -live[slot][1].create_time.timestamp(), slot.job_uid),
    )
    return frozenset(order[: max(0, over - len(ending))])


def is_standby(pod: AttemptPod) -> bool:
    """A warm pod that waits for work: it takes no slot."""
    return LABEL_STANDBY in pod.labels and LABEL_JOB not in pod.labels


def slot_of(pod: AttemptPod) -> Slot:
    """The slot that a pod takes; the pods of a gang share one."""
    uid = pod.labels.get(LABEL_JOB_UID) or pod.owner_uid or pod.metadata.uid
    run, attempt = pod.labels.get(LABEL_RUN, ""), pod.labels.get(LABEL_ATTEMPT, "")
    return Slot(uid, int(run) if run.isdigit() else 0, int(attempt) if attempt.isdigit() else 0)


def _on_lost_node(pod: AttemptPod, snapshot: ServiceSnapshot) -> bool:
    """A pod that no ledger speaks of any more: its job was deleted. (While there is one, the ledger says it is fenced.)"""
    known = {job.metadata.uid for job in snapshot.jobs}
    return slot_of(pod).job_uid not in known and is_lost(pod, snapshot.nodes, snapshot.defaults, snapshot.now)


# --- the batch ------------------------------------------------------------------------------------------------------------


def pending(snapshot: ServiceSnapshot) -> tuple[AdmittedJob, ...]:
    """The entries of the batch whose attempt is not in a ledger yet, and whose job still waits for it."""
    batch = snapshot.service.status.admission
    jobs = {job.metadata.uid: job for job in snapshot.jobs}
    return tuple(entry for entry in (batch.jobs if batch else ()) if _is_pending(entry, jobs.get(entry.uid)))


def _is_pending(entry: AdmittedJob, job: JobView | None) -> bool:
    if job is None or job.metadata.deletion_time is not None:
        return False
    status = job.status
    return (status.run or 0) == entry.run and next_attempt(status) == entry.attempt and is_ready(status)


def next_admission(snapshot: ServiceSnapshot) -> Admission:
    """The batch as it should be: what is pending, and the first of the queue for which there are slots."""
    service = snapshot.service
    current = service.status.admission or Admission()
    kept = pending(snapshot)
    picked = _picked(snapshot, kept)
    jobs = kept + picked
    if jobs == current.jobs:
        return current
    return Admission(revision=current.revision + 1, jobs=jobs)


def _picked(snapshot: ServiceSnapshot, kept: tuple[AdmittedJob, ...]) -> tuple[AdmittedJob, ...]:
    service = snapshot.service
    if service.spec.paused or service.metadata.deletion_time is not None:
        return ()
    free = capacity(service.spec.scaling) - len(occupied(snapshot))
    room = min(free, MAX_BATCH - len(kept))
    if room <= 0:
        return ()
    pending_uids = {entry.uid for entry in kept}
    line = [job for job in queue(snapshot.jobs) if job.metadata.uid not in pending_uids]
    return tuple(
        AdmittedJob(
            name=job.metadata.name,
            uid=job.metadata.uid,
            attempt=next_attempt(job.status),
            run=job.status.run or 0,
        )
        for job in line[:room]
    )
