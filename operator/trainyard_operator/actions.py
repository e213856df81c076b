"""Carries out what a plan says: one method per action, each safe to repeat."""

import logging
from collections.abc import Callable
from typing import Any

from trainyard_api import API_VERSION
from trainyard_api.run import Intake
from trainyard_api.trainingservice import ScalingType

from trainyard_operator import manifests, standby_manifests
from trainyard_operator.cache import Cache
from trainyard_operator.cluster import (
    JOBS,
    MODEL_VERSIONS,
    PODS,
    SERVICES,
    TRAINING_JOBS,
    TRAINING_SERVICES,
    Cluster,
    ConflictError,
    ForeignObjectError,
    NotFoundError,
    Object,
    Resource,
    StaleError,
    status_operations,
)
from trainyard_operator.decide.jobs import service_name_of
from trainyard_operator.decide.model import (
    LABEL_ARCHITECTURE,
    LABEL_JOB,
    LABEL_MODEL,
    Action,
    CreateHeadless,
    CreateJob,
    CreateService,
    CreateVersion,
    DeleteJob,
    DeletePod,
    DeleteTrainingJob,
    HandOver,
    JobView,
    LowerDeadline,
    ServiceAction,
    ServiceView,
    WriteVersionStatus,
)
from trainyard_operator.settings import Settings
from trainyard_operator.watch import Watch

logger = logging.getLogger(__name__)


