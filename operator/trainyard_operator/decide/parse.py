"""From plain Kubernetes dicts, as the API server sends them, to the views of `model.py`. Slim: what no decision reads is left out."""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import blake2b
from typing import Any, TypeVar, cast
from weakref import WeakValueDictionary

import orjson
from trainyard_api.modelversion import ModelVersionSpec, ModelVersionStatus
from trainyard_api.status import Condition
from trainyard_api.trainingbudget import TrainingBudgetSpec, TrainingBudgetStatus
from trainyard_api.trainingjob import TrainingJobSpec, TrainingJobStatus
from trainyard_api.trainingservice import TrainingServiceSpec, TrainingServiceStatus

from trainyard_operator.decide.kueue import LABEL_PRIORITY
from trainyard_operator.decide.model import (
    TRAINER_CONTAINER,
    AttemptJob,
    AttemptPod,
    BudgetView,
    ContainerView,
    EventView,
    JobView,
    Metadata,
    NodeView,
    ObjectCondition,
    ServiceView,
    Taint,
    Terminated,
    Toleration,
    VersionView,
    Waiting,
    Wants,
    WorkloadView,
)

Body = Mapping[str, Any]


@lru_cache(4096)
def parse_time(text: str | None) -> datetime | None:
    """RFC 3339, with or without fractions; 1970 (what a container that never started shows) is no time."""
    if not text:
        return None
    time = datetime.fromisoformat(text.replace("Z", "+00:00")).astimezone(UTC)
    return time if time.year > 1970 else None


def parse_job(body: Body, old: JobView | None = None) -> JobView:
    """A TrainingJob; of the same generation as `old` it has the same spec. Raises pydantic's ValidationError when a newer version
    wrote what this one cannot read."""
    metadata = _metadata(body)
    known = old is not None and (old.metadata.uid, old.metadata.generation) == (metadata.uid, metadata.generation)
    status = _part(body, "status")
    conditions = [_shared(Condition, _CONDITIONS, each) for each in _dicts(status.get("conditions"))]
    return JobView(
        metadata,
        old.spec if old is not None and known else _shared(TrainingJobSpec, _SPECS, body["spec"]),
        TrainingJobStatus.model_validate({**status, "conditions": conditions}),
        _labels(body).get(LABEL_PRIORITY),
    )


# Thousands of jobs often differ in little more than their names: specs and conditions are the most of what is kept of them, and
# reading them is the most of a start. By the digest of what they were read from.
_SPECS: WeakValueDictionary[bytes, TrainingJobSpec] = WeakValueDictionary()
_CONDITIONS: WeakValueDictionary[bytes, Condition] = WeakValueDictionary()

Part = TypeVar("Part", TrainingJobSpec, Condition)


def _shared(model: type[Part], known: WeakValueDictionary[bytes, Part], raw: Any) -> Part:
    """One object for equal parts."""
    digest = blake2b(orjson.dumps(raw), digest_size=16).digest()
    part = known.get(digest)
    if part is None:
        part = known[digest] = model.model_validate(raw)
    return part


def parse_service(body: Body) -> ServiceView:
    """A TrainingService. Raises pydantic's ValidationError as `parse_job`."""
    return ServiceView(
        _metadata(body),
        TrainingServiceSpec.model_validate(body["spec"]),
        TrainingServiceStatus.model_validate(body.get("status") or {}),
    )


def parse_budget(body: Body) -> BudgetView:
    """A TrainingBudget. Raises pydantic's ValidationError as `parse_job`."""
    return BudgetView(
        _metadata(body),
        TrainingBudgetSpec.model_validate(body["spec"]),
        TrainingBudgetStatus.model_validate(body.get("status") or {}),
    )


def parse_version(body: Body) -> VersionView:
    """A ModelVersion. Raises pydantic's ValidationError as `parse_job`."""
    return VersionView(
        _metadata(body),
        ModelVersionSpec.model_validate(body["spec"]),
        ModelVersionStatus.model_validate(body.get("status") or {}),
    )


def parse_attempt_job(body: Body) -> AttemptJob:
    """A batch/v1 Job."""
    spec, status = _part(body, "spec"), _part(body, "status")
    return AttemptJob(
        metadata=_metadata(body),
        labels=_labels(body),
        owner_uid=_owner(body).get("uid"),
        suspended=bool(spec.get("suspend")),
        start_time=parse_time(status.get("startTime")),
        conditions=_conditions(status),
        completions=int(spec.get("completions") or 1),
    )


def parse_pod(body: Body) -> AttemptPod:
    spec, status, owner = _part(body, "spec"), _part(body, "status"), _owner(body)
    return AttemptPod(
        metadata=_metadata(body),
        labels=_labels(body),
        owner_uid=owner.get("uid"),
        owner_name=owner.get("name"),
        node=spec.get("nodeName") or None,
        phase=status.get("phase") or "Pending",
        reason=status.get("reason") or "",
        message=(status.get("message") or "").strip(),
        conditions=_conditions(status),
        containers=tuple(
            _container(c, init)
            for key, init in (("initContainerStatuses", True), ("containerStatuses", False))
            for c in _dicts(status.get(key))
        ),
        start_time=parse_time(status.get("startTime")),
        active_deadline_seconds=spec.get("activeDeadlineSeconds"),
        grace_seconds=int(spec.get("terminationGracePeriodSeconds") or 30),
        wants=None if spec.get("nodeName") else _wants(spec),
    )


