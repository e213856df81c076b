"""Whole lives of jobs: the operator as a process, real Jobs and pods, a trainer that keeps the contract and trains nothing.

All jobs of the table are applied at once and each test waits for its own, so that the file takes as long as its longest job.
"""

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import pytest
import pytest_asyncio
from trainyard_operator.cluster import JOBS, MODEL_VERSIONS, PODS, TRAINING_JOBS, TRAINING_SERVICES, Cluster

from devcluster import Cluster as Devcluster
from tests.operator.harness import FAKE_TRAINER, Object, Operator, Yard, training_job

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(280), pytest.mark.xdist_group("lifecycle")]

HANG: Object = {"steps": 1, "hang": True}

# name → (what each attempt does, more of the spec)
JOBS_OF_THE_TABLE: dict[str, tuple[list[Object], Object]] = {
    "success": ([{"steps": 5}], {}),
    "retried": ([{"exit": 1, "message": "first"}, {"exit": 76, "message": "second"}, {}], {}),
    "exhausted": ([{"exit": 1, "message": "it fails"}], {"policy": {"maxAttempts": 2}}),
    "bad-spec": ([{"exit": 64, "message": "labels: nothing to learn"}], {}),
    "bad-data": ([{"exit": 65, "message": "Annotations/a.xml:17: xmax 10 < xmin 40"}], {}),
    "disk-full": ([{"exit": 73, "message": "/cache is full"}], {}),
    "denied": ([{"exit": 74, "message": "no such bucket"}], {}),
    "interrupted": ([{"exit": 75, "message": "told to end"}, {}], {}),
    "version-taken": ([{"exit": 78, "version": 6, "message": "v6 is there"}, {}], {}),
    "killed": ([{"kill": True}, {}], {}),
    "bad-image": (
        [{}],
        {"resources": {"image": "registry.example/none:1"}, "policy": {"startTimeoutSeconds": 20, "maxAttempts": 1}},
    ),
    "no-secret": (
        [{}],
        {
            "dataset": {"sources": [{"uri": "s3://vision/data.zip"}], "secretName": "not-there"},
            "policy": {"startTimeoutSeconds": 20, "maxAttempts": 1},
        },
    ),
    "too-many-gpus": ([{}], {"resources": {"gpus": 64}, "policy": {"startTimeoutSeconds": 20, "maxAttempts": 1}}),
    "stalled": (
        [{"steps": 2, "silent": 2, "hang": True}],
        {"policy": {"stallTimeoutSeconds": 10, "maxAttempts": 1, "drainSeconds": 2}},
    ),
    "timed-out": ([HANG | {"deaf": True}], {"policy": {"timeoutSeconds": 10, "drainSeconds": 2}}),
    "stopped": ([HANG, {}], {}),
    "born-suspended": ([{}], {"suspend": True}),
    "rerun": ([{}], {}),
    "short-lived": ([{}], {"ttlSecondsAfterFinished": 1}),
    "aborted": ([HANG], {"policy": {"drainSeconds": 60}}),
    "evicted": ([HANG, {}], {}),
    "pod-deleted": ([HANG, {}], {}),
    "other-architecture": ([{}], {"architecture": "yard-small"}),
    "deleted-running": ([HANG], {}),
    "deleted-waiting": ([{"exit": 1}], {"policy": {"backoffSeconds": 600}}),
    "deleted-pending": ([{}], {"resources": {"image": "registry.example/none:1"}}),
    "deleted-finished": ([{}], {}),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def yard(
    crds: Devcluster, nodes: tuple[str, ...], module_namespace: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Yard]:
    """A namespace with a running operator, and all jobs of the table applied."""
    api = await Cluster.connect(str(crds.kubeconfig))
    log = tmp_path_factory.mktemp("operator") / "operator.log"
    default = {
        "image": "local/python",
        "instance": {"gpus": 0, "cpu": "10m", "memory": "64Mi"},
        "env": [{"name": "PYTHONPATH", "value": str(FAKE_TRAINER)}],
    }
    operator = Operator(crds.kubeconfig, module_namespace, log, default_service=default)
    operator.start()
    await operator.ready()
    yard = Yard(api, module_namespace, operator)
    try:
        await yard.service("fake")
        for name, (attempts, spec) in JOBS_OF_THE_TABLE.items():
            await yard.job(name, *attempts, **spec)
        yield yard
        assert operator.process is not None
        assert operator.process.poll() is None, f"the operator has ended:\n{log.read_text()[-3000:]}"
    finally:
        operator.kill()
        await api.close()
        text = log.read_text()
        print(text[-6000:])
    assert "Traceback" not in text, text[text.index("Traceback") - 500 :][:4000]


def causes(status: Object) -> list[str | None]:
    return [attempt.get("cause") for attempt in status["attempts"]]


def charged(status: Object) -> list[bool | None]:
    return [attempt.get("charged") for attempt in status["attempts"]]


def condition(status: Object, name: str) -> str:
    return next(c["status"] for c in status["conditions"] if c["type"] == name)


def when(text: str) -> datetime:
    return datetime.fromisoformat(text)


async def run_specs(yard: Yard, job: str) -> list[Object]:
    """The RunSpecs of a job's attempts, as their Jobs carry them."""
    items = await yard.api.list_all(JOBS, yard.namespace, labels=f"trainyard.dev/job={job}")
    annotations = [item["spec"]["template"]["metadata"]["annotations"] for item in items]
    specs = [json.loads(annotation["trainyard.dev/run-spec"]) for annotation in annotations]
    return sorted(specs, key=lambda spec: (spec["run"], spec["attempt"]))


async def test_a_job_that_trains_succeeds_and_leaves_a_version(yard: Yard):
    status = await yard.finished("success")
    assert (status["state"], status["reason"]) == ("Succeeded", "Completed")
    [attempt] = status["attempts"]
    assert (attempt["cause"], attempt["exitCode"], attempt["charged"]) == ("Completed", 0, False)
    assert when(attempt["createTime"]) <= when(attempt["startTime"]) <= when(attempt["endTime"])
    assert attempt["node"].startswith("node-")
    assert status["progress"]["phase"] == "Done"
    assert status["summary"]["progress"] == "100%"
    assert {c["type"] for c in status["conditions"] if c["status"] == "True"} == {"Admitted", "Succeeded", "Ready"}
    assert {c["type"] for c in status["conditions"] if c["status"] != "True"} <= {"Running"}
    [version] = await yard.versions("success")
    assert version["metadata"]["name"] == status["version"] == "success-v1"
    assert version["status"]["state"] == "Ready"
    assert version["status"]["labels"] == ["circle", "square"]
    assert "ownerReferences" not in version["metadata"]
    # Jobs and pods are kept, so that logs can be read.
    assert len(await yard.children("success")) == 2


async def test_errors_are_retried_with_a_growing_delay_and_resume(yard: Yard):
    status = await yard.finished("retried")
    assert status["state"] == "Succeeded"
    assert causes(status) == ["Error", "OutOfMemory", "Completed"]
    assert charged(status) == [True, True, False]
    first, second, third = status["attempts"]
    assert (when(second["createTime"]) - when(first["endTime"])).total_seconds() >= 1
    assert (when(third["createTime"]) - when(second["endTime"])).total_seconds() >= 2
    specs = await run_specs(yard, "retried")
    assert [len(spec.get("resumeFrom", ())) for spec in specs] == [0, 1, 2]
    assert specs[0]["version"] == specs[2]["version"] == 1


async def test_attempts_are_exhausted(yard: Yard):
    status = await yard.finished("exhausted")
    assert status["state"] == "Failed"
    assert (causes(status), charged(status)) == (["Error", "Error"], [True, True])
    assert "it fails" in status["message"]
    assert status["summary"]["attempt"] == "2/2"
    await yard.version_in("exhausted", "Failed")


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("bad-spec", "InvalidSpec"),
        ("bad-data", "InvalidData"),
        ("disk-full", "DiskFull"),
        ("denied", "StorageDenied"),
    ],
)
async def test_what_a_retry_cannot_help_is_not_retried_and_says_what_the_trainer_said(
    yard: Yard, name: str, cause: str
):
    status = await yard.finished(name)
    assert (status["state"], causes(status)) == ("Failed", [cause])
    assert JOBS_OF_THE_TABLE[name][0][0]["message"] in status["message"]


