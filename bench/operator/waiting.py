"""Many jobs that wait for few slots: what they cost while nothing happens, how soon a freed slot is taken, and a restart among them."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from contextlib import ExitStack
from typing import Any

import aiohttp
from ground import NAMESPACE, Ground
from observe import cpu_seconds, percentiles, resident_bytes, usage
from scene import Scene, per_object
from systems import PROBE_PORT, SERVICE, Trainyard
from trainyard_operator.cluster import TRAINING_SERVICES, Cluster

Object = dict[str, Any]
IDLE_SECONDS = 20.0
TOLD_SECONDS = 1200.0
"""Until every job has been told that it waits."""


async def waiting(ground: Ground, count: int, slots: int, seconds: float, *, restart: bool) -> Object:
    """`count` jobs are applied to a service that takes none, then it gets `slots` for `seconds`."""
    api = await Cluster.connect(str(ground.cluster.kubeconfig))
    system = Trainyard()
    system.slots = 0
    try:
        for resource, body in system.setup():
            await api.create(resource, body)
        with ExitStack() as stack:
            operator = stack.enter_context(system.running(ground))
            async with Scene(api, system, ground.pids | operator | {"client": os.getpid()}) as scene:
                result = await _fill(scene, count)
                result |= await _idle(operator["operator"])
                print(result, file=sys.stderr, flush=True)
                if restart:
                    stack.close()
                    await _take(api, slots)
                    began = time.perf_counter()
                    operator = stack.enter_context(system.running(ground))
                    scene.pids |= operator
                    result["restart"] = await _restarted(scene, began)
                else:
                    await _take(api, slots)
                result["freed"] = await _freed(scene, slots, seconds)
                result["operatorMiB"] = scene.memory()["operatorMiB"]
        return result
    finally:
        await api.close()


async def _fill(scene: Scene, count: int) -> Object:
    before, began = await usage(scene.api, scene.pids), time.perf_counter()
    await scene.apply_all("waiting", count)
    applied = time.perf_counter() - began
    await scene.stamps.until("queued", count, TOLD_SECONDS)
    cost = (await usage(scene.api, scene.pids)).since(before)
    times = {"applied": round(applied, 1), "all told that they wait": round(time.perf_counter() - began, 1)}
    return {"count": count, "seconds": times} | per_object(cost, count)


async def _idle(pid: int) -> Object:
    await asyncio.sleep(5)
    before = cpu_seconds(pid)
    await asyncio.sleep(IDLE_SECONDS)
    used = cpu_seconds(pid) - before
    return {"idleCPUPercent": round(100 * used / IDLE_SECONDS, 1), "idleMiB": round(resident_bytes(pid) / 2**20)}


async def _take(api: Cluster, slots: int) -> None:
    path = TRAINING_SERVICES.path(NAMESPACE, SERVICE)
    body = {"spec": {"scaling": {"maxInstances": slots}}}
    await api.request("PATCH", path, body=body, content_type="application/merge-patch+json")


async def _restarted(scene: Scene, began: float) -> Object:
    """Seconds from the start of the process to its first Job, and until it has looked at everything."""
    await scene.stamps.until("job", 1, 120)
    first = min(scene.stamps.seen["job"].values()) - began
    async with asyncio.timeout(300), aiohttp.ClientSession() as session:
        while True:
            async with session.get(f"http://127.0.0.1:{PROBE_PORT}/metrics") as answer:
                found = re.search(r"^trainyard_queue_oldest_seconds (\S+)$", await answer.text(), re.MULTILINE)
            # While jobs come and go there is always something; nothing of the start is left when nothing is that old.
            if found and float(found[1]) < time.perf_counter() - began - 5:
                break
            await asyncio.sleep(0.2)
    return {"first job": round(first, 2), "all looked at": round(time.perf_counter() - began, 2)}


async def _freed(scene: Scene, slots: int, seconds: float) -> Object:
    """Milliseconds from the k-th end of a pod, and of a Job, to the Job that takes its place."""
    before, began = await usage(scene.api, scene.pids), time.perf_counter()
    known = len(scene.stamps.seen.get("succeeded", {}))
    await asyncio.sleep(seconds)
    cost = (await usage(scene.api, scene.pids)).since(before)
    done = len(scene.stamps.seen.get("succeeded", {})) - known
    made = sorted(scene.stamps.seen.get("job", {}).values())[slots:]
    after: Object = {}
    for state in ("pod ended", "job ended"):
        ends = sorted(scene.stamps.seen.get(state, {}).values())
        after[state] = percentiles([taken - end for end, taken in zip(ends, made, strict=False)])
    rate = round(done / (time.perf_counter() - began), 1)
    return {"succeeded": done, "perSecond": rate, "milliseconds to the next Job": after} | per_object(
        cost, max(done, 1)
    )
