"""What others write while a decision is on its way to the API server is looked at: its own answer brings it, and no watch tells it again."""

from collections.abc import Awaitable, Callable
from typing import Any

from trainyard_api.run import Intake as IntakeAddress
from trainyard_operator.cluster import JOBS, TRAINING_BUDGETS, TRAINING_JOBS, TRAINING_SERVICES, Cluster, Resource
from trainyard_operator.events import Recorder
from trainyard_operator.metrics import Metrics
from trainyard_operator.queue import WorkQueue
from trainyard_operator.reconcile import Reconciler
from trainyard_operator.settings import Settings
from trainyard_operator.watch import Key, Watch

from tests.operator.harness import Object, Yard

Deed = Callable[[], Awaitable[Any]]


class Overtaken(Cluster):
    """A connection whose next status patch of `overtaken` arrives right after `deed`."""

    overtaken: Resource | None = None
    deed: Deed

    async def patch_status(self, resource: Resource, *where: str, **what: Any) -> Object:
        if resource is self.overtaken:
            self.overtaken = None
            await self.deed()
        return await super().patch_status(resource, *where, **what)


class Decider:
    """An operator without watches: it knows what it has listed and written."""

    def __init__(self, api: Cluster, namespace: str) -> None:
        self.namespace = namespace
        self.cluster = Overtaken(api._api)
        self.queue: WorkQueue[Key] = WorkQueue()
        self.watch = Watch(self.queue, nodes=False)
        settings = Settings(default_shared_memory="8Mi", default_memory="64Mi", watch_nodes=False)
        address = IntakeAddress(url="https://127.0.0.1:1/v1/reports", ca_pem="x")
        recorder = Recorder(self.cluster, "decider")
        self._look = Reconciler(self.cluster, self.watch, recorder, Metrics(), settings, lambda: address)

    async def begin(self) -> None:
        await self.watch.resync(self.cluster, (self.namespace,))
        self.watch.enabled = True
        self.watch.wake_all()

    async def settle(self) -> None:
        """Look at every key that waits, until none does."""
        while len(self.queue):
            key = await self.queue.get()
            try:
                await self._look(key)
            finally:
                self.queue.done(key)

    def overtake(self, resource: Resource, deed: Deed) -> None:
        self.cluster.overtaken, self.cluster.deed = resource, deed


async def test_a_stop_that_comes_while_the_status_is_written_is_not_overlooked(api: Cluster, namespace: str):
    yard, decider = Yard(api, namespace, None), Decider(api, namespace)
    await yard.service("fake", paused=True)
    await yard.job("stopped", {})
    decider.overtake(TRAINING_JOBS, lambda: yard.edit("stopped", suspend=True))
    await decider.begin()
    await decider.settle()
    status = await yard.status("stopped")
    assert (status["state"], status["reason"], status["observedGeneration"]) == ("Created", "Suspended", 2)


async def test_a_scale_that_comes_while_the_status_is_written_is_not_overlooked(api: Cluster, namespace: str):
    yard, decider = Yard(api, namespace, None), Decider(api, namespace)
    await yard.service("fake", scaling={"maxInstances": 0})
    decider.overtake(TRAINING_SERVICES, lambda: yard.patch_service("fake", scaling__maxInstances=3))
    await decider.begin()
    await decider.settle()
    status = (await api.get(TRAINING_SERVICES, namespace, "fake"))["status"]
    assert (status["capacity"], status["observedGeneration"]) == (3, 2)


async def test_of_a_budget_that_is_lowered_while_its_status_is_written_nothing_is_given_away(
    api: Cluster, namespace: str
):
    async def lower() -> None:
        edit = [{"op": "replace", "path": "/spec/trainingMinutes", "value": 0}]
        await api.patch(TRAINING_BUDGETS, namespace, "team", edit)

    yard, decider = Yard(api, namespace, None), Decider(api, namespace)
    await yard.service("fake")
    await yard.budget("team", trainingMinutes=1000)
    await decider.begin()
    await decider.settle()
    decider.overtake(TRAINING_BUDGETS, lower)
    decider.watch.arrived(decider.watch.caches.jobs, await yard.job("poor", {}))
    await decider.settle()
    status = (await api.get(TRAINING_BUDGETS, namespace, "team"))["status"]
    assert (status["observedGeneration"], status.get("reservations")) == (2, None)
    assert await yard.children("poor") == []
    assert (await yard.status("poor"))["reason"] == "BudgetSpent"


async def test_a_job_that_an_earlier_leader_made_meanwhile_is_looked_at_as_far_as_it_has_come(
    api: Cluster, namespace: str
):
    yard, decider = Yard(api, namespace, None), Decider(api, namespace)
    await yard.service("fake")
    owner = (await yard.job("adopted", {}))["metadata"]
    reference = {"apiVersion": "trainyard.dev/v1alpha1", "kind": "TrainingJob", "name": "adopted", "uid": owner["uid"]}
    labels = {"trainyard.dev/job": "adopted", "trainyard.dev/service": "fake"}
    pod = {"restartPolicy": "Never", "containers": [{"name": "trainer", "image": "local/python"}]}
    body = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "namespace": namespace,
            "name": "adopted-r0-a1",
            "labels": labels,
            "ownerReferences": [reference | {"controller": True}],
        },
        "spec": {"suspend": True, "template": {"spec": pod}},
    }
    decider.overtake(TRAINING_JOBS, lambda: api.create(JOBS, body))
    await decider.begin()
    await decider.settle()
    [attempt] = (await yard.status("adopted"))["attempts"]
    assert attempt["jobUID"] == (await api.get(JOBS, namespace, "adopted-r0-a1"))["metadata"]["uid"]


async def test_a_report_that_comes_while_the_status_is_written_is_not_overlooked(api: Cluster, namespace: str):
    """The intake says that it trains, in the moment in which the loop writes that the user has changed the priority."""
    yard, decider = Yard(api, namespace, None), Decider(api, namespace)
    await yard.service("fake")
    await yard.job("reported", {})
    await decider.begin()
    await decider.settle()
    current = {"attempt": 1, "podUID": "0b7f1e3c-0000-4000-8000-000000000001"}
    operations = [
        {"op": "add", "path": "/status/current", "value": current},
        {"op": "add", "path": "/status/attempts/0/podUID", "value": current["podUID"]},
        {"op": "add", "path": "/status/attempts/0/podName", "value": "reported-pod"},
        {"op": "add", "path": "/status/attempts/0/startTime", "value": "2026-01-01T00:00:00Z"},
    ]
    await api.patch_status(TRAINING_JOBS, namespace, "reported", tests={}, operations=operations)
    await yard.edit("reported", description="changed")
    decider.watch.arrived(decider.watch.caches.jobs, await api.get(TRAINING_JOBS, namespace, "reported"))
    progress = {"op": "add", "path": "/status/progress", "value": {"phase": "Training", "sequence": 1, "step": 1}}
    decider.overtake(
        TRAINING_JOBS,
        lambda: api.patch_status(TRAINING_JOBS, namespace, "reported", tests={}, operations=[progress]),
    )
    await decider.settle()
    status = await yard.status("reported")
    assert (status["observedGeneration"], status["progress"]["phase"]) == (2, "Training")
    assert status["state"] == "Running", status
