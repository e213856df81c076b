"""Events as kubelet writes them: one object per distinct message, its count growing."""

import asyncio
import contextlib
import logging
import time
from datetime import UTC, datetime
from typing import Any

from devcluster.node.api import Api, ApiError

log = logging.getLogger(__name__)


def timestamp(seconds: float | None = None) -> str:
    """The time (now by default) as the API server writes it: RFC 3339 in whole seconds."""
    moment = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


class Recorder:
    """Writes Events in the background, in order for each object; `record` never waits and never fails."""

    def __init__(self, api: Api, node: str) -> None:
        self._api = api
        self._node = node
        self._waiting: dict[str, list[dict[str, Any]]] = {}
        self._writers: set[asyncio.Task[None]] = set()
        self._known: dict[tuple[str, ...], tuple[str, int]] = {}

    def record(self, pod: dict[str, Any], type_: str, reason: str, message: str, field_path: str = "") -> None:
        metadata = pod["metadata"]
        involved = {
            "kind": pod.get("kind", "Pod"),
            "apiVersion": "v1",
            "name": metadata["name"],
            "uid": metadata["uid"],
            "resourceVersion": metadata.get("resourceVersion", ""),
        }
        if "namespace" in metadata:
            involved["namespace"] = metadata["namespace"]
        if field_path:
            involved["fieldPath"] = field_path
        event = {"involvedObject": involved, "type": type_, "reason": reason, "message": message}
        if metadata["uid"] in self._waiting:
            self._waiting[metadata["uid"]].append(event)
            return
        self._waiting[metadata["uid"]] = [event]
        writer = asyncio.create_task(self._write_all(metadata["uid"]))
        self._writers.add(writer)
        writer.add_done_callback(self._writers.discard)

    async def _write_all(self, uid: str) -> None:
        """Writes the object's Events until there are no more."""
        while self._waiting[uid]:
            event = self._waiting[uid].pop(0)
            try:
                await self._write(event)
            except (ApiError, OSError) as error:
                # A namespace that is being deleted takes no Events; nothing depends on them.
                log.info("event %s not written: %s", event["reason"], error)
        del self._waiting[uid]

    async def _write(self, event: dict[str, Any]) -> None:
        involved, now = event["involvedObject"], timestamp()
        namespace = involved.get("namespace", "default")
        key = (involved["uid"], involved.get("fieldPath", ""), event["type"], event["reason"], event["message"])
        path = f"/api/v1/namespaces/{namespace}/events"
        if key in self._known:
            name, count = self._known[key]
            with contextlib.suppress(ApiError):
                await self._api.patch(f"{path}/{name}", {"count": count + 1, "lastTimestamp": now})
                self._known[key] = (name, count + 1)
                return
        name = f"{involved['name']}.{time.time_ns():x}"
        source = {"component": "kubelet", "host": self._node}
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            **event,
            "source": source,
            "reportingComponent": "kubelet",
            "reportingInstance": self._node,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        await self._api.post(path, body)
        if len(self._known) > 4096:
            self._known.clear()
        self._known[key] = (name, 1)