async def test_an_interruption_is_not_charged(yard: Yard):
    status = await yard.finished("interrupted")
    assert (status["state"], causes(status)) == ("Succeeded", ["Interrupted", "Completed"])
    assert charged(status) == [False, False]


async def test_a_version_that_storage_has_already_is_skipped(yard: Yard):
    status = await yard.finished("version-taken")
    assert (status["state"], status["version"]) == ("Succeeded", "version-taken-v7")
    assert causes(status) == ["VersionTaken", "Completed"]
    assert charged(status) == [False, False]


async def test_a_trainer_killed_by_signal_9_is_tried_again(yard: Yard):
    status = await yard.finished("killed")
    assert (status["state"], causes(status), charged(status)) == ("Succeeded", ["Error", "Completed"], [True, False])
    assert status["attempts"][0]["exitCode"] == 137


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("bad-image", "registry.example/none:1"),
        ("no-secret", "not-there"),
        ("too-many-gpus", "nvidia.com/gpu"),
    ],
)
async def test_what_never_starts_ends_with_the_diagnosis(yard: Yard, name: str, words: str):
    status = await yard.finished(name)
    assert (status["state"], causes(status)) == ("Failed", ["StartTimedOut"])
    assert words in status["message"]


async def test_a_silent_trainer_is_ended_and_charged(yard: Yard):
    status = await yard.finished("stalled")
    assert (status["state"], causes(status), charged(status)) == ("Failed", ["Stalled"], [True])
    assert status["attempts"][0]["exitCode"] == 75


