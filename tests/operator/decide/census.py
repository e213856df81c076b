"""The world counted by hand, with nothing of what decisions count by: who has a slot, who waits and in which order, what is set aside."""

from collections.abc import Collection, Iterator
from datetime import datetime
from typing import NamedTuple

from trainyard_api.storage import attempt_job_name
from trainyard_api.trainingbudget import Reservation
from trainyard_api.trainingjob import Attempt
from trainyard_operator.decide.jobs import READY_REASONS, WAITING, open_attempts
from trainyard_operator.decide.model import LABEL_JOB, AttemptJob, AttemptPod, BudgetView, JobView
from trainyard_operator.decide.tally import Slot, slot_of

from tests.operator.decide.configuration import SERVICE
from tests.operator.decide.world import World


class Execution(NamedTuple):
    """One execution, by its Job: the attempts that share a pod are one."""

    uid: str
    job_name: str


def executions(world: World, *, orphans: bool = True) -> set[Execution]:
    """What has a slot: in the batch, in a ledger, or with pods that live; not what was given up with its node.

    The pods of a deleted job (`orphans`) count as long as they are there; those that came back with a lost node do so again.
    """
    jobs = {job.metadata.uid: job for job in world.jobs.values()}
    fenced = {
        Execution(uid, attempt.job_name)
        for uid, job in jobs.items()
        for attempt in job.status.attempts
        if attempt.fenced
    }
    pods = {
        Execution(slot_of(pod).job_uid, pod.owner_name or "")
        for pod in world.pods.values()
        if not pod.over and LABEL_JOB in pod.labels
        if orphans or slot_of(pod).job_uid in jobs
    }
    return (pods | set(batch(world)) | set(ledgers(world))) - fenced


def queue(world: World, held: Collection[str]) -> list[JobView]:
    """Those to whom nothing but a slot is missing, the first one first; without those whose entry the batch has held."""
    waiting = [job for job in world.jobs.values() if can_start(job) and job.metadata.uid not in held]
    waiting.sort(key=lambda job: (job.metadata.creation_time or datetime.max, job.metadata.name))
    return sorted(waiting, key=lambda job: job.spec.policy.priority or 0, reverse=True)


def without_slot(world: World) -> list[JobView]:
    """Those who have no slot yet."""
    return queue(world, {each.uid for each in batch(world)})


def limits(world: World) -> list[BudgetView]:
    """The budgets of the service."""
    budgets = world.budgets.values()
    return [each for each in budgets if each.spec.services is None or SERVICE in each.spec.services]


def runs(world: World, attempt: Attempt) -> bool:
    """Whether all of its pods do."""
    held, pods = made_for(world, attempt)
    return held is not None and len(pods) == held.completions and all(pod.running for pod in pods)


def is_queued(world: World, attempt: Attempt) -> bool:
    """Whether Kueue has not admitted it, or has taken it back, and nothing of it is left."""
    held, pods = made_for(world, attempt)
    return held is not None and held.suspended and all(pod.over for pod in pods)


def made_for(world: World, attempt: Attempt) -> tuple[AttemptJob | None, list[AttemptPod]]:
    """Its Job and pods, if they are there."""
    held = world.attempt_jobs.get(attempt.job_name)
    return held, [pod for pod in world.pods.values() if held and pod.owner_uid == held.metadata.uid]


def can_start(job: JobView) -> bool:
    """As its written status says, and as its spec is now."""
    status, spec = job.status, job.spec
    if status.revision is None:
        return not spec.suspend and spec.end is None
    seen = status.observed_generation == job.metadata.generation
    return seen and status.state in WAITING and status.reason in READY_REASONS


def batch(world: World) -> Iterator[Execution]:
    view = world.services.get(SERVICE)
    admission = view.status.admission if view else None
    for entry in admission.jobs if admission else ():
        name = entry.standby.job_name if entry.standby else attempt_job_name(entry.name, entry.run, entry.attempt)
        yield Execution(entry.uid, name)


def ledgers(world: World) -> Iterator[Execution]:
    for job in world.jobs.values():
        for attempt in open_attempts(job.status):
            yield Execution(job.metadata.uid, attempt.job_name)


def open_slots(world: World) -> Iterator[Slot]:
    for job in world.jobs.values():
        for attempt in open_attempts(job.status):
            yield Slot(job.metadata.uid, attempt.run, attempt.number)


def reserved_slot(reservation: Reservation) -> Slot:
    return Slot(reservation.job_uid, reservation.run, reservation.attempt)