def _wants(spec: Body) -> Wants:
    container = next((c for c in _dicts(spec.get("containers")) if c["name"] == TRAINER_CONTAINER), dict[str, Any]())
    return Wants(
        resources={k: str(v) for k, v in _part(_part(container, "resources"), "requests").items()},
        node_selector=cast("dict[str, str]", spec.get("nodeSelector") or {}),
        tolerations=tuple(
            Toleration(t.get("key") or "", t.get("operator") or "Equal", t.get("value") or "", t.get("effect") or "")
            for t in _dicts(spec.get("tolerations"))
        ),
    )


def parse_event(body: Body) -> EventView:
    """An Event of the core group or of events.k8s.io, which names the same things differently."""
    about = _part(body, "involvedObject") or _part(body, "regarding")
    series = _part(body, "series")
    last = series.get("lastObservedTime") or body.get("lastTimestamp") or body.get("eventTime")
    return EventView(
        kind=about.get("kind") or "",
        name=about.get("name") or "",
        uid=about.get("uid") or "",
        reason=body.get("reason") or "",
        message=(body.get("message") or body.get("note") or "").strip(),
        warning=body.get("type") == "Warning",
        last_time=parse_time(last or _part(body, "metadata").get("creationTimestamp")),
    )


def parse_workload(body: Body) -> WorkloadView:
    """A Workload of Kueue, in any version of its API that has been served."""
    status = _part(body, "status")
    checks = [check for check in _dicts(status.get("admissionChecks")) if check.get("state") != "Ready"]
    return WorkloadView(
        name=_part(body, "metadata")["name"],
        job_uid=_owner(body).get("uid") or "",
        active=_part(body, "spec").get("active") is not False,
        conditions=_conditions(status),
        pending_checks=tuple((check["name"], check.get("message") or "") for check in checks),
    )


def parse_node(body: Body) -> NodeView:
    status = _part(body, "status")
    ready = next((c for c in _conditions(status) if c.type == "Ready"), None)
    metadata = _part(body, "metadata")
    return NodeView(
        name=metadata["name"],
        uid=metadata.get("uid") or "",
        ready=ready.status if ready else "Unknown",
        since=ready.since if ready else None,
        taints=tuple(
            Taint(taint["key"], taint.get("value") or "", taint.get("effect") or "")
            for taint in _dicts(_part(body, "spec").get("taints"))
        ),
        allocatable={k: str(v) for k, v in _part(status, "allocatable").items()},
    )


def _part(body: Body, key: str) -> dict[str, Any]:
    return cast("dict[str, Any]", body.get(key) or {})


def _dicts(items: Any) -> list[dict[str, Any]]:
    return cast("list[dict[str, Any]]", items or [])


def _metadata(body: Body) -> Metadata:
    metadata = _part(body, "metadata")
    return Metadata(
        namespace=metadata.get("namespace") or "",
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata.get("generation") or 1,
        creation_time=parse_time(metadata.get("creationTimestamp")),
        deletion_time=parse_time(metadata.get("deletionTimestamp")),
    )


def _labels(body: Body) -> dict[str, str]:
    return cast("dict[str, str]", _part(body, "metadata").get("labels") or {})


def _owner(body: Body) -> dict[str, Any]:
    """The controlling owner."""
    owners = _dicts(_part(body, "metadata").get("ownerReferences"))
    return next((owner for owner in owners if owner.get("controller")), dict[str, Any]())


def _conditions(status: Body) -> tuple[ObjectCondition, ...]:
    return tuple(
        ObjectCondition(
            type=c["type"],
            status=c["status"],
            reason=c.get("reason") or "",
            message=c.get("message") or "",
            since=parse_time(c.get("lastTransitionTime")),
        )
        for c in _dicts(status.get("conditions"))
    )


def _container(body: Body, init: bool) -> ContainerView:
    state = _part(body, "state")
    waiting = state.get("waiting")
    running = state.get("running")
    return ContainerView(
        name=body["name"],
        waiting=Waiting(waiting.get("reason") or "", waiting.get("message") or "") if waiting else None,
        running=running is not None,
        running_since=parse_time(running.get("startedAt")) if running else None,
        terminated=_terminated(state),
        last_terminated=_terminated(_part(body, "lastState")),
        image_id=body.get("imageID") or "",
        init=init,
    )


def _terminated(state: Body) -> Terminated | None:
    body = _part(state, "terminated")
    if not body:
        return None
    return Terminated(
        exit_code=body.get("exitCode") or 0,
        reason=body.get("reason") or "",
        message=body.get("message") or "",
        started_at=parse_time(body.get("startedAt")),
        finished_at=parse_time(body.get("finishedAt")),
    )
