"""What the watches show late or never is asked for before anything is concluded from its absence."""

from typing import Any

from trainyard_api.run import Intake as IntakeAddress
from trainyard_operator.cluster import JOBS, TRAINING_JOBS, Cluster, UnavailableError
from trainyard_operator.events import Recorder
from trainyard_operator.metrics import Metrics
from trainyard_operator.queue import WorkQueue
from trainyard_operator.reconcile import Reconciler
from trainyard_operator.settings import Settings
from trainyard_operator.watch import Key, Kind, Watch

from tests.operator.harness import Yard


class Unheard(Cluster):
    """A connection on which the answer to the creation of a Job is lost: it is made, and nobody hears of it."""

    async def request(self, method: str, path: str, **more: Any) -> Any:
        answer = await super().request(method, path, **more)
        if method == "POST" and path.endswith("/jobs"):
            raise UnavailableError("the connection was reset")
        return answer


async def test_a_job_whose_creation_was_not_heard_of_is_not_forgotten_when_the_user_stops(api: Cluster, namespace: str):
    yard = Yard(api, namespace, None)
    await yard.service("fake")
    await yard.job("unheard", {})
    queue: WorkQueue[Key] = WorkQueue()
    watch = Watch(queue, nodes=False)
    cluster = Unheard(api._api)
    settings = Settings(default_shared_memory="8Mi", default_memory="64Mi", watch_nodes=False)
    address = IntakeAddress(url="https://127.0.0.1:1/v1/reports", ca_pem="x")
    reconciler = Reconciler(cluster, watch, Recorder(cluster, "deaf"), Metrics(), settings, lambda: address)
    await watch.resync(cluster, (namespace,))
    watch.enabled = True
    watch.wake_all()
    unheard = False
    while len(queue) and not unheard:
        key = await queue.get()
        try:
            await reconciler(key)
        except UnavailableError:
            unheard = True
        finally:
            queue.done(key)
    assert unheard
    assert watch.caches.attempt_jobs.get((namespace, "unheard-r0-a1")) is None
    await yard.edit("unheard", suspend=True)
    watch.arrived(watch.caches.jobs, await api.get(TRAINING_JOBS, namespace, "unheard"))
    await reconciler(Key(Kind.JOB, namespace, "unheard"))
    [attempt] = (await yard.status("unheard"))["attempts"]
    assert (attempt.get("ending"), "endTime" in attempt) == ("Stopped", False)
    found = await api.find(JOBS, namespace, "unheard-r0-a1")
    assert found is None or found["metadata"].get("deletionTimestamp")
