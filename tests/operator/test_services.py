"""What a service does for a team, on the real control plane: queue, budget, scale."""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from trainyard_operator.cluster import JOBS, PODS, SERVICES, TRAINING_BUDGETS, TRAINING_SERVICES, Cluster

from devcluster import Cluster as Devcluster
from tests.operator.harness import FAKE_TRAINER, QUOTAS, Object, Operator, Yard

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(280), pytest.mark.xdist_group("services")]

HANG: dict[str, Any] = {"steps": 1, "hang": True}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def yard(
    crds: Devcluster, nodes: tuple[str, ...], module_namespace: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Yard]:
    """A namespace with a running operator."""
    api = await Cluster.connect(str(crds.kubeconfig))
    log = tmp_path_factory.mktemp("operator") / "operator.log"
    operator = Operator(crds.kubeconfig, module_namespace, log)
    operator.start()
    await operator.ready()
    try:
        yield Yard(api, module_namespace, operator)
    finally:
        operator.kill()
        await api.close()
        text = log.read_text()
        print(text[-6000:])
    assert "Traceback" not in text, text[text.index("Traceback") - 500 :][:4000]


async def test_a_budget_lets_jobs_wait_until_others_give_back_what_they_did_not_use(yard: Yard):
    await yard.service("metered")
    await yard.budget("team", trainingMinutes=90, period="Day", services=["metered"])
    await yard.object_until(TRAINING_BUDGETS, "team", lambda status: status.get("remainingMinutes") == 90)
    await yard.job("first", HANG, service="metered")
    await yard.until("first", "Running")
    await yard.job("second", {}, service="metered")
    status = await yard.until("second", "TryAgainLater")
    assert "TrainingBudget team has too little training time: 30 of 90 min are left until" in status["message"]
    assert status.get("attempts", []) == []
    await yard.edit("first", suspend=True)
    assert (await yard.finished("second"))["state"] == "Succeeded"
    team = await yard.object_until(TRAINING_BUDGETS, "team", lambda status: not status.get("reservations"))
    trained = [a["trainingSeconds"] for job in ("first", "second") for a in (await yard.status(job))["attempts"]]
    assert (team["usedSeconds"], team["reservedMinutes"]) == (sum(trained), 0)


async def test_a_service_scales_up_drains_when_it_is_scaled_down_and_is_reset(yard: Yard, crds: Devcluster):
    def scale(replicas: int) -> None:
        crds.kubectl("-n", yard.namespace, "scale", "tsvc/elastic", f"--replicas={replicas}")

    await yard.service("elastic", scaling={"maxInstances": 0, "onScaleDown": "Drain"})
    await yard.job("old", HANG, HANG, {}, service="elastic", policy={"priority": 1})
    await yard.job("young", HANG, {}, service="elastic")
    assert "--replicas=1" in (await yard.until("old", "Queued"))["message"]
    scale(2)
    for name in ("old", "young"):
        await yard.until(name, "Running")
    await yard.object_until(TRAINING_SERVICES, "elastic", lambda s: (s["instances"], s["capacity"]) == (2, 2))
    scale(1)
    status = await yard.until("young", "Queued")
    attempt = status["attempts"][0]
    assert (attempt["cause"], attempt["exitCode"], attempt["charged"]) == ("ScaledDown", 75, False)
    assert (await yard.status("old"))["state"] == "Running"
    await yard.patch_service("elastic", reset=1)
    status = await yard.until("old", lambda s: len(s["attempts"]) == 2 and s["state"] == "Running")
    assert (status["attempts"][0]["cause"], status["attempts"][0]["charged"]) == ("Reset", False)
    await yard.object_until(TRAINING_SERVICES, "elastic", lambda s: s["observedReset"] == 1)
    await yard.patch_service("elastic", paused=True)
    await yard.edit("old", end="Abort")
    await yard.until("young", lambda s: s["reason"] == "ServicePaused")
    await yard.patch_service("elastic", paused=False)
    assert (await yard.finished("young"))["state"] == "Succeeded"
    await yard.events("elastic", "TrainingService", "ZeroInstances", "Available", "Paused", "Resumed")