async def test_an_execution_that_does_not_end_in_time_is_ended_for_good(yard: Yard):
    status = await yard.finished("timed-out")
    assert (status["state"], causes(status)) == ("Failed", ["TimedOut"])
    [attempt] = status["attempts"]
    ran = (when(attempt["endTime"]) - when(attempt["startTime"])).total_seconds()
    assert 9 <= ran <= 45


async def test_suspend_stops_at_a_checkpoint_and_resume_goes_on_from_it(yard: Yard):
    await yard.until("stopped", "Running")
    await yard.edit("stopped", suspend=True)
    status = await yard.until("stopped", "Stopped")
    assert (causes(status), charged(status)) == (["Stopped"], [False])
    assert status["attempts"][0]["exitCode"] == 75
    assert condition(status, "Ready") == "True"
    await yard.edit("stopped", suspend=False)
    status = await yard.until("stopped", "Succeeded")
    assert causes(status) == ["Stopped", "Completed"]
    specs = await run_specs(yard, "stopped")
    assert specs[1]["resumeFrom"][-1].endswith("/attempts/1/")


async def test_a_job_born_suspended_waits_and_starts_when_it_is_let(yard: Yard):
    status = await yard.until("born-suspended", lambda status: status.get("reason") == "Suspended")
    assert (status["state"], status.get("attempts", [])) == ("Created", [])
    await yard.edit("born-suspended", suspend=False)
    assert causes(await yard.until("born-suspended", "Succeeded")) == ["Completed"]


async def test_a_higher_rerun_runs_a_finished_job_again(yard: Yard):
    status = await yard.finished("rerun")
    assert (status["version"], status["run"]) == ("rerun-v1", 0)
    await yard.edit("rerun", rerun=1)
    status = await yard.until("rerun", lambda s: s["run"] == 1 and s["state"] == "Succeeded")
    assert status["version"] == "rerun-v2"
    assert [a["run"] for a in status["attempts"]][-1] == 1
    states = {v["metadata"]["name"]: v["status"]["state"] for v in await yard.versions("rerun")}
    assert states == {"rerun-v1": "Ready", "rerun-v2": "Ready"}


