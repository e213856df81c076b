"""One function per kind: take a snapshot, let `decide` say what to do, do it.

The order is the one that `decide.model` promises: the status first, tested on what was read, so that every intent is written
before its action; then the Events about it; then the actions. Whatever fails ends the pass and is tried again with backoff.
"""

import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from trainyard_api.resolve import resolved_instance
from trainyard_api.run import Intake
from trainyard_api.trainingjob import TrainingJobStatus

from trainyard_operator import logs
from trainyard_operator.actions import Actions
from trainyard_operator.cache import Entry
from trainyard_operator.cluster import (
    CORE_EVENTS,
    MODEL_VERSIONS,
    PODS,
    TRAINING_BUDGETS,
    TRAINING_JOBS,
    TRAINING_SERVICES,
    WORKLOADS,
    Cluster,
    ClusterError,
    ForeignObjectError,
    NotFoundError,
    Object,
    RejectedError,
    Resource,
    StaleError,
    controller_uid,
    status_operations,
)
from trainyard_operator.decide import admission, budget, lifecycle, parse, service
from trainyard_operator.decide.jobs import open_attempts, service_name_of
from trainyard_operator.decide.model import (
    LABEL_JOB,
    Action,
    AttemptJob,
    AttemptPod,
    BudgetSnapshot,
    BudgetView,
    CreateJob,
    CreateStandby,
    CreateVersion,
    Defaults,
    EventView,
    JobSnapshot,
    JobView,
    Metadata,
    NodeView,
    Note,
    QueuePlace,
    Refusal,
    ServiceAction,
    ServiceSnapshot,
    ServiceView,
    VersionView,
    WorkloadView,
    name_of,
)
from trainyard_operator.decide.refusals import retry_time, tells, waits_for
from trainyard_operator.events import Recorder
from trainyard_operator.manifests import ManifestError
from trainyard_operator.metrics import OTHER, Metrics
from trainyard_operator.queue import Urgency
from trainyard_operator.settings import Settings
from trainyard_operator.watch import Key, Kind, Watch, reported

logger = logging.getLogger(__name__)

# While an attempt runs the intake writes these; the loop writes them only at its ends.
REPORTED = ("progress", "metrics", "dataset")
REPORTED_SUMMARY = ("progress", "epoch", "step", "metric", "eta")
SUMMARY = (*REPORTED_SUMMARY, "attempt")

# What a service counts is written at most this often. Nothing is decided by it.
COUNTS = frozenset({"/status/running", "/status/queued", "/status/instances", "/status/desiredInstances"})
COUNT_SECONDS = 1.0

# A pod younger than this is on its ordinary way; its Events are not asked for.
QUIET_SECONDS = 5.0
# Those about a service's standby instances at most this often: a service that starts many jobs is looked at many times a second.
STANDBY_EVENTS_SECONDS = 3.0
# After a write that found the object changed: the next look comes at once, but never as a busy loop.
STALE_SECONDS = 0.02


