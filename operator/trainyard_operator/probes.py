"""`/healthz`, `/readyz` and `/metrics`: whether this replica does its work, not merely whether its loop turns.

A replica is alive while its event loop keeps time, its queue moves and every watch has given a sign of life
within the time after which the API server ends it anyway. It is ready when it is alive and can take reports.
"""

import asyncio
import faulthandler
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from aiohttp import web

from trainyard_operator.cache import Caches
from trainyard_operator.clock import Clock
from trainyard_operator.decide.jobs import WAITING, service_name_of
from trainyard_operator.metrics import CONTENT_TYPE, Metrics, ServiceLoad
from trainyard_operator.queue import WorkQueue
from trainyard_operator.watch import Key, Watch

BEAT_SECONDS = 1.0
MAX_LAG_SECONDS = 10.0
MAX_WAIT_SECONDS = 300.0
MAX_RUN_SECONDS = 300.0
START_SECONDS = 120.0
"""A new replica may take this long to open its watches."""
STUCK_SECONDS = 120.0
"""After so long without a beat the process ends itself, from outside of its loop, and shows where that is stuck."""


class Heartbeat:
    """Measures how late the event loop is."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._last = time.monotonic()

    async def run(self) -> None:
        while True:
            self._last = time.monotonic()
            faulthandler.dump_traceback_later(STUCK_SECONDS, exit=True)
            await asyncio.sleep(BEAT_SECONDS)
            self._metrics.loop_lag.set(max(0.0, time.monotonic() - self._last - BEAT_SECONDS))

    def lag(self) -> float:
        """Seconds by which the next beat is overdue."""
        return max(0.0, time.monotonic() - self._last - BEAT_SECONDS)


class Probes:
    """What the probes ask."""

    def __init__(self, metrics: Metrics, heartbeat: Heartbeat, *, clock: Clock, watch_seconds: float) -> None:
        self._metrics = metrics
        self._heartbeat = heartbeat
        self._clock = clock
        self._watch_seconds = watch_seconds
        self._watching_since: float | None = None
        self._watch: Watch | None = None
        self._queue: WorkQueue[Key] | None = None
        self.taking_reports: Callable[[], bool] = lambda: False

    def watches(self, watch: Watch) -> None:
        """From now on the watches count."""
        self._watching_since = time.monotonic()
        self._watch = watch

    def leads(self, queue: WorkQueue[Key]) -> None:
        """From now on the queue counts too."""
        self._queue = queue
        if (watch := self._watch) is not None:
            self._metrics.loads = lambda: service_loads(watch.caches, self._clock.now())

    def troubles(self) -> list[str]:
        """Why this replica should be started again; empty while it is well."""
        found: list[str] = []
        if (lag := self._heartbeat.lag()) > MAX_LAG_SECONDS:
            found.append(f"the event loop is {lag:.0f} s late")
        if self._queue is not None:
            if (age := self._queue.stuck_seconds()) > MAX_WAIT_SECONDS:
                found.append(f"{len(self._queue)} keys wait, and no worker has taken one for {age:.0f} s")
            if (age := self._queue.longest_running_seconds()) > MAX_RUN_SECONDS:
                found.append(f"a reconcile has been running for {age:.0f} s")
        if self._watch is not None and self._watching_since is not None:
            watching = time.monotonic() - self._watching_since
            for plural, silent in self._watch.silent_seconds().items():
                if min(silent, watching) > max(self._watch_seconds, START_SECONDS):
                    found.append(f"the watch of {plural} has given no sign of life for {min(silent, watching):.0f} s")
        return found

    def application(self) -> web.Application:
        application = web.Application()
        application.router.add_get("/healthz", self._healthz)
        application.router.add_get("/readyz", self._readyz)
        application.router.add_get("/metrics", self._render)
        return application

    async def _healthz(self, _: web.Request) -> web.Response:
        return _answer(self.troubles())

    async def _readyz(self, _: web.Request) -> web.Response:
        certificate = [] if self.taking_reports() else ["the intake has no certificate yet"]
        return _answer(certificate + self.troubles())

    async def _render(self, _: web.Request) -> web.Response:
        if self._queue is not None:
            self._metrics.queue_length.set(len(self._queue))
            self._metrics.queue_oldest.set(self._queue.oldest_seconds())
        if self._watch is not None:
            for plural, silent in self._watch.silent_seconds().items():
                self._metrics.watch_silence.labels(plural).set(silent)
        if self._watch is not None and self._queue is not None:
            states = Counter(view.status.state for view in self._watch.caches.jobs.views())
            self._metrics.jobs.clear()
            for state, count in states.items():
                self._metrics.jobs.labels(state).set(count)
        return web.Response(body=self._metrics.render(), headers={"Content-Type": CONTENT_TYPE})


def service_loads(caches: Caches, now: datetime) -> list[ServiceLoad]:
    """How every service stands, in one pass over the jobs."""
    loads = {
        name: ServiceLoad(*name, running=view.status.running, capacity=view.status.capacity)
        for name, view in ((name, caches.services.get(name)) for name in caches.services.names())
        if view is not None
    }
    waiting: dict[tuple[str, str], list[datetime]] = {}
    for job in caches.jobs.views():
        if job.status.state in WAITING:
            name = (job.metadata.namespace, service_name_of(job.spec))
            waiting.setdefault(name, []).append(job.status.queued_time or now)
    for name, times in waiting.items():
        if name in loads:
            oldest = max(0.0, (now - min(times)).total_seconds())
            loads[name] = replace(loads[name], queued=len(times), oldest_seconds=oldest)
    return list(loads.values())


def _answer(troubles: list[str]) -> web.Response:
    if troubles:
        return web.Response(status=503, text="".join(f"{trouble}\n" for trouble in troubles))
    return web.Response(text="ok\n")
