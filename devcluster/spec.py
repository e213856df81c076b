"""What a cluster is asked to be, what it says of itself, and where it keeps and finds things.

`ClusterSpec` (spec.json) is written by whoever asks, `ClusterStatus` (status.json) only by the supervisor; both are
replaced atomically, so that a reader never sees half a file.
"""

from __future__ import annotations

import os
import re
import secrets
import string
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field

SLOTS = 32
"""Clusters that one machine can hold at once; each has its own part of 127/8."""
NODES = 200


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The document in the file, or None when there is no file."""
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None

    def write(self, path: Path) -> None:
        """Replaces the file at once, readable by its owner alone."""
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        with os.fdopen(handle, "w") as file:
            file.write(self.model_dump_json(indent=1))
        Path(temporary).replace(path)


class ProcessRecord(_Document):
    """A process so that it is not mistaken for a later one of the same number."""

    pid: int
    start_ticks: int
    """Field 22 of /proc/PID/stat: clock ticks from boot to the start."""


class ClusterSpec(_Document):
    """The wish. It may grow while the cluster runs (nodes, S3), and `killed` names components that are to be down."""

    name: str = Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?$")
    nodes: int = Field(default=0, ge=0, le=NODES)
    gpus: int = Field(default=0, ge=0, le=64)
    """`nvidia.com/gpu` of each node."""
    s3: bool = False
    controllers: bool = True
    """kube-controller-manager and kube-scheduler; an API server alone starts in half the time."""
    node_grace_seconds: int = Field(default=40, ge=15, le=3600)
    """How long after a node's last heartbeat it counts as unreachable. Heartbeats are 4 s apart."""
    images: Path | None = None
    """JSON file of images that the nodes know besides their own, see `devcluster.node.images`."""
    audit_bodies: bool = False
    """Whether the audit log has the bodies of what is written to pods, Jobs and our own kinds."""
    killed: tuple[str, ...] = ()
    owner: ProcessRecord | None = None
    """The cluster ends when this process is gone, such as a test run that was killed."""

    def grown_by(self, other: ClusterSpec) -> ClusterSpec:
        """This wish with everything that `other` asks for beyond it; what was set for the first nodes stays."""
        more = {
            "nodes": max(self.nodes, other.nodes),
            "s3": self.s3 or other.s3,
            "controllers": self.controllers or other.controllers,
            "gpus": self.gpus if self.nodes else other.gpus,
            "images": self.images if self.nodes else other.images,
        }
        return self.model_copy(update=more)

    def covers(self, other: ClusterSpec) -> bool:
        """Whether everything that `other` asks for is asked for here."""
        return self.grown_by(other) == self


class Phase(StrEnum):
    STARTING = "Starting"
    READY = "Ready"
    CRASHED = "Crashed"
    """A component ended that nobody asked to end; the others run on, so that one can look."""
    FAILED = "Failed"
    """The cluster could not start and everything was ended."""
    STOPPED = "Stopped"


class ComponentStatus(_Document):
    name: str
    state: str
    """Starting, Ready, Killed (as asked) or Crashed."""
    process: ProcessRecord | None = None
    ready_after_seconds: float | None = None
    message: str = ""


class ClusterStatus(_Document):
    phase: Phase
    message: str = ""
    supervisor: ProcessRecord
    slot: int | None = None
    ports: dict[str, int] = {}
    components: tuple[ComponentStatus, ...] = ()
    spec: ClusterSpec
    """The wish that this status answers to."""

    def component(self, name: str) -> ComponentStatus | None:
        return next((component for component in self.components if component.name == name), None)


class S3Credentials(_Document):
    """The access key of the user who may do everything."""

    access_key_id: str
    secret_access_key: str

    @classmethod
    def made_up(cls) -> S3Credentials:
        letters = string.ascii_uppercase + string.digits
        return cls(
            access_key_id="AKIA" + "".join(secrets.choice(letters) for _ in range(16)),
            secret_access_key=secrets.token_urlsafe(30),
        )


@dataclass(frozen=True)
class Addresses:
    """The part of 127/8 that belongs to the cluster in a slot. On Linux all of it answers without set-up.

    Slot 0 has 127.96 for Services, 127.97 for pods and 127.98 for control plane and nodes; the next slot starts 4 on.
    """

    slot: int

    @property
    def _first(self) -> int:
        return 96 + 4 * self.slot

    @property
    def services(self) -> IPv4Network:
        return IPv4Network(f"127.{self._first}.0.0/16")

    @property
    def kubernetes_service(self) -> IPv4Address:
        return self.services[1]

    @property
    def pods(self) -> IPv4Network:
        return IPv4Network(f"127.{self._first + 1}.0.0/16")

    @property
    def control_plane(self) -> IPv4Address:
        return IPv4Address(f"127.{self._first + 2}.0.1")

    def node(self, index: int) -> IPv4Address:
        return IPv4Address(f"127.{self._first + 2}.1.{index + 1}")

    def node_pods(self, index: int) -> IPv4Network:
        return IPv4Network(f"127.{self._first + 1}.{index}.0/24")


@dataclass(frozen=True)
class Layout:
    """The files of one cluster under its state folder."""

    root: Path

    @property
    def spec(self) -> Path:
        return self.root / "spec.json"

    @property
    def status(self) -> Path:
        return self.root / "status.json"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def pki(self) -> Path:
        return self.root / "pki"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def kubeconfig(self) -> Path:
        return self.root / "kubeconfig"

    @property
    def s3_credentials(self) -> Path:
        return self.root / "s3.json"

    @property
    def programs(self) -> Path:
        """Links to kubectl and helm, for PATH."""
        return self.root / "bin"

    def log(self, component: str) -> Path:
        return self.logs / f"{component}.log"

    def node_state(self, index: int) -> Path:
        return self.data / f"node-{index}"

    def component_kubeconfig(self, component: str) -> Path:
        return self.pki / f"{component}.kubeconfig"


def state_folder(name: str, environ: Mapping[str, str] = os.environ) -> Path:
    """Where the cluster `name` lives: TRAINYARD_DEVCLUSTER_HOME, else this checkout, else the user's state folder."""
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,38}[a-z0-9])?", name):
        raise ValueError(f"cluster name {name!r}: write lower-case letters, digits and hyphens, at most 40")
    if home := environ.get("TRAINYARD_DEVCLUSTER_HOME"):
        return Path(home) / name
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / "pyproject.toml").is_file():
        return checkout / ".devcluster" / name
    return Path(environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "trainyard" / "devcluster" / name
