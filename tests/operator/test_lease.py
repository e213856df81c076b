"""Leader election on the real API server: at most one leads, and a dead one is replaced in time."""

import asyncio
import time

import pytest
from trainyard_operator.cluster import LEASES, Cluster
from trainyard_operator.lease import Lease, LeaseLostError

SECONDS = 2.0


def lease(api: Cluster, namespace: str, identity: str, seconds: float = SECONDS) -> Lease:
    return Lease(api, namespace, "operator", identity, seconds=seconds)


async def holder(api: Cluster, namespace: str) -> str:
    return (await api.get(LEASES, namespace, "operator"))["spec"]["holderIdentity"]


async def test_of_many_that_start_at_once_exactly_one_leads(api: Cluster, namespace: str):
    tasks = [asyncio.create_task(lease(api, namespace, f"replica-{n}").acquire()) for n in range(6)]
    done, pending = await asyncio.wait(tasks, timeout=1.2)
    assert len(done) == 1
    assert len(pending) == 5
    for task in pending:
        task.cancel()


async def test_a_leader_that_renews_keeps_others_away_and_its_release_lets_one_in_at_once(api: Cluster, namespace: str):
    first, second = lease(api, namespace, "first"), lease(api, namespace, "second")
    await first.acquire()
    holding = asyncio.create_task(first.hold())
    waiting = asyncio.create_task(second.acquire())
    # Twice its duration: only renewing can have kept it.
    done, _ = await asyncio.wait([waiting, holding], timeout=2 * SECONDS)
    assert not done
    holding.cancel()
    began = time.monotonic()
    await first.release()
    await asyncio.wait_for(waiting, SECONDS)
    assert time.monotonic() - began < SECONDS
    assert await holder(api, namespace) == "second"


async def test_a_dead_leader_is_replaced_after_its_duration_and_not_before(api: Cluster, namespace: str):
    await lease(api, namespace, "dead").acquire()
    began = time.monotonic()
    await asyncio.wait_for(lease(api, namespace, "next").acquire(), 4 * SECONDS)
    assert SECONDS * 0.9 <= time.monotonic() - began <= 2.5 * SECONDS
    assert await holder(api, namespace) == "next"
    assert (await api.get(LEASES, namespace, "operator"))["spec"]["leaseTransitions"] == 1


async def test_a_restarted_container_of_the_same_pod_takes_its_lease_at_once(api: Cluster, namespace: str):
    await lease(api, namespace, "pod-1").acquire()
    began = time.monotonic()
    await lease(api, namespace, "pod-1").acquire()
    assert time.monotonic() - began < SECONDS / 2


async def test_a_leader_whose_lease_was_taken_ends(api: Cluster, namespace: str):
    first = lease(api, namespace, "first")
    await first.acquire()
    taken = await api.get(LEASES, namespace, "operator")
    taken["spec"]["holderIdentity"] = "second"
    await api.replace(LEASES, taken)
    with pytest.raises(LeaseLostError, match="taken by another"):
        await asyncio.wait_for(first.hold(), 2 * SECONDS)


async def test_a_leader_that_cannot_reach_the_api_server_ends_before_another_may_start(api: Cluster, namespace: str):
    connection = Cluster(api._api, seconds=5)
    first = lease(connection, namespace, "first")
    await first.acquire()
    connection._seconds = 0.000001  # from now on no request is answered in time
    began = time.monotonic()
    with pytest.raises(LeaseLostError, match="could not be renewed"):
        await first.hold()
    assert time.monotonic() - began < SECONDS * 0.9
