"""A burst of jobs, and a steady stream of them, side by side with plain batch/v1 Jobs: `make bench-operator`.

The systems run one after the other, each on a fresh control plane with nodes and pods by kwok (a pod runs a second). Prints a
table, and as the last line one JSON object. `foreignCPUSeconds` is what the rest of the machine used meanwhile: where it is not
small, compare CPU and requests per object, not times.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
from ground import NAMESPACE, Ground, ground
from observe import Stamps, Usage, follow, percentiles, resident_bytes, usage
from systems import CHILDREN, Plain, System, Trainyard, child_marks
from trainyard_operator.cluster import Cluster

CLIENTS = 16
Object = dict[str, Any]
SYSTEMS: dict[str, Callable[[], System]] = {"plain": Plain, "trainyard": Trainyard}


class Scene:
    """One system on the ground, watched."""

    def __init__(self, api: Cluster, system: System, pids: dict[str, int]) -> None:
        self.api, self.system, self.pids = api, system, pids
        self.stamps = Stamps()
        self.applied: dict[str, float] = {}
        self._watches: list[asyncio.Task[None]] = []
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=api.ssl_context, limit=CLIENTS),
            headers={"Content-Type": "application/json"},
        )

    async def __aenter__(self) -> Scene:
        system, stamps = self.system, self.stamps
        for resource in CHILDREN:
            if resource != system.unit:
                self._start(follow(self.api, resource, NAMESPACE, child_marks, system.unit_of, stamps))

        def marks(obj: Object) -> list[str]:
            return [*system.marks(obj), *(child_marks(obj) if obj["kind"] == "Job" else ())]

        self._start(follow(self.api, system.unit, NAMESPACE, marks, lambda obj: obj["metadata"]["name"], stamps))
        await asyncio.sleep(0.5)
        return self

    def _start(self, watch: Any) -> None:
        self._watches.append(asyncio.create_task(watch))

    async def __aexit__(self, *_: object) -> None:
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        await self._session.close()

    async def apply(self, name: str) -> None:
        """Create one object; its time begins when the API server has answered."""
        url = self.api.server + self.system.unit.path(NAMESPACE)
        async with self._session.post(url, data=json.dumps(self.system.body(name))) as answer:
            answer.raise_for_status()
            await answer.read()
            self.applied[name] = time.perf_counter()

    async def burst(self, prefix: str, count: int, seconds: float) -> Object:
        """`count` objects as quickly as `CLIENTS` connections take them, until all have succeeded."""
        before, began = await usage(self.api, self.pids), time.perf_counter()
        names = iter([f"{prefix}-{number}" for number in range(count)])

        async def client() -> None:
            for name in names:
                await self.apply(name)

        await asyncio.gather(*(client() for _ in range(CLIENTS)))
        applied = time.perf_counter()
        await self.stamps.until("succeeded", count, seconds)
        cost = (await usage(self.api, self.pids)).since(before)
        marks = {"applied": applied - began}
        for state in ("job", "pod running", "pod ended", "job ended", "succeeded"):
            times = sorted(self.stamps.seen.get(state, {}).values())
            if times:
                marks |= {state: times[-1] - began, f"{state}, median": times[len(times) // 2] - began}
        failed = len(self.stamps.seen.get("failed", {}))
        return {"count": count, "failed": failed, "seconds": rounded(marks)} | per_object(cost, count) | self.memory()

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
        latencies = {state: percentiles(self.stamps.after(begun, state)) for state in ("job", "pod running")}
        return {"count": count, "rate": rate, "milliseconds": latencies} | per_object(cost, count) | self.memory()

    def memory(self) -> Object:
        return {"operatorMiB": round(resident_bytes(self.pids["operator"]) / 2**20)} if "operator" in self.pids else {}


def per_object(cost: Usage, count: int) -> Object:
    """CPU milliseconds and requests per applied object, and CPU seconds that others took."""
    return {
        "cpuMillisecondsPerObject": {name: round(1000 * used / count, 1) for name, used in cost.cpu.items()},
        "requestsPerObject": round(cost.requests / count, 1),
        "foreignCPUSeconds": round(cost.foreign, 1),
    }


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in values.items()}


async def run(ground: Ground, system: System, bursts: list[int], rate: float, seconds: float) -> Object:
    api = await Cluster.connect(str(ground.cluster.kubeconfig))
    try:
        for resource, body in system.setup():
            await api.create(resource, body)
        with system.running(ground) as controllers:
            pids = ground.pids | controllers | {"client": os.getpid()}
            results: Object = {}
            async with Scene(api, system, pids) as scene:
                await scene.apply("warm-up")
                await scene.stamps.until("succeeded", 1, 600)
            if rate:
                async with Scene(api, system, pids) as scene:
                    results["steady"] = await scene.steady("steady", rate, seconds)
                    print(f"{system.name}: {results['steady']}", file=sys.stderr, flush=True)
            for count in bursts:
                async with Scene(api, system, pids) as scene:
                    results[f"burst {count}"] = await scene.burst(f"burst{count}", count, 300 + count * 1.0)
                    print(f"{system.name}: {results[f'burst {count}']}", file=sys.stderr, flush=True)
        return results
    finally:
        await api.close()


def table(results: Object) -> None:
    for case in dict.fromkeys(case for rows in results.values() for case in rows):
        print(f"\n{case:<28}" + "".join(f"{name:>16}" for name in results))
        flat = {name: dict(flattened(rows[case])) for name, rows in results.items() if case in rows}
        for key in dict.fromkeys(key for row in flat.values() for key in row):
            print(f"{key:<28}" + "".join(f"{row.get(key, ''):>16}" for row in flat.values()))


def ratios(results: Object) -> None:
    """How much longer than plain Jobs a burst takes to its end."""
    floor = results.get("plain", {})
    for name, rows in results.items():
        for case, row in rows.items():
            if name != "plain" and "seconds" in row and case in floor:
                ratio = row["seconds"]["succeeded"] / floor[case]["seconds"]["succeeded"]
                print(f"{case}: {name} takes {ratio:.2f} times as long as plain Jobs")


def flattened(row: Object, prefix: str = "") -> list[tuple[str, Any]]:
    items: list[tuple[str, Any]] = []
    for key, value in row.items():
        items += flattened(value, f"{key}: ") if isinstance(value, dict) else [(prefix + key, value)]
    return items


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bursts", type=int, nargs="*", default=[1000])
    parser.add_argument("--rate", type=float, default=10, help="objects a second of the steady stream; 0: none")
    parser.add_argument("--seconds", type=float, default=30, help="how long the steady stream lasts")
    parser.add_argument("--systems", nargs="*", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument(
        "--keep", type=Path, help="a folder for logs and the cluster's files, instead of a temporary one"
    )
    options = parser.parse_args()
    results: Object = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.systems:
            folder = (options.keep or Path(temporary)) / name
            folder.mkdir(parents=True)
            with ground(folder) as place:
                system = SYSTEMS[name]()
                results[name] = asyncio.run(run(place, system, options.bursts, options.rate, options.seconds))
    table(results)
    ratios(results)
    print(json.dumps({"benchmark": "operator", "loadAverage": os.getloadavg()[0]} | results))


if __name__ == "__main__":
    main()
