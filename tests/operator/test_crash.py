"""The operator may die at any instant: nothing is lost, nothing is done twice, and whoever comes next goes on."""

import asyncio
import itertools
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from trainyard_api.run import Intake as IntakeAddress
from trainyard_operator import tls
from trainyard_operator.cluster import JOBS, LEASES, TRAINING_BUDGETS, TRAINING_SERVICES, Cluster
from trainyard_operator.events import Recorder
from trainyard_operator.intake import PATH, Intake, serve, server_context
from trainyard_operator.metrics import Metrics
from trainyard_operator.queue import WorkQueue
from trainyard_operator.reconcile import Reconciler
from trainyard_operator.settings import Settings
from trainyard_operator.tokens import Verifier
from trainyard_operator.watch import Key, Watch

from devcluster import Cluster as Devcluster
from devcluster.access import free_port
from tests.operator.harness import Operator, Yard

pytestmark = pytest.mark.timeout(240)


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 60) -> None:
    """Wait until the condition holds."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not await condition():
        assert asyncio.get_running_loop().time() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.2)


async def succeeded(api: Cluster, namespace: str, job: str) -> bool:
    return bool((await api.get(JOBS, namespace, job))["status"].get("succeeded"))


async def takes_reports(operator: Operator) -> bool:
    return (await asyncio.to_thread(operator.get, "/readyz"))[0] == 200


class Death(BaseException):
    """The process is gone: not even an error handler runs."""


class Mortal(Cluster):
    """A connection whose process dies with its first write: it took effect, its answer never arrived."""

    async def request(self, method: str, path: str, **more: Any) -> Any:
        answer = await super().request(method, path, **more)
        if method != "GET":
            raise Death
        return answer


async def live(api: Cluster, namespace: str, address: IntakeAddress) -> bool:
    """One life of an operator, from nothing: it lists, decides, and dies at its first write; False: there was none to do."""
    cluster = Mortal(api._api)
    queue: WorkQueue[Key] = WorkQueue()
    watch = Watch(queue, nodes=True)
    settings = Settings(default_shared_memory="8Mi", default_memory="64Mi")
    reconciler = Reconciler(cluster, watch, Recorder(cluster, "mortal"), Metrics(), settings, lambda: address)
    await watch.resync(cluster, (namespace,))
    watch.wake_all()
    watch.enabled = True
    while len(queue):
        key = await queue.get()
        try:
            await reconciler(key)
        except Death:
            return True
        finally:
            queue.done(key)
    return False


@asynccontextmanager
async def taking_reports(api: Cluster) -> AsyncIterator[IntakeAddress]:
    """An intake that lives on, as another replica's does."""
    files = tls.renewed({}, ["127.0.0.1"], datetime.now(UTC))
    context: ssl.SSLContext = server_context()
    tls.load_into(context, files)
    port = free_port()
    intake = Intake(api, Verifier(api), Metrics(), report_seconds=0)
    runner = await serve(intake.application(), "127.0.0.1", port, context)
    yield IntakeAddress(url=f"https://127.0.0.1:{port}{PATH}", ca_pem=files[tls.BUNDLE].decode())
    await runner.cleanup()


async def lives(
    api: Cluster, namespace: str, address: IntakeAddress, done: Callable[[], Awaitable[bool]], seconds: float = 150
) -> int:
    """Operators that live and die one after the other until `done`; how many died."""
    deaths = 0
    async with asyncio.timeout(seconds):
        while not await done():
            if await live(api, namespace, address):
                deaths += 1
            else:
                await asyncio.sleep(0.2)  # pods need their time; only the world can go on now
    return deaths