async def test_a_queueing_engine_admits_executions_and_takes_them_back(yard: Yard):
    """As Kueue does it: the Job is unsuspended when it is admitted, and suspended again when another needs its quota."""

    async def suspend(attempt: str, value: bool) -> None:
        await yard.api.patch(
            JOBS, yard.namespace, attempt, [{"op": "replace", "path": "/spec/suspend", "value": value}]
        )

    execution = {"startTimeoutSeconds": 30, "backoffSeconds": 0}
    await yard.service("kueued", queue={"kueueQueueName": "team-a"}, execution=execution)
    await yard.job("queued", HANG, {}, service="kueued")
    status = await yard.until("queued", lambda s: s.get("reason") == "NotAdmitted")
    made = await yard.api.get(JOBS, yard.namespace, "queued-r0-a1")
    assert (made["spec"]["suspend"], made["metadata"]["labels"]["kueue.x-k8s.io/queue-name"]) == (True, "team-a")
    assert "LocalQueue team-a" in status["message"]
    await suspend("queued-r0-a1", False)
    await yard.until("queued", "Running")
    await suspend("queued-r0-a1", True)
    status = await yard.until("queued", lambda s: len(s["attempts"]) == 2 and s["attempts"][1].get("jobUID"))
    attempt = status["attempts"][0]
    assert (attempt["cause"], attempt["charged"], status["disruptions"]) == ("Disrupted", False, 1)
    await suspend("queued-r0-a2", False)
    assert (await yard.finished("queued"))["state"] == "Succeeded"
    assert await yard.api.find(JOBS, yard.namespace, "queued-r0-a1") is None


async def test_a_warm_instance_takes_a_job_over_and_is_replaced(yard: Yard):
    plan = {"name": "FAKE_TRAINER", "value": json.dumps([{"steps": 3}])}
    env = [{"name": "PYTHONPATH", "value": str(FAKE_TRAINER)}, plan]
    await yard.service("warm", scaling={"minInstances": 1, "maxInstances": 2}, env=env)
    service = await yard.object_until(TRAINING_SERVICES, "warm", lambda s: s.get("standbyInstances") == 1)
    [name] = service["standby"]["jobs"]
    assert service["instances"] == 1
    [pod] = await yard.api.list_all(PODS, yard.namespace, labels="trainyard.dev/service=warm")
    assert "trainyard.dev/job" not in pod["metadata"]["labels"]
    assert "activeDeadlineSeconds" not in pod["spec"]
    await yard.job("quick", service="warm")
    status = await yard.finished("quick")
    [attempt] = status["attempts"]
    assert (status["state"], attempt["standby"], attempt["jobName"]) == ("Succeeded", True, name)
    assert (attempt["podUID"], attempt["cause"]) == (pod["metadata"]["uid"], "Completed")
    # `kubectl logs -l trainyard.dev/job=quick` finds it, and it goes with its job.
    assert sorted(await yard.children("quick")) == sorted([name, pod["metadata"]["name"]])
    job = await yard.api.get(JOBS, yard.namespace, name)
    [owner] = job["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("TrainingJob", "quick")
    # Another is warm in its place; one that dies is replaced, and that shows on the service.
    service = await yard.object_until(TRAINING_SERVICES, "warm", lambda s: s.get("standbyInstances") == 1)
    [second] = service["standby"]["jobs"]
    assert second != name
    [pod] = await yard.api.list_all(PODS, yard.namespace, labels=f"batch.kubernetes.io/job-name={second}")
    evict = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod["metadata"]["name"]}}
    await yard.api.request("POST", PODS.path(yard.namespace, pod["metadata"]["name"], "eviction"), body=evict)
    service = await yard.object_until(TRAINING_SERVICES, "warm", lambda s: s["state"] == "Degraded")
    assert pod["metadata"]["name"] in next(c["message"] for c in service["conditions"] if c["type"] == "Degraded")
    await yard.object_until(TRAINING_SERVICES, "warm", lambda s: s.get("standbyInstances") == 1)
    await yard.patch_service("warm", scaling__minInstances=0, scaling__idleSeconds=0)
    await yard.object_until(TRAINING_SERVICES, "warm", lambda s: s.get("instances") == 0)


