"""Fixtures for the operator's tests: the CRDs in the real cluster, and the operator's own connection to it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from trainyard_operator.cluster import Cluster

from devcluster import Cluster as Devcluster

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def crds(cluster: Devcluster) -> Devcluster:
    """The cluster with the CRDs established."""
    files = sorted(str(path) for path in (ROOT / "crds").glob("*.yaml"))
    cluster.kubectl("apply", "--server-side", *(argument for file in files for argument in ("-f", file)))
    cluster.kubectl("wait", "--for=condition=Established", *(argument for file in files for argument in ("-f", file)))
    return cluster


@pytest_asyncio.fixture
async def api(crds: Devcluster) -> AsyncIterator[Cluster]:
    """The operator's connection to the API server, with an administrator's rights."""
    connection = await Cluster.connect(str(crds.kubeconfig))
    yield connection
    await connection.close()