async def test_an_operator_that_dies_after_every_single_write_brings_jobs_to_their_end(
    api: Cluster, namespace: str, nodes: tuple[str, ...]
):
    yard = Yard(api, namespace, None)
    await yard.service("fake", scaling={"maxInstances": 1}, execution={"backoffSeconds": 0, "drainSeconds": 5})
    await yard.budget(trainingMinutes=70)  # one execution of an hour, not two
    await yard.job("fails-once", {"exit": 1}, {})
    await yard.job("waits", {"steps": 1})

    async def all_done() -> bool:
        states = [(await yard.status(name))["state"] for name in ("fails-once", "waits")]
        assert "Failed" not in states
        held = (await api.get(TRAINING_BUDGETS, namespace, "team")).get("status", {}).get("reservations")
        return states == ["Succeeded", "Succeeded"] and not held

    async with taking_reports(api) as address:
        deaths = await lives(api, namespace, address, all_done)
    assert deaths >= 15
    status = await yard.status("fails-once")
    assert [(a["number"], a["cause"], a["charged"]) for a in status["attempts"]] == [
        (1, "Error", True),
        (2, "Completed", False),
    ]
    assert len((await yard.status("waits"))["attempts"]) == 1
    made = sorted(item["metadata"]["name"] for item in await api.list_all(JOBS, namespace))
    assert made == ["fails-once-r0-a1", "fails-once-r0-a2", "waits-r0-a1"]
    assert [v["status"]["state"] for v in await yard.versions("fails-once")] == ["Ready"]
    # Each training second is counted once.
    team = (await api.get(TRAINING_BUDGETS, namespace, "team"))["status"]
    attempts = [a for name in ("fails-once", "waits") for a in (await yard.status(name))["attempts"]]
    assert team.get("reservations", []) == []
    assert team.get("usedSeconds", 0) == sum(attempt.get("trainingSeconds", 0) for attempt in attempts) > 0
    # One instance: the attempts of both jobs never overlapped.
    spans = sorted((a["createTime"], a["endTime"]) for a in attempts)
    assert all(ended <= began for (_, ended), (began, _) in itertools.pairwise(spans))


async def test_an_operator_that_dies_after_every_write_stops_and_resumes_a_job(
    api: Cluster, namespace: str, nodes: tuple[str, ...]
):
    yard = Yard(api, namespace, None)
    await yard.service("fake")
    await yard.job("stopped", {"steps": 1, "hang": True}, {})

    async def state_is(wanted: str) -> bool:
        return (await yard.status("stopped"))["state"] == wanted

    async with taking_reports(api) as address:
        await lives(api, namespace, address, lambda: state_is("Running"))
        await yard.edit("stopped", suspend=True)
        await lives(api, namespace, address, lambda: state_is("Stopped"))
        await yard.edit("stopped", suspend=False)
        await lives(api, namespace, address, lambda: state_is("Succeeded"))
    attempts = (await yard.status("stopped"))["attempts"]
    assert [(a["cause"], a["charged"]) for a in attempts] == [("Stopped", False), ("Completed", False)]


async def test_kill_9_at_random_moments_loses_and_doubles_nothing(
    api: Cluster, crds: Devcluster, namespace: str, nodes: tuple[str, ...], tmp_path: Path
):
    operator = Operator(crds.kubeconfig, namespace, tmp_path / "operator.log", lease_seconds=20, restarted=True)
    yard = Yard(api, namespace, operator)
    await yard.service("fake", scaling={"maxInstances": 2})
    names = [f"job-{number}" for number in range(4)]
    rng = random.Random(7)
    try:
        operator.start()
        for name in names:
            await yard.job(name, {"steps": 2})
        for _ in range(5):
            await asyncio.sleep(rng.uniform(0.8, 4.0))
            operator.kill()
            operator.start()
        statuses = [await yard.finished(name, 120) for name in names]
    finally:
        operator.kill()
    assert [status["state"] for status in statuses] == ["Succeeded"] * 4, operator.log.read_text()[-3000:]
    assert [len(status["attempts"]) for status in statuses] == [1] * 4
    assert len(await api.list_all(JOBS, namespace)) == 4


