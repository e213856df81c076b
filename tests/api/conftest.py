"""The API server as the tests of the custom resources see it."""

import secrets
from collections.abc import Iterator

import pytest
from kubernetes import config

from devcluster import Cluster
from tests.api.api_server import Api


@pytest.fixture(scope="session")
def api(crds: Cluster) -> Iterator[Api]:
    """The API server with Trainyard's custom resources, in a namespace of their own."""
    namespace = f"api-{secrets.token_hex(4)}"
    crds.kubectl("create", "namespace", namespace)
    yield Api(config.new_client_from_config(str(crds.kubeconfig)), namespace)
    crds.kubectl("delete", "namespace", namespace, "--wait=false")
