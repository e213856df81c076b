"""What one node is told, and how fast it does things."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Timings:
    """Seconds. Those that only slow a test down are shorter than a real kubelet's; those a controller sees are not."""

    heartbeat: float = 4.0
    """Often, for clusters that are told to give up a silent node after a few seconds."""
    lease_duration: int = 40
    sync: float = 12.0
    """Between two looks at a container that cannot start, and at an image that cannot be pulled."""
    resync: float = 0.6
    """From the first failed start to the next look, when the status first tells the reason."""
    pull_backoff: float = 10.0
    pull_backoff_max: float = 300.0
    crash_backoff: float = 10.0
    crash_backoff_max: float = 300.0
    crash_backoff_reset: float = 600.0
    mount_retry: float = 0.5
    mount_retry_max: float = 122.0
    teardown: float = 0.2
    """From the last container's end to the pod's final phase (a real kubelet: 1.1 to 1.4)."""
    minimum_grace: float = 2.0
    """Even a pod that is deleted by force gets this long."""
    memory_check: float = 0.2
    storage_check: float = 10.0
    volume_refresh: float = 60.0


@dataclass(frozen=True)
class Settings:
    """`address` and `port` are where kubelet's own server listens; without certificate it makes one of its own."""

    name: str
    kubeconfig: Path
    state: Path
    gpus: int = 0
    images: Path | None = None
    address: str = "127.98.1.1"
    port: int = 10250
    pod_cidr: str = "127.97.0.0/24"
    tls_cert: Path | None = None
    tls_key: Path | None = None
    client_ca: Path | None = None
    cpu: str = ""
    memory: str = ""
    ephemeral_storage: str = ""
    pods: int = 110
    labels: dict[str, str] = field(default_factory=dict)
    timings: Timings = Timings()


def memory_folder(state: Path) -> Path:
    """Where a node keeps emptyDirs of medium Memory: a folder of its own in the machine's shared memory."""
    digest = hashlib.sha256(str(state.resolve()).encode()).hexdigest()[:12]
    base = Path("/dev/shm")  # noqa: S108
    return (base if base.is_dir() else state) / f"devcluster-node-{digest}"
