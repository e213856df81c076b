"""The API server as the tests of the custom resources see it."""

from collections.abc import Iterator

import pytest
from kubernetes import config
from kubernetes.client import CoreV1Api

from devcluster import Cluster
from tests.api.api_server import Api
from tests.namespaces import fresh_namespace


@pytest.fixture(scope="session")
def api(crds: Cluster, core: CoreV1Api) -> Iterator[Api]:
    """The API server with Trainyard's custom resources, in a namespace of their own."""
    with fresh_namespace(core) as namespace:
        yield Api(config.new_client_from_config(str(crds.kubeconfig)), namespace)
