"""Kubernetes Events: what `kubectl describe` tells about an object, in the order in which it happened.

The same sentence about the same object is one Event that counts, not many: its name is made from both, so that this holds
across restarts and leaders. Events are sent in the background and may be lost; nothing depends on them.
"""

import asyncio
import hashlib
import logging
from datetime import datetime
from typing import Any

from trainyard_operator.cluster import (
    CORE_EVENTS,
    Cluster,
    ClusterError,
    ConflictError,
    NotFoundError,
    Object,
    Resource,
)
from trainyard_operator.decide.model import Metadata, Note

logger = logging.getLogger(__name__)

COMPONENT = "trainyard-operator"
MAX_WAITING = 1000


class Recorder:
    """Sends Events about objects, one after the other."""

    def __init__(self, cluster: Cluster, identity: str) -> None:
        self._cluster = cluster
        self._identity = identity
        self._waiting: asyncio.Queue[Object] = asyncio.Queue(MAX_WAITING)

    def emit(self, resource: Resource, about: Metadata, note: Note) -> None:
        """Send an Event soon. Call it after the write that it speaks of has succeeded."""
        try:
            self._waiting.put_nowait(event(resource, about, note, self._identity, self._cluster.clock.now()))
        except asyncio.QueueFull:
            logger.warning("the API server takes no Events; dropped: %s %s", note.reason, note.message)

    async def run(self) -> None:
        """Send what waits, for ever."""
        while True:
            body = await self._waiting.get()
            try:
                await self._send(body)
            except ClusterError as error:
                # A namespace that is being deleted takes no Events, for one.
                logger.info("an Event was not taken: %s", error)

    async def _send(self, body: Object) -> None:
        try:
            await self._cluster.create(CORE_EVENTS, body)
            return
        except ConflictError:
            pass
        metadata = body["metadata"]
        try:
            existing = await self._cluster.get(CORE_EVENTS, metadata["namespace"], metadata["name"])
            count = existing.get("count") or 1
            await self._cluster.patch(
                CORE_EVENTS,
                metadata["namespace"],
                metadata["name"],
                [
                    {"op": "test", "path": "/count", "value": count},
                    {"op": "replace", "path": "/count", "value": count + 1},
                    {"op": "add", "path": "/lastTimestamp", "value": body["lastTimestamp"]},
                ],
            )
        except NotFoundError:  # it expired in between
            await self._cluster.create(CORE_EVENTS, body)


def event(resource: Resource, about: Metadata, note: Note, identity: str, now: datetime) -> dict[str, Any]:
    """The Event as an object. Its name says object and sentence, so that the same one meets itself."""
    digest = hashlib.sha256(f"{about.uid}\n{note.reason}\n{note.message}".encode()).hexdigest()[:16]
    time = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    message = note.message if len(note.message) <= 1000 else note.message[:997] + "..."
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"namespace": about.namespace, "name": f"{about.name}.{digest}"},
        "involvedObject": {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "namespace": about.namespace,
            "name": about.name,
            "uid": about.uid,
        },
        "type": "Warning" if note.warning else "Normal",
        "reason": note.reason,
        "message": message,
        "count": 1,
        "firstTimestamp": time,
        "lastTimestamp": time,
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": identity[:128],
    }
