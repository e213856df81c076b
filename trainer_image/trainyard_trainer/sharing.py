"""The data of a node, prepared once by one of its processes and used by all: pixels in shared memory, the rest as a file. No torch."""

from __future__ import annotations

import mmap
import os
import pickle
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from trainyard_trainer.errors import Interrupted
from trainyard_trainer.pixels import PixelCache
from trainyard_trainer.prepare import Prepared
from trainyard_trainer.records import StopFlag

POLL_SECONDS = 0.1
NAME = "prepared"


@dataclass(frozen=True)
class _Shared:
    """`prepared` has no pixels and no sources; they lie in the file `path` of the process that made them."""

    prepared: Prepared
    path: str
    size: int


def hand_out(prepared: Prepared, folder: Path) -> None:
    """For the other processes of this node. The one that calls it has to live as long as they need to `take` it."""
    cache = prepared.pixels
    path = f"/proc/{os.getpid()}/fd/{cache.descriptor}" if cache.descriptor is not None else ""
    empty = PixelCache(np.zeros(0, np.uint8), cache.offsets, cache.sizes, cache.place)
    slim = replace(prepared, dataset=replace(prepared.dataset, sources=()), pixels=empty)
    whole = folder / f"{NAME}.part"
    whole.write_bytes(pickle.dumps(_Shared(slim, path, len(cache.pixels))))
    whole.rename(folder / NAME)


def take(folder: Path, stop: StopFlag) -> Prepared:
    """What the first process of this node prepared, once it is there; its pixels are the same memory."""
    path = folder / NAME
    while not path.exists():
        if stop():
            raise Interrupted("asked to stop while the data is fetched; there is no checkpoint yet.")
        time.sleep(POLL_SECONDS)
    # Written by the process beside this one, in a folder that only this user can read.
    shared: _Shared = pickle.loads(path.read_bytes())  # noqa: S301
    pixels = np.zeros(0, np.uint8)
    if shared.size:
        with open(shared.path, "r+b") as file:  # noqa: PTH123 a descriptor of another process
            pixels = np.frombuffer(mmap.mmap(file.fileno(), shared.size), np.uint8)
    return replace(shared.prepared, pixels=replace(shared.prepared.pixels, pixels=pixels))
