"""The work queue keeps the promises that reconcilers are built on."""

import asyncio
from collections import Counter

import pytest
from trainyard_operator.queue import Urgency, WorkQueue


async def until(condition, seconds: float = 5.0) -> None:
    """Wait for `condition`, at most `seconds`."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.002)


@pytest.fixture
def queue() -> WorkQueue[str]:
    return WorkQueue(first_retry=0.01, longest_retry=0.05)


async def test_adds_of_a_waiting_key_coalesce_and_order_is_first_in_first_out(queue):
    for key in ("a", "b", "a", "a"):
        queue.add(key)
    assert len(queue) == 2
    assert [await queue.get(), await queue.get()] == ["a", "b"]
    assert len(queue) == 0


async def test_a_key_added_while_it_runs_runs_once_more_afterwards_and_never_at_the_same_time(queue):
    queue.add("a")
    assert await queue.get() == "a"
    queue.add("a")
    queue.add("a")
    assert len(queue) == 0
    queue.done("a")
    assert len(queue) == 1
    assert await queue.get() == "a"
    queue.done("a")
    assert len(queue) == 0


async def test_of_two_delayed_adds_the_earlier_counts_and_both_give_one_run(queue):
    loop = asyncio.get_running_loop()
    began = loop.time()
    queue.add_after("a", 0.2)
    queue.add_after("a", 0.05)
    queue.add_after("a", 0.3)
    assert await asyncio.wait_for(queue.get(), 2) == "a"
    assert 0.045 <= loop.time() - began < 0.19
    queue.done("a")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.get(), 0.4)


async def test_a_run_makes_an_earlier_delayed_add_moot(queue):
    queue.add_after("a", 0.05)
    queue.add("a")
    assert await queue.get() == "a"
    queue.done("a")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.get(), 0.15)


async def test_a_delayed_add_that_comes_due_while_the_key_runs_is_not_lost(queue):
    queue.add("a")
    await queue.get()
    queue.add_after("a", 0.02)
    await until(lambda: not queue._due)
    queue.done("a")
    assert await asyncio.wait_for(queue.get(), 1) == "a"


async def test_failures_back_off_exponentially_up_to_the_cap_and_success_resets(queue):
    assert [round(queue.retry("a"), 3) for _ in range(5)] == [0.01, 0.02, 0.04, 0.05, 0.05]
    assert queue.failures("a") == 5
    queue.forget("a")
    assert queue.retry("a") == 0.01
    assert queue.retry("b", at_least=3.0) == 3.0
    assert [queue.retry("d", at_most=0.03) for _ in range(4)] == [0.01, 0.02, 0.03, 0.03]
    assert queue.retry("d", at_least=3.0, at_most=0.03) == 3.0
    for _ in range(5000):
        queue.retry("c")
    assert queue.retry("c") == 0.05


async def test_work_retries_what_raises_and_looks_again_when_told(queue):
    seen: Counter[str] = Counter()

    async def reconcile(key: str) -> float | None:
        seen[key] += 1
        if key == "fails-twice" and seen[key] < 3:
            raise RuntimeError("not yet")
        return 0.01 if key == "again" and seen[key] < 4 else None

    worker = asyncio.create_task(queue.work(reconcile, workers=2))
    for key in ("fails-twice", "again", "once"):
        queue.add(key)
    await until(lambda: seen == {"fails-twice": 3, "again": 4, "once": 1})
    assert queue.failures("fails-twice") == 0
    worker.cancel()
    with pytest.raises(asyncio.CancelledError):
        await worker


async def test_under_load_no_key_overlaps_itself_and_the_last_add_is_always_seen():
    queue: WorkQueue[int] = WorkQueue()
    version: Counter[int] = Counter()
    seen: dict[int, int] = {}
    active: set[int] = set()
    overlaps: list[int] = []

    async def reconcile(key: int) -> None:
        if key in active:
            overlaps.append(key)
        active.add(key)
        observed = version[key]
        await asyncio.sleep(0.001)
        seen[key] = observed
        active.discard(key)

    worker = asyncio.create_task(queue.work(reconcile, workers=8))
    for step in range(2000):
        key = step % 20
        version[key] += 1
        queue.add(key)
        if step % 50 == 0:
            await asyncio.sleep(0.001)
    await until(lambda: len(queue) == 0 and queue.running() == 0)
    worker.cancel()
    assert not overlaps
    assert seen == dict(version)


async def test_ages_tell_a_probe_how_long_the_oldest_waits_and_runs(queue):
    assert queue.oldest_seconds() == 0.0
    assert queue.longest_running_seconds() == 0.0
    queue.add("a")
    queue.add("b")
    await until(lambda: queue.oldest_seconds() > 0.01)
    await queue.get()
    await until(lambda: queue.longest_running_seconds() > 0.01)
    assert queue.oldest_seconds() > 0.01


async def test_a_cancelled_worker_does_not_swallow_a_wake_up(queue):
    cancelled = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    waiting = asyncio.create_task(queue.get())
    await asyncio.sleep(0)
    queue.add("a")
    queue.add("b")
    cancelled.cancel()
    results = await asyncio.wait_for(asyncio.gather(cancelled, waiting, return_exceptions=True), 1)
    taken = [r for r in results if isinstance(r, str)]
    while len(taken) < 2:
        taken.append(await asyncio.wait_for(queue.get(), 1))
    assert sorted(taken) == ["a", "b"]


async def test_the_urgent_goes_first_and_the_others_get_their_turn(queue):
    queue.add("new", Urgency.LOW)
    for number in range(20):
        queue.add(f"start-{number}")
    queue.add("ended", Urgency.HIGH)
    queue.add("start-19", Urgency.HIGH)
    taken = [await queue.get() for _ in range(22)]
    assert taken[:3] == ["ended", "start-19", "start-0"]
    assert 3 < taken.index("new") < 10
    assert len(set(taken)) == 22


async def test_looks_that_find_nothing_to_do_do_not_keep_the_loop_from_who_waits_for_an_answer(queue):
    looked: list[str] = []

    async def look(key: str) -> None:
        if key == "urgent":
            await asyncio.sleep(0)  # an answer of the API server
        looked.append(key)

    queue.add("urgent", Urgency.HIGH)
    for number in range(1000):
        queue.add(str(number), Urgency.LOW)
    async with asyncio.timeout(5):
        work = asyncio.create_task(queue.work(look, 4))
        await until(lambda: len(looked) == 1001)
    work.cancel()
    assert looked.index("urgent") < 20
