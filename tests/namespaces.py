"""Namespaces for tests: made with what pods need there, and afterwards nothing runs in them any more."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from kubernetes.client import ApiException, BatchV1Api, CoreV1Api, CustomObjectsApi, V1Namespace, V1ObjectMeta

LENT_CLUSTER = "TRAINYARD_TEST_CLUSTER"
"""Environment variable with the name of a running cluster to test on, which stays."""


@contextmanager
def fresh_namespace(core: CoreV1Api, name: str | None = None) -> Iterator[str]:
    """A namespace with its service account, for as long as the block runs. `core` needs an administrator's rights."""
    name = name or f"test-{secrets.token_hex(4)}"
    core.create_namespace(V1Namespace(metadata=V1ObjectMeta(name=name)))
    deadline = time.monotonic() + 30
    while not core.list_namespaced_service_account(name, field_selector="metadata.name=default").items:
        assert time.monotonic() < deadline, f"namespace {name} has no service account"
        time.sleep(0.02)
    try:
        yield name
    finally:
        if LENT_CLUSTER in os.environ:
            core.delete_namespace(name)
        else:
            _end_what_runs(core, name)


def _end_what_runs(core: CoreV1Api, name: str) -> None:
    """Without waiting. The cluster is thrown away in the end, and to empty a namespace its controller asks a hundred times, for
    each kind that there is: that were a third of all requests of a test run."""
    custom = CustomObjectsApi(core.api_client)
    for plural in ("trainingservices", "trainingjobs"):
        with suppress(ApiException):  # not every test has our kinds
            custom.delete_collection_namespaced_custom_object("trainyard.dev", "v1alpha1", name, plural)
    BatchV1Api(core.api_client).delete_collection_namespaced_job(name, propagation_policy="Background")
    core.delete_collection_namespaced_pod(name, grace_period_seconds=1)
