"""Service addresses: for each address and port of a Service, a TCP forwarder to its ready pods.

Every node has such a process; the first that binds an address serves it, the others try again, so that another takes
over when a node is killed. It is a process of its own because Services go on working when a node is frozen.
"""

import argparse
import asyncio
import contextlib
import ctypes
import itertools
import logging
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from devcluster.node.api import Api
from devcluster.node.network import apply_event, is_ready, selects

log = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
CONNECT_SECONDS = 2.0
BLOCK = 64 * 1024


class Proxy:
    def __init__(self, api: Api) -> None:
        self._api = api
        self._services: dict[str, dict[str, Any]] = {}
        self._pods: dict[str, dict[str, Any]] = {}
        self._servers: dict[tuple[str, int], asyncio.Server] = {}
        self._ports: dict[tuple[str, int], tuple[str, dict[str, Any]]] = {}
        self._changed = asyncio.Event()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch("/api/v1/services", self._services))
            group.create_task(self._watch("/api/v1/pods", self._pods))
            group.create_task(self._listen())

    async def _watch(self, path: str, cache: dict[str, dict[str, Any]]) -> None:
        async for kind, body in self._api.watch(path):
            apply_event(cache, kind, body)
            if cache is self._services:
                self._changed.set()

    async def _listen(self) -> None:
        """Keeps one listening socket for each address and port of the Services."""
        while True:
            wanted = self._wanted()
            self._ports = wanted
            for key in self._servers.keys() - wanted.keys():
                self._servers.pop(key).close()
            missing = False
            for address, port in wanted.keys() - self._servers.keys():
                try:
                    self._servers[address, port] = await asyncio.start_server(
                        lambda r, w, key=(address, port): self._forward(key, r, w), address, port
                    )
                except OSError as error:
                    # Another node serves it, or the port needs root (below 1024).
                    log.debug("cannot listen on %s:%d: %s", address, port, error)
                    missing = True
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), RETRY_SECONDS if missing else None)
            self._changed.clear()

    def _wanted(self) -> dict[tuple[str, int], tuple[str, dict[str, Any]]]:
        out = {}
        for uid, service in self._services.items():
            address = service["spec"].get("clusterIP")
            if not address or address == "None" or not service["spec"].get("selector"):
                continue
            for port in service["spec"].get("ports") or []:
                if port.get("protocol", "TCP") == "TCP":
                    out[address, port["port"]] = (uid, port)
        return out

    def _backends(self, key: tuple[str, int]) -> Iterator[tuple[str, int]]:
        """Addresses and ports of the ready pods behind a Service, in random order."""
        uid, port = self._ports.get(key, ("", {}))
        service = self._services.get(uid)
        if service is None:
            return
        pods = [pod for pod in self._pods.values() if selects(service, pod)]
        ready = [pod for pod in pods if is_ready(pod) or service["spec"].get("publishNotReadyAddresses")]
        random.shuffle(ready)
        for pod in ready:
            ip = (pod.get("status") or {}).get("podIP")
            number = _target_port(port, pod)
            if ip and number:
                yield ip, number

    async def _forward(self, key: tuple[str, int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = None
        for address, port in itertools.islice(self._backends(key), 3):
            with contextlib.suppress(OSError, TimeoutError):
                upstream = await asyncio.wait_for(asyncio.open_connection(address, port), CONNECT_SECONDS)
                break
        if upstream is None:
            # A Service without ready pods refuses, as one sees it with kube-proxy.
            writer.transport.abort()
            return
        with contextlib.suppress(OSError):
            await asyncio.gather(_pump(reader, upstream[1]), _pump(upstream[0], writer))
        for side in (writer, upstream[1]):
            side.close()


def _target_port(port: dict[str, Any], pod: dict[str, Any]) -> int | None:
    target = port.get("targetPort", port["port"])
    if isinstance(target, int):
        return target
    for container in pod["spec"]["containers"]:
        for named in container.get("ports") or []:
            if named.get("name") == target:
                return named["containerPort"]
    return None


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copies until the end, and hands the end on, so that each direction may close by itself."""
    while block := await reader.read(BLOCK):
        writer.write(block)
        await writer.drain()
    if writer.can_write_eof():
        writer.write_eof()


async def serve(kubeconfig: Path) -> None:
    async with Api(kubeconfig) as api:
        await Proxy(api).run()


def fork(kubeconfig: Path) -> int:
    """Starts the proxy as a child that ends with this process; to be called before any thread or event loop is."""
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    try:
        asyncio.run(serve(kubeconfig))
    finally:
        os._exit(1)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m devcluster.node.proxy", description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True)
    asyncio.run(serve(parser.parse_args().kubeconfig))


if __name__ == "__main__":
    main()