async def test_a_time_to_live_deletes_the_job_and_keeps_its_version(yard: Yard):
    for _ in range(700):
        if await yard.api.find(TRAINING_JOBS, yard.namespace, "short-lived") is None:
            break
        await asyncio.sleep(0.2)
    else:
        pytest.fail("the job is still there")
    await yard.gone("short-lived")
    [version] = await yard.versions("short-lived")
    assert version["status"]["state"] == "Ready"


async def test_abort_ends_at_once_without_a_drain(yard: Yard):
    await yard.until("aborted", "Running")
    await yard.edit("aborted", end="Abort")
    status = await yard.until("aborted", "Aborted")
    assert causes(status) == ["Aborted"]
    await yard.version_in("aborted", "Failed")


async def test_an_eviction_is_a_disruption_and_reruns_uncharged(yard: Yard):
    status = await yard.until("evicted", "Running")
    pod = status["attempts"][0]["podName"]
    metadata = {"namespace": yard.namespace, "name": pod}
    path = PODS.path(yard.namespace, pod, "eviction")
    await yard.api.request("POST", path, body={"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata})
    status = await yard.until("evicted", "Succeeded")
    assert (causes(status), charged(status)) == (["Disrupted", "Completed"], [False, False])
    assert status["disruptions"] == 1


async def test_a_pod_deleted_by_a_person_runs_again_uncharged(yard: Yard):
    status = await yard.until("pod-deleted", "Running")
    attempt = status["attempts"][0]
    await yard.api.delete(PODS, yard.namespace, attempt["podName"], uid=attempt["podUID"])
    status = await yard.until("pod-deleted", "Succeeded")
    assert causes(status)[-1] == "Completed"
    assert charged(status) == [False, False]


async def test_a_service_of_another_architecture_is_said_and_not_tried(yard: Yard):
    status = await yard.until("other-architecture", lambda status: "yard-nano" in status.get("message", ""))
    assert status.get("attempts", []) == []
    assert "yard-small" in status["message"]


async def test_a_missing_service_is_said_and_the_job_starts_when_it_is_made(yard: Yard):
    await yard.job("early", {}, service="late")
    status = await yard.until("early", lambda status: "late" in status.get("message", ""))
    assert status.get("attempts", []) == []
    await yard.service("late")
    assert (await yard.finished("early"))["state"] == "Succeeded"


async def test_the_default_service_is_made_on_first_use(yard: Yard):
    await yard.job("plain", service=None)
    assert (await yard.finished("plain"))["state"] == "Succeeded"
    service = await yard.api.get(TRAINING_SERVICES, yard.namespace, "mgmt-train-yard-nano")
    assert service["spec"]["architecture"] == "yard-nano"
    assert service["spec"]["image"] == "local/python"
    assert "ownerReferences" not in service["metadata"]


async def test_one_instance_takes_one_job_after_the_other(yard: Yard):
    await yard.service("single", scaling={"maxInstances": 1})
    names = ["in-turn-1", "in-turn-2", "in-turn-3"]
    for name in names:
        await yard.job(name, {"steps": 2}, service="single")
    statuses = [await yard.finished(name) for name in names]
    assert {status["state"] for status in statuses} == {"Succeeded"}
    spans = sorted((when(s["attempts"][0]["createTime"]), when(s["attempts"][0]["endTime"])) for s in statuses)
    for (_, ended), (began, _) in itertools.pairwise(spans):
        assert began >= ended
    assert all(len(status["attempts"]) == 1 for status in statuses)


async def test_a_paused_service_lets_jobs_wait_and_says_so(yard: Yard):
    await yard.service("paused", paused=True)
    await yard.job("patient", {}, service="paused")
    status = await yard.until("patient", lambda status: "paused" in status.get("message", ""))
    assert status["state"] == "Queued"
    await yard.api.patch(
        TRAINING_SERVICES, yard.namespace, "paused", [{"op": "replace", "path": "/spec/paused", "value": False}]
    )
    assert (await yard.finished("patient"))["state"] == "Succeeded"


async def test_the_same_manifest_applied_twice_changes_nothing(yard: Yard, crds: Devcluster):
    manifest = json.dumps(training_job(yard.namespace, "twice", {}))
    assert "created" in crds.kubectl("apply", "-f", "-", stdin=manifest)
    status = await yard.finished("twice")
    assert "unchanged" in crds.kubectl("apply", "-f", "-", stdin=manifest)
    after = await yard.api.get(TRAINING_JOBS, yard.namespace, "twice")
    assert after["metadata"]["generation"] == 1
    assert after["status"]["revision"] == status["revision"]
    assert "finalizers" not in after["metadata"]


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("deleted-pending", "Preparing"),
        ("deleted-running", "Running"),
        ("deleted-waiting", "Rerun"),
        ("deleted-finished", "Succeeded"),
    ],
)
async def test_a_job_deleted_in_any_state_leaves_nothing_but_a_finished_version(yard: Yard, name: str, state: str):
    await yard.until(name, state)
    job = await yard.api.get(TRAINING_JOBS, yard.namespace, name)
    await yard.api.delete(TRAINING_JOBS, yard.namespace, name, uid=job["metadata"]["uid"])
    await yard.gone(name)
    wanted = "Ready" if state == "Succeeded" else "Failed"
    version = await yard.version_in(name, wanted)
    if wanted == "Failed":
        assert version["reason"] == "JobDeleted"


