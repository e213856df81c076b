"""One pod's status on its way to the API server: written when it differs, one write at a time, until it is there."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from devcluster.node.api import Api, ApiError
from devcluster.node.status import PodView, differs, pod_status

log = logging.getLogger(__name__)

RETRY_SECONDS = 0.5
QUIET_SECONDS = 0.1


class Publisher:
    """`pod` gives the newest version of the pod at `path`, `view` what runs; `update` is told what was written."""

    def __init__(
        self,
        api: Api,
        path: str,
        pod: Callable[[], dict[str, Any]],
        view: Callable[[], PodView],
        update: Callable[[dict[str, Any]], None],
        removed: asyncio.Event,
    ) -> None:
        self.quiet = False
        """While kubelet ends a pod, the ends of its containers are told together with the pod's."""
        self._api = api
        self._path = path
        self._pod = pod
        self._view = view
        self._update = update
        self._removed = removed
        self._dirty = asyncio.Event()
        self._writing = asyncio.Lock()

    def changed(self) -> None:
        """Something may be different; it will be told soon."""
        self._dirty.set()

    async def run(self) -> None:
        while True:
            await self._dirty.wait()
            if self.quiet:
                await asyncio.sleep(QUIET_SECONDS)
            else:
                await self.publish()

    async def publish(self) -> None:
        """Tells the status as it is now, unless the API server has just that."""
        async with self._writing:
            self._dirty.clear()
            pod = self._pod()
            status = pod_status(self._view(), pod, time.time())
            if differs(status, pod.get("status") or {}):
                await self.write(status)

    async def write(self, status: dict[str, Any]) -> None:
        # The uid makes the API server refuse a status that is meant for an earlier pod of the same name.
        patch = {"metadata": {"uid": self._pod()["metadata"]["uid"]}, "status": status}
        written = await self._insist(lambda: self._api.patch(f"{self._path}/status", patch))
        if written:
            self._update(written)

    async def delete(self) -> None:
        """Takes the pod out of the API server for good; nothing of it runs any more."""
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": self._pod()["metadata"]["uid"]}}
        await self._insist(lambda: self._api.delete(self._path, body))

    async def _insist(self, request: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any] | None:
        """The answer of a request, repeated while the API server is away; None when it says no (the pod is gone)."""
        while not self._removed.is_set():
            try:
                return await request()
            except ApiError as error:
                if error.status < 500 and error.status != 429:
                    log.info("pod %s: %s", self._path, error)
                    return None
            except OSError as error:
                log.warning("pod %s: %s; trying again", self._path, error)
            await asyncio.sleep(RETRY_SECONDS)
        return None
