"""What the cache keeps of datasets from one execution to the next: one zip each, named by a digest of what storage has.

A node's or a claim's cache outlives its pods, so what was not used for longest goes where the disk gets full.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path

from trainyard_trainer.errors import DiskFull

FOLDER = "data"
"""Below the cache."""
RESERVE = 0.1
"""Share of the disk that stays free: with less, kubelet ends pods on the node."""
IN_USE_SECONDS = 900.0
"""What was used since may still be read; its pictures are decoded by then."""
DEAD_SECONDS = 3600.0
"""A download that was not written to for so long is nobody's any more."""


def kept(cache: Path, key: str) -> Path | None:
    """The zip, where it is there; it counts as used from now on."""
    path = place(cache, key)
    with suppress(PermissionError):  # somebody else's; its age stays
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
    return path


def place(cache: Path, key: str) -> Path:
    """Where the zip is, or shall be."""
    return cache / FOLDER / f"{key}.zip"


def make_room(cache: Path, size: int) -> None:
    """Removes what nobody uses until `size` bytes find room, and the reserve stays; or until there is no more to remove.

    Raises DiskFull where this user cannot write.
    """
    if not _is_writable(cache / FOLDER):
        user = f"{os.getuid()}:{os.getgid()}"
        raise DiskFull(
            f"the cache {cache} cannot be written by user {user}; run `chown {user} FOLDER` for the service's cache.hostPath on"
            " its nodes, make its cache.claimName writable, or leave its cache out."
        )
    with suppress(OSError):
        now = time.time()
        for part in (cache / FOLDER).glob(".*.part"):
            if now - part.stat().st_mtime > DEAD_SECONDS:
                part.unlink(missing_ok=True)
        found = sorted((path.stat().st_mtime, path) for path in (cache / FOLDER).glob("*.zip"))
        for used, path in found:
            disk = shutil.disk_usage(cache)
            if disk.free - size >= RESERVE * disk.total or now - used < IN_USE_SECONDS:
                return
            path.unlink(missing_ok=True)


def _is_writable(folder: Path) -> bool:
    """Whether files can be made in the folder, or the folder itself."""
    try:
        there = next(each for each in (folder, *folder.parents) if each.exists())
    except PermissionError:
        return False
    return os.access(there, os.W_OK | os.X_OK)
