"""What `/healthz`, `/readyz` and `/metrics` answer over HTTP, as time goes by and nothing else happens, or does."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.parser import text_string_to_metric_families
from trainyard_operator import probes, watch
from trainyard_operator.clock import Clock
from trainyard_operator.metrics import Metrics
from trainyard_operator.probes import Heartbeat, Probes
from trainyard_operator.queue import WorkQueue
from trainyard_operator.watch import Key, Kind, Watch

from tests.operator.decide.world import SPEC

WATCH_SECONDS = 390.0
Samples = dict[tuple[str, str], float]


@dataclass
class Replica:
    """The probes of a leader that has just begun, and a clock that stands still until a test moves it."""

    client: TestClient[Any, Any]
    probes: Probes
    watch: Watch
    now: list[float]

    @property
    def queue(self) -> WorkQueue[Key]:
        return self.watch.queue

    def see(self, *kinds: str) -> None:
        """A sign of life of these watches; of all."""
        for cache in self.watch.watched:
            if not kinds or cache.resource.plural in kinds:
                self.watch.alive(cache.resource.plural)

    def later(self, seconds: float) -> None:
        self.now[0] += seconds

    async def get(self, path: str) -> tuple[int, str]:
        answer = await self.client.get(path)
        return answer.status, await answer.text()

    async def samples(self) -> Samples:
        """(name, value of the one label or nothing) → value."""
        families = text_string_to_metric_families((await self.get("/metrics"))[1])
        return {(s.name, "".join(s.labels.values())): s.value for family in families for s in family.samples}


@pytest_asyncio.fixture
async def replica(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Replica]:
    now = [1000.0]
    for module in (probes, watch):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(WorkQueue, "_now", staticmethod(lambda: now[0]))
    metrics = Metrics()
    made = Probes(metrics, Heartbeat(metrics), clock=Clock(), watch_seconds=WATCH_SECONDS)
    made.taking_reports = lambda: True
    watched = Watch(WorkQueue(), nodes=True)
    made.watches(watched)
    made.leads(watched.queue)
    async with TestClient(TestServer(made.application())) as client:
        replica = Replica(client, made, watched, now)
        replica.see()
        yield replica


def key(name: str) -> Key:
    return Key(Kind.JOB, "vision", name)


def beat(replica: Replica) -> None:
    """The event loop keeps time."""
    replica.probes._heartbeat._last = replica.now[0]


async def nothing(replica: Replica) -> None:
    """All is well."""


async def stale_watch(replica: Replica) -> None:
    replica.later(WATCH_SECONDS + 1)
    replica.see("trainingservices", "trainingbudgets", "modelversions", "jobs", "pods", "nodes")


async def long_ago_but_alive(replica: Replica) -> None:
    replica.later(WATCH_SECONDS + 1)
    replica.see()


async def stuck_queue(replica: Replica) -> None:
    for name in ("one", "two"):
        replica.queue.add(key(name))
    replica.later(301)
    replica.see()


async def stuck_reconcile(replica: Replica) -> None:
    replica.queue.add(key("one"))
    await replica.queue.get()
    replica.later(301)
    replica.see()


@pytest.mark.parametrize(
    ("happens", "said"),
    [
        (nothing, None),
        (long_ago_but_alive, None),
        (stale_watch, "the watch of trainingjobs has given no sign of life for 391 s"),
        (stuck_queue, "2 keys wait, and no worker has taken one for 301 s"),
        (stuck_reconcile, "a reconcile has been running for 301 s"),
    ],
)
async def test_both_probes_fail_with_the_sentence_and_only_then(
    replica: Replica, happens: Callable[[Replica], Any], said: str | None
):
    await happens(replica)
    beat(replica)
    for path in ("/healthz", "/readyz"):
        assert await replica.get(path) == ((503, f"{said}\n") if said else (200, "ok\n"))


async def test_a_loop_that_is_late_fails_both_probes(replica: Replica):
    replica.later(100)
    for path in ("/healthz", "/readyz"):
        assert await replica.get(path) == (503, "the event loop is 99 s late\n")


async def test_without_a_certificate_it_is_alive_and_not_ready(replica: Replica):
    replica.probes.taking_reports = lambda: False
    assert await replica.get("/healthz") == (200, "ok\n")
    assert await replica.get("/readyz") == (503, "the intake has no certificate yet\n")


async def test_who_comes_back_is_well_again(replica: Replica):
    await stale_watch(replica)
    beat(replica)
    assert (await replica.get("/readyz"))[0] == 503
    replica.see("trainingjobs")
    assert (await replica.get("/readyz"))[0] == 200


# --- what is read at the scrape ---------------------------------------------------------------------------------------------


async def test_the_silence_of_each_watch_grows_until_it_speaks(replica: Replica):
    name = "trainyard_watch_silence_seconds"
    replica.later(70)
    replica.watch.alive("pods")
    samples = await replica.samples()
    assert {plural: value for (each, plural), value in samples.items() if each == name} == {
        cache.resource.plural: 0 if cache.resource.plural == "pods" else 70 for cache in replica.watch.watched
    }


async def test_the_queue_shows_its_length_and_its_longest_wait(replica: Replica):
    async def shown() -> tuple[float, float]:
        samples = await replica.samples()
        return samples["trainyard_queue_length", ""], samples["trainyard_queue_oldest_seconds", ""]

    assert await shown() == (0, 0)
    replica.queue.add(key("one"))
    replica.later(5)
    replica.queue.add(key("two"))
    replica.later(2)
    assert await shown() == (2, 7)
    await replica.queue.get()
    assert await shown() == (1, 2)


async def test_jobs_are_counted_by_the_state_that_they_have_now(replica: Replica):
    def job(number: int, version: int, state: str) -> None:
        metadata = {
            "namespace": "vision",
            "name": f"job-{number}",
            "uid": f"u{number}",
            "resourceVersion": f"{version}",
        }
        replica.watch.caches.jobs.apply({"metadata": metadata, "spec": SPEC, "status": {"state": state}})

    async def shown() -> dict[str, float]:
        return {state: n for (name, state), n in (await replica.samples()).items() if name == "trainyard_jobs"}

    job(1, 1, "Queued")
    job(2, 1, "Queued")
    job(3, 1, "Running")
    assert await shown() == {"Queued": 2, "Running": 1}
    for number in (1, 2):
        job(number, 2, "Running")
    assert await shown() == {"Running": 3}


async def test_the_delay_of_the_event_loop_is_shown(replica: Replica, monkeypatch: pytest.MonkeyPatch):
    second_beat = asyncio.Event()

    async def late(seconds: float) -> None:
        if replica.now[0] > 1000:
            second_beat.set()
            await asyncio.Event().wait()
        replica.later(seconds + 4)

    monkeypatch.setattr(probes, "asyncio", SimpleNamespace(sleep=late))
    monkeypatch.setattr(probes, "faulthandler", SimpleNamespace(dump_traceback_later=lambda *_, **__: None))
    beats = asyncio.create_task(replica.probes._heartbeat.run())
    await asyncio.wait_for(second_beat.wait(), 20)
    beats.cancel()
    assert (await replica.samples())["trainyard_loop_lag_seconds", ""] == 4
