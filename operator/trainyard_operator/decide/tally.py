"""What the jobs and pods of one service add up to, kept as they come and go.

A decision about a service, or about one job in its queue, must not look through all the jobs that there are: with 15,000 of them
waiting that would be a second of work for every pod that ends. So each job adds its share when it changes and takes the
old one back, and what a decision asks (who is next, how many slots are taken, which place a job has) costs no more than the
logarithm of their number. No clock and no I/O: whoever folds the same jobs and pods, in whatever order, gets the same.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from trainyard_operator.decide.degradation import is_blocked, is_own_doing, may_degrade
from trainyard_operator.decide.jobs import (
    WAITING,
    Order,
    is_ready,
    is_waiting,
    next_execution,
    open_attempts,
    queue_order,
    stands_apart,
)
from trainyard_operator.decide.model import (
    LABEL_ATTEMPT,
    LABEL_JOB,
    LABEL_JOB_UID,
    LABEL_RUN,
    LABEL_STANDBY,
    AttemptPod,
    JobView,
)


class Slot(NamedTuple):
    """One execution of one job."""

    job_uid: str
    run: int
    attempt: int


@dataclass(frozen=True, slots=True)
class Execution:
    """An execution that a lowered maximum could end, or that could give way to who waits."""

    slot: Slot
    priority: int
    began: datetime


@dataclass(frozen=True, slots=True)
class Share:
    """What one job adds. While it stays the same, nothing changes for the service."""

    order: Order | None
    """Its place in the queue, when it is in it."""
    next: tuple[int, int] | None
    """Run and attempt that an entry of the batch may be for."""
    waits: bool
    open: tuple[Slot, ...]
    """Executions in its ledger that have not ended."""
    fenced: tuple[Slot, ...]
    """Those that were given up with their node."""
    live: tuple[Execution, ...]
    """Those that are open and that nothing ends yet."""
    stuck: tuple[Execution, ...]
    """Those of them that do not start, and whose job asks for what others do not."""
    starting: int
    """How many of the open ones have not run yet, and not by their own doing."""
    resets: tuple[int, ...]
    job_uids: tuple[str, ...]
    """The Jobs of the open and the fenced ones: their pods' labels name the first of the attempts that share them."""
    standby: tuple[str, ...]
    """Names of the standby Jobs that it has taken."""
    suspect: JobView | None
    """The job itself, when it may be the reason that the service is degraded."""


