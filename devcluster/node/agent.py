"""The node itself: registers, keeps its heartbeat, and gives each pod that is bound to it a worker."""

import asyncio
import contextlib
import logging
import os
import platform
import shutil
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from devcluster.node.api import MERGE, Api, ApiError
from devcluster.node.configuration import Host
from devcluster.node.events import Recorder, timestamp
from devcluster.node.images import load_images
from devcluster.node.network import Addresses, Directory
from devcluster.node.pod import Worker, remember, remembered_ip
from devcluster.node.process import kill_run
from devcluster.node.quantity import parse, total_requests
from devcluster.node.settings import Settings, memory_folder

log = logging.getLogger(__name__)


class Agent:
    def __init__(self, settings: Settings, api: Api) -> None:
        self.settings = settings
        self.workers: dict[str, Worker] = {}
        self._api = api
        self._recorder = Recorder(api, settings.name)
        self._directory = Directory(api, self._renew_hosts)
        self._addresses = Addresses(settings.pod_cidr)
        self._allocatable = allocatable(settings)
        self._memory = memory_folder(settings.state)
        self._running: dict[str, asyncio.Task[None]] = {}
        self._path = f"/api/v1/nodes/{settings.name}"
        self._host = Host(
            settings,
            api,
            self._recorder,
            load_images(settings.images),
            self._allocatable,
            settings.address,
            self._directory.service_env,
        )

    async def run(self, port: int) -> None:
        """Runs the node for ever; `port` is where its own server listens."""
        self._port = port
        await _insist(self._register)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._directory.run())
            group.create_task(self._keep_lease())
            group.create_task(self._keep_status())
            group.create_task(self._watch_pods())

    # -- the Node object -----------------------------------------------------------------------------------------

    async def _register(self) -> None:
        version = (await self._api.get("/version"))["gitVersion"]
        self._status = node_status(self.settings, self._allocatable, self._port, version)
        labels = {
            "kubernetes.io/hostname": self.settings.name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": _architecture(),
            **self.settings.labels,
        }
        metadata = {"name": self.settings.name, "labels": labels}
        body = {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "status": self._status_now()}
        try:
            await self._api.post("/api/v1/nodes", body)
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise
            await self._api.patch(self._path, {"metadata": {"labels": labels}}, MERGE)
            await self._api.patch(f"{self._path}/status", {"status": self._status_now()})
        self._node = await self._api.get(self._path)
        self._recorder.record(self._node, "Normal", "Starting", "Starting kubelet.")

    def _status_now(self) -> dict[str, Any]:
        conditions = [{**c, "lastHeartbeatTime": timestamp()} for c in self._status["conditions"]]
        return {**self._status, "conditions": conditions}

    async def _keep_status(self) -> None:
        """Puts the Node's conditions right as soon as they are not: after a freeze somebody else has set them."""
        async for kind, body in self._api.watch("/api/v1/nodes", fieldSelector=f"metadata.name={self.settings.name}"):
            nodes = body if kind == "LIST" else [] if kind == "DELETED" else [body]
            for node in nodes:
                there = {c["type"]: c["status"] for c in (node.get("status") or {}).get("conditions") or []}
                was_ready = there.get("Ready") == "True"
                if any(there.get(c["type"]) != c["status"] for c in self._status["conditions"]):
                    with contextlib.suppress(ApiError, OSError):
                        await self._api.patch(f"{self._path}/status", {"status": self._status_now()})
                        if not was_ready:
                            message = f"Node {self.settings.name} status is now: NodeReady"
                            self._recorder.record(node, "Normal", "NodeReady", message)

    async def _keep_lease(self) -> None:
        timings, name = self.settings.timings, self.settings.name
        path = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
        owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": self._node["metadata"]["uid"]}
        while True:
            renewed = timestamp().replace("Z", ".000000Z")
            spec = {"holderIdentity": name, "leaseDurationSeconds": timings.lease_duration, "renewTime": renewed}
            metadata = {"name": name, "ownerReferences": [owner]}
            body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
            try:
                try:
                    await self._api.patch(f"{path}/{name}", {"spec": spec}, MERGE)
                except ApiError as error:
                    if error.status != 404:
                        raise
                    await self._api.post(path, body)
            except (ApiError, OSError) as error:
                log.warning("lease not renewed: %s", error)
                await asyncio.sleep(1.0)
                continue
            await asyncio.sleep(timings.heartbeat)

    # -- pods ----------------------------------------------------------------------------------------------------

    async def _watch_pods(self) -> None:
        selector = f"spec.nodeName={self.settings.name}"
        async for kind, body in self._api.watch("/api/v1/pods", fieldSelector=selector):
            match kind:
                case "LIST":
                    self._synchronise(body)
                case "DELETED":
                    if worker := self.workers.get(body["metadata"]["uid"]):
                        worker.update(body)
                        worker.gone()
                case _:
                    self._see(body)

    def _synchronise(self, pods: list[dict[str, Any]]) -> None:
        known = {pod["metadata"]["uid"] for pod in pods}
        for uid, worker in self.workers.items():
            if uid not in known:
                worker.gone()
        for folder in (self.settings.state / "pods").glob("*"):
            # Left by an earlier process of this node; the API server knows the pod no more.
            if folder.name not in known and folder.name not in self.workers:
                log.info("pod %s is gone from the API server: killing what is left of it", folder.name)
                remove_pod(folder, self._memory / folder.name)
        for pod in pods:
            if (ip := remembered_ip(self._folder(pod))) is not None:
                self._addresses.claim(ip)
        # As kubelet does, the older pod gets what there is not enough of for both.
        for pod in sorted(pods, key=lambda p: p["metadata"]["creationTimestamp"]):
            self._see(pod)

    def _see(self, pod: dict[str, Any]) -> None:
        uid = pod["metadata"]["uid"]
        if uid in self.workers:
            self.workers[uid].update(pod)
            return
        folder = self._folder(pod)
        ip = remembered_ip(folder)
        adopted = ip is not None
        refusal = None if adopted else self._refusal(pod)
        if pod["spec"].get("hostNetwork"):
            ip = self.settings.address
        elif ip is None:
            ip = self._addresses.take()
        remember(folder, ip)
        worker = Worker(self._host, pod, folder, self._memory / uid, ip, self._directory.hosts(pod, ip))
        self.workers[uid] = worker
        over = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
        if over:
            worker.settle()
        self._running[uid] = asyncio.create_task(self._work(worker, None if over else refusal))

    async def _work(self, worker: Worker, refusal: tuple[str, str] | None) -> None:
        try:
            if refusal is not None:
                await worker.reject(*refusal)
            await worker.run()
        except Exception:
            log.exception("the worker of pod %s failed", worker.pod["metadata"]["name"])
        finally:
            self._addresses.give_back(worker.ip)
            self.workers.pop(worker.uid, None)
            self._running.pop(worker.uid, None)

    def _refusal(self, pod: dict[str, Any]) -> tuple[str, str] | None:
        """Reason and message when the pod does not fit beside those that run: the scheduler may have been bypassed."""
        asked = total_requests(pod)
        others = [total_requests(w.pod) for w in self.workers.values() if not w.finished]
        for resource, amount in asked.items():
            capacity = parse(self._allocatable.get(resource, "0"))
            used = sum((other.get(resource, parse(0)) for other in others), parse(0))
            if amount > 0 and used + amount > capacity:
                milli = 1000 if resource == "cpu" else 1
                numbers = [int(n * milli) for n in (amount, used, capacity)]
                return f"OutOf{resource}", (
                    f"Node didn't have enough resource: {resource}, requested: {numbers[0]}, "
                    f"used: {numbers[1]}, capacity: {numbers[2]}"
                )
        if len(others) >= self.settings.pods:
            return "OutOfpods", (
                f"Node didn't have enough resource: pods, requested: 1, used: {len(others)}, "
                f"capacity: {self.settings.pods}"
            )
        return None

    def _renew_hosts(self) -> None:
        for worker in self.workers.values():
            if not worker.finished:
                worker.write_hosts(self._directory.hosts(worker.pod, worker.ip))

    def _folder(self, pod: dict[str, Any]) -> Path:
        return self.settings.state / "pods" / pod["metadata"]["uid"]