class Reconciler:
    """Looks at one object at a time; any number may run at once, for different keys."""

    def __init__(
        self,
        cluster: Cluster,
        watch: Watch,
        recorder: Recorder,
        metrics: Metrics,
        settings: Settings,
        intake: Callable[[], Intake],
    ) -> None:
        self._cluster = cluster
        self._watch = watch
        self._caches = watch.caches
        self._recorder = recorder
        self._metrics = metrics
        self._settings = settings
        self._actions = Actions(cluster, watch, settings, intake)
        self._reports_since = self._now()
        self._refusals: dict[Key, dict[tuple[str, str], Refusal]] = {}
        self._counted: dict[Key, float] = {}
        self._placed: dict[Key, float] = {}
        self._standby_events: dict[Key, tuple[float, tuple[EventView, ...], tuple[WorkloadView, ...]]] = {}
        self._defaults = Defaults(
            service=({"secretNames": list(secrets)} if (secrets := settings.default_secret_names) else {})
            | settings.default_service,
            keep_finished_seconds=settings.keep_finished_seconds,
            lost_node_seconds=settings.lost_node_seconds,
        )

    async def __call__(self, key: Key) -> float | None:
        """Look at the object of `key`; seconds after which to look again, or None."""
        began = time.perf_counter()
        try:
            match key.kind:
                case Kind.JOB:
                    return await self._reconcile_job(key)
                case Kind.SERVICE:
                    return await self._reconcile_service(key)
                case Kind.VERSION:
                    return await self._reconcile_version(key)
                case Kind.BUDGET:
                    return await self._reconcile_budget(key)
        except Exception:
            self._metrics.reconcile_errors.labels(key.kind).inc()
            raise
        finally:
            self._metrics.reconcile_seconds.labels(key.kind).observe(time.perf_counter() - began)

    async def _reconcile_job(self, key: Key) -> float | None:
        entry = self._caches.jobs.entry((key.namespace, key.name))
        if entry is None:
            self._refusals.pop(key, None)
            # A version that was being made when its job went: whoever saw the deletion did not know it yet.
            for version in self._caches.versions.names_by("job", (key.namespace, key.name)):
                self._watch.queue.add(Key(Kind.VERSION, *version))
            return None
        current = entry.view.status.current
        with logs.about(attempt=current.attempt if current else entry.view.status.attempt_count):
            return await self._look_at_job(key, entry)

    async def _look_at_job(self, key: Key, entry: Entry[JobView]) -> float | None:
        snapshot = await self._job_snapshot(entry.view)
        plan = lifecycle.decide_job(snapshot)
        if plan.status != entry.view.status and (operations := _job_operations(entry, plan.status)):
            revision = entry.view.status.revision
            operations.append({"op": "add", "path": "/status/revision", "value": (revision or 0) + 1})
            tests = {"/metadata/uid": entry.uid, "/status/revision": revision}
            if not await self._write(TRAINING_JOBS, key, tests, operations, entry.view.metadata):
                return STALE_SECONDS
            self._hear_reports(key, plan.status)
            self._count(snapshot, plan.status)
        self._emit(TRAINING_JOBS, entry.view.metadata, plan.events)
        await self._carry_out(entry.view, snapshot, plan.actions)
        return self._seconds_until(plan.look_again_at)

    async def _carry_out(self, job: JobView, snapshot: JobSnapshot, actions: Sequence[Action]) -> None:
        """The actions in order. What makes or changes something makes the next look follow at once, but for what is made for an
        attempt: it takes its way, and is seen on it. So does a refusal, which that look puts into the status."""
        key = Key(Kind.JOB, job.metadata.namespace, job.metadata.name)
        undone: list[Action] = []
        starts = any(isinstance(action, CreateJob) for action in actions)
        for action in actions:
            if waits_for(action, undone):
                continue
            changed = await self._try(key, action, self._actions.carry_out(job, snapshot.service, action))
            if isinstance(changed, Refusal):
                undone.append(action)
                if not tells(job.status.state, action):
                    self._emit(TRAINING_JOBS, job.metadata, [_refused(changed)])
            if changed and (undone or not starts or not isinstance(action, CreateVersion | CreateJob)):
                self._watch.queue.add(key, Urgency.HIGH)

    async def _try(self, key: Key, action: Action | ServiceAction, doing: Awaitable[bool]) -> bool | Refusal:
        """Whether the next look sees something new. A refusal is remembered for it: its status tells, else an Event."""
        name = (type(action).__name__, name_of(action))
        self._metrics.actions.labels(name[0]).inc()
        try:
            changed = await doing
        except (ClusterError, ManifestError) as error:
            if not _is_refusal(action, error):
                raise
            return self._remember(key, name, error)
        self._refusals.get(key, {}).pop(name, None)
        return changed

    def _remember(self, key: Key, name: tuple[str, str], error: ClusterError | ManifestError) -> Refusal:
        held = self._refusals.setdefault(key, {})
        tries = held[name].tries + 1 if name in held else 1
        status, reason = (error.status, error.reason) if isinstance(error, ClusterError) else (0, "")
        now = self._cluster.clock.now()
        held[name] = Refusal(*name, str(error), retry_time(now, tries), status, reason, tries)
        self._metrics.refusals.labels(name[0]).inc()
        logger.info("%s: %s was refused (%d times): %s", key, name[0], tries, error)
        return held[name]

    async def _job_snapshot(self, job: JobView) -> JobSnapshot:
        namespace, name = job.metadata.namespace, job.metadata.name
        caches = self._caches
        await self._confirm_missing(job)
        attempt_jobs = {view.metadata.name: view for view in caches.attempt_jobs.by("job", (namespace, name))}
        for attempt in job.status.attempts:
            if attempt.job_name not in attempt_jobs:
                found = caches.attempt_jobs.get((namespace, attempt.job_name))
                if found is not None:
                    attempt_jobs[attempt.job_name] = found
        pods = caches.pods.by("job", (namespace, name))
        taken = [caches.pods.get((namespace, a.pod_name)) for a in job.status.attempts if a.standby and a.pod_name]
        pods += tuple(pod for pod in taken if pod is not None and pod not in pods)
        start_job = job.spec.start_from.job
        service_name = service_name_of(job.spec)
        service_view = caches.services.get((namespace, service_name))
        now = self._now()
        return JobSnapshot(
            now=now,
            job=job,
            service=service_view,
            queue=admission.queue_place(
                ServiceSnapshot(
                    now=now,
                    service=service_view,
                    tally=caches.tally((namespace, service_name)),
                    nodes=self._nodes(),
                    defaults=self._defaults,
                ),
                job,
            )
            if service_view is not None
            else QueuePlace(),
            jobs=tuple(attempt_jobs.values()),
            pods=pods,
            events=await self._events_about(namespace, tuple(attempt_jobs.values()), pods),
            workloads=await self._workloads_of(
                namespace,
                [
                    held
                    for attempt in open_attempts(job.status)
                    if (held := attempt_jobs.get(attempt.job_name)) and (attempt.start_time or _age(held.metadata, now))
                ],
            ),
            nodes=self._nodes(),
            versions=self._versions_about(job),
            start_job=caches.jobs.get((namespace, start_job)) if start_job else None,
            refusals=tuple(self._refusals.get(Key(Kind.JOB, namespace, name), {}).values()),
            budgets=caches.budgets.by("namespace", namespace),
            reports_since=self._reports_since,
            defaults=self._defaults,
        )

    def _versions_about(self, job: JobView) -> tuple[VersionView, ...]:
        """Those of the job's model, those that it began, and the one to start from."""
        cache, namespace, name = self._caches.versions, job.metadata.namespace, job.metadata.name
        names = {
            *cache.names_by("model", (namespace, job.spec.model or name)),
            *cache.names_by("job", (namespace, name)),
        }
        if start := job.spec.start_from.model_version:
            names.add((namespace, start))
        views = (cache.get(each) for each in sorted(names))
        return tuple(view for view in views if view is not None)

    def _nodes(self) -> Mapping[str, NodeView] | None:
        return self._caches.nodes_by_name() if self._settings.watch_nodes else None

    async def _confirm_missing(self, job: JobView) -> None:
        """Ask the API server for children that the ledger knows and the caches lack: a watch may be late, or have a gap.

        A Job may be there although nobody heard the answer to its creation; a pod, although its Job is gone or over already.
        """
        namespace = job.metadata.namespace
        for attempt in open_attempts(job.status):
            for cache, name, uid in (
                (self._caches.attempt_jobs, attempt.job_name, attempt.job_uid),
                (self._caches.pods, attempt.pod_name, attempt.pod_uid),
            ):
                if name and cache.entry((namespace, name)) is None:
                    found = await self._cluster.find(cache.resource, namespace, name)
                    # One that has only the name belongs to somebody else, who is told when it is to be made.
                    if found is not None and (uid or controller_uid(found) == job.metadata.uid):
                        cache.apply(found)
            held = self._caches.attempt_jobs.get((namespace, attempt.job_name))
            going = held is None or held.finished is not None or held.metadata.deletion_time is not None
            if going and not self._caches.pods.by("job", (namespace, job.metadata.name)):
                label = f"{LABEL_JOB}={job.metadata.name}"
                for pod in await self._cluster.list_all(PODS, namespace, labels=label):
                    self._caches.pods.apply(pod)

    async def _events_about(
        self, namespace: str, attempt_jobs: Sequence[AttemptJob], pods: Sequence[AttemptPod]
    ) -> tuple[EventView, ...]:
        """Events that tell why a pod does not start, or is not even made; none while all is on its way."""
        now = self._cluster.clock.now()
        uids = [pod.metadata.uid for pod in pods if not pod.over and not pod.running and _age(pod.metadata, now)]
        owners = {pod.owner_uid for pod in pods}
        uids += [
            view.metadata.uid
            for view in attempt_jobs
            if view.finished is None
            and not view.suspended
            and view.metadata.uid not in owners
            and _age(view.metadata, now)
        ]
        views: list[EventView] = []
        for uid in uids:
            items = await self._cluster.list_all(CORE_EVENTS, namespace, fields=f"involvedObject.uid={uid}")
            views += [parse.parse_event(item) for item in items]
        return tuple(views)

    async def _workloads_of(self, namespace: str, attempt_jobs: Sequence[AttemptJob]) -> tuple[WorkloadView, ...]:
        """What Kueue says about those that are suspended; nothing where it is not installed or does not answer."""
        found: list[WorkloadView] = []
        for job in attempt_jobs:
            if not job.suspended:
                continue
            for resource in WORKLOADS:
                try:
                    items = await self._cluster.list_all(
                        resource, namespace, labels=f"kueue.x-k8s.io/job-uid={job.metadata.uid}"
                    )
                except NotFoundError:
                    continue  # a version that is not served
                except ClusterError as error:
                    logger.info("%s/%s: its Workload cannot be read: %s", namespace, job.metadata.name, error)
                    break
                found += [parse.parse_workload(item) for item in items]
                break
        return tuple(found)

    async def _reconcile_service(self, key: Key) -> float | None:
        name = (key.namespace, key.name)
        events, workloads = await self._about_standby(key)
        entry = self._caches.services.entry(name)
        if entry is None:
            self._metrics.forget_service(*name)
            for kept in (self._counted, self._placed, self._standby_events, self._refusals):
                kept.pop(key, None)
            return None
        plan = service.decide_service(self._service_snapshot(key, entry.view, events, workloads))
        raw = entry.status or {}
        new = plan.status.to_dict()
        operations = status_operations(raw, new, sorted(raw.keys() | new.keys()))
        wait = self._counted.get(key, 0) + COUNT_SECONDS - time.monotonic()
        if operations and wait > 0 and not _is_urgent(operations, raw):
            return wait
        if operations:
            self._counted[key] = time.monotonic()
            tests = _as_it_is_wanted(entry.view.metadata)
            if raw.get("admission") is None:
                tests["/status/admission"] = None
            else:
                tests["/status/admission/revision"] = raw["admission"].get("revision")
            if not await self._write(TRAINING_SERVICES, key, tests, operations, entry.view.metadata):
                return STALE_SECONDS
        self._emit(TRAINING_SERVICES, entry.view.metadata, plan.events)
        undone: list[ServiceAction] = []
        for action in plan.actions:
            if waits_for(action, undone):
                continue
            changed = await self._try(key, action, self._actions.carry_out_for_service(entry.view, action))
            if isinstance(changed, Refusal):
                undone.append(action)
                self._watch.queue.add(key, Urgency.HIGH)
                if not isinstance(action, CreateStandby):
                    self._emit(TRAINING_SERVICES, entry.view.metadata, [_refused(changed)])
        looks = (self._seconds_until(plan.look_again_at), self._show_places(key, plan.misplaced))
        return min((seconds for seconds in looks if seconds is not None), default=None)

    def _service_snapshot(
        self, key: Key, view: ServiceView, events: tuple[EventView, ...], workloads: tuple[WorkloadView, ...]
    ) -> ServiceSnapshot:
        name, template, refused = (key.namespace, key.name), "", ""
        try:
            template = self._actions.standby_template(view)
        except ManifestError as error:
            refused = str(error)
        return ServiceSnapshot(
            now=self._now(),
            service=view,
            tally=self._caches.tally(name),
            standby_jobs=self._caches.attempt_jobs.by("standby", name),
            standby_template=template,
            standby_refused=refused,
            events=events,
            workloads=workloads,
            refusals=tuple(self._refusals.get(key, {}).values()),
            nodes=self._nodes(),
            defaults=self._defaults,
        )

    async def _about_standby(self, key: Key) -> tuple[tuple[EventView, ...], tuple[WorkloadView, ...]]:
        """Events and Workloads."""
        jobs = self._caches.attempt_jobs.by("standby", (key.namespace, key.name))
        asked, events, workloads = self._standby_events.get(key, (-math.inf, (), ()))
        if jobs and time.monotonic() >= asked + STANDBY_EVENTS_SECONDS:
            pods = self._caches.tally((key.namespace, key.name)).standby_pods
            waiting = [pod for job in jobs if (pod := pods.get(job.metadata.uid))]
            events = await self._events_about(key.namespace, jobs, waiting)
            now = self._cluster.clock.now()
            workloads = await self._workloads_of(key.namespace, [job for job in jobs if _age(job.metadata, now)])
            self._standby_events[key] = time.monotonic(), events, workloads
        return events, workloads

    def _show_places(self, service: Key, jobs: Sequence[str]) -> float | None:
        """Let the first of a queue write their places, now and then only; seconds until that is due."""
        if not jobs:
            return None
        due = self._placed.get(service, -math.inf) + self._defaults.queue_refresh_seconds - time.monotonic()
        if due > 0:
            return due
        self._placed[service] = time.monotonic()
        for job in jobs:
            self._watch.queue.add(Key(Kind.JOB, service.namespace, job), Urgency.LOW)
        return None

    async def _reconcile_budget(self, key: Key) -> float | None:
        entry = self._caches.budgets.entry((key.namespace, key.name))
        if entry is None:
            return None
        raw = entry.status or {}
        plan = budget.decide_budget(await self._budget_snapshot(key.namespace, entry.view))
        new = plan.status.to_dict()
        operations = status_operations(raw, new, sorted((raw.keys() | new.keys()) - {"revision"}))
        if operations:
            revision = raw.get("revision")
            operations.append({"op": "add", "path": "/status/revision", "value": (revision or 0) + 1})
            tests = _as_it_is_wanted(entry.view.metadata) | {"/status/revision": revision}
            if not await self._write(TRAINING_BUDGETS, key, tests, operations, entry.view.metadata):
                return STALE_SECONDS
        self._emit(TRAINING_BUDGETS, entry.view.metadata, plan.events)
        return self._seconds_until(plan.look_again_at)

    async def _budget_snapshot(self, namespace: str, view: BudgetView) -> BudgetSnapshot:
        caches = self._caches
        services = caches.services.by("namespace", namespace)
        names = {name for _, name in caches.jobs.names_by("active", namespace)}
        names |= {entry.name for s in services if s.status.admission for entry in s.status.admission.jobs}
        for reservation in view.status.reservations:
            names.add(reservation.job_name)
            job = caches.jobs.get((namespace, reservation.job_name))
            if job is None or job.metadata.uid != reservation.job_uid:
                # Its account is closed for good: a watch may have a gap.
                found = await self._cluster.find(TRAINING_JOBS, namespace, reservation.job_name)
                if found is not None:
                    self._watch.arrived(caches.jobs, found)
        jobs = [caches.jobs.get((namespace, name)) for name in sorted(names)]
        return BudgetSnapshot(self._now(), view, services, tuple(job for job in jobs if job is not None))

    async def _reconcile_version(self, key: Key) -> float | None:
        """A ModelVersion whose job is gone; while the job is there, the job's own reconcile writes the version."""
        entry = self._caches.versions.entry((key.namespace, key.name))
        if entry is None or self._caches.jobs.get((key.namespace, entry.view.spec.job_name)) is not None:
            return None
        plan = lifecycle.decide_version(entry.view, self._now())
        if plan.status is None:
            return None
        raw, new = entry.status or {}, plan.status.to_dict()
        operations = status_operations(raw, new, sorted(raw.keys() | new.keys()))
        tests = {"/metadata/uid": entry.uid}
        if operations and not await self._write(MODEL_VERSIONS, key, tests, operations, entry.view.metadata):
            return STALE_SECONDS
        return None

    async def _write(
        self,
        resource: Resource,
        key: Key,
        tests: dict[str, Any],
        operations: list[dict[str, Any]],
        decided_on: Metadata,
    ) -> bool:
        """Patch the status; False when the object has changed meanwhile, the cache then has what is there now.

        The tests are about the status: what a user has changed since it was `decided_on` comes back with the answer. The watch
        shows it later and is no news then, so it is looked at again from here.
        """
        cache = {
            TRAINING_JOBS: self._caches.jobs,
            TRAINING_SERVICES: self._caches.services,
            MODEL_VERSIONS: self._caches.versions,
            TRAINING_BUDGETS: self._caches.budgets,
        }[resource]
        try:
            written: Object = await self._cluster.patch_status(
                resource, key.namespace, key.name, tests=tests, operations=operations
            )
        except StaleError as error:
            logger.info("%s has changed, looking again (%s)", key, error)
            found = await self._cluster.find(resource, key.namespace, key.name)
            if found is not None:
                self._watch.arrived(cache, found)
            return False
        # Our own write is no news to this key, yet to others: the service of a job, the jobs of a batch.
        change = cache.apply(written)
        if change is not None:
            self._watch.wake(change, but=key)
            now = change.new.metadata
            if (now.generation, now.deletion_time) != (decided_on.generation, decided_on.deletion_time):
                self._watch.queue.add(key)
        return True

    def _hear_reports(self, key: Key, written: TrainingJobStatus) -> None:
        """Look again when the intake has written, since the decision, what one waits for."""
        view = self._caches.jobs.get((key.namespace, key.name))
        if view is not None and reported(view.status) != reported(written):
            self._watch.queue.add(key)

    def _now(self) -> datetime:
        """The cluster's time with the precision of Kubernetes: seconds."""
        return self._cluster.clock.now().replace(microsecond=0)

    def _seconds_until(self, when: datetime | None) -> float | None:
        if when is None:
            return None
        return max((when - self._cluster.clock.now()).total_seconds(), STALE_SECONDS)

    def _count(self, snapshot: JobSnapshot, written: TrainingJobStatus) -> None:
        job, view = snapshot.job, snapshot.service
        if view is None:
            service, gpus = OTHER, job.spec.resources.gpus or 0
        else:
            instance, name = resolved_instance(job.spec, view.spec), (view.metadata.namespace, view.metadata.name)
            # One that went while this was written has left its series already.
            service = self._metrics.service(*name) if self._caches.services.get(name) else OTHER
            gpus = instance.gpus * instance.nodes
        self._metrics.written(service, gpus, job.status, written)

    def _emit(self, resource: Resource, about: Metadata, notes: Sequence[Note]) -> None:
        for note in notes:
            self._recorder.emit(resource, about, note)