class Tally:
    """The sums of one service; a job or pod is known by its uid."""

    def __init__(self, jobs: Iterable[JobView] = (), pods: Iterable[AttemptPod] = ()) -> None:
        self._jobs: dict[str, tuple[JobView, Share]] = {}
        self._queue: list[tuple[Order, str]] = []
        self._ledgers: set[Slot] = set()
        self._fenced: set[Slot] = set()
        self._pods: dict[str, dict[str, AttemptPod]] = {}  # uid of a job → uid → its pods that are not over
        self._orphans: set[str] = set()  # uids of jobs that are not there, and whose pods are
        self._resets: Counter[int] = Counter()
        self.held: set[Slot] = set()
        """Slots in use by what ledgers and pods say, also where the pod's node may be lost."""
        self.active: dict[str, Share] = {}
        """The shares of jobs with an execution that has not ended."""
        self.suspects: dict[str, JobView] = {}
        """The jobs that may be the reason that the service is degraded."""
        self.standby_pods: dict[str, AttemptPod] = {}
        """By the uid of their Job."""
        self.waiting = 0
        """Jobs whose state says that they wait, for whatever reason."""
        self.running = 0
        """Executions that have not ended."""
        self.starting = 0
        """Those of them whose trainer has not run yet, and not by their own doing."""
        for job in jobs:
            self.put_job(job)
        for pod in pods:
            self.put_pod(pod)

    # --- what comes and goes; each says whether it changes anything for the service -------------------------------------------

    def put_job(self, job: JobView) -> bool:
        uid, share = job.metadata.uid, share_of(job)
        before = self._jobs.get(uid)
        self._jobs[uid] = (job, share)
        if before is None:
            self._orphans.discard(uid)
        elif before[1] == share:
            return False
        else:
            self._subtract(uid, before[1])
        self._add(uid, share)
        return True

    def drop_job(self, job: JobView) -> bool:
        uid = job.metadata.uid
        held = self._jobs.pop(uid, None)
        if held is None:
            return False
        self._subtract(uid, held[1])
        if uid in self._pods:
            self._orphans.add(uid)
        return True

    def put_pod(self, pod: AttemptPod) -> bool:
        if is_standby(pod):
            owner = pod.owner_uid or pod.metadata.uid
            before = self.standby_pods.get(owner)
            self.standby_pods[owner] = pod
            return pod != before
        if pod.over:
            return self.drop_pod(pod)
        slot = slot_of(pod)
        pods = self._pods.setdefault(slot.job_uid, {})
        new = pod.metadata.uid not in pods
        pods[pod.metadata.uid] = pod
        orphan = slot.job_uid not in self._jobs
        if orphan:
            self._orphans.add(slot.job_uid)
        self._weigh(slot)
        return new or orphan

    def drop_pod(self, pod: AttemptPod) -> bool:
        """Also for one that is over: it takes no slot any more."""
        if is_standby(pod):
            return self.standby_pods.pop(pod.owner_uid or pod.metadata.uid, None) is not None
        slot = slot_of(pod)
        pods = self._pods.get(slot.job_uid, {})
        if pods.pop(pod.metadata.uid, None) is None:
            return False
        if not pods:
            del self._pods[slot.job_uid]
            self._orphans.discard(slot.job_uid)
        self._weigh(slot)
        return True

    # --- what decisions ask -------------------------------------------------------------------------------------------------

    def job(self, uid: str) -> JobView | None:
        held = self._jobs.get(uid)
        return held[0] if held else None

    def next_of(self, uid: str) -> tuple[int, int] | None:
        """Run and attempt that an entry of the batch holds for; None: the job does not wait for one."""
        held = self._jobs.get(uid)
        return held[1].next if held else None

    def queue(self) -> Iterator[JobView]:
        """The waiting jobs in the order in which they start."""
        return (self._jobs[uid][0] for _, uid in self._queue)

    @property
    def queue_length(self) -> int:
        return len(self._queue)

    def ahead(self, job: JobView) -> int:
        """How many wait before the job, whether it is in the queue itself or not."""
        return bisect_left(self._queue, (queue_order(job), job.metadata.uid))

    def is_queued(self, slot: Slot) -> bool:
        """Whether the job is in the queue for this very attempt."""
        held = self._jobs.get(slot.job_uid)
        return held is not None and held[1].order is not None and held[1].next == (slot.run, slot.attempt)

    def is_fenced(self, slot: Slot) -> bool:
        return slot in self._fenced

    def orphans(self) -> Iterator[AttemptPod]:
        """Pods that are not over and whose job is gone."""
        return (pod for uid in self._orphans for pod in self._pods[uid].values())

    def oldest_reset(self) -> int | None:
        """The lowest `reset` under which an execution began that has not ended."""
        return min(self._resets, default=None)

    def __bool__(self) -> bool:
        return bool(self._jobs or self._pods or self.standby_pods)

    # --- sums ---------------------------------------------------------------------------------------------------------------

    def _add(self, uid: str, share: Share) -> None:
        if share.order is not None:
            insort(self._queue, (share.order, uid))
        if share.open:
            self.active[uid] = share
        if share.suspect is not None:
            self.suspects[uid] = share.suspect
        self._ledgers.update(share.open)
        self._fenced.update(share.fenced)
        self._resets.update(share.resets)
        self._count(uid, share, 1)

    def _subtract(self, uid: str, share: Share) -> None:
        if share.order is not None:
            del self._queue[bisect_left(self._queue, (share.order, uid))]
        self.active.pop(uid, None)
        self.suspects.pop(uid, None)
        self._ledgers.difference_update(share.open)
        self._fenced.difference_update(share.fenced)
        for reset in share.resets:
            self._resets[reset] -= 1
            if not self._resets[reset]:
                del self._resets[reset]
        self._count(uid, share, -1)

    def _count(self, uid: str, share: Share, sign: int) -> None:
        self.waiting += sign * share.waits
        self.running += sign * len(share.open)
        self.starting += sign * share.starting
        pods = self._pods.get(uid, {}).values()
        for slot in {*share.open, *share.fenced, *map(slot_of, pods)}:
            self._weigh(slot)

    def _weigh(self, slot: Slot) -> None:
        """Whether the slot is taken, now that something about it has changed."""
        pods = self._pods.get(slot.job_uid, {}).values()
        held = self._jobs.get(slot.job_uid)
        spoken = held[1].job_uids if held else ()
        by_pod = any(pod.owner_uid not in spoken and slot_of(pod) == slot for pod in pods)
        if slot not in self._fenced and (slot in self._ledgers or by_pod):
            self.held.add(slot)
        else:
            self.held.discard(slot)


# --- one job, one pod -------------------------------------------------------------------------------------------------------


def share_of(job: JobView) -> Share:
    """What the job adds to its service."""
    uid, status = job.metadata.uid, job.status
    attempts = [attempt for attempt in open_attempts(status) if not attempt.fenced]
    kept = job.metadata.deletion_time is None
    live = tuple(
        Execution(Slot(uid, attempt.run, attempt.number), job.spec.policy.priority or 0, attempt.create_time)
        for attempt in attempts
        if attempt.ending is None and kept
    )
    started = any(attempt.start_time for attempt in attempts)
    return Share(
        order=queue_order(job) if is_waiting(job) else None,
        next=next_execution(job) if kept and is_ready(status) else None,
        waits=status.state in WAITING,
        open=tuple(Slot(uid, attempt.run, attempt.number) for attempt in attempts),
        fenced=tuple(Slot(uid, attempt.run, attempt.number) for attempt in status.attempts if attempt.fenced),
        live=live,
        stuck=live if is_blocked(job) and stands_apart(job.spec) and not started else (),
        starting=0 if is_own_doing(job) else sum(attempt.start_time is None for attempt in attempts),
        resets=tuple(attempt.reset for attempt in attempts),
        job_uids=tuple(
            attempt.job_uid
            for attempt in status.attempts
            if attempt.job_uid is not None and (attempt.fenced or attempt.end_time is None)
        ),
        standby=tuple(attempt.job_name for attempt in attempts if attempt.standby),
        suspect=job if may_degrade(job) else None,
    )


def is_standby(pod: AttemptPod) -> bool:
    """A warm pod that waits for work: it takes no slot."""
    return LABEL_STANDBY in pod.labels and LABEL_JOB not in pod.labels


def slot_of(pod: AttemptPod) -> Slot:
    """The slot that a pod takes; the pods of a gang share one."""
    uid = pod.labels.get(LABEL_JOB_UID) or pod.owner_uid or pod.metadata.uid
    run, attempt = pod.labels.get(LABEL_RUN, ""), pod.labels.get(LABEL_ATTEMPT, "")
    return Slot(uid, int(run) if run.isdigit() else 0, int(attempt) if attempt.isdigit() else 0)
