"""Which waiting jobs start now: per service by priority, then age, while there are slots.

A slot is one execution of one job, known by (job uid, run, attempt). It is occupied from the moment its job is in the batch that
the service's status announces (`status.admission`), through the ledger, until the attempt's pods are really gone; pods of
deleted jobs count too, those on a lost node do not. The batch is written before anything else, tested on its revision, and
an entry leaves it only when the job's own status shows the attempt or shows that the job does not wait any more. So a leader
that wakes from a pause can neither add to a batch nor use an entry that was taken back: both writes are refused.
"""

from itertools import islice

from trainyard_api.trainingservice import Admission, AdmittedJob, OnScaleDown

from trainyard_operator.decide.jobs import is_new, next_execution
from trainyard_operator.decide.model import AttemptPod, JobView, QueuePlace, ServiceSnapshot, ServiceView
from trainyard_operator.decide.nodes import is_lost
from trainyard_operator.decide.scaling import capacity
from trainyard_operator.decide.tally import Slot, Tally, slot_of

MAX_BATCH = 100
SHOWN_POSITIONS = 20
"""So many of those who wait are told their place."""


def queue_place(snapshot: ServiceSnapshot, job: JobView) -> QueuePlace:
    """How the queue looks from `job`, which is counted in whether its status says already that it waits or not."""
    ahead = snapshot.tally.ahead(job)
    limit, slots = snapshot.service.spec.queue.max_length, capacity(snapshot.service.spec.scaling)
    return QueuePlace(
        position=ahead + 1,
        next=is_new(job.status) and ahead < slots and ahead < slots - occupied_count(snapshot),
        full=limit is not None and ahead >= limit and not admitted(snapshot.service, job),
        surplus=any(slot.job_uid == job.metadata.uid for slot in surplus(snapshot)),
        wanted=_is_wanted(snapshot, job, slots),
    )


def _is_wanted(snapshot: ServiceSnapshot, job: JobView, slots: int) -> bool:
    """Whether somebody waits for the slot of the job's execution, which is stuck: for as many as wait, those that began first, less
    the slots that become free anyway."""
    service, tally = snapshot.service, snapshot.tally
    share = tally.active.get(job.metadata.uid)
    if share is None or not share.stuck or service.spec.paused or occupied_count(snapshot) < slots:
        return False
    shares = tally.active.values()
    ahead = sum((e.began, e.slot) < (share.stuck[0].began, share.stuck[0].slot) for s in shares for e in s.stuck)
    ending = sum(len(s.open) - len(s.live) for s in shares)
    return ahead + ending < _waiting_for_a_slot(service, tally)


def misplaced(snapshot: ServiceSnapshot) -> tuple[str, ...]:
    """Names of the waiting jobs whose status shows another place than they have. Who is new has not been told any."""
    first = enumerate(islice(snapshot.tally.queue(), 2 * SHOWN_POSITIONS), 1)
    return tuple(
        job.metadata.name
        for place, job in first
        if job.status.queue_position != (place if place <= SHOWN_POSITIONS else None)
        and not is_new(job.status)
        and not admitted(snapshot.service, job)
    )


def may_admit(service: ServiceView, tally: Tally) -> bool:
    """Whether a job that is not in the batch yet may start now, as far as it can be told without looking closely."""
    return len(tally.held) < capacity(service.spec.scaling) and _waits_for_a_slot(service, tally)


def _waits_for_a_slot(service: ServiceView, tally: Tally) -> bool:
    """Whether a job waits that the batch has not."""
    batch = service.status.admission.jobs if service.status.admission else ()
    # More wait than the batch has places: no need to look who of them is in it, at every change of a burst.
    return tally.queue_length > len(batch) or _waiting_for_a_slot(service, tally) > 0


def _waiting_for_a_slot(service: ServiceView, tally: Tally) -> int:
    """How many jobs wait that the batch has not."""
    batch = service.status.admission.jobs if service.status.admission else ()
    return tally.queue_length - sum(tally.is_queued(slot_of_entry(entry)) for entry in batch)


def admitted(service: ServiceView, job: JobView) -> bool:
    """Whether the batch of the service holds this very attempt of the job."""
    return entry_of(service, job) is not None


def entry_of(service: ServiceView, job: JobView) -> AdmittedJob | None:
    """The entry of the batch for this very attempt of the job."""
    batch = service.status.admission
    slot = Slot(job.metadata.uid, *next_execution(job))
    entries = batch.jobs if batch is not None else ()
    return next((entry for entry in entries if slot_of_entry(entry) == slot), None)