def remove_pod(folder: Path, memory: Path) -> None:
    """Kills what runs of a pod and removes its files."""
    for run in folder.glob("containers/*/*"):
        kill_run(run)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.rmtree(memory, ignore_errors=True)


def allocatable(settings: Settings) -> dict[str, str]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    disk = shutil.disk_usage(settings.state).total
    out = {
        "cpu": settings.cpu or str(os.cpu_count() or 1),
        "memory": settings.memory or f"{memory // 1024}Ki",
        "ephemeral-storage": settings.ephemeral_storage or f"{disk // 1024}Ki",
        "pods": str(settings.pods),
    }
    return out | ({"nvidia.com/gpu": str(settings.gpus)} if settings.gpus else {})


def node_status(settings: Settings, resources: dict[str, str], port: int, version: str) -> dict[str, Any]:
    conditions = [
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
    ]
    return {
        "capacity": resources,
        "allocatable": resources,
        "conditions": [
            {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": timestamp()}
            for kind, status, reason, message in conditions
        ],
        "addresses": [
            {"type": "InternalIP", "address": settings.address},
            {"type": "Hostname", "address": settings.name},
        ],
        "declaredFeatures": ["ExtendWebSocketsToKubelet"],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        "nodeInfo": {
            "kubeletVersion": version,
            "kubeProxyVersion": "",
            "containerRuntimeVersion": "bubblewrap://0",
            "kernelVersion": platform.release(),
            "osImage": f"{socket.gethostname()} (devcluster)",
            "operatingSystem": "linux",
            "architecture": _architecture(),
            "machineID": settings.name,
            "systemUUID": settings.name,
            "bootID": settings.name,
        },
    }


def _architecture() -> str:
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


async def _insist(action: Callable[[], Awaitable[None]]) -> None:
    """Does it, again and again as long as the API server is not there or not ready."""
    while True:
        try:
            return await action()
        except (ApiError, OSError) as error:
            log.warning("the node is not registered yet: %s", error)
            await asyncio.sleep(0.5)