def _job_operations(entry: Entry[JobView], status: TrainingJobStatus) -> list[dict[str, Any]]:
    raw, new = entry.status or {}, status.to_dict()
    return status_operations(raw, new, job_fields(raw, new))


def job_fields(raw: Object, new: Object) -> list[str]:
    """The status fields that the loop may write now: those of the intake only when it is not the intake's turn."""
    fields = (raw.keys() | new.keys()) - {"revision", "summary"}
    turn = new.get("current") is not None and new.get("current") == raw.get("current")
    if turn:
        fields -= set(REPORTED)
    if raw.get("summary") is None or new.get("summary") is None:
        summary = ["summary"]
    else:
        summary = [f"summary/{name}" for name in SUMMARY if not (turn and name in REPORTED_SUMMARY)]
    return [*sorted(fields), *summary]


def _is_urgent(operations: Sequence[Mapping[str, Any]], raw: Object) -> bool:
    """Whether more changes than counts, and entries of the batch that have been used: those go with the next write."""
    before = [entry["uid"] for entry in (raw.get("admission") or {}).get("jobs", ())]
    for operation in operations:
        if operation["path"] == "/status/admission":
            if any(entry["uid"] not in before for entry in operation["value"]["jobs"]):
                return True
        elif operation["path"] not in COUNTS:
            return True
    return False


def _is_refusal(action: Action | ServiceAction, error: ClusterError | ManifestError) -> bool:
    """Whether a person, or time, has to change something before the action can succeed; else it is a race or a moment's trouble."""
    if isinstance(error, ManifestError | RejectedError):
        return True
    if isinstance(error, ForeignObjectError):
        # There the next number is taken, or a namesake is just being deleted.
        return not isinstance(action, CreateVersion | CreateStandby)
    return "failed calling webhook" in str(error)


def _refused(refusal: Refusal) -> Note:
    return Note("ActionRefused", refusal.message, warning=True)


def _as_it_is_wanted(metadata: Metadata) -> dict[str, Any]:
    """Tests of a write that gives something away: by limits that a user has changed meanwhile nobody gets anything."""
    return {"/metadata/uid": metadata.uid, "/metadata/generation": metadata.generation}


def _age(metadata: Metadata, now: datetime) -> bool:
    """Whether the object has had its time to start quietly."""
    return metadata.creation_time is not None and (now - metadata.creation_time).total_seconds() > QUIET_SECONDS
