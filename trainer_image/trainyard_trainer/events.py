"""TensorBoard's event files: what `metrics.jsonl` says, as scalars. One record is a length, its checksum, a protobuf `Event`, its checksum.

The protobuf classes are TensorBoard's own; its writers are not used, because importing them takes seconds (they bring storage
clients of their own). No torch.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

GROUPS = {"step": "training", "evaluation": "validation"}
"""Kind of a line to the group of its charts."""
NOT_SCALARS = ("kind", "step", "time")


def header(time: float) -> bytes:
    """The record that an event file begins with."""
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue] made at import

    return _record(Event(wall_time=time, file_version="brain.Event:2").SerializeToString())


def records(lines: Iterable[Mapping[str, Any]]) -> Iterator[bytes]:
    """One record for each line of `metrics.jsonl`; numbers that are not finite and lines without a number are left out."""
    from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue] made at import
    from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue] made at import

    for line in lines:
        group = GROUPS.get(line["kind"])
        numbers = {
            name: float(value)
            for name, value in line.items()
            if name not in NOT_SCALARS and isinstance(value, int | float) and math.isfinite(value)
        }
        if group is None or not numbers:
            continue
        values = [Summary.Value(tag=f"{group}/{name}", simple_value=number) for name, number in numbers.items()]
        event = Event(wall_time=line["time"], step=line["step"], summary=Summary(value=values))
        yield _record(event.SerializeToString())


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + _checksum(length) + data + _checksum(data)


def _checksum(data: bytes) -> bytes:
    """CRC-32C, rotated and shifted as TFRecord files have it."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF)


def _entry(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value


_TABLE = tuple(_entry(value) for value in range(256))
