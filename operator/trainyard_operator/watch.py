"""From the cluster to the queue: watch events go into the caches and put keys on the queue; no decision, no I/O.

Kopf runs the watches. Taking an event in does nothing but change the caches and add keys. Which key a change wakes is the whole content of this module:

- a TrainingJob wakes itself, but only when what a decision reads has changed, never on mere progress;
- what jobs and pods change in the sums of their service wakes it: at once when a job may start now, else within moments;
- a service wakes the jobs that are new in its batch, and all that wait for it when its spec or its state changed;
- a batch/v1 Job or a pod wakes the job in its labels; a node those whose pods it runs;
- a job that is gone wakes its model versions;
- jobs and services wake the budgets of their namespace, a budget the jobs that its time is enough for now.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import kopf
from trainyard_api.modelversion import VersionState
from trainyard_api.trainingjob import TrainingJobStatus

from trainyard_operator import logs
from trainyard_operator.cache import Cache, Caches, Change, Name, object_name
from trainyard_operator.cluster import JOBS, PODS, Cluster, Object
from trainyard_operator.decide.admission import may_admit, new_entries
from trainyard_operator.decide.budget import SPENT, has_time
from trainyard_operator.decide.jobs import open_attempts, service_name_of
from trainyard_operator.decide.model import (
    LABEL_JOB,
    LABEL_SERVICE,
    LABEL_STANDBY,
    AttemptJob,
    AttemptPod,
    BudgetView,
    JobView,
    NodeView,
    ServiceView,
    VersionView,
)
from trainyard_operator.queue import Urgency, WorkQueue
from trainyard_operator.status import OVER

logger = logging.getLogger(__name__)

EVENTS_AT_ONCE = 50
"""Taken in before anything else has its turn."""

SUMS_SECONDS = 0.2
"""A service for which nothing can start is looked at this long after its sums have changed: many changes are one look."""
NEXT_SECONDS = 1.0
"""A new job whose service can start it is looked at this long after it came, should no batch have woken it."""
STARTING_REASONS = frozenset({"ContainerCreating", "PodInitializing"})


class Kind(StrEnum):
    JOB = "TrainingJob"
    SERVICE = "TrainingService"
    VERSION = "ModelVersion"
    BUDGET = "TrainingBudget"


@dataclass(frozen=True)
class Key:
    """What a worker looks at."""

    kind: Kind
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"

    def logged(self) -> AbstractContextManager[None]:
        """Log lines written within name this object."""
        field = self.kind.removeprefix("Training").removeprefix("Model").lower()
        return logs.about(**{"namespace": self.namespace, field: self.name})


class Watch:
    """The handlers, their caches and the queue they feed."""

    def __init__(self, queue: WorkQueue[Key], *, nodes: bool) -> None:
        self.caches = Caches()
        self.caches.stirred = self._stirred
        self.queue = queue
        self._nodes = nodes
        self._seen: dict[str, float] = {}  # plural → monotonic time of the last sign of life of its watch
        # Whether a change reaches the queue; before the caches are complete nothing may be decided.
        self.enabled = False

    @property
    def watched(self) -> tuple[Cache[Any], ...]:
        return self.caches.all(nodes=self._nodes)

    def register(self, registry: kopf.OperatorRegistry, settings: kopf.OperatorSettings) -> None:
        """Let Kopf watch each kind; of Jobs and pods only our own. What arrives is `heard`."""
        for cache in self.watched:
            resource = cache.resource
            kopf.on.event(resource.group, resource.version, resource.plural, registry=registry, id="watch")(_nothing)
        for resource in (JOBS, PODS):
            settings.watching.label_selectors[resource.group, resource.version, resource.plural] = LABEL_SERVICE

    def heard(self, cache: Cache[Any], event: Mapping[str, Any]) -> None:
        """Take in one event of a watch. Never raises: what is wrong with one object must not stop the others."""
        self.alive(cache.resource.plural)
        if event["type"] == "BOOKMARK":
            return
        try:
            self.arrived(cache, event["object"], deleted=event["type"] == "DELETED")
        except Exception:
            logger.exception("an event of %s could not be taken in", cache.resource.plural)

    def alive(self, plural: str) -> None:
        """The watch of this kind has just spoken or been opened."""
        self._seen[plural] = time.monotonic()

    def silent_seconds(self) -> dict[str, float]:
        """How long each kind's watch has given no sign of life; infinite before the first."""
        now = time.monotonic()
        return {
            cache.resource.plural: now - self._seen[cache.resource.plural]
            if cache.resource.plural in self._seen
            else float("inf")
            for cache in self.watched
        }

    def arrived(self, cache: Cache[Any], obj: Object, *, deleted: bool = False) -> bool:
        """Take in one object and wake those whom the change concerns; whether it was news."""
        try:
            change = cache.apply(obj, deleted=deleted)
        except ValueError as error:
            # pydantic's ValidationError: written by a newer version, or past the schema. The others go on.
            metadata = obj.get("metadata", {})
            logger.error(
                "%s %s/%s cannot be read: %s",
                cache.resource.kind,
                metadata.get("namespace"),
                metadata.get("name"),
                str(error).splitlines()[0],
            )
            return False
        if change is not None:
            self.wake(change)
        return change is not None

    def wake(self, change: Change[Any], *, but: Key | None = None) -> None:
        """Put the keys that a change concerns on the queue, those of who made it (`but`) not."""
        if not self.enabled:
            return
        for key, urgency in self.keys(change):
            if key != but and urgency is Urgency.LOW and self._starts_next(change):
                self.queue.add_after(key, NEXT_SECONDS)
            elif key != but:
                self.queue.add(key, urgency)

    def _starts_next(self, change: Change[Any]) -> bool:
        """Whether a job has just come that its service's next batch has: it is woken by that, and has nothing to tell before."""
        if change.old is not None or not isinstance(change.new, JobView):
            return False
        name = (change.name[0], service_name_of(change.new.spec))
        service = self.caches.services.get(name)
        return service is not None and not service.spec.paused and may_admit(service, self.caches.tally(name))

    def _stirred(self, service: Name) -> None:
        """The sums of a service have changed."""
        view = self.caches.services.get(service)
        if not self.enabled or view is None:
            return
        if may_admit(view, self.caches.tally(service)):
            self.queue.add(Key(Kind.SERVICE, *service), Urgency.HIGH)
        else:
            self.queue.add_after(Key(Kind.SERVICE, *service), SUMS_SECONDS)

    def keys(self, change: Change[Any]) -> Iterable[tuple[Key, Urgency]]:
        """The keys that a change concerns, and how urgent they are."""
        view = change.new if change.new is not None else change.old
        match view:
            case JobView():
                return self._keys_of_job(change)
            case ServiceView():
                return self._keys_of_service(change)
            case BudgetView():
                return self._keys_of_budget(change)
            case VersionView():
                return () if self._was_announced(change) else self._keys_of_version(change.name, view)
            case AttemptJob() | AttemptPod():
                return () if _is_on_its_way(change.old, change.new) else self._keys_of_child(change.name, view)
            case NodeView():
                return self._keys_of_node(change.name)
        return ()

    def _keys_of_job(self, change: Change[JobView]) -> Iterable[tuple[Key, Urgency]]:
        namespace, name = change.name
        old, new = change.old, change.new
        if old is not None and new is not None and _relevant(old) == _relevant(new):
            return
        # A new one starts by its service's batch; what it says of itself until then can wait.
        urgency = Urgency.LOW if old is None else Urgency.NORMAL
        yield Key(Kind.JOB, namespace, name), urgency
        yield from self._budgets(namespace)
        if new is None:
            for version in self.caches.versions.names_by("job", change.name):
                yield Key(Kind.VERSION, *version), Urgency.NORMAL

    def _keys_of_service(self, change: Change[ServiceView]) -> Iterable[tuple[Key, Urgency]]:
        namespace, name = change.name
        old, new = change.old, change.new
        yield Key(Kind.SERVICE, namespace, name), Urgency.HIGH
        yield from self._budgets(namespace)
        for job in new_entries(old and old.status.admission, new and new.status.admission):
            yield Key(Kind.JOB, namespace, job), Urgency.NORMAL
        told = old is not None and new is not None and _told(old) == _told(new)
        if not told:
            for job in self.caches.jobs.by("service", change.name):
                if job.status.state not in OVER:
                    waits = not open_attempts(job.status)
                    yield Key(Kind.JOB, namespace, job.metadata.name), Urgency.LOW if waits else Urgency.NORMAL

    def _budgets(self, namespace: str) -> Iterable[tuple[Key, Urgency]]:
        for name in self.caches.budgets.names_by("namespace", namespace):
            yield Key(Kind.BUDGET, *name), Urgency.NORMAL

    def _keys_of_budget(self, change: Change[BudgetView]) -> Iterable[tuple[Key, Urgency]]:
        """The budget; the jobs of every batch, which may have their reservation; those for which there is time now."""
        namespace, name = change.name
        yield Key(Kind.BUDGET, namespace, name), Urgency.NORMAL
        for service in self.caches.services.by("namespace", namespace):
            for job in service.status.admission.jobs if service.status.admission else ():
                yield Key(Kind.JOB, namespace, job.name), Urgency.NORMAL
        old, new = change.old, change.new
        edited = old is None or new is None or old.metadata.generation != new.metadata.generation
        for job in self.caches.jobs.by("reason", (namespace, SPENT)):
            service = self.caches.services.get((namespace, service_name_of(job.spec)))
            if edited or new is None or (service is not None and has_time(new, job, service)):
                yield Key(Kind.JOB, namespace, job.metadata.name), Urgency.NORMAL

    def _keys_of_version(self, name: Name, view: VersionView) -> Iterable[tuple[Key, Urgency]]:
        if self.caches.jobs.get((name[0], view.spec.job_name)) is None:
            yield Key(Kind.VERSION, *name), Urgency.NORMAL
        else:
            yield Key(Kind.JOB, name[0], view.spec.job_name), Urgency.HIGH

    def _was_announced(self, change: Change[VersionView]) -> bool:
        """Whether a version has come that is as its job's status says it will be: who made it needs no telling."""
        view = change.new
        if change.old is not None or view is None or view.status.state is not VersionState.TRAINING:
            return False
        job = self.caches.jobs.get((change.name[0], view.spec.job_name))
        if job is None or job.metadata.uid != view.spec.job_uid:
            return False
        return (job.status.version, job.status.run or 0) == (change.name[1], view.spec.run)

    def _keys_of_child(self, name: Name, view: AttemptJob | AttemptPod) -> Iterable[tuple[Key, Urgency]]:
        if job := view.labels.get(LABEL_JOB):
            owner = self.caches.jobs.get((name[0], job))
            ended = view.over if isinstance(view, AttemptPod) else view.finished is not None
            over = owner is not None and owner.status.state in OVER
            yield Key(Kind.JOB, name[0], job), Urgency.LOW if over else Urgency.HIGH if ended else Urgency.NORMAL
        if LABEL_STANDBY not in view.labels:
            return
        if service := view.labels.get(LABEL_SERVICE):
            yield Key(Kind.SERVICE, name[0], service), Urgency.HIGH
        if job is None:
            # The labels come after the ledger: until then only that says whose it is.
            of = view.owner_name if isinstance(view, AttemptPod) else view.metadata.name
            for taker in self.caches.jobs.names_by("standby", (name[0], of)):
                yield Key(Kind.JOB, *taker), Urgency.NORMAL

    def _keys_of_node(self, name: Name) -> Iterable[tuple[Key, Urgency]]:
        for pod in self.caches.pods.by("node", name[1]):
            if not pod.over:
                namespace = pod.metadata.namespace
                yield from self._keys_of_child((namespace, pod.metadata.name), pod)
                if service := pod.labels.get(LABEL_SERVICE):
                    yield Key(Kind.SERVICE, namespace, service), Urgency.NORMAL

    async def resync(self, cluster: Cluster, namespaces: tuple[str, ...]) -> int:
        """Read everything anew, correct the caches, and wake whom that concerns; the number of corrections.

        A watch that broke off loses the deletions of the gap, and a decision may rest on what is no longer true: looking at
        everything again now and then bounds both.
        """
        corrections = 0
        for cache in self.watched:
            for namespace in namespaces if namespaces and cache.resource.namespaced else (None,):
                corrected, _ = await self.relist(cluster, cache, namespace)
                corrections += corrected
        return corrections

    async def relist(self, cluster: Cluster, cache: Cache[Any], namespace: str | None) -> tuple[int, str]:
        """`resync` of one kind; the number of corrections, and the version of the cluster from which a watch goes on.

        One object at a time: what is known already, which is most of it, is not even read.
        """
        labels = LABEL_SERVICE if cache.resource in (JOBS, PODS) else None
        corrections, version = 0, ""
        present: set[Name] = set()
        async for kind, obj in cluster.present(cache.resource, namespace, labels=labels):
            if kind == "BOOKMARK":
                version = obj["metadata"]["resourceVersion"]
                continue
            name, deleted = object_name(obj), kind == "DELETED"
            (present.discard if deleted else present.add)(name)
            if not cache.knows(obj) or deleted:
                corrections += self.arrived(cache, obj, deleted=deleted)
            if len(present) % EVENTS_AT_ONCE == 0:
                await asyncio.sleep(0)  # a large cluster must not keep the loop from the lease
        for change in cache.keep(present, int(version), namespace):
            corrections += 1
            self.wake(change)
        return corrections, version

    def wake_all(self) -> None:
        """Look at every object: services first, for whom slots are free, and jobs that run before those that wait or are over."""
        for name in self.caches.services.names():
            self.queue.add(Key(Kind.SERVICE, *name), Urgency.HIGH)
        for name in self.caches.budgets.names():
            self.queue.add(Key(Kind.BUDGET, *name), Urgency.HIGH)
        for job in self.caches.jobs.views():
            urgency = Urgency.NORMAL if open_attempts(job.status) else Urgency.LOW
            self.queue.add(Key(Kind.JOB, job.metadata.namespace, job.metadata.name), urgency)
        for name in self.caches.versions.names():
            self.queue.add(Key(Kind.VERSION, *name), Urgency.LOW)


