"""Fixtures for the operator's tests: its own connection to the real cluster."""

from collections.abc import AsyncIterator

import pytest_asyncio
from trainyard_operator.cluster import Cluster

from devcluster import Cluster as Devcluster


@pytest_asyncio.fixture
async def api(crds: Devcluster) -> AsyncIterator[Cluster]:
    """The operator's connection to the API server, with an administrator's rights."""
    connection = await Cluster.connect(str(crds.kubeconfig))
    yield connection
    await connection.close()
