"""A work queue for reconcilers: a key never runs twice at once, and what comes meanwhile is not lost.

Watch events say only that something changed, so many of them are worth one look: adds of a waiting key coalesce, an add of
a running key lets it run once more afterwards. A key can be added for later, and a key that failed comes back after a delay
that doubles up to a bound. The semantics are those of controller-runtime's priority queue, on one asyncio loop: what is
more urgent goes first, and of what is equally urgent the key that waits longest.
"""

import asyncio
import heapq
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from enum import IntEnum
from typing import Generic, TypeVar

logger = logging.getLogger(__name__)

Key = TypeVar("Key")


FAIR_TURN = 8
"""Every so many turns the least urgent goes first, so that nobody waits for as long as the more urgent keep coming."""


class Urgency(IntEnum):
    """Ends before starts: what has ended frees a slot and is what people wait for; who has only come can wait a little."""

    HIGH = 0
    NORMAL = 1
    LOW = 2


class WorkQueue(Generic[Key]):
    """Keys to look at. Not thread-safe: everything happens on the event loop."""

    def __init__(self, *, first_retry: float = 0.1, longest_retry: float = 300.0) -> None:
        """`first_retry` and `longest_retry` bound the delay in seconds after a failure."""
        self._first_retry = first_retry
        self._longest_retry = longest_retry
        # One line per urgency: key → loop time since when it waits
        self._ready: tuple[OrderedDict[Key, float], ...] = tuple(OrderedDict() for _ in Urgency)
        self._running: dict[Key, float] = {}  # key → loop time since when it runs
        self._again: dict[Key, Urgency] = {}  # added while running
        self._turns = 0
        self._taken = 0.0  # loop time when a worker took a key last
        self._due: dict[Key, float] = {}  # key → loop time of its delayed add
        self._heap: list[tuple[float, int, Key]] = []
        self._order = 0  # breaks ties in the heap, so that keys need no order
        self._timer: asyncio.TimerHandle | None = None
        self._failures: dict[Key, int] = {}
        self._waiters: set[asyncio.Future[None]] = set()

    def add(self, key: Key, urgency: Urgency = Urgency.NORMAL) -> None:
        """Let `key` run as soon as there is a worker; once more when it is running now."""
        if key in self._running:
            self._again[key] = min(urgency, self._again.get(key, urgency))
            return
        since = self._now()
        for line in self._ready[: urgency + 1]:
            if key in line:
                return
        for line in self._ready[urgency + 1 :]:
            since = line.pop(key, since)
        self._ready[urgency][key] = since
        self._wake()

    def add_after(self, key: Key, seconds: float) -> None:
        """Let `key` run after `seconds`; of several delayed adds the earliest counts."""
        if seconds <= 0:
            self.add(key)
            return
        due = self._now() + seconds
        if key in self._due and self._due[key] <= due:
            return
        self._due[key] = due
        self._order += 1
        heapq.heappush(self._heap, (due, self._order, key))
        self._set_timer()

    def retry(self, key: Key, at_least: float = 0.0, at_most: float = float("inf")) -> float:
        """Let a `key` that failed run again after its backoff; returns the delay in seconds.

        `at_least` is what the other side asked for (`Retry-After`), `at_most` the longest wait that helps with such a failure.
        """
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        # The exponent is capped before the power, so that a key that fails for days cannot overflow a float.
        delay = max(min(self._first_retry * 2 ** min(failures, 32), self._longest_retry, at_most), at_least)
        self.add_after(key, delay)
        return delay

    def forget(self, key: Key) -> None:
        """`key` succeeded: its next failure starts with the first delay again."""
        self._failures.pop(key, None)

    async def get(self) -> Key:
        """The key that waits longest; call `done` after it ran."""
        while not any(self._ready):
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._wake()  # woken and cancelled at once: the wake-up is somebody else's
                raise
            finally:
                self._waiters.discard(waiter)
        self._turns += 1
        lines = self._ready if self._turns % FAIR_TURN else reversed(self._ready)
        key, _ = next(line for line in lines if line).popitem(last=False)
        self._running[key] = self._taken = self._now()
        # Who runs now looks at everything and says itself when to look again.
        self._due.pop(key, None)
        return key

    def done(self, key: Key) -> None:
        """`key` ran; an add that came meanwhile takes effect now."""
        self._running.pop(key, None)
        if key in self._again:
            self.add(key, self._again.pop(key))

    async def work(
        self,
        reconcile: Callable[[Key], Awaitable[float | None]],
        workers: int,
        about: Callable[[Key], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Run `reconcile` over the keys with at most `workers` at once, for ever.

        It returns the seconds after which to look again, or None. What it raises is logged and retried with backoff; log lines
        are written within `about` the key.
        """
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(self._worker(reconcile, about))

    async def _worker(
        self,
        reconcile: Callable[[Key], Awaitable[float | None]],
        about: Callable[[Key], AbstractContextManager[None]],
    ) -> None:
        while True:
            key = await self.get()
            with about(key):
                await self._look(reconcile, key)
            # Most looks find nothing to do and await nothing: thousands in a row would keep the loop from what others wait for.
            await asyncio.sleep(0)

    async def _look(self, reconcile: Callable[[Key], Awaitable[float | None]], key: Key) -> None:
        try:
            again = await reconcile(key)
        except Exception as error:
            at_least, at_most = getattr(error, "retry_after", None) or 0.0, getattr(error, "retry_within", float("inf"))
            delay = self.retry(key, at_least, at_most)
            expected = getattr(error, "expected", False)
            log = logger.info if expected else logger.warning
            log("%s: %s; looking again in %.1f s", key, error, delay, exc_info=not expected and self._is_bug(error))
        else:
            self.forget(key)
            if again is not None:
                self.add_after(key, again)
        finally:
            self.done(key)

    @staticmethod
    def _is_bug(error: Exception) -> bool:
        """Whether the traceback helps: errors that say about themselves what they are need none."""
        return not hasattr(error, "expected")

    def failures(self, key: Key) -> int:
        """How often `key` failed in a row."""
        return self._failures.get(key, 0)

    def __len__(self) -> int:
        return sum(map(len, self._ready))

    def running(self) -> int:
        """Keys that run now."""
        return len(self._running)

    def oldest_seconds(self) -> float:
        """How long the key that waits longest has been waiting for a worker."""
        firsts = [next(iter(line.values())) for line in self._ready if line]
        return self._now() - min(firsts) if firsts else 0.0

    def stuck_seconds(self) -> float:
        """How long keys have been waiting without a worker taking any."""
        return min(self.oldest_seconds(), self._now() - self._taken)

    def longest_running_seconds(self) -> float:
        """How long the key that runs longest has been running."""
        return self._now() - min(self._running.values()) if self._running else 0.0

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
                return

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)  # superseded by an earlier add or by a run
        if self._heap:
            self._timer = asyncio.get_running_loop().call_at(self._heap[0][0], self._ring)

    def _ring(self) -> None:
        # One clock tick of slack: the loop may call a little before the time it was given.
        now = self._now() + 0.001
        while self._heap and self._heap[0][0] <= now:
            due, _, key = heapq.heappop(self._heap)
            if self._due.get(key) == due:
                del self._due[key]
                self.add(key)
        self._set_timer()

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
