"""What a benchmark sees: when each object first showed each state, CPU time by process, and requests at the API server."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from trainyard_operator.cluster import Cluster, Resource

Object = dict[str, Any]
Marks = Callable[[Object], Iterable[str]]
"""The states that an object shows, such as `created`, `running`."""
TICK = os.sysconf("SC_CLK_TCK")


@dataclass
class Stamps:
    """When each name first showed each state: `seen[state][name]` in seconds of `time.perf_counter`."""

    seen: dict[str, dict[str, float]] = field(default_factory=dict)
    news: asyncio.Event = field(default_factory=asyncio.Event)
    trouble: BaseException | None = None
    """Why a watch has ended: what it would have seen never comes."""

    def ended(self, watch: asyncio.Task[None]) -> None:
        """A watch has ended; unless it was told to, whoever waits is told why."""
        if not watch.cancelled():
            self.trouble = watch.exception()
            self.news.set()

    def mark(self, state: str, name: str, now: float) -> None:
        times = self.seen.setdefault(state, {})
        if name not in times:
            times[name] = now
            self.news.set()

    async def until(self, state: str, count: int, seconds: float) -> None:
        """Wait until `count` objects have shown `state`. Raises TimeoutError, which says how many there are of each, or what a watch
        has ended with."""
        try:
            async with asyncio.timeout(seconds):
                while len(self.seen.get(state, {})) < count:
                    if self.trouble is not None:
                        raise self.trouble
                    self.news.clear()
                    await self.news.wait()
        except TimeoutError as error:
            found = ", ".join(f"{len(times)} {name}" for name, times in self.seen.items()) or "nothing was seen"
            raise TimeoutError(f"not {count} {state} within {seconds:.0f} s: {found}") from error

    def after(self, began: Mapping[str, float], state: str) -> list[float]:
        """Seconds from `began[name]` to the state, for every name that has shown it."""
        return [at - began[name] for name, at in self.seen.get(state, {}).items() if name in began]


async def session_at(api: Cluster, *, connections: int = 1, **options: Any) -> aiohttp.ClientSession:
    """A session of its own at the API server, for who `api` speaks for; `options` are aiohttp's."""
    authorization = await api.authorization()
    connector = aiohttp.TCPConnector(ssl=api.ssl_context, limit=connections)
    headers = {"Content-Type": "application/json"} | ({"Authorization": authorization} if authorization else {})
    return aiohttp.ClientSession(api.server, connector=connector, headers=headers, **options)


async def follow(
    api: Cluster,
    resource: Resource,
    namespace: str,
    marks: Marks,
    name_of: Callable[[Object], str | None],
    to: Stamps,
    opened: asyncio.Event,
) -> None:
    """Watch a kind for ever and stamp what it shows on arrival; nothing is missed that happens once it is `opened`.

    The API server ends the watches of who reads too slowly for a while: it goes on from what was read last. Raises ConnectionError
    when the API server does not know that any more.
    """
    _, version = await api.list_at(resource, namespace)
    options = {"read_bufsize": 2**22, "timeout": aiohttp.ClientTimeout(total=None)}
    async with await session_at(api, **options) as session:
        while True:
            query = {"watch": "true", "resourceVersion": str(version), "allowWatchBookmarks": "true"}
            async with session.get(resource.path(namespace), params=query) as answer:
                answer.raise_for_status()
                opened.set()
                async for line in answer.content:
                    now = time.perf_counter()
                    event = json.loads(line)
                    if event["type"] == "ERROR":
                        raise ConnectionError(
                            f"a watch of {resource.plural} cannot go on: {event['object']['message']}"
                        )
                    version = event["object"]["metadata"]["resourceVersion"]
                    name = None if event["type"] == "BOOKMARK" else name_of(event["object"])
                    if name is not None:
                        for state in ("deleted",) if event["type"] == "DELETED" else marks(event["object"]):
                            to.mark(state, name, now)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def machine_cpu_seconds() -> float:
    """What all processes of the machine have used."""
    user, nice, system, *_ = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:])
    return (user + nice + system) / TICK


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Usage:
    """Counters of one moment; the difference of two is what a window cost."""

    cpu: dict[str, float]
    machine: float
    requests: float
    at: float
    """Seconds of `time.perf_counter`; of a difference, its length."""

    def since(self, before: Usage) -> Usage:
        cpu = {name: used - before.cpu.get(name, 0.0) for name, used in self.cpu.items()}
        return Usage(cpu, self.machine - before.machine, self.requests - before.requests, self.at - before.at)

    @property
    def foreign_percent(self) -> float:
        """How much of the machine processes took that have no part in the benchmark: a disturbed run shows here."""
        others = max(self.machine - sum(self.cpu.values()), 0.0)
        return round(100 * others / (self.at * (os.cpu_count() or 1)), 1)


async def usage(api: Cluster, pids: Mapping[str, int]) -> Usage:
    requests = await request_count(api)
    cpu = {name: cpu_seconds(pid) for name, pid in pids.items()}
    return Usage(cpu, machine_cpu_seconds(), requests, time.perf_counter())


async def request_count(api: Cluster) -> float:
    """All requests that the API server has answered, watches that are open not among them."""
    async with await session_at(api) as session, session.get("/metrics") as answer:
        answer.raise_for_status()
        text = await answer.text()
    lines = (line for line in text.splitlines() if line.startswith("apiserver_request_total{"))
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def percentiles(seconds: list[float]) -> Object:
    """p50 and p99 in milliseconds."""
    ordered = sorted(seconds)
    if not ordered:
        return {}
    p99 = ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))]
    return {"p50": round(1000 * statistics.median(ordered), 1), "p99": round(1000 * p99, 1)}
