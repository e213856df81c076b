"""The ephemeral-storage limit: what containers wrote, what they logged, and what is in emptyDirs."""

import os
from decimal import Decimal
from pathlib import Path
from typing import Any

from devcluster.node.quantity import parse


def used_bytes(folder: Path) -> int:
    """Bytes that the files below the folder take on disk; links are not followed, what vanishes counts nothing."""
    total = 0
    for path, _, names in os.walk(folder, onerror=None):
        for name in names:
            try:
                total += os.lstat(Path(path) / name).st_blocks * 512
            except OSError:
                continue
    return total


def used_by_name(folders: dict[str, Path]) -> dict[str, int]:
    return {name: used_bytes(folder) for name, folder in folders.items()}


def is_limited(pod: dict[str, Any]) -> bool:
    """Whether the pod asks for any limit on its disk use."""
    limits = [(c.get("resources") or {}).get("limits") or {} for c in pod["spec"]["containers"]]
    volumes = pod["spec"].get("volumes") or []
    return any("ephemeral-storage" in limit for limit in limits) or any(
        (volume.get("emptyDir") or {}).get("sizeLimit") for volume in volumes
    )


def eviction_message(pod: dict[str, Any], empty_dirs: dict[str, int], containers: dict[str, int]) -> str | None:
    """Why the pod must be evicted for its disk use, in kubelet's words (trailing blank included), or None.

    `empty_dirs`: bytes by volume name; `containers`: bytes of layer and logs by container name.
    """
    for volume in pod["spec"].get("volumes") or []:
        limit = (volume.get("emptyDir") or {}).get("sizeLimit")
        if limit and empty_dirs.get(volume["name"], 0) > parse(limit):
            return f'Usage of EmptyDir volume "{volume["name"]}" exceeds the limit "{limit}". '
    limits = {c["name"]: _limit(c) for c in pod["spec"]["containers"]}
    known = {name: limit for name, limit in limits.items() if limit is not None}
    disk = {v["name"] for v in pod["spec"].get("volumes") or [] if (v.get("emptyDir") or {}).get("medium") != "Memory"}
    used = sum(containers.values()) + sum(size for name, size in empty_dirs.items() if name in disk)
    if known and len(known) == len(limits) and used > sum(known.values()):
        total = _binary(sum(known.values(), Decimal(0)))
        return f"Pod ephemeral local storage usage exceeds the total limit of containers {total}. "
    for name, limit in known.items():
        if containers.get(name, 0) > limit:
            return f'Container {name} exceeded its local ephemeral storage limit "{_binary(limit)}". '
    return None


def _limit(container: dict[str, Any]) -> Decimal | None:
    amount = ((container.get("resources") or {}).get("limits") or {}).get("ephemeral-storage")
    return None if amount is None else parse(amount)


def _binary(amount: Decimal) -> str:
    """The bytes as a quantity with the largest binary suffix that divides them."""
    size, suffix = int(amount), ""
    for next_suffix in ("Ki", "Mi", "Gi", "Ti"):
        if size % 1024:
            break
        size, suffix = size // 1024, next_suffix
    return f"{size}{suffix}"
