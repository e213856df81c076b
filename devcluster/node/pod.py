"""One pod's life on this node.

`Worker.run` is the whole of it, from top to bottom: take the pod in, set up volumes, run the containers, end them when
somebody asks (deletion, deadline, eviction), say how it ended, and let the API server forget it.
"""

import asyncio
import contextlib
import json
import logging
import shutil
import time
from collections.abc import Awaitable
from datetime import datetime
from pathlib import Path
from typing import Any

from devcluster.node import storage
from devcluster.node.configuration import Host
from devcluster.node.container import Container
from devcluster.node.process import kill_run
from devcluster.node.publisher import Publisher
from devcluster.node.status import (
    DEADLINE,
    DEADLINE_MESSAGE,
    EVICTED,
    Ending,
    PodView,
    Terminated,
    Waiting,
    rejected_status,
)
from devcluster.node.volumes import MountError, PodPlace, Volumes

log = logging.getLogger(__name__)

JOB_TRACKING = "batch.kubernetes.io/job-tracking"
COUNTED_SECONDS = 5.0


class Worker:
    """`update` tells it what the API server says, `gone` that the pod is no more."""

    def __init__(self, host: Host, pod: dict[str, Any], folder: Path, memory: Path, pod_ip: str, hosts: str) -> None:
        self.host = host
        self.pod = pod
        self.folder = folder
        self.ip = pod_ip
        self.finished = False
        """Nothing of it runs any more: what it asked for is free again."""
        self._memory = memory
        self._settled = False
        self._sandbox = False
        self._ending: Ending | None = None
        self._removed = asyncio.Event()
        self._updated = asyncio.Event()
        metadata = pod["metadata"]
        self.uid: str = metadata["uid"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        self._publisher = Publisher(host.api, path, lambda: self.pod, self.view, self.update, self._removed)
        started = (pod.get("status") or {}).get("startTime")
        self._start_time = datetime.fromisoformat(started).timestamp() if started else time.time()
        folder.mkdir(parents=True, exist_ok=True)
        self.write_hosts(hosts)
        place = PodPlace(pod_ip, host.host_ip, host.allocatable)
        self.volumes = Volumes(host.api, folder / "volumes", memory, lambda: self.pod, place)
        self.containers = [self._container(spec, init=True) for spec in pod["spec"].get("initContainers") or []]
        self.containers += [self._container(spec, init=False) for spec in pod["spec"]["containers"]]
        # What an earlier process of this node has started goes on as if nothing had happened.
        self._sandbox = any(c.process is not None for c in self.containers)

    # -- told from outside ---------------------------------------------------------------------------------------

    def update(self, pod: dict[str, Any]) -> None:
        """The API server's newest version of the pod; an older one than is known is ignored."""
        if int(pod["metadata"]["resourceVersion"]) < int(self.pod["metadata"]["resourceVersion"]):
            return
        changed_metadata = _downward(pod) != _downward(self.pod)
        self.pod = pod
        self._updated.set()
        self._publisher.changed()
        if changed_metadata and self._sandbox:
            self._background(self._refresh_volumes())

    def gone(self) -> None:
        self._removed.set()
        self._updated.set()

    def write_hosts(self, text: str) -> None:
        """Renews /etc/hosts in place: containers hold this very file."""
        path = self.folder / "etc-hosts"
        if not path.exists() or path.read_text("utf-8") != text:
            path.write_text(text, "utf-8")

    def container(self, name: str) -> Container | None:
        return next((c for c in self.containers if c.name == name), None)

    def settle(self) -> None:
        """The pod is over already: nothing of it may run, and nothing more is said of it."""
        self.finished = self._settled = True
        for run in self.folder.glob("containers/*/*"):
            kill_run(run)

    async def reject(self, reason: str, message: str) -> None:
        """Tells the API server that this node does not take the pod; the pod never runs."""
        self.finished = self._settled = True
        self.host.recorder.record(self.pod, "Warning", reason, message)
        await self._publisher.write(rejected_status(reason, message, self.pod, time.time()))

    # -- the life ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        try:
            if not self._settled:
                self._background(self._publisher.run())
                await self._live_and_end()
            await self._be_deleted()
        finally:
            for task in self._tasks:
                task.cancel()
            self.clean_up()

    def clean_up(self) -> None:
        """Kills what may still run and removes all files of the pod."""
        for run in self.folder.glob("containers/*/*"):
            kill_run(run)
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self._memory, ignore_errors=True)

    async def _live_and_end(self) -> None:
        life = asyncio.create_task(self._live())
        watches = [asyncio.create_task(watch) for watch in (self._deletion(), self._deadline(), self._eviction())]
        await asyncio.wait({life, *watches}, return_when=asyncio.FIRST_COMPLETED)
        if not life.done():
            life.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await life
        for watch in watches:
            if not watch.done():
                watch.cancel()
        ended_by = next((w.result() for w in watches if w.done() and not w.cancelled()), None)
        if ended_by is not None:
            await self._terminate(*ended_by)
        else:
            await self._publisher.publish()
            await asyncio.sleep(self.host.settings.timings.teardown)
        self._sandbox = False
        self.finished = True
        await self._publisher.publish()
        self._publisher.quiet = False
        self._publisher.changed()
        if ended_by is not None and ended_by[0].reason == DEADLINE:
            self._record_deadline()
        if ended_by is not None and any(isinstance(c.state, Waiting) for c in self.containers):
            # Kubelet finds out only later that a container of an ended pod has never been there: seen after the Job
            # had counted the pod, which is not left to chance here.
            await self._counted()
            self._mark_lost()
            await self._publisher.publish()
        self._settled = True

    async def _live(self) -> None:
        """The pod as long as nobody ends it: volumes, init containers in turn, then all others at once."""
        self._publisher.changed()
        await self._mount()
        self._sandbox = True
        self._publisher.changed()
        self._background(self._keep_volumes())
        policy = self.pod["spec"].get("restartPolicy", "Always")
        sidecars: list[tuple[Container, asyncio.Task[None]]] = []
        try:
            for container in [c for c in self.containers if c.init]:
                container.resume()
                if container.sidecar:
                    task = asyncio.create_task(container.run("Always"))
                    sidecars.append((container, task))
                    await container.started.wait()
                    await self._publisher.publish()
                else:
                    await container.run("Never" if policy == "Never" else "OnFailure")
                    if not isinstance(container.state, Terminated) or container.state.exit_code != 0:
                        break
            else:
                main = [c for c in self.containers if not c.init]
                for container in main:
                    container.resume()
                await _all([container.run(policy) for container in main])
            await self._stop_sidecars(sidecars)
        finally:
            for _, task in sidecars:
                task.cancel()

    async def _stop_sidecars(self, sidecars: list[tuple[Container, asyncio.Task[None]]]) -> None:
        """Sidecars end after everything else, the last first."""
        running = [(c, task) for c, task in sidecars if c.running]
        if not running:
            return
        await self._publisher.publish()
        deadline = time.monotonic() + self._grace(self.pod["spec"].get("terminationGracePeriodSeconds"))
        for container, task in reversed(running):
            task.cancel()
            await container.stop(f"Stopping container {container.name}", max(0.0, deadline - time.monotonic()))
        self._sandbox = False
        await self._publisher.publish()

    async def _terminate(self, ending: Ending, grace: float) -> None:
        """Ends all containers: those of the pod at once, sidecars after them."""
        self._ending = ending
        if ending.reason == DEADLINE:
            for container in self.containers:
                container.show_latest()
            self._record_deadline()
            await self._publisher.publish()
            await asyncio.sleep(self.host.settings.timings.teardown)
            self._record_deadline()
        elif not ending.reason:
            for container in self.containers:
                container.reset_to_waiting()
        await self._publisher.publish()
        self._publisher.quiet = True
        deadline = time.monotonic() + self._grace(grace)
        lower = asyncio.create_task(self._lower_grace(deadline))
        try:
            for group in ([c for c in self.containers if not c.sidecar], [c for c in self.containers if c.sidecar]):
                left = max(0.0, deadline - time.monotonic())
                await _all([c.stop(f"Stopping container {c.name}", left) for c in group])
        finally:
            lower.cancel()
        if ending.reason == DEADLINE:
            self._record_deadline()
        elif not ending.reason and any(isinstance(c.state, Waiting) for c in self.containers):
            self._sandbox = False
            await self._publisher.publish()
            await asyncio.sleep(self.host.settings.timings.teardown)
            self._mark_lost()

    async def _lower_grace(self, deadline: float) -> None:
        """A pod that is being ended may be deleted meanwhile, or again with less grace: that brings its end forward."""
        while True:
            grace = self.pod["metadata"].get("deletionGracePeriodSeconds")
            if "deletionTimestamp" in self.pod["metadata"] and grace is not None:
                sooner = time.monotonic() + self._grace(grace)
                if sooner < deadline - 0.5:
                    deadline = sooner
                    for container in self.containers:
                        container.kill_at = min(container.kill_at, deadline)
                        container.hurry.set()
            await self._next_update()

    async def _be_deleted(self) -> None:
        """Waits until the pod is to be deleted, deletes it for good, and waits until it is gone."""
        while not self._removed.is_set() and "deletionTimestamp" not in self.pod["metadata"]:
            await self._next_update()
        if not self._removed.is_set():
            await self._publisher.delete()
        await self._removed.wait()

    # -- what ends it --------------------------------------------------------------------------------------------

    async def _deletion(self) -> tuple[Ending, float]:
        while "deletionTimestamp" not in self.pod["metadata"] and not self._removed.is_set():
            await self._next_update()
        return Ending(), float(self.pod["metadata"].get("deletionGracePeriodSeconds") or 0)

    async def _deadline(self) -> tuple[Ending, float]:
        """Counts from the pod's startTime; the deadline may be set or lowered while the pod runs."""
        while True:
            seconds = self.pod["spec"].get("activeDeadlineSeconds")
            left = None if seconds is None else self._start_time + seconds - time.time()
            if left is not None and left <= 0:
                grace = self.pod["spec"].get("terminationGracePeriodSeconds", 30)
                return Ending(DEADLINE, DEADLINE_MESSAGE), float(grace)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._next_update(), left)

    async def _eviction(self) -> tuple[Ending, float]:
        """Looks at the pod's disk use now and then; an eviction gives next to no grace."""
        if not storage.is_limited(self.pod):
            await asyncio.Event().wait()
        while True:
            await asyncio.sleep(self.host.settings.timings.storage_check)
            folders = {c.name: self.folder / "containers" / c.name for c in self.containers}
            containers = await asyncio.to_thread(storage.used_by_name, folders)
            empty = await asyncio.to_thread(storage.used_by_name, self.volumes.empty_dirs())
            if message := storage.eviction_message(self.pod, empty, containers):
                self.host.recorder.record(self.pod, "Warning", EVICTED, message)
                return Ending(EVICTED, message), 0.0

    # -- volumes -------------------------------------------------------------------------------------------------

    async def _mount(self) -> None:
        timings = self.host.settings.timings
        pause = timings.mount_retry
        while True:
            try:
                return await self.volumes.set_up()
            except MountError as error:
                self.host.recorder.record(self.pod, "Warning", "FailedMount", str(error))
            await asyncio.sleep(pause)
            pause = min(2 * pause, timings.mount_retry_max)

    async def _keep_volumes(self) -> None:
        while True:
            await asyncio.sleep(self.host.settings.timings.volume_refresh)
            await self._refresh_volumes()

    async def _refresh_volumes(self) -> None:
        if self.finished:
            return
        try:
            await self.volumes.set_up()
        except MountError as error:
            self.host.recorder.record(self.pod, "Warning", "FailedMount", str(error))

    # -- the status ----------------------------------------------------------------------------------------------

    def view(self) -> PodView:
        return PodView(
            tuple(c.view() for c in self.containers),
            self.pod["spec"].get("restartPolicy", "Always"),
            self.ip if self._sandbox or self.finished or (self.pod.get("status") or {}).get("podIP") else "",
            self.host.host_ip,
            self._start_time,
            self._sandbox,
            self.finished,
            self._ending,
        )

    # -- small things --------------------------------------------------------------------------------------------

    def _container(self, spec: dict[str, Any], *, init: bool) -> Container:
        folder = self.folder / "containers" / spec["name"]
        return Container(
            self.host,
            spec,
            lambda: self.pod,
            folder,
            self.volumes,
            self._publisher.changed,
            self._publisher.publish,
            init=init,
        )

    def _mark_lost(self) -> None:
        for container in self.containers:
            container.lost = isinstance(container.state, Waiting) and container.last is None

    def _record_deadline(self) -> None:
        self.host.recorder.record(self.pod, "Normal", DEADLINE, DEADLINE_MESSAGE)

    def _grace(self, seconds: float | None) -> float:
        return max(self.host.settings.timings.minimum_grace, 30.0 if seconds is None else float(seconds))

    def _background(self, work: "Any") -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("pod %s: %r", self.pod["metadata"]["name"], error, exc_info=error)

    async def _next_update(self) -> None:
        self._updated.clear()
        await self._updated.wait()

    async def _counted(self) -> None:
        """Waits until the pod's Job has let go of it, for some seconds at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(COUNTED_SECONDS):
                while JOB_TRACKING in (self.pod["metadata"].get("finalizers") or []) and not self._removed.is_set():
                    await self._next_update()


def remember(folder: Path, pod_ip: str) -> None:
    """Writes down what a later process of this node must know of a pod besides its containers."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pod.json").write_text(json.dumps({"ip": pod_ip}), "utf-8")


def remembered_ip(folder: Path) -> str | None:
    with contextlib.suppress(OSError, ValueError, KeyError):
        return json.loads((folder / "pod.json").read_text("utf-8"))["ip"]
    return None


async def _all(work: list[Awaitable[None]]) -> None:
    """Waits for all; when one fails or this is cancelled, the others are cancelled."""
    async with asyncio.TaskGroup() as group:
        for item in work:
            group.create_task(_await(item))


async def _await(item: Awaitable[None]) -> None:
    await item


def _downward(pod: dict[str, Any]) -> tuple[Any, Any]:
    return pod["metadata"].get("labels"), pod["metadata"].get("annotations")
