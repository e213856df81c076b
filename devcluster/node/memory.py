"""The memory limit without cgroups: the resident memory of a container's processes, looked at several times a second.

As the kernel does in a cgroup, the largest process of the container is killed, not the container: process 1 may live
on and end as it likes, and the container's reason is OOMKilled all the same.
"""

import contextlib
import os
import signal
from pathlib import Path


def descendants(pid: int) -> list[int]:
    """The process and all below it; in a pid namespace orphans become children of its process 1, so none is lost."""
    found, todo = [], [pid]
    while todo:
        current = todo.pop()
        found.append(current)
        with contextlib.suppress(OSError):
            for task in os.scandir(f"/proc/{current}/task"):
                todo += [int(child) for child in Path(f"{task.path}/children").read_text("ascii").split()]
    return found


def resident_bytes(pid: int) -> int:
    """Anonymous and shared memory in RAM (no file pages: those are given back under pressure); 0 for a gone process."""
    return _sum_kib(Path(f"/proc/{pid}/status"), ("RssAnon:", "RssShmem:"))


def proportional_bytes(pid: int) -> int:
    """As `resident_bytes`, with pages that processes share counted once in all. Costly: walks the page tables."""
    return _sum_kib(Path(f"/proc/{pid}/smaps_rollup"), ("Pss_Anon:", "Pss_Shmem:"))


def enforce(pid: int, limit: int) -> int | None:
    """Kills the largest process of the tree when the tree is above `limit` bytes; its pid, or None."""
    sizes = {p: resident_bytes(p) for p in descendants(pid)}
    if sum(sizes.values()) <= limit:
        return None
    # Forked processes share most of their pages; only the exact sum may cost somebody's life.
    exact = {p: proportional_bytes(p) for p in sizes}
    if len(sizes) > 1 and sum(exact.values()) <= limit:
        return None
    victim = max(sizes, key=lambda p: exact[p] or sizes[p])
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim, signal.SIGKILL)
        return victim
    return None


def _sum_kib(path: Path, keys: tuple[str, ...]) -> int:
    total = 0
    with contextlib.suppress(OSError):
        for line in path.read_text("ascii", "replace").splitlines():
            if line.startswith(keys):
                total += int(line.split()[1]) * 1024
    return total
