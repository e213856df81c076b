import pytest
from kubernetes import config

from devcluster import Cluster
from tests.api.api_server import Api


@pytest.fixture(scope="session")
def api(crds: Cluster) -> Api:
    """The API server with Trainyard's custom resources."""
    return Api(config.new_client_from_config(str(crds.kubeconfig)))