def new_entries(old: Admission | None, new: Admission | None) -> tuple[str, ...]:
    """Names of the jobs that have come into the batch; those that were in it look again by themselves."""
    known = set(map(slot_of_entry, old.jobs if old else ()))
    return tuple(entry.name for entry in (new.jobs if new else ()) if slot_of_entry(entry) not in known)


# --- slots ----------------------------------------------------------------------------------------------------------------


def slot_of_entry(entry: AdmittedJob) -> Slot:
    """The slot that an entry of the batch speaks of."""
    return Slot(entry.uid, entry.run, entry.attempt)


def occupied(snapshot: ServiceSnapshot) -> frozenset[Slot]:
    """The slots in use: the batch, unfinished attempts of the ledgers, and pods that are not gone."""
    return frozenset((snapshot.tally.held | _announced(snapshot)) - _lost(snapshot))


def occupied_count(snapshot: ServiceSnapshot) -> int:
    """How many slots are in use."""
    return len(snapshot.tally.held) + len(_announced(snapshot)) - len(_lost(snapshot))


def _announced(snapshot: ServiceSnapshot) -> set[Slot]:
    """Slots that only the batch speaks of."""
    batch = set(map(slot_of_entry, pending(snapshot)))
    return {slot for slot in batch - snapshot.tally.held if not snapshot.tally.is_fenced(slot)}


def _lost(snapshot: ServiceSnapshot) -> set[Slot]:
    """Slots of pods on a lost node that no ledger speaks of any more: their job was deleted. (While there is one, the ledger says
    that its attempt is fenced.)"""
    pods: dict[Slot, list[AttemptPod]] = {}
    for pod in snapshot.tally.orphans():
        pods.setdefault(slot_of(pod), []).append(pod)
    return {
        slot
        for slot, each in pods.items()
        if all(is_lost(pod, snapshot.nodes, snapshot.defaults, snapshot.now) for pod in each)
    }


def surplus(snapshot: ServiceSnapshot) -> frozenset[Slot]:
    """The executions that a lowered maximum ends (`onScaleDown: Drain`): the lowest priority, of it the youngest first.

    What ends already, whatever for, counts first, so that nothing is ended twice over.
    """
    scaling = snapshot.service.spec.scaling
    if scaling.on_scale_down is not OnScaleDown.DRAIN:
        return frozenset()
    over = occupied_count(snapshot) - capacity(scaling)
    if over <= 0:
        return frozenset()
    taken = occupied(snapshot)
    live = [each for share in snapshot.tally.active.values() for each in share.live if each.slot in taken]
    waiting = set(map(slot_of_entry, pending(snapshot)))
    ending = taken - {each.slot for each in live} - waiting
    # From the one that is ended first to the one that is kept longest.
    order = sorted(live, key=lambda each: (each.priority, -each.began.timestamp(), each.slot.job_uid))
    return frozenset(each.slot for each in order[: max(0, over - len(ending))])


# --- the batch ------------------------------------------------------------------------------------------------------------


def pending(snapshot: ServiceSnapshot) -> tuple[AdmittedJob, ...]:
    """The entries of the batch whose attempt is not in a ledger yet, and whose job still waits for it."""
    batch, tally = snapshot.service.status.admission, snapshot.tally
    entries = batch.jobs if batch else ()
    return tuple(entry for entry in entries if tally.next_of(entry.uid) == (entry.run, entry.attempt))


def picked(snapshot: ServiceSnapshot, kept: tuple[AdmittedJob, ...]) -> tuple[tuple[AdmittedJob, JobView], ...]:
    """The first of the queue for which there are slots, beside the entries that are `kept`."""
    service = snapshot.service
    if service.spec.paused or service.metadata.deletion_time is not None:
        return ()
    free = capacity(service.spec.scaling) - occupied_count(snapshot)
    room = min(free, MAX_BATCH - len(kept))
    if room <= 0:
        return ()
    held = {entry.uid for entry in kept}
    line = (job for job in snapshot.tally.queue() if job.metadata.uid not in held)
    return tuple((_entry(job), job) for job in islice(line, room))


def _entry(job: JobView) -> AdmittedJob:
    run, attempt = next_execution(job)
    return AdmittedJob(name=job.metadata.name, uid=job.metadata.uid, attempt=attempt, run=run)