async def _nothing(**_: Any) -> None:
    """A handler, for Kopf to know what to watch."""


def _relevant(job: JobView) -> tuple[Any, ...]:
    """What of a TrainingJob a decision waits for: not the numbers that the intake writes every second."""
    metadata, status = job.metadata, job.status
    return (
        metadata.uid,
        metadata.generation,
        metadata.deletion_time,
        job.priority_class,
        status.revision,
        reported(status),
    )


def reported(status: TrainingJobStatus) -> tuple[Any, ...] | None:
    """What of the reports a decision waits for."""
    progress = status.progress
    return progress and (progress.phase, progress.warnings, progress.result)


def _is_on_its_way(old: AttemptJob | AttemptPod | None, new: AttemptJob | AttemptPod | None) -> bool:
    """Whether a pod, or a Job, has come a step nearer to its start and no more: who waits for it looks soon by himself."""
    if isinstance(new, AttemptPod):
        quiet = all(c.waiting and c.waiting.reason in STARTING_REASONS for c in new.containers)
        scheduled = not any(c.type == "PodScheduled" and c.status == "False" for c in new.conditions)
        standby = LABEL_STANDBY in new.labels
        return new.phase == "Pending" and quiet and scheduled and not standby and new.metadata.deletion_time is None
    if not isinstance(new, AttemptJob) or not (old is None or isinstance(old, AttemptJob)):
        return False
    if old is None:  # as it was made
        plain = not new.conditions and not new.suspended and new.metadata.deletion_time is None
        return plain and LABEL_STANDBY not in new.labels
    return old == replace(new, start_time=old.start_time)


def _told(service: ServiceView) -> tuple[Any, ...]:
    """What of a TrainingService the jobs that wait for it tell their users."""
    conditions = tuple((c.type, c.status, c.reason, c.message) for c in service.status.conditions)
    return service.metadata.uid, service.metadata.generation, service.status.state, conditions
