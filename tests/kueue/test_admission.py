"""Executions that a real Kueue admits and takes back: what a platform engineer does with quota, queues and priorities.

On a cluster of its own, for Kueue's webhooks answer for every Job of theirs. Kueue is built once (`make kueue`), and the operator has the
rights of the chart.
"""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from ground import Ground
from kueue import API, configuration, installed_kueue
from peers import KUEUE, Installation, apply
from systems import installed_account
from trainyard_operator.cluster import JOBS, PODS, TRAINING_BUDGETS, TRAINING_JOBS, WORKLOADS, Cluster

from devcluster import Cluster as Devcluster
from devcluster import processes
from devcluster.tools import is_built
from tests.operator.harness import Object, Operator, Yard

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.cluster,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not is_built(KUEUE), reason="there is no Kueue: `make kueue` builds it, in some 15 minutes"),
]
ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "vision"
HANG: Object = {"steps": 1, "hang": True}
PRIORITY = "kueue.x-k8s.io/priority-class"


class Kueue:
    """Its controller, started again as often as a test likes."""

    def __init__(self, place: Installation) -> None:
        self._place = place
        self._running: AbstractContextManager[int] | None = None
        self._pid = 0

    def start(self, **changes: Any) -> None:
        self._running = self._place.controller(configuration(self._place, **changes))
        self._pid = self._running.__enter__()

    def end(self, sign: int = signal.SIGTERM) -> None:
        if self._running is not None:
            os.kill(self._pid, sign)
            self._running.__exit__(None, None, None)
            self._running = None