async def test_what_keeps_a_warm_instance_from_starting_shows_on_its_service_until_one_starts(yard: Yard):
    def says(*words: str) -> Callable[[Object], bool]:
        def holds(status: Object) -> bool:
            said = {c["type"]: c for c in status.get("conditions", ())}
            bad = said.get("Degraded", {}).get("status") == "True" and said["Available"]["status"] == "False"
            return bad and all(word in said["Degraded"]["message"] for word in words)

        return holds

    quota = await yard.quota("scarce", {"pods": "0"})
    try:
        await yard.service("scarce", scaling={"minInstances": 1, "maxInstances": 1})
        status = await yard.object_until(
            TRAINING_SERVICES, "scarce", says("cannot start: ", "ResourceQuota scarce of namespace")
        )
        [name] = status["standby"]["jobs"]
        assert (status["standby"]["reason"], status["standby"].get("failures", 0)) == ("Quota", 0)
        await yard.events("scarce", "TrainingService", "Quota")
        # A machine type that the chart does not know.
        await yard.patch_service("scarce", instance__machineType="a100")
        status = await yard.object_until(
            TRAINING_SERVICES, "scarce", says("can have no standby: machineType a100 is not in")
        )
        assert status["standby"].get("jobs", []) == []
        # The Job itself is refused.
        none = [{"op": "add", "path": "/spec/hard", "value": {"count/jobs.batch": "0"}}]
        await yard.api.patch(QUOTAS, yard.namespace, "scarce", none)
        await yard.object_until(QUOTAS, "scarce", lambda status: "count/jobs.batch" in status["used"])
        known = [{"op": "remove", "path": "/spec/instance/machineType"}]
        await yard.api.patch(TRAINING_SERVICES, yard.namespace, "scarce", known)
        status = await yard.object_until(
            TRAINING_SERVICES, "scarce", says("cannot create standby Job", "ResourceQuota scarce")
        )
        assert status["standby"]["jobs"] != [name]
    finally:
        await yard.api.delete(QUOTAS, yard.namespace, "scarce", uid=quota["metadata"]["uid"])
    status = await yard.object_until(TRAINING_SERVICES, "scarce", lambda s: s.get("standbyInstances") == 1)
    assert (status["state"], status["standby"].get("reason")) == ("Available", None)
    await yard.patch_service("scarce", scaling__maxInstances=0)


@pytest.mark.usefixtures("only_gang")
async def test_a_gang_meets_trains_together_and_ends_together(yard: Yard):
    await yard.service("gang", instance={"gpus": 0, "nodes": 2, "cpu": "10m", "memory": "64Mi"})
    # The second node of the first attempt fails: the first one is ended too, and one attempt is charged.
    plan = {
        "name": "FAKE_TRAINER",
        "value": json.dumps([{"steps": 1, "hang": True, "rank": 1, "code": 3}, {"steps": 3}]),
    }
    await yard.patch_service("gang", env=[{"name": "PYTHONPATH", "value": str(FAKE_TRAINER)}, plan])
    await yard.job("together", service="gang")
    status = await yard.finished("together")
    assert status["state"] == "Succeeded"
    assert [(a["cause"], a["charged"]) for a in status["attempts"]] == [("Error", True), ("Completed", False)]
    assert "exit code 3" in status["attempts"][0]["message"]
    pods = await yard.api.list_all(PODS, yard.namespace, labels="trainyard.dev/job=together,trainyard.dev/attempt=2")
    assert {pod["status"]["phase"] for pod in pods} == {"Succeeded"}
    assert sorted(pod["spec"]["hostname"] for pod in pods) == ["together-r0-a2-0", "together-r0-a2-1"]
    assert status["attempts"][1]["podName"].startswith("together-r0-a2-0-")
    [headless] = await yard.api.list_all(SERVICES, yard.namespace)
    assert (headless["spec"]["clusterIP"], headless["metadata"]["ownerReferences"][0]["name"]) == ("None", "gang")
    service = await yard.object_until(TRAINING_SERVICES, "gang", lambda s: s["running"] == 0)
    assert service["instances"] == 0


async def test_the_queue_is_bounded_priority_may_change_and_who_cannot_start_holds_nobody_up(yard: Yard):
    await yard.service("narrow", scaling={"maxInstances": 1}, queue={"maxLength": 1})
    await yard.job("working", HANG, service="narrow")
    await yard.until("working", "Running")
    await yard.job("stuck", {}, service="narrow", policy={"priority": 100}, startFrom={"modelVersion": "nobody-v1"})
    await yard.until("stuck", lambda status: status.get("reason") == "StartVersionNotFound")
    await yard.job("earlier", {}, service="narrow")
    assert (await yard.until("earlier", "Queued"))["queuePosition"] == 1
    await yard.job("later", {}, service="narrow")
    assert "queue.maxLength 1" in (await yard.until("later", "TryAgainLater"))["message"]
    await yard.edit("later", policy={"priority": 5})
    assert (await yard.until("later", "Queued"))["queuePosition"] == 1
    await yard.edit("working", end="Abort")
    statuses = [await yard.finished(name) for name in ("later", "earlier")]
    assert [status["state"] for status in statuses] == ["Succeeded", "Succeeded"]
    first, second = (status["attempts"][0] for status in statuses)
    assert first["endTime"] <= second["createTime"]
