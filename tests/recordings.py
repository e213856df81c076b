"""What a real kubelet, Job controller and scheduler wrote: the recordings of `tests/fixtures/kubelet/`, read back.

The files leave out what an object's line repeats from its line before; `load` puts it in again, so that every line
holds a whole object.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "fixtures" / "kubelet"


@dataclass(frozen=True)
class Line:
    """One watch event: `t` seconds after the start, `type` ADDED, MODIFIED or DELETED."""

    t: float
    type: str
    kind: str
    object: dict[str, Any]


@dataclass(frozen=True)
class Recording:
    scenario: str
    what: str
    namespace: str
    manifests: tuple[dict[str, Any], ...]
    actions: tuple[dict[str, Any], ...]
    timeline: tuple[Line, ...]
    extra: dict[str, Any]
    """Measurements beside the watch: token claims and reviews (34), times (36)."""

    def lines(self, kind: str) -> list[Line]:
        return [line for line in self.timeline if line.kind == kind]

    def last(self, kind: str) -> dict[str, Any]:
        """The last seen state of the last changed object of `kind`."""
        return self.lines(kind)[-1].object


def scenarios() -> list[str]:
    """Names of all recordings, as `12-pod-deleted-by-user`."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name: str) -> Recording:
    """The recording `name`; its number alone will do (`12`, `12b`)."""
    path = FOLDER / f"{name}.json"
    if not path.exists():
        (path,) = FOLDER.glob(f"{name}-*.json")
    raw = json.loads(path.read_text("utf-8"))
    last: dict[str, dict[str, Any]] = {}
    timeline = []
    for line in raw["timeline"]:
        body = line["object"]
        uid = body["metadata"]["uid"]
        if before := last.get(uid):
            body = {**before, **body, "metadata": {**_lasting(before["metadata"]), **body["metadata"]}}
        last[uid] = body
        timeline.append(Line(line["t"], line["type"], line["kind"], body))
    return Recording(
        raw["scenario"],
        raw["what"],
        raw["namespace"],
        tuple(raw["manifests"]),
        tuple(raw["actions"]),
        tuple(timeline),
        raw.get("extra", {}),
    )


def _lasting(metadata: dict[str, Any]) -> dict[str, Any]:
    """The metadata a line without it still has; a finalizer or deletionTimestamp that is not there is gone."""
    keys = ("generateName", "creationTimestamp", "labels", "annotations", "ownerReferences")
    return {key: value for key, value in metadata.items() if key in keys}
