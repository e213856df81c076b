"""A local folder for what an attempt writes while it runs: checkpoints before they are uploaded, log, metrics, the version.

On the cache's disk, which may outlive the pod. A trainer that is killed cannot clear up; the next one there does it. The folder's own
lock, which ends with the process however that ends, tells which are in use, also by the pods beside this one.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainyard_api.run import RunSpec

FOLDER = "attempts"
"""Below the cache."""
YOUNG_SECONDS = 60.0
"""A younger folder may be one that is not locked yet."""


@contextmanager
def scratch(spec: RunSpec) -> Iterator[Path]:
    """The folder, as long as the block runs; where the cache cannot be written, in the system's place for temporary files."""
    base = Path(spec.cache_path) / FOLDER
    try:
        base.mkdir(parents=True, exist_ok=True)
        _clear_up(base)
        folder = _made(spec, base)
    except OSError:
        folder = _made(spec, None)
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _locked(lock)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _made(spec: RunSpec, base: Path | None) -> Path:
    return Path(tempfile.mkdtemp(prefix=f"{spec.job}-a{spec.attempt}-", dir=base))


def _clear_up(base: Path) -> None:
    for folder in base.iterdir():
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:  # somebody else's, or gone
            continue
        try:
            if time.time() - os.fstat(lock).st_mtime > YOUNG_SECONDS and _locked(lock):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def _locked(lock: int) -> bool:
    """Whether the folder is this process's now. On a file system without such locks none is, and nothing is cleared up."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
