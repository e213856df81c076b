"""The decoded pictures of a dataset: uint8 RGB in one block of memory, or of a file where memory does not do. No torch.

Built once; every picture is decoded exactly once, which is also the check whether it can be decoded.
"""

from __future__ import annotations

import mmap
import os
import secrets
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from trainyard_trainer.cache import make_room
from trainyard_trainer.errors import BadData, DiskFull, Interrupted
from trainyard_trainer.records import Finding, Kind, Progress, Record, StopFlag, never, silent
from trainyard_trainer.voc import Dataset
from trainyard_trainer.voc_image import decode, decode_tolerantly, perceptual_hash, scaled_size

HEADROOM = 1.25
"""Pictures are kept this much larger than the network's input where memory allows, so that magnified ones stay sharp."""
MEMORY_SHARE = 0.5
DECODE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, ZeroDivisionError, OverflowError, MemoryError)


@dataclass(frozen=True)
class PixelCache:
    """Pictures of records 0..n-1. `place` tells where: `memory` or `disk`; `descriptor` is that of the file that holds them, where it
    is kept open for other processes."""

    pixels: np.ndarray
    offsets: np.ndarray
    sizes: tuple[tuple[int, int], ...]
    """Width and height of each picture as it is kept."""
    place: str
    descriptor: int | None = None

    def __len__(self) -> int:
        return len(self.sizes)

    def image(self, index: int) -> np.ndarray:
        """Pixels `[height, width, 3]`, a view."""
        width, height = self.sizes[index]
        start = int(self.offsets[index])
        return self.pixels[start : start + width * height * 3].reshape(height, width, 3)

    def keep(self, indices: Sequence[int]) -> PixelCache:
        """Some of the pictures, renumbered; nothing is copied."""
        return replace(self, offsets=self.offsets[list(indices)], sizes=tuple(self.sizes[i] for i in indices))


@dataclass(frozen=True)
class Verdict:
    """What decoding showed: records that must go, those that were cut off, and the perceptual hash of every other."""

    corrupt: dict[int, Finding]
    repaired: tuple[Finding, ...]
    hashes: dict[int, int]


def build(
    dataset: Dataset,
    long_side: int,
    cache: Path | None,
    *,
    memory: int | None = None,
    shared: bool = False,
    threads: int = 2,
    stop: StopFlag = never,
    progress: Progress = silent,
) -> tuple[PixelCache, Verdict]:
    """Decodes all pictures, each with its long side at most `HEADROOM * long_side`, or `long_side` where memory is short.

    `shared`: into memory, or a file, that other processes of this user can map (`PixelCache.descriptor`).

    What exceeds `memory` bytes (default: half of what is free) becomes a memory-mapped file below `cache`; without one, BadData.
    """
    budget = int(available_memory() * MEMORY_SHARE) if memory is None else memory
    side = round(HEADROOM * long_side)
    sizes = _sizes(dataset.records, side)
    if _bytes(sizes) > budget:
        side = long_side
        sizes = _sizes(dataset.records, side)
    total = _bytes(sizes)
    place = "memory" if total <= budget or cache is None else "disk"
    if total > budget and cache is None:
        raise BadData(
            f"the decoded pictures take {total:,} bytes, {budget:,} may be used; ask for more memory, or a smaller dataset.imageSize."
        )
    descriptor = None
    if not total or (place == "memory" and not shared):
        pixels = np.empty(total, np.uint8)
    else:
        descriptor = _memory(total) if place == "memory" else _file(cache or Path(), total)
        pixels = np.frombuffer(mmap.mmap(descriptor, total), np.uint8)
        if not shared:
            os.close(descriptor)
            descriptor = None
    lengths = np.array([w * h * 3 for w, h in sizes], np.int64)
    kept = PixelCache(
        pixels, np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(np.int64), tuple(sizes), place, descriptor
    )
    return kept, _decode_all(dataset, kept, side, threads, stop, progress)


def look(dataset: Dataset, long_side: int, *, threads: int = 2, progress: Progress = silent) -> Verdict:
    """Decodes all pictures, to see whether they can be, and keeps none."""
    return _decode_all(dataset, None, long_side, threads, never, progress)


def available_memory() -> int:
    """Bytes that this process may still take: what the machine has free, or the rest of its cgroup's limit, whichever is less."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):
            free = min(free, int(Path(limit).read_text()) - int(Path(used).read_text()))
    return max(free, 0)


def _decode_all(
    dataset: Dataset, kept: PixelCache | None, side: int, threads: int, stop: StopFlag, progress: Progress
) -> Verdict:
    corrupt: dict[int, Finding] = {}
    repaired: list[Finding] = []
    hashes: dict[int, int] = {}
    cut: list[int] = []

    def strictly(index: int) -> int | Exception:
        """The picture's hash, or why it cannot be decoded as it is."""
        if stop():
            raise Interrupted("asked to stop while decoding the pictures; the next attempt starts over here.")
        record = dataset.records[index]
        try:
            pixels = decode(dataset.read(record), record.orientation, side)
        except DECODE_ERRORS as error:
            return error
        if kept is not None:
            kept.image(index)[:] = pixels
        return perceptual_hash(pixels)

    def leave_out(index: int, error: Exception) -> None:
        message = f"cannot be decoded ({error}); left out"
        corrupt[index] = Finding(Kind.LOSSY, "ImageCorrupt", message, dataset.records[index].image)

    with ThreadPoolExecutor(threads) as pool:
        for index, value in enumerate(pool.map(strictly, range(len(dataset.records)))):
            if isinstance(value, int):
                hashes[index] = value
            elif "truncated" in str(value).lower():
                cut.append(index)
            else:
                leave_out(index, value)
            progress(index + 1, len(dataset.records))
    # Alone, because Pillow's tolerance is a global switch.
    for index in cut:
        record = dataset.records[index]
        try:
            pixels = decode_tolerantly(dataset.read(record), record.orientation, side)
        except DECODE_ERRORS as error:
            leave_out(index, error)
            continue
        if kept is not None:
            kept.image(index)[:] = pixels
        hashes[index] = perceptual_hash(pixels)
        repaired.append(Finding(Kind.LOSSY, "ImageTruncated", "ends too early; what there is was taken", record.image))
    return Verdict(corrupt, tuple(repaired), hashes)


def _sizes(records: Sequence[Record], side: int) -> list[tuple[int, int]]:
    return [scaled_size(record.width, record.height, side) for record in records]


def _bytes(sizes: Sequence[tuple[int, int]]) -> int:
    return sum(w * h * 3 for w, h in sizes)


def _memory(size: int) -> int:
    """A block of `size` bytes in anonymous memory that has a descriptor; /dev/shm is too small in most pods."""
    descriptor = os.memfd_create("pixels", os.MFD_CLOEXEC)
    os.ftruncate(descriptor, size)
    return descriptor


def _file(cache: Path, size: int) -> int:
    """A block of `size` bytes in a file without a name, its space taken: writing to a sparse map on a full disk kills the process."""
    path = cache / f".pixels-{secrets.token_hex(8)}"
    make_room(cache, size)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            path.unlink()
            os.posix_fallocate(descriptor, 0, size)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor
    except OSError as error:
        existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
        raise DiskFull(
            f"{cache} cannot hold the decoded pictures ({error.strerror}): {size:,} bytes are needed, {shutil.disk_usage(existing).free:,}"
            " are free; give the execution a larger cache or more memory."
        ) from error