async def test_a_job_deleted_while_it_waits_leaves_the_queue(yard: Yard):
    await yard.service("closed", scaling={"maxInstances": 0})
    await yard.job("deleted-queued", {}, service="closed")
    await yard.until("deleted-queued", "Queued")
    job = await yard.api.get(TRAINING_JOBS, yard.namespace, "deleted-queued")
    await yard.api.delete(TRAINING_JOBS, yard.namespace, "deleted-queued", uid=job["metadata"]["uid"])
    for _ in range(300):
        status = (await yard.api.get(TRAINING_SERVICES, yard.namespace, "closed")).get("status") or {}
        if status.get("queued") == 0:
            break
        await asyncio.sleep(0.1)
    assert status["queued"] == 0


async def test_events_tell_the_story_once(yard: Yard):
    await yard.finished("success")
    events = [event for event in await yard.events("success") if event["source"]["component"] == "trainyard-operator"]
    assert events
    sentences = [(event["reason"], event["message"]) for event in events]
    assert len(sentences) == len(set(sentences))


async def test_probes_and_metrics_answer_without_names_of_jobs(yard: Yard):
    await yard.finished("success")
    operator = yard.operator
    assert await asyncio.to_thread(operator.get, "/healthz") == (200, "ok\n")
    assert await asyncio.to_thread(operator.get, "/readyz") == (200, "ok\n")
    status, text = await asyncio.to_thread(operator.get, "/metrics")
    assert status == 200
    assert "trainyard_leader 1.0" in text
    assert 'trainyard_reconcile_seconds_count{kind="TrainingJob"}' in text
    # Services are few; jobs and people's other words are without number.
    assert f'trainyard_attempts_total{{cause="Completed",namespace="{yard.namespace}",service="fake"}}' in text
    assert f'trainyard_service_queue_length{{namespace="{yard.namespace}",service="fake"}}' in text
    assert 'trainyard_reports_total{reason="Accepted",status="200"}' in text
    for name in ("success", "retried"):
        assert f'"{name}' not in text


async def test_the_versions_of_a_team_are_a_library(yard: Yard, crds: Devcluster):
    await yard.finished("success")
    names = {item["metadata"]["name"] for item in await yard.api.list_all(MODEL_VERSIONS, yard.namespace)}
    assert "success-v1" in names
    table: Any = crds.kubectl("get", "tj,tsvc,mv", "--namespace", yard.namespace)
    assert "Succeeded" in table
