"""From the cluster to the queue: watch events go into the caches and put keys on the queue; no decision, no I/O.

Kopf runs the watches: `on.event` handlers only. What a handler raises is swallowed there, so it does nothing but take the
object in and add keys. Which key a change wakes is the whole content of this module:

- a TrainingJob wakes itself and its service, but only when what a decision reads has changed, never on mere progress;
- a service wakes the jobs of its batch, and all that wait for it when its spec or its state changed;
- a batch/v1 Job or a pod wakes the job and the service in its labels; a node those whose pods it runs;
- a job that is gone wakes its model versions;
- jobs and services wake the budgets of their namespace, a budget the jobs that its time is enough for now.
"""

import logging
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import kopf
from trainyard_api.trainingjob import JobState

from trainyard_operator import logs
from trainyard_operator.cache import Cache, Caches, Change, Name
from trainyard_operator.cluster import JOBS, PODS, Cluster, Object
from trainyard_operator.decide.admission import service_name_of
from trainyard_operator.decide.budget import SPENT, has_time
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
from trainyard_operator.queue import WorkQueue

logger = logging.getLogger(__name__)

OVER = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.ABORTED, JobState.CANCELED, JobState.STOPPED})


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
        self.queue = queue
        self._nodes = nodes
        self._seen: dict[str, float] = {}  # plural → monotonic time of the last sign of life of its watch
        # Whether a change reaches the queue; before the caches are complete nothing may be decided.
        self.enabled = False

    @property
    def watched(self) -> tuple[Cache[Any], ...]:
        return self.caches.all(nodes=self._nodes)

    def register(self, registry: kopf.OperatorRegistry, settings: kopf.OperatorSettings) -> None:
        """Put an event handler for each kind into Kopf's registry; of Jobs and pods only our own are watched."""
        for cache in self.watched:
            resource = cache.resource

            async def handle(event: Any, cache: Cache[Any] = cache, **_: Any) -> None:
                self.alive(cache.resource.plural)
                self.arrived(cache, event["object"], deleted=event["type"] == "DELETED")

            kopf.on.event(resource.group, resource.version, resource.plural, registry=registry, id="watch")(handle)
        for resource in (JOBS, PODS):
            settings.watching.label_selectors[resource.group, resource.version, resource.plural] = LABEL_SERVICE

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

    def wake(self, change: Change[Any]) -> None:
        if not self.enabled:
            return
        for key in self.keys(change):
            self.queue.add(key)

    def keys(self, change: Change[Any]) -> Iterable[Key]:
        """The keys that a change concerns."""
        view = change.new if change.new is not None else change.old
        match view:
            case JobView():
                return self._keys_of_job(change)
            case ServiceView():
                return self._keys_of_service(change)
            case BudgetView():
                return self._keys_of_budget(change)
            case VersionView():
                return self._keys_of_version(change.name, view)
            case AttemptJob() | AttemptPod():
                return self._keys_of_child(change.name, view)
            case NodeView():
                return self._keys_of_node(change.name)
        return ()

    def _keys_of_job(self, change: Change[JobView]) -> Iterable[Key]:
        namespace, name = change.name
        if change.old is not None and change.new is not None and _relevant(change.old) == _relevant(change.new):
            return
        yield Key(Kind.JOB, namespace, name)
        for view in (change.old, change.new):
            if view is not None:
                yield Key(Kind.SERVICE, namespace, service_name_of(view.spec))
        yield from self._budgets(namespace)
        if change.new is None:
            for version in self.caches.versions.names_by("job", change.name):
                yield Key(Kind.VERSION, *version)

    def _keys_of_service(self, change: Change[ServiceView]) -> Iterable[Key]:
        namespace, name = change.name
        old, new = change.old, change.new
        yield Key(Kind.SERVICE, namespace, name)
        yield from self._budgets(namespace)
        if new is not None and new.status.admission is not None:
            for job in new.status.admission.jobs:
                yield Key(Kind.JOB, namespace, job.name)
        told = old is not None and new is not None and _told(old) == _told(new)
        if not told:
            for job in self.caches.jobs.by("service", change.name):
                if job.status.state not in OVER:
                    yield Key(Kind.JOB, namespace, job.metadata.name)

    def _budgets(self, namespace: str) -> Iterable[Key]:
        for name in self.caches.budgets.names_by("namespace", namespace):
            yield Key(Kind.BUDGET, *name)

    def _keys_of_budget(self, change: Change[BudgetView]) -> Iterable[Key]:
        """The budget; the jobs of every batch, which may have their reservation; those for which there is time now."""
        namespace, name = change.name
        yield Key(Kind.BUDGET, namespace, name)
        for service in self.caches.services.by("namespace", namespace):
            for job in service.status.admission.jobs if service.status.admission else ():
                yield Key(Kind.JOB, namespace, job.name)
        old, new = change.old, change.new
        edited = old is None or new is None or old.metadata.generation != new.metadata.generation
        for job in self.caches.jobs.by("reason", (namespace, SPENT)):
            service = self.caches.services.get((namespace, service_name_of(job.spec)))
            if edited or new is None or (service is not None and has_time(new, job, service)):
                yield Key(Kind.JOB, namespace, job.metadata.name)

    def _keys_of_version(self, name: Name, view: VersionView) -> Iterable[Key]:
        if self.caches.jobs.get((name[0], view.spec.job_name)) is None:
            yield Key(Kind.VERSION, *name)
        else:
            yield Key(Kind.JOB, name[0], view.spec.job_name)

    def _keys_of_child(self, name: Name, view: AttemptJob | AttemptPod) -> Iterable[Key]:
        for label, kind in ((LABEL_JOB, Kind.JOB), (LABEL_SERVICE, Kind.SERVICE)):
            if value := view.labels.get(label):
                yield Key(kind, name[0], value)
        if LABEL_STANDBY in view.labels and LABEL_JOB not in view.labels:
            # The labels come after the ledger: until then only that says whose it is.
            of = view.owner_name if isinstance(view, AttemptPod) else view.metadata.name
            for job in self.caches.jobs.names_by("standby", (name[0], of)):
                yield Key(Kind.JOB, *job)

    def _keys_of_node(self, name: Name) -> Iterable[Key]:
        for pod in self.caches.pods.by("node", name[1]):
            if not pod.over:
                yield from self._keys_of_child((pod.metadata.namespace, pod.metadata.name), pod)

    async def resync(self, cluster: Cluster, namespaces: tuple[str, ...]) -> int:
        """List everything, correct the caches, and wake every object; the number of corrections.

        A watch that broke off loses the deletions of the gap, and a decision may rest on what is no longer true: looking at
        everything again now and then bounds both.
        """
        corrections = 0
        for cache in self.watched:
            labels = LABEL_SERVICE if cache.resource in (JOBS, PODS) else None
            for namespace in namespaces if namespaces and cache.resource.namespaced else (None,):
                items, version = await cluster.list_at(cache.resource, namespace, labels=labels)
                # Most of a list is known already; reading it again would take seconds of a large cluster.
                news = [item for item in items if not cache.knows(item) and self._readable(cache, item)]
                present = [item for item in items if cache.knows(item)]
                scope = (namespace,) if namespace else ()
                for change in cache.replace_all([*present, *news], version, scope):
                    corrections += 1
                    self.wake(change)
        return corrections

    def _readable(self, cache: Cache[Any], obj: Object) -> bool:
        try:
            cache.view_of(obj)
        except ValueError as error:
            logger.error("%s %s cannot be read: %s", cache.resource.kind, obj["metadata"]["name"], error)
            return False
        return True

    def wake_all(self) -> None:
        """Look at every object."""
        for kind, cache in (
            (Kind.SERVICE, self.caches.services),
            (Kind.JOB, self.caches.jobs),
            (Kind.VERSION, self.caches.versions),
            (Kind.BUDGET, self.caches.budgets),
        ):
            for name in cache.names():
                self.queue.add(Key(kind, *name))


def _relevant(job: JobView) -> tuple[Any, ...]:
    """What of a TrainingJob a decision waits for: not the numbers that the intake writes every second."""
    progress = job.status.progress
    return (
        job.metadata.uid,
        job.metadata.generation,
        job.metadata.deletion_time,
        job.status.revision,
        progress and (progress.phase, progress.warnings, progress.result),
    )


def _told(service: ServiceView) -> tuple[Any, ...]:
    """What of a TrainingService the jobs that wait for it tell their users."""
    conditions = tuple((c.type, c.status, c.reason, c.message) for c in service.status.conditions)
    return service.metadata.uid, service.metadata.generation, service.status.state, conditions
