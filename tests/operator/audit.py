"""What the API server itself wrote down about who did what: the observer that no bug of ours can deceive."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

WRITES = frozenset({"create", "update", "patch", "delete", "deletecollection"})


@dataclass(frozen=True)
class Request:
    time: datetime
    user: str
    agent: str
    verb: str
    group: str
    resource: str
    """Plural, with the subresource: `pods/eviction`."""
    namespace: str
    name: str
    code: int
    response: dict[str, Any] | None
    """The object as it was answered, where the cluster's audit has bodies."""

    @property
    def writes(self) -> bool:
        return self.verb in WRITES


def requests(log: Path, start: int = 0) -> Iterator[Request]:
    """The requests in an audit log from byte `start` on, in the order in which they were answered."""
    with log.open("rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return  # being written
            event = json.loads(line)
            ref = event.get("objectRef")
            code = event.get("responseStatus", {}).get("code", 0)
            # A watch that is still open has been answered, too.
            opened = event["verb"] == "watch" and code < 300
            if event["stage"] != ("ResponseStarted" if opened else "ResponseComplete") or ref is None:
                continue
            sub = ref.get("subresource")
            yield Request(
                time=datetime.fromisoformat(event["stageTimestamp"].replace("Z", "+00:00")),
                user=event["user"]["username"],
                agent=event.get("userAgent", ""),
                verb=event["verb"],
                group=ref.get("apiGroup", ""),
                resource=f"{ref['resource']}/{sub}" if sub else ref["resource"],
                namespace=ref.get("namespace", ""),
                name=ref.get("name", ""),
                code=code,
                response=event.get("responseObject"),
            )
