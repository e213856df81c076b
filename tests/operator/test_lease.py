"""Leader election on the real API server: at most one leads, and a dead one is replaced in time.

Time is the tests' own: it goes on when everybody waits, so that no promise here depends on how busy the machine is.
"""

import asyncio
import time
from collections.abc import Awaitable
from typing import Any

from trainyard_operator.cluster import LEASES, Cluster
from trainyard_operator.lease import Lease, LeaseLostError

SECONDS = 10.0
LOOK = 1.0
"""Who waits looks this often."""


class Clock:
    """Seconds that pass only in `run`."""

    def __init__(self) -> None:
        self.now = 1000.0
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        sleeper = self.now + seconds, asyncio.get_running_loop().create_future()
        self._sleepers.append(sleeper)
        try:
            await sleeper[1]
        finally:
            self._sleepers.remove(sleeper)

    async def run(self, seconds: float, *tasks: asyncio.Task[Any]) -> float:
        """Let `seconds` pass for `tasks`, fewer when one of them ends; how many passed."""
        began, end = self.now, self.now + seconds
        while True:
            await self._all_asleep(tasks)
            due = min((due for due, _ in self._sleepers), default=end)
            if due >= end or any(task.done() for task in tasks):
                break
            self.now = due
            for when, sleeper in self._sleepers:
                if when <= due and not sleeper.done():
                    sleeper.set_result(None)
        self.now = end if not any(task.done() for task in tasks) else self.now
        return self.now - began

    async def _all_asleep(self, tasks: tuple[asyncio.Task[Any], ...]) -> None:
        deadline = time.monotonic() + 60
        while sum(not task.done() for task in tasks) > sum(not sleeper.done() for _, sleeper in self._sleepers):
            assert time.monotonic() < deadline, "somebody neither waits nor ends"
            await asyncio.sleep(0.002)


def started(awaitable: Awaitable[None]) -> asyncio.Task[None]:
    return asyncio.ensure_future(awaitable)  # type: ignore[return-value]


def lease(api: Cluster, namespace: str, identity: str, clock: Clock) -> Lease:
    return Lease(api, namespace, "operator", identity, seconds=SECONDS, clock=clock, sleep=clock.sleep)


async def spec(api: Cluster, namespace: str) -> dict[str, Any]:
    return (await api.get(LEASES, namespace, "operator"))["spec"]


async def test_of_many_that_start_at_once_exactly_one_leads(api: Cluster, namespace: str):
    clock = Clock()
    tasks = [started(lease(api, namespace, f"replica-{n}", clock).acquire()) for n in range(6)]
    await clock.run(SECONDS, *tasks)
    waiting = [task for task in tasks if not task.done()]
    assert len(waiting) == 5
    assert await clock.run(SECONDS * 0.9, *waiting) == SECONDS * 0.9, "a second one leads"
    for task in waiting:
        task.cancel()


async def test_a_leader_that_renews_keeps_others_away_and_its_release_lets_one_in_at_once(api: Cluster, namespace: str):
    clock = Clock()
    first, second = lease(api, namespace, "first", clock), lease(api, namespace, "second", clock)
    await first.acquire()
    holding, waiting = started(first.hold()), started(second.acquire())
    # Several times its duration: only renewing can have kept it.
    assert await clock.run(5 * SECONDS, holding, waiting) == 5 * SECONDS
    holding.cancel()
    await asyncio.wait([holding])
    await first.release()
    assert await clock.run(SECONDS, waiting) <= LOOK
    await waiting
    assert (await spec(api, namespace))["holderIdentity"] == "second"


async def test_a_dead_leader_is_replaced_after_its_duration_and_not_before(api: Cluster, namespace: str):
    clock = Clock()
    await lease(api, namespace, "dead", clock).acquire()
    next_one = started(lease(api, namespace, "next", clock).acquire())
    assert SECONDS <= await clock.run(5 * SECONDS, next_one) <= SECONDS + LOOK
    await next_one
    found = await spec(api, namespace)
    assert (found["holderIdentity"], found["leaseTransitions"]) == ("next", 1)


async def test_a_restarted_container_of_the_same_pod_takes_its_lease_at_once(api: Cluster, namespace: str):
    clock = Clock()
    await lease(api, namespace, "pod-1", clock).acquire()
    again = started(lease(api, namespace, "pod-1", clock).acquire())
    assert await clock.run(SECONDS, again) == 0
    await again


async def test_a_leader_whose_lease_was_taken_ends(api: Cluster, namespace: str):
    clock = Clock()
    first = lease(api, namespace, "first", clock)
    await first.acquire()
    taken = await api.get(LEASES, namespace, "operator")
    taken["spec"]["holderIdentity"] = "second"
    await api.replace(LEASES, taken)
    holding = started(first.hold())
    assert await clock.run(SECONDS, holding) < SECONDS / 2
    assert isinstance(error := holding.exception(), LeaseLostError)
    assert "taken by another" in str(error)


async def test_a_leader_that_cannot_reach_the_api_server_ends_before_another_may_start(api: Cluster, namespace: str):
    clock = Clock()
    connection = Cluster(api._api, seconds=30)
    first = lease(connection, namespace, "first", clock)
    await first.acquire()
    assert first.holds()
    connection._seconds = 0.000001  # from now on no request is answered in time
    holding = started(first.hold())
    assert await clock.run(SECONDS, holding) < SECONDS
    assert not first.holds()
    assert isinstance(error := holding.exception(), LeaseLostError)
    assert "could not be renewed" in str(error)
