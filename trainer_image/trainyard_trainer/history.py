"""The lines of `metrics.jsonl`, of one attempt or of all attempts of a run. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from trainyard_trainer.store import Storage

FILE = "metrics.jsonl"

Line = dict[str, Any]
"""`kind` (`step` or `evaluation`), `step`, `time` (seconds since 1970), and numbers."""


def parse(data: bytes) -> list[Line]:
    """The whole lines; a last one that a killed writer left half-written is dropped."""
    lines = []
    for text in data.splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and "kind" in line and "step" in line:
            lines.append(line)
    return lines


def merged(attempts: Iterable[Sequence[Line]]) -> list[Line]:
    """The lines of a run: steps that a later attempt took again, from its checkpoint on, count as it took them."""
    kept: list[Line] = []
    for lines in attempts:
        if not lines:
            continue
        first = min(line["step"] for line in lines)
        kept = [line for line in kept if line["step"] < first] + list(lines)
    return kept


def of_attempts(storage: Storage, folders: Iterable[str]) -> list[list[Line]]:
    """The lines of each attempt's folder that has some."""
    uris = [f"{folder}{FILE}" for folder in folders]
    return [parse(storage.get_bytes(uri)) for uri in uris if storage.head(uri) is not None]


def dumped(lines: Iterable[Line]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()
