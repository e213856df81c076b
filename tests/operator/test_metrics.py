"""What the metrics count, and that no series is without bound or outlives its service."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any, cast

import pytest
from aiohttp.test_utils import TestClient, TestServer
from trainyard_api.report import Report
from trainyard_api.run import Intake as IntakeAddress
from trainyard_api.trainingjob import Attempt, Cause, TrainingJobStatus
from trainyard_operator.__main__ import Operator
from trainyard_operator.clock import Clock
from trainyard_operator.cluster import TRAINING_JOBS, Cluster, RejectedError, Resource, UnavailableError
from trainyard_operator.events import Recorder
from trainyard_operator.handover import Refusal
from trainyard_operator.intake import PATH, STANDBY_PATH, Bucket, Intake, check, is_due
from trainyard_operator.metrics import MAX_SERVICES, Metrics
from trainyard_operator.probes import service_loads
from trainyard_operator.queue import WorkQueue
from trainyard_operator.reconcile import Reconciler
from trainyard_operator.reported import report_operations
from trainyard_operator.settings import Settings
from trainyard_operator.tokens import Reporter, TokenError, Verifier
from trainyard_operator.watch import Key, Kind, Watch

from tests.operator.decide.world import SPEC, START

FAKE = ("vision", "fake")


def later(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def attempt(number: int, **fields: Any) -> Attempt:
    return Attempt(number=number, run=0, job_name=f"cells-r0-a{number}", create_time=later(60), **fields)


def test_each_attempt_is_counted_once_by_cause_with_its_gpu_time():
    metrics = Metrics()
    waiting = TrainingJobStatus(queued_time=START)
    opened = TrainingJobStatus(attempts=(attempt(1),))
    first = attempt(1, start_time=later(65), training_start_time=later(70))
    training = TrainingJobStatus(attempts=(first,))
    over = first.model_copy(update={"end_time": later(165), "cause": Cause.ERROR, "charged": True})
    ended = TrainingJobStatus(attempts=(over,))
    lost = attempt(2, start_time=later(200), end_time=later(230), cause=Cause.LOST, charged=False)
    again = TrainingJobStatus(attempts=(over, lost))
    for old, new in ((waiting, opened), (opened, training), (training, ended), (ended, ended), (ended, again)):
        metrics.written(metrics.service(*FAKE), 4, old, new)
    labels = {"namespace": "vision", "service": "fake"}
    assert sample(metrics, "trainyard_time_to_admission_seconds_sum", **labels) == 60
    assert sample(metrics, "trainyard_time_to_first_step_seconds_sum", **labels) == 10
    assert sample(metrics, "trainyard_attempts_total", cause="Error", **labels) == 1
    assert sample(metrics, "trainyard_attempts_total", cause="Lost", **labels) == 1
    assert sample(metrics, "trainyard_gpu_seconds_total", outcome="charged", **labels) == 400
    assert sample(metrics, "trainyard_gpu_seconds_total", outcome="lost", **labels) == 120


def test_the_series_of_a_deleted_service_vanish():
    metrics = Metrics()
    done = attempt(1, start_time=START, end_time=later(9), cause=Cause.COMPLETED, charged=False)
    metrics.written(
        metrics.service(*FAKE), 1, TrainingJobStatus(queued_time=START), TrainingJobStatus(attempts=(done,))
    )
    assert b'service="fake"' in metrics.render()
    metrics.forget_service(*FAKE)
    assert b'service="fake"' not in metrics.render()


def test_services_without_end_share_one_series():
    metrics = Metrics()
    names = {metrics.service("vision", f"service-{number}") for number in range(MAX_SERVICES + 50)}
    assert len(names) == MAX_SERVICES + 1
    assert metrics.service("vision", "service-1") == ("vision", "service-1")


def test_queue_length_and_wait_of_each_service_are_read_at_the_scrape():
    metrics, watch = Metrics(), Watch(WorkQueue(), nodes=False)
    body: dict[str, Any] = {"metadata": {"namespace": "vision", "name": "fake", "uid": "s", "resourceVersion": "1"}}
    body |= {"spec": {"architecture": "yard-nano"}, "status": {"running": 2, "capacity": 3}}
    watch.caches.services.apply(body)
    for number in range(3):
        metadata = {"namespace": "vision", "name": f"job-{number}", "uid": f"u{number}", "resourceVersion": "1"}
        status = {"state": "Queued" if number else "Running", "queuedTime": later(10 * number).isoformat()}
        watch.caches.jobs.apply({"metadata": metadata, "spec": SPEC | {"serviceName": "fake"}, "status": status})
    metrics.loads = lambda: service_loads(watch.caches, later(100))
    labels = {"namespace": "vision", "service": "fake"}
    assert sample(metrics, "trainyard_service_queue_length", **labels) == 2
    assert sample(metrics, "trainyard_service_queue_oldest_seconds", **labels) == 90
    assert sample(metrics, "trainyard_service_running", **labels) == 2
    watch.caches.services.apply(body | {"metadata": body["metadata"] | {"resourceVersion": "2"}}, deleted=True)
    assert sample(metrics, "trainyard_service_queue_length", **labels) is None


# --- looks, refusals and corrections ----------------------------------------------------------------------------------------


class Refusing:
    """A cluster that keeps what is written and makes nothing new; `broken`: it does not answer either."""

    clock = Clock()

    def __init__(self, *, broken: bool = False) -> None:
        self._broken = broken

    async def patch_status(self, *_: Any, operations: list[dict[str, Any]], **__: Any) -> dict[str, Any]:
        if self._broken:
            raise UnavailableError("the API server does not answer", status=503)
        status = {operation["path"].split("/")[2]: operation.get("value") for operation in operations}
        return named("cells", version=2) | {"spec": SPEC, "status": status}

    async def create(self, *_: Any) -> None:
        raise RejectedError("exceeded quota: small", status=403, reason="Forbidden")

    async def create_or_adopt(self, *_: Any, **__: Any) -> None:
        await self.create()

    async def present(self, resource: Resource, *_: Any, **__: Any) -> AsyncIterator[tuple[str, dict[str, Any]]]:
        if resource == TRAINING_JOBS:
            yield "ADDED", named("cells") | {"spec": SPEC, "status": {}}
        yield "BOOKMARK", {"metadata": {"resourceVersion": "5"}}


def named(name: str, version: int = 1) -> dict[str, Any]:
    metadata = {"namespace": "vision", "name": name, "uid": name, "resourceVersion": str(version)}
    return {"metadata": metadata | {"creationTimestamp": "2026-01-01T00:00:00Z"}}


def reconciler(metrics: Metrics, cluster: Refusing, **objects: dict[str, Any]) -> Reconciler:
    """With these in its caches."""
    watch, api = Watch(WorkQueue(), nodes=False), cast("Cluster", cluster)
    for kind, obj in objects.items():
        getattr(watch.caches, kind).apply(obj)
    intake = IntakeAddress(url="https://intake/v1/reports", ca_pem="")
    return Reconciler(api, watch, Recorder(api, "leader"), metrics, Settings(), lambda: intake)


JOB = {"jobs": named("cells") | {"spec": SPEC, "status": {}}}
WARM = {
    "services": named("fake") | {"spec": {"architecture": "yard-nano", "scaling": {"minInstances": 1}}, "status": {}}
}


async def test_a_look_that_fails_is_counted_by_kind():
    metrics = Metrics()
    look = reconciler(metrics, Refusing(broken=True), **JOB)
    for _ in range(2):
        with pytest.raises(UnavailableError):
            await look(Key(Kind.JOB, "vision", "cells"))
    await look(Key(Kind.JOB, "vision", "nobody"))
    assert sample(metrics, "trainyard_reconcile_errors_total", kind="TrainingJob") == 2
    assert sample(metrics, "trainyard_reconcile_seconds_count", kind="TrainingJob") == 3


async def test_a_service_that_goes_while_its_job_is_written_leaves_no_series():
    metrics, name = Metrics(), "mgmt-train-yard-nano"
    service = named(name) | {"spec": {"architecture": "yard-nano", "paused": True}, "status": {}}

    class Going(Refusing):
        async def patch_status(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            look._caches.services.apply(service | named(name, version=9), deleted=True)
            metrics.forget_service("vision", name)
            return await super().patch_status(*args, **kwargs)

    look = reconciler(metrics, Going(), services=service, **JOB)
    await look(Key(Kind.JOB, "vision", "cells"))
    assert metrics._services == set()


@pytest.mark.parametrize(
    ("objects", "key", "action"),
    [
        (JOB, Key(Kind.JOB, "vision", "cells"), "CreateService"),
        (WARM, Key(Kind.SERVICE, "vision", "fake"), "CreateStandby"),
    ],
)
async def test_what_the_cluster_refuses_is_counted_by_action(objects: dict[str, dict[str, Any]], key: Key, action: str):
    metrics = Metrics()
    with suppress(RejectedError):
        await reconciler(metrics, Refusing(), **objects)(key)
    assert sample(metrics, "trainyard_actions_total", action=action) == 1
    assert sample(metrics, "trainyard_refusals_total", action=action) == 1


async def test_what_only_the_periodic_list_shows_is_counted(monkeypatch: pytest.MonkeyPatch):
    settings = Settings().model_copy(update={"resync_seconds": 0.0})
    operator, watch = Operator(cast("Cluster", Refusing()), settings), Watch(WorkQueue(), nodes=False)
    listed = asyncio.Event()
    monkeypatch.setattr(watch, "wake_all", listed.set)
    again = asyncio.create_task(operator._resync(watch))
    await asyncio.wait_for(listed.wait(), 20)
    again.cancel()
    assert sample(operator._metrics, "trainyard_resync_corrections_total") == 1


# --- what the intake answers ------------------------------------------------------------------------------------------------


class Tokens:
    """Takes its time, and knows one."""

    async def reporter(self, token: str) -> Reporter:
        await asyncio.sleep(0.05)
        if token != "good":
            raise TokenError("nobody's")
        return Reporter("vision", "warm-x", "p")


async def answered(metrics: Metrics, path: str, token: str = "good") -> int:
    """The status of one POST to an intake that counts into `metrics`."""
    intake = Intake(cast("Cluster", Refusing()), cast("Verifier", Tokens()), metrics, report_seconds=1)
    async with TestClient(TestServer(intake.application())) as client:
        return (await client.post(path, headers={"Authorization": f"Bearer {token}"})).status


async def test_a_report_is_counted_by_answer_and_with_the_time_it_took():
    metrics = Metrics()
    assert await answered(metrics, PATH, "bad") == 401
    assert await answered(metrics, PATH) == 422
    assert sample(metrics, "trainyard_reports_total", status="401", reason="BadToken") == 1
    assert sample(metrics, "trainyard_reports_total", status="422", reason="NotAReport") == 1
    assert sample(metrics, "trainyard_report_seconds_count") == 2
    assert (sample(metrics, "trainyard_report_seconds_sum") or 0) >= 0.1


@pytest.mark.parametrize(
    ("token", "work", "status", "reason"),
    [
        ("good", "{}", 200, "Accepted"),
        ("good", None, 204, "NoWork"),
        ("bad", None, 401, "BadToken"),
        ("good", Refusal(410, "AttemptOver", "over"), 410, "AttemptOver"),
        ("good", UnavailableError("no answer"), 503, "ClusterUnavailable"),
    ],
)
async def test_a_warm_instance_that_asks_for_work_is_counted_by_answer(
    monkeypatch: pytest.MonkeyPatch, token: str, work: str | Exception | None, status: int, reason: str
):
    async def found(*_: Any, **__: Any) -> str | None:
        if isinstance(work, Exception):
            raise work
        return work

    monkeypatch.setattr("trainyard_operator.intake.work_for", found)
    metrics = Metrics()
    assert await answered(metrics, STANDBY_PATH, token) == status
    assert sample(metrics, "trainyard_handovers_total", status=str(status), reason=reason) == 1
    assert sample(metrics, "trainyard_report_seconds_count") == 0


# --- which reports are written ----------------------------------------------------------------------------------------------

BEFORE = {"phase": "Training", "step": 1, "checkpointStep": 1, "updatedAt": later(0).isoformat(), "sequence": 1}


@pytest.mark.parametrize(
    ("fields", "seconds", "due"),
    [
        ({"step": 2}, 1, False),
        ({"step": 2}, 29, False),
        ({"step": 2}, 30, True),
        ({"phase": "Evaluating"}, 1, True),
        ({"warnings": [{"reason": "Overfitting", "message": "it overfits"}]}, 1, True),
        ({"result": {"exitCode": 0, "reason": "Completed"}}, 1, True),
        ({"checkpointStep": 2}, 1, False),
    ],
)
def test_mere_progress_may_wait_for_the_next_report_and_news_may_not(fields: dict[str, Any], seconds: float, due: bool):
    identity = {"job": "cells", "namespace": "vision", "uid": "u", "run": 0, "attempt": 1, "sequence": 2}
    report = Report.model_validate(identity | {"phase": "Training"} | fields)
    assert is_due({"status": {"progress": BEFORE}}, report, later(seconds), 30.0) is due
    assert is_due({"status": {}}, report, later(seconds), 30.0)


# --- a process that failed in a pod that lives ------------------------------------------------------------------------------

CURRENT = {"attempt": 1, "podUID": "p"}


def report_of(attempt: int, phase: str, **fields: Any) -> Report:
    identity = {"job": "cells", "namespace": "vision", "uid": "u", "run": 0, "attempt": attempt, "sequence": 3}
    return Report.model_validate(identity | {"phase": phase} | fields)


@pytest.mark.parametrize(
    ("phase", "attempt", "pod", "reason"),
    [
        ("Restarting", 2, "p", "NotYetCurrent"),
        ("Restarting", 3, "p", "OtherAttempt"),
        ("Restarting", 2, "q", "OtherAttempt"),
        ("Training", 2, "p", "OtherAttempt"),
    ],
)
def test_the_next_attempt_is_told_to_ask_again_only_while_its_pod_waits_for_it(
    phase: str, attempt: int, pod: str, reason: str
):
    status = {"current": CURRENT, "state": "Running", "progress": BEFORE | {"phase": phase}}
    with pytest.raises(Refusal) as refused:
        check(
            {"metadata": {"uid": "u"}, "status": status},
            report_of(attempt, "Starting"),
            Reporter("vision", "cells-x", pod),
        )
    assert refused.value.reason == reason


def test_that_a_process_failed_leaves_the_numbers_that_only_it_knew():
    result = {"exitCode": 1, "reason": "RankKilled", "message": "killed by SIGSEGV"}
    told = report_of(1, "Restarting", result=result)
    progress = report_operations({"progress": BEFORE}, told, later(5))[0]["value"]
    assert (progress["phase"], progress["step"], progress["checkpointStep"]) == ("Restarting", 1, 1)
    assert (progress["result"]["message"], progress["sequence"]) == ("killed by SIGSEGV", 3)


@pytest.mark.parametrize(
    ("policy", "service_stall", "seconds", "due"),
    [
        ({"stallTimeoutSeconds": 15}, None, 5, True),
        ({}, 15, 4, False),
        ({}, 15, 5, True),  # as the service has it
        ({"stallTimeoutSeconds": 60}, 15, 5, False),  # the job's own wins
        ({}, 600, 29, False),
        ({}, 600, 30, True),
    ],
)
def test_a_job_that_stalls_soon_is_written_often(
    policy: dict[str, int], service_stall: float | None, seconds: float, due: bool
):
    identity = {"job": "cells", "namespace": "vision", "uid": "u", "run": 0, "attempt": 1, "sequence": 2}
    report = Report.model_validate(identity | {"phase": "Training"})
    job = {"spec": {"policy": policy}, "status": {"progress": BEFORE}}
    assert is_due(job, report, later(seconds), 30.0, service_stall) is due


def test_writes_are_bounded_over_all_jobs(monkeypatch: pytest.MonkeyPatch):
    clock = [1000.0]
    monkeypatch.setattr("trainyard_operator.intake.time.monotonic", lambda: clock[0])
    bucket = Bucket(50)
    assert sum(bucket.take() for _ in range(200)) == 50
    clock[0] += 0.5
    assert sum(bucket.take() for _ in range(200)) == 25
    clock[0] += 60
    assert sum(bucket.take() for _ in range(200)) == 50
