"""One system on the ground, watched while objects are applied to it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

from ground import NAMESPACE
from observe import Marks, Stamps, Usage, follow, percentiles, resident_bytes, session_at, usage
from systems import CHILDREN, CONTROLLERS, System, child_marks
from trainyard_operator.cluster import Cluster, Resource

CLIENTS = 16
Object = dict[str, Any]


class Scene:
    """One system on the ground, watched."""

    def __init__(self, api: Cluster, system: System, pids: dict[str, int]) -> None:
        self.api, self.system, self.pids = api, system, pids
        self.stamps = Stamps()
        self.applied: dict[str, float] = {}
        self._watches: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Scene:
        system, stamps = self.system, self.stamps
        self._session = await session_at(self.api, connections=CLIENTS)
        opened: list[asyncio.Event] = []

        def watch(resource: Resource, marks: Marks, name_of: Callable[[Object], str | None]) -> None:
            opened.append(asyncio.Event())
            followed = follow(self.api, resource, NAMESPACE, marks, name_of, stamps, opened[-1])
            self._watches.append(asyncio.create_task(followed))
            self._watches[-1].add_done_callback(stamps.ended)

        def marks(obj: Object) -> list[str]:
            return [*system.marks(obj), *(child_marks(obj) if obj["kind"] == "Job" else ())]

        for resource in CHILDREN:
            if resource != system.unit:
                watch(resource, child_marks, system.unit_of)
        watch(system.unit, marks, lambda obj: obj["metadata"]["name"])
        async with asyncio.timeout(60):
            for event in opened:
                await event.wait()
        return self

    async def __aexit__(self, *_: object) -> None:
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        await self._session.close()

    async def apply(self, name: str) -> None:
        """Create one object; its time begins when the API server has answered."""
        async with self._session.post(
            self.system.unit.path(NAMESPACE), data=json.dumps(self.system.body(name))
        ) as answer:
            answer.raise_for_status()
            await answer.read()
            self.applied[name] = time.perf_counter()

    async def apply_all(self, prefix: str, count: int) -> None:
        """`count` objects as quickly as `CLIENTS` connections take them."""
        names = iter([f"{prefix}-{number}" for number in range(count)])

        async def client() -> None:
            for name in names:
                await self.apply(name)

        await asyncio.gather(*(client() for _ in range(CLIENTS)))

    async def burst(self, prefix: str, count: int, seconds: float) -> Object:
        """`count` objects as quickly as `CLIENTS` connections take them, until all have succeeded."""
        before, began = await usage(self.api, self.pids), time.perf_counter()
        await self.apply_all(prefix, count)
        applied = time.perf_counter()
        await self.stamps.until("succeeded", count, seconds)
        cost = (await usage(self.api, self.pids)).since(before)
        marks = {"applied": applied - began}
        for state in ("job", "unsuspended", "pod running", "pod ended", "job ended", "succeeded"):
            times = sorted(self.stamps.seen.get(state, {}).values())
            if times:
                marks |= {state: times[-1] - began, f"{state}, median": times[len(times) // 2] - began}
        told = {"succeeded after its pod": percentiles(self.stamps.after(self._ends(prefix), "succeeded"))}
        failed = len(self.stamps.seen.get("failed", {}))
        figures = {"count": count, "failed": failed, "perSecond": round(count / marks["succeeded"], 2)}
        figures |= {"seconds": rounded(marks), "milliseconds": told}
        return figures | per_object(cost, count) | self.memory()

    def _ends(self, prefix: str) -> dict[str, float]:
        """When the pod of each object of the burst had ended."""
        ended = self.stamps.seen.get("pod ended", {})
        return {name: at for name, at in ended.items() if name.startswith(prefix + "-")}

    async def steady(self, prefix: str, rate: float, seconds: float) -> Object:
        """`rate` objects a second; milliseconds from each create's answer to its Job and to its pod running."""
        before, count = await usage(self.api, self.pids), round(rate * seconds)
        began, known = time.perf_counter(), len(self.stamps.seen.get("succeeded", {}))
        tasks = []
        for number in range(count):
            await asyncio.sleep(max(began + number / rate - time.perf_counter(), 0))
            tasks.append(asyncio.create_task(self.apply(f"{prefix}-{number}")))
        await asyncio.gather(*tasks)
        await self.stamps.until("succeeded", known + count, 600)
        cost = (await usage(self.api, self.pids)).since(before)
        begun = {name: at for name, at in self.applied.items() if name.startswith(prefix + "-")}
        states = ("job", "unsuspended", "pod running")
        latencies = {state: percentiles(self.stamps.after(begun, state)) for state in states}
        return {"count": count, "rate": rate, "milliseconds": latencies} | per_object(cost, count) | self.memory()

    def memory(self) -> Object:
        own = [resident_bytes(pid) for name, pid in self.pids.items() if name in CONTROLLERS]
        return {"operatorMiB": round(sum(own) / 2**20)} if own else {}


def per_object(cost: Usage, count: int) -> Object:
    """CPU milliseconds and requests per applied object, and how much of the machine others took."""
    milliseconds = {name: round(1000 * used / count, 1) for name, used in cost.cpu.items()}
    controllers = sum(used for name, used in cost.cpu.items() if name in CONTROLLERS)
    return {
        "cpuMillisecondsPerObject": {"controllers": round(1000 * controllers / count, 1)} | milliseconds,
        "requestsPerObject": round(cost.requests / count, 1),
        "foreignPercent": cost.foreign_percent,
    }


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in values.items()}