async def test_what_ends_while_no_operator_runs_is_seen_by_the_next_one(
    api: Cluster, crds: Devcluster, namespace: str, nodes: tuple[str, ...], tmp_path: Path
):
    operator = Operator(crds.kubeconfig, namespace, tmp_path / "operator.log")
    yard = Yard(api, namespace, operator)
    await yard.service("fake")
    try:
        operator.start()
        await operator.ready()
        await yard.job("alone", {"steps": 6, "pause": 0.5})
        await yard.until("alone", "Running")
        operator.kill()
        await until(lambda: succeeded(api, namespace, "alone-r0-a1"))
        assert (await yard.status("alone"))["state"] == "Running"
        operator.start()
        status = await yard.finished("alone")
    finally:
        operator.kill()
    assert (status["state"], len(status["attempts"])) == ("Succeeded", 1)


async def test_sigterm_ends_at_once_and_hands_the_lease_over(
    api: Cluster, crds: Devcluster, namespace: str, tmp_path: Path
):
    operator = Operator(crds.kubeconfig, namespace, tmp_path / "operator.log", lease_seconds=60)
    operator.start()
    try:
        await operator.ready()
        assert await asyncio.to_thread(operator.end) == 0
        lease = await api.get(LEASES, namespace, "trainyard-operator")
        assert lease["spec"]["holderIdentity"] == ""
    finally:
        operator.kill()


async def test_a_standby_takes_reports_and_takes_over_when_the_leader_dies(
    api: Cluster, crds: Devcluster, namespace: str, nodes: tuple[str, ...], tmp_path: Path
):
    # However busy the machine: the leader does not lose its lease while it lives.
    standby = Operator(crds.kubeconfig, namespace, tmp_path / "standby.log", identity="standby", lease_seconds=600)
    leader = Operator(
        crds.kubeconfig,
        namespace,
        tmp_path / "leader.log",
        identity="leader",
        lease_seconds=600,
        intake_url=f"https://127.0.0.1:{standby.intake_port}",
    )
    yard = Yard(api, namespace, leader)
    await yard.service("fake")
    try:
        leader.start()
        await leader.ready()
        standby.start()
        await until(lambda: takes_reports(standby))
        assert "trainyard_leader 0.0" in (await asyncio.to_thread(standby.get, "/metrics"))[1]
        await yard.job("handed-over", {"steps": 30, "pause": 0.4})
        # Every report went to the standby.
        await yard.until("handed-over", lambda s: s["state"] == "Running" and s["progress"]["step"] > 1)
        leader.kill()
        # Its time is up at once; that nobody leads before is another test's.
        shorter = {"op": "replace", "path": "/spec/leaseDurationSeconds", "value": 1}
        await api.patch(LEASES, namespace, "trainyard-operator", [shorter])
        await standby.ready()
        status = await yard.finished("handed-over")
    finally:
        leader.kill()
        standby.kill()
    assert (status["state"], len(status["attempts"])) == ("Succeeded", 1)


async def test_an_operator_that_dies_after_every_write_hands_a_warm_instance_over(
    api: Cluster, namespace: str, nodes: tuple[str, ...]
):
    yard = Yard(api, namespace, None)
    await yard.service("warm", scaling={"minInstances": 1, "maxInstances": 1}, execution={"backoffSeconds": 0})

    async def is_warm() -> bool:
        status = (await api.get(TRAINING_SERVICES, namespace, "warm")).get("status") or {}
        return status.get("standbyInstances") == 1

    async def succeeded_and_replaced() -> bool:
        return (await yard.status("taker"))["state"] == "Succeeded" and await is_warm()

    async with taking_reports(api) as address:
        await lives(api, namespace, address, is_warm)
        [first] = await api.list_all(JOBS, namespace)
        await yard.job("taker", service="warm")
        deaths = await lives(api, namespace, address, succeeded_and_replaced)
    assert deaths >= 8
    [attempt] = (await yard.status("taker"))["attempts"]
    assert (attempt["standby"], attempt["jobName"], attempt["jobUID"], attempt["cause"]) == (
        True,
        first["metadata"]["name"],
        first["metadata"]["uid"],
        "Completed",
    )
    # The one that was taken, and the one in its place: none was made twice, and none was lost on the way.
    jobs = await api.list_all(JOBS, namespace)
    owners = sorted(owner["kind"] for job in jobs for owner in job["metadata"]["ownerReferences"])
    assert owners == ["TrainingJob", "TrainingService"]
