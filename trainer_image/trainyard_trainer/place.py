"""Which of the processes of a training this one is, and where they meet. No torch.

One process per GPU, or one for the CPUs of a node without GPUs. The process that the pod starts is the supervisor of its node
(`processes`) when there is more than one in all; it tells each of its children, by environment, which one it is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from trainyard_api.run import NODE_RANK_ENV, RunSpec

from trainyard_trainer.errors import BadSpec

LOCAL_RANK = "TRAINYARD_LOCAL_RANK"
"""Set for the children of a supervisor only."""
LOCAL_PORT = "TRAINYARD_LOCAL_PORT"
SHARED_FOLDER = "TRAINYARD_SHARED_FOLDER"
STARTED = "TRAINYARD_STARTED"
SUPERVISOR = "TRAINYARD_SUPERVISOR"
"""Its process id."""
HALVINGS = "TRAINYARD_HALVINGS"
"""How often the processes were started again with smaller parts of a batch, because a GPU's memory was too small."""

ALLOW_CPU = "TRAINYARD_ALLOW_CPU"
"""1: without a GPU, CPUs may take its place."""


@dataclass(frozen=True)
class Place:
    """`rank` counts over all nodes, `local_rank` on this one. `folder` is shared by the processes of this node; `host` and `port`
    are where rank 0 waits for the others."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    host: str = "127.0.0.1"
    port: int = 0
    folder: Path | None = None
    halvings: int = 0

    @property
    def leads(self) -> bool:
        """Whether it is the one that reports, saves and publishes."""
        return self.rank == 0

    @property
    def leads_node(self) -> bool:
        """Whether it is the one that fetches and decodes the data for its node."""
        return self.local_rank == 0

    def slice_of(self, batch_size: int) -> tuple[int, int]:
        """First image and the one after the last of this rank's part of a global batch."""
        return batch_size * self.rank // self.world, batch_size * (self.rank + 1) // self.world


ALONE = Place()


def on_cpus(gpus: int) -> bool:
    """Whether a training that asks for so many GPUs will run on CPUs, as far as can be told without torch."""
    return gpus == 0 or (os.environ.get(ALLOW_CPU) == "1" and not Path("/proc/driver/nvidia").exists())


def processes_per_node(spec: RunSpec) -> int:
    return max(1, spec.gpus)


def place_of(spec: RunSpec, environment: Mapping[str, str] = os.environ) -> Place:
    """Raises BadSpec when the spec and the pod do not fit together."""
    local_world = processes_per_node(spec)
    world = local_world * spec.nodes
    if world == 1:
        return ALONE
    node = node_rank(spec, environment)
    local_rank = int(environment.get(LOCAL_RANK, "0"))
    host, port = "127.0.0.1", int(environment.get(LOCAL_PORT, "0"))
    if spec.nodes > 1:
        assert spec.rendezvous is not None
        host, port = spec.rendezvous.host, spec.rendezvous.port
    folder = environment.get(SHARED_FOLDER)
    rank = node * local_world + local_rank
    halvings = int(environment.get(HALVINGS, "0"))
    return Place(rank, world, local_rank, local_world, host, port, Path(folder) if folder else None, halvings)


def node_rank(spec: RunSpec, environment: Mapping[str, str]) -> int:
    """This pod's number among the attempt's pods. Raises BadSpec when it is missing or none of them."""
    if spec.nodes == 1:
        return 0
    if spec.rendezvous is None:
        raise BadSpec(f"the RunSpec has {spec.nodes} nodes and no rendezvous; it has to name pod 0 and a port.")
    told = environment.get(NODE_RANK_ENV, "")
    if not told.isdigit() or int(told) >= spec.nodes:
        raise BadSpec(
            f"{NODE_RANK_ENV} is {told!r}, one of {spec.nodes} nodes has a number from 0 to {spec.nodes - 1}; the attempt has to be an"
            " Indexed Job."
        )
    return int(told)