class Actions:
    """Every method answers whether the next decision sees something new; what is done already is a success.

    The caches judge that: an action that a decision asks for again and again without effect must not become a busy loop.
    """

    def __init__(self, cluster: Cluster, watch: Watch, settings: Settings, intake: Callable[[], Intake]) -> None:
        self._cluster = cluster
        self._watch = watch
        self._caches = watch.caches
        self._settings = settings
        self._intake = intake

    async def carry_out(self, job: JobView, service: ServiceView | None, action: Action) -> bool:
        """Raises a `ClusterError` or `ManifestError`."""
        namespace = job.metadata.namespace
        match action:
            case CreateService():
                return await self._create_service(namespace, action)
            case CreateVersion():
                return await self._create_version(job, action)
            case WriteVersionStatus():
                return await self._write_version_status(namespace, action)
            case CreateJob():
                if service is None:
                    raise manifests.ManifestError("the service is gone; the attempt starts when it is there again")
                return await self._create_job(job, service, action)
            case CreateHeadless():
                owner = manifests.Owner(action.service_name, namespace, action.service_uid)
                await self._cluster.create_or_adopt(SERVICES, manifests.headless_service(owner, action.name))
            case HandOver():
                return await self._hand_over(job, action)
            case LowerDeadline():
                return await self._lower_deadline(namespace, action)
            case DeletePod():
                await self._cluster.delete(
                    PODS, namespace, action.pod, uid=action.uid, grace_seconds=action.grace_seconds
                )
            case DeleteJob():
                await self._cluster.delete(JOBS, namespace, action.name, uid=action.uid)
            case DeleteTrainingJob():
                await self._cluster.delete(TRAINING_JOBS, namespace, action.name, uid=action.uid)
        # What a deletion leads to is seen by the watches: until then nothing has changed for a decision.
        return False

    async def carry_out_for_service(self, service: ServiceView, action: ServiceAction) -> bool:
        """Raises a `ClusterError` or `ManifestError`."""
        namespace = service.metadata.namespace
        if isinstance(action, DeleteJob):
            await self._cluster.delete(JOBS, namespace, action.name, uid=action.uid)
            return False
        owner = manifests.Owner(service.metadata.name, namespace, service.metadata.uid)
        body = standby_manifests.standby_job(owner, action.name, service.spec, self._intake(), self._settings)
        created, _ = await self._cluster.create_or_adopt(JOBS, body)
        return self._watch.arrived(self._caches.attempt_jobs, created)

    def standby_template(self, service: ServiceView) -> str:
        """Digest of what a standby instance of the service would be made of now; empty: it can have none. Raises `ManifestError`."""
        if service.spec.queue.kueue_queue_name or service.spec.instance.nodes > 1:
            return ""
        scaling = service.spec.scaling
        if scaling.type is ScalingType.AUTOSCALE and not scaling.min_instances and service.status.standby is None:
            return ""
        return standby_manifests.standby_digest(service.metadata.name, service.spec, self._intake(), self._settings)

    async def _hand_over(self, job: JobView, action: HandOver) -> bool:
        """Owner, labels and RunSpec of the Job, then labels and deadline of the pod: what is there already is left as it is."""
        namespace, attempt = job.metadata.namespace, action.attempt
        owner = manifests.Owner(job.metadata.name, namespace, job.metadata.uid)
        service_name = service_name_of(job.spec)
        to_job = standby_manifests.taken_job(owner, service_name, action, self._intake())
        news = await self._patch_taken(JOBS, self._caches.attempt_jobs, namespace, attempt.job_name, to_job)
        held = self._caches.attempt_jobs.get((namespace, attempt.job_name))
        if held is None or held.owner_uid != owner.uid or attempt.pod_name is None:
            return news  # gone, or another's: the next look sees it
        to_pod = standby_manifests.taken_pod(owner, service_name, action)
        return await self._patch_taken(PODS, self._caches.pods, namespace, attempt.pod_name, to_pod) or news

    async def _patch_taken(
        self, resource: Resource, cache: Cache[Any], namespace: str, name: str, operations: list[Object]
    ) -> bool:
        try:
            patched: Object | None = await self._cluster.patch(resource, namespace, name, operations)
        except NotFoundError:
            return False
        except StaleError:
            patched = await self._cluster.find(resource, namespace, name)
        return patched is not None and cache.apply(patched) is not None

    async def _create_service(self, namespace: str, action: CreateService) -> bool:
        body = {
            "apiVersion": API_VERSION,
            "kind": "TrainingService",
            "metadata": {
                "namespace": namespace,
                "name": action.name,
                "labels": {"app.kubernetes.io/managed-by": "trainyard"},
            },
            "spec": dict(action.spec),
        }
        try:
            created = await self._cluster.create(TRAINING_SERVICES, body)
        except ConflictError:
            created = await self._cluster.get(TRAINING_SERVICES, namespace, action.name)
        return self._watch.arrived(self._caches.services, created)

    async def _create_version(self, job: JobView, action: CreateVersion) -> bool:
        body = {
            "apiVersion": API_VERSION,
            "kind": "ModelVersion",
            "metadata": {
                "namespace": job.metadata.namespace,
                "name": action.name,
                "labels": {
                    LABEL_JOB: job.metadata.name,
                    LABEL_MODEL: action.spec.model,
                    LABEL_ARCHITECTURE: action.spec.architecture.replace("/", "."),
                },
            },
            "spec": action.spec.to_dict(),
        }
        version, _ = await self._cluster.create_or_adopt(MODEL_VERSIONS, body)
        # Ours or not, the next decision has to know that this number is taken.
        news = self._caches.versions.apply(version) is not None
        spec = version["spec"]
        if (spec.get("jobUID"), spec.get("run", 0)) != (action.spec.job_uid, action.spec.run):
            raise ForeignObjectError(
                f"ModelVersion {action.name} was made by {spec.get('jobName')}; the next number is taken", version
            )
        return news

    async def _write_version_status(self, namespace: str, action: WriteVersionStatus) -> bool:
        entry = self._caches.versions.entry((namespace, action.name))
        raw: Any = dict(entry.status or {}) if entry is not None and entry.uid == action.uid else {}
        new = action.status.to_dict()
        operations = status_operations(raw, new, sorted(raw.keys() | new.keys()))
        if not operations:
            return False
        try:
            written = await self._cluster.patch_status(
                MODEL_VERSIONS, namespace, action.name, tests={"/metadata/uid": action.uid}, operations=operations
            )
        except NotFoundError:
            # A person deleted it: the library is theirs, and the decision follows from what the watch shows.
            return False
        except StaleError:
            found = await self._cluster.find(MODEL_VERSIONS, namespace, action.name)
            return found is not None and self._caches.versions.apply(found) is not None
        return self._caches.versions.apply(written) is not None

    async def _create_job(self, job: JobView, service: ServiceView, action: CreateJob) -> bool:
        owner = manifests.Owner(job.metadata.name, job.metadata.namespace, job.metadata.uid)
        body = manifests.attempt_job(
            owner,
            job.spec,
            service.metadata.name,
            service.spec,
            action,
            self._intake(),
            self._settings,
            job.priority_class,
        )
        created, new = await self._cluster.create_or_adopt(JOBS, body, owner_uid=owner.uid)
        logger.info(
            "%s/%s: %s Job %s", owner.namespace, owner.name, "made" if new else "adopted", action.attempt.job_name
        )
        if new:
            return self._caches.attempt_jobs.apply(created) is not None
        # One that an earlier leader has made may have come further than to its beginning.
        return self._watch.arrived(self._caches.attempt_jobs, created)

    async def _lower_deadline(self, namespace: str, action: LowerDeadline) -> bool:
        """The API server refuses to raise a deadline, so a late or repeated call can do no harm."""
        entry = self._caches.pods.entry((namespace, action.pod))
        if entry is not None and entry.uid == action.uid:
            present = entry.view.active_deadline_seconds
            if present is not None and present <= action.seconds:
                return False
        try:
            patched = await self._cluster.patch(
                PODS,
                namespace,
                action.pod,
                [
                    {"op": "test", "path": "/metadata/uid", "value": action.uid},
                    {"op": "add", "path": "/spec/activeDeadlineSeconds", "value": action.seconds},
                ],
            )
        except NotFoundError:
            return False
        except StaleError:
            found = await self._cluster.find(PODS, namespace, action.pod)
            return found is not None and self._caches.pods.apply(found) is not None
        return self._caches.pods.apply(patched) is not None
