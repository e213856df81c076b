"""The cluster in which the bad days are played."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from devcluster import Cluster, processes

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def stage(state: Path, say: Callable[[str], None] = lambda _: None) -> Iterator[Cluster]:
    """A cluster of its own, for its parts are killed: one node, S3, our kinds, and bodies in its audit log."""
    owner = processes.record(os.getpid())
    with Cluster.start("chaos", state=state, nodes=1, s3=True, audit_bodies=True, owner=owner, say=say) as cluster:
        cluster.define(ROOT / "crds")
        yield cluster