class KueueYard(Yard):
    """A namespace with operator and Kueue, and short words for queues and for what is waited for."""

    def __init__(self, api: Cluster, operator: Operator, cluster: Devcluster, kueue: Kueue) -> None:
        super().__init__(api, NAMESPACE, operator)
        self.cluster = cluster
        self.kueue = kueue

    def queue(self, name: str, cpu: str, flavor: str = "default", **spec: Any) -> None:
        """A ClusterQueue with quota and its LocalQueue of the same name, made or changed."""
        quota = [{"name": "cpu", "nominalQuota": cpu}, {"name": "memory", "nominalQuota": "8Gi"}]
        group = {"coveredResources": ["cpu", "memory"], "flavors": [{"name": flavor, "resources": quota}]}
        spec = {"namespaceSelector": {}, "resourceGroups": [group], "stopPolicy": "None"} | spec
        local = {"metadata": {"namespace": NAMESPACE, "name": name}, "spec": {"clusterQueue": name}}
        apply(
            self.cluster,
            [
                {"apiVersion": API, "kind": "ClusterQueue", "metadata": {"name": name}, "spec": spec},
                {"apiVersion": API, "kind": "LocalQueue"} | local,
            ],
        )

    async def queued_service(self, name: str, queue: str, **spec: Any) -> None:
        execution = {"drainSeconds": 10, "backoffSeconds": 1} | spec.pop("execution", {})
        instance = {"gpus": 0, "cpu": "100m", "memory": "64Mi"} | spec.pop("instance", {})
        await self.service(name, queue={"kueueQueueName": queue}, execution=execution, instance=instance, **spec)

    async def held_back(self, name: str, *words: str) -> Object:
        """The job's status once it says that it is not admitted, in these words."""
        return await self.until(
            name,
            lambda s: s.get("reason") == "NotAdmitted" and all(word in s["message"] for word in words),
            what=f"NotAdmitted, {words}",
        )

    async def live_pods(self, job: str | None = None) -> list[str]:
        pods = await self.api.list_all(
            PODS, NAMESPACE, labels=f"trainyard.dev/job={job}" if job else "trainyard.dev/job"
        )
        return [p["metadata"]["name"] for p in pods if p["status"].get("phase") in ("Pending", "Running")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def yard(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[KueueYard]:
    folder = tmp_path_factory.mktemp("kueue")
    owner = processes.record(os.getpid())
    with Devcluster.start("kueue", state=folder / "cluster", nodes=1, owner=owner) as cluster:
        cluster.define(ROOT / "crds")
        kueue = Kueue(installed_kueue(Ground(cluster, folder, {})))
        kueue.start()
        urgent = {"apiVersion": API, "kind": "WorkloadPriorityClass", "metadata": {"name": "urgent"}, "value": 1000}
        flavor = {"apiVersion": API, "kind": "ResourceFlavor", "metadata": {"name": "default"}, "spec": {}}
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        apply(cluster, [namespace, flavor, urgent])
        api = await Cluster.connect(str(cluster.kubeconfig))
        account = installed_account(cluster, folder / "operator-kubeconfig")
        log = folder / "operator.log"
        operator = Operator(account, "default", log, watch_namespaces="", restarted=True)
        operator.start()
        try:
            await operator.ready()
            yield KueueYard(api, operator, cluster, kueue)
        finally:
            operator.kill()
            kueue.end()
            await api.close()
        text = log.read_text()
        assert "Traceback" not in text, text[text.index("Traceback") - 500 :][:4000]


async def test_as_many_run_as_there_is_quota_for_and_the_others_say_what_they_wait_for(yard: KueueYard):
    yard.queue("shared", "200m")
    await yard.queued_service("shared", "shared")
    names = [f"shared-{number}" for number in range(6)]
    for name in names:
        await yard.job(name, {"steps": 10, "pause": 1}, service="shared")
    status = await yard.held_back(
        names[-1], "LocalQueue shared has not admitted Job shared-5-r0-a1", "insufficient unused quota for cpu"
    )
    (admitted,) = (each for each in status["conditions"] if each["type"] == "Admitted")
    assert (admitted["status"], admitted["message"]) == ("False", status["message"])
    assert [event["message"] for event in await yard.events(names[-1]) if event["reason"] == "NotAdmitted"]
    most = 0
    deadline = time.monotonic() + 240
    while not all(state == "Succeeded" for state in [(await yard.status(name))["state"] for name in names]):
        most = max(most, len(await yard.live_pods()))
        assert time.monotonic() < deadline
        await asyncio.sleep(0.5)
    assert most == 2
    assert {len((await yard.status(name))["attempts"]) for name in names} == {1}


async def test_what_is_missing_or_stopped_is_named_and_goes_on_by_itself_once_it_is_mended(yard: KueueYard):
    yard.queue("mended", "200m")
    yard.queue("flavorless", "200m", flavor="spot")
    yard.queue("held", "200m", stopPolicy="Hold")
    for service, queue in (("typo", "mennded"), ("flavorless", "flavorless"), ("held", "held"), ("small", "mended")):
        await yard.queued_service(service, queue)
        await yard.job(service, {}, service=service, **({"resources": {"cpu": "300m"}} if service == "small" else {}))
    await yard.held_back(
        "typo", "LocalQueue mennded doesn't exist", "spec.queue.kueueQueueName of TrainingService typo"
    )
    await yard.held_back(
        "flavorless", "ClusterQueue flavorless is inactive", "`kubectl describe clusterqueue flavorless`"
    )
    await yard.held_back("held", "ClusterQueue held is inactive", "`kubectl describe clusterqueue held`")
    await yard.held_back("small", "It never fits", "spec.resources.cpu of the job")
    await yard.patch_service("typo", queue={"kueueQueueName": "mended"})
    apply(yard.cluster, [{"apiVersion": API, "kind": "ResourceFlavor", "metadata": {"name": "spot"}, "spec": {}}])
    yard.queue("held", "200m")
    yard.queue("mended", "400m")
    for name in ("typo", "flavorless", "held", "small"):
        status = await yard.finished(name)
        assert (status["state"], status["chargedAttempts"], status["disruptions"]) == ("Succeeded", 0, 0)
    assert [a["cause"] for a in (await yard.status("typo"))["attempts"]] == ["Requeued", "Completed"]


async def test_a_higher_priority_takes_the_quota_and_the_preempted_job_goes_on_afterwards(yard: KueueYard):
    yard.queue("ranked", "100m", preemption={"withinClusterQueue": "LowerPriority"})
    await yard.queued_service("ranked", "ranked")
    await yard.job("patient", HANG, {}, service="ranked")
    await yard.until("patient", "Running")
    await yard.job("pressing", {"steps": 8, "pause": 1}, service="ranked", labels={PRIORITY: "urgent"})
    await yard.until("pressing", "Running")
    status = await yard.held_back("patient", "insufficient unused quota")
    first = status["attempts"][0]
    assert (first["cause"], first["charged"], first["exitCode"]) == ("Disrupted", False, 75)
    assert "Kueue took its quota back (Preempted): Preempted to accommodate a workload" in first["message"]
    assert await yard.live_pods("patient") == []
    assert (await yard.finished("pressing"))["state"] == "Succeeded"
    status = await yard.finished("patient")
    assert (status["state"], len(status["attempts"]), status["chargedAttempts"]) == ("Succeeded", 2, 0)


async def test_the_example_is_admitted_with_its_priority(yard: KueueYard):
    for name in ("queues.yaml", "service.yaml", "job.yaml"):
        yard.cluster.kubectl(
            "-n", NAMESPACE, "apply", "--validate=strict", "-f", str(ROOT / "examples" / "kueue" / name)
        )
    name = "blood-cells-urgent"
    # Admitted; its node is too small, or its image is not here.
    await yard.until(name, lambda status: status.get("reason") in ("Unschedulable", "ImagePull"))
    workloads = await yard.api.list_all(WORKLOADS[0], NAMESPACE)
    [found] = [w for w in workloads if w["metadata"]["ownerReferences"][0]["name"] == f"{name}-r0-a1"]
    assert (found["spec"]["priority"], found["status"]["admission"]["clusterQueue"]) == (1000, "vision")
    await yard.edit(name, end="Abort")


async def test_what_was_drained_and_admitted_again_while_the_operator_was_away_goes_on_in_a_new_attempt(
    yard: KueueYard,
):
    yard.queue("drained", "100m")
    await yard.queued_service("drained", "drained")
    await yard.job("drained", HANG, {}, service="drained")
    pod = (await yard.until("drained", "Running"))["attempts"][0]["podName"]
    assert yard.operator
    yard.operator.kill()
    yard.queue("drained", "100m", stopPolicy="HoldAndDrain")
    await _until(yard, lambda pods: not pods, "drained")
    yard.queue("drained", "100m")
    await _until(yard, lambda pods: pods and pods != [pod], "drained")
    yard.operator.start()
    status = await yard.finished("drained")
    assert [(a["cause"], a["charged"]) for a in status["attempts"]] == [("Disrupted", False), ("Completed", False)]
    assert "has made another one" in status["attempts"][0]["message"]


async def _until(yard: KueueYard, condition: Any, job: str, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition(await yard.live_pods(job)):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.2)


async def test_a_gang_is_admitted_as_a_whole(yard: KueueYard):
    yard.queue("gangs", "200m")
    await yard.queued_service("gangs", "gangs", instance={"nodes": 2})
    await yard.queued_service("singles", "gangs")
    await yard.job("single", {"steps": 12, "pause": 1}, service="singles")
    await yard.until("single", "Running")
    await yard.job("gang", {"steps": 1}, service="gangs")
    await yard.held_back("gang", "insufficient unused quota for cpu in flavor default, 100m more needed")
    assert await yard.live_pods("gang") == []
    assert (await yard.finished("gang"))["state"] == "Succeeded"


async def test_a_kueue_that_is_gone_is_named_and_its_jobs_go_on_when_it_is_back(yard: KueueYard):
    yard.queue("away", "200m")
    await yard.queued_service("away", "away")
    await yard.job("stopped", HANG, {}, service="away")
    await yard.until("stopped", "Running")
    yard.kueue.end(signal.SIGKILL)
    try:
        await yard.job("late", {}, service="away")
        await yard.until("late", lambda s: s.get("reason") == "WebhookUnavailable" and "mjob.kb.io" in s["message"])
        await yard.edit("stopped", suspend=True)
        await yard.until("stopped", lambda s: s.get("reason") == "WebhookUnavailable" and "vpod.kb.io" in s["message"])
    finally:
        yard.kueue.start()
    status = await yard.until("stopped", "Stopped")
    assert status["attempts"][0]["exitCode"] == 75
    assert (await yard.finished("late"))["state"] == "Succeeded"


async def test_what_is_not_admitted_can_be_ended_paused_and_deleted_and_uses_no_time(yard: KueueYard):
    yard.queue("closed", "1", stopPolicy="Hold")
    limits = {"startTimeoutSeconds": 10, "timeoutSeconds": 20}
    names = ("aborted", "suspended", "deleted", "paused", "timed")
    await yard.budget("closed", trainingMinutes=60, period="Day", services=[f"closed-{name}" for name in names])
    for name in names:
        await yard.queued_service(f"closed-{name}", "closed", execution=limits)
        await yard.job(name, {"steps": 3}, service=f"closed-{name}")
        await yard.held_back(name)
    await yard.edit("aborted", end="Abort")
    await yard.edit("suspended", suspend=True)
    await yard.api.request("DELETE", TRAINING_JOBS.path(NAMESPACE, "deleted"))
    await yard.patch_service("closed-paused", paused=True)
    await yard.until("aborted", "Aborted")
    await yard.until("suspended", "Canceled")
    await yard.gone("deleted")
    await yard.until("paused", lambda s: s["reason"] == "ServicePaused" and s["attempts"][0]["cause"] == "Requeued")
    await asyncio.sleep(25)  # longer than either timeout
    workloads = await yard.api.list_all(WORKLOADS[0], NAMESPACE)
    waiting = {w["metadata"]["ownerReferences"][0]["name"] for w in workloads if w["spec"]["queueName"] == "closed"}
    assert waiting == {"timed-r0-a1"}
    yard.queue("closed", "1")
    await yard.patch_service("closed-paused", paused=False)
    await yard.edit("suspended", suspend=False)
    for name in ("timed", "paused", "suspended"):
        status = await yard.finished(name)
        assert (status["state"], status["chargedAttempts"]) == ("Succeeded", 0)
    assert len((await yard.status("timed"))["attempts"]) == 1
    budget = await yard.object_until(TRAINING_BUDGETS, "closed", lambda status: not status.get("reservations"))
    assert budget["usedSeconds"] <= 15


async def test_a_service_without_a_queue_where_kueue_manages_every_job_says_so(yard: KueueYard):
    yard.kueue.end()
    selector = {"matchLabels": {"kubernetes.io/metadata.name": NAMESPACE}}
    yard.kueue.start(manageJobsWithoutQueueName=True, managedJobsNamespaceSelector=selector)
    yard.queue("named", "100m")
    await yard.service("nameless", instance={"cpu": "100m"})
    await yard.job("nameless", {}, service="nameless")
    await yard.held_back("nameless", "name a LocalQueue in spec.queue.kueueQueueName of TrainingService nameless")
    assert (await yard.api.get(JOBS, NAMESPACE, "nameless-r0-a1"))["spec"]["suspend"]
    await yard.patch_service("nameless", queue={"kueueQueueName": "named"})
    assert (await yard.finished("nameless"))["state"] == "Succeeded"
