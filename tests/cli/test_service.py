"""`trainyard service …` against a real API server."""

import json
from collections.abc import Callable

import pytest

from devcluster import Cluster
from tests import commands
from tests.commands import Done

Run = Callable[..., Done]


@pytest.fixture
def trainyard(crds: Cluster, namespace: str) -> Run:
    def run(*arguments: str) -> Done:
        return commands.trainyard("service", *arguments, "-n", namespace, "--kubeconfig", crds.kubeconfig)

    service = {
        "apiVersion": "trainyard.dev/v1alpha1",
        "kind": "TrainingService",
        "metadata": {"name": "fast"},
        "spec": {"architecture": "yard-nano"},
    }
    crds.kubectl("-n", namespace, "create", "-f", "-", stdin=json.dumps(service))
    return run


def test_the_commands_change_the_field_that_is_meant(trainyard: Run):
    assert trainyard("scale", "fast", "--replicas", "3").returncode == 0
    assert trainyard("pause", "fast").returncode == 0
    assert trainyard("reset", "fast").stdout == "fast: reset 1 requested\n"
    [item] = json.loads(trainyard("list", "-o", "json").stdout)["items"]
    assert (item["spec"]["scaling"]["maxInstances"], item["spec"]["paused"], item["spec"]["reset"]) == (3, True, 1)
    assert trainyard("resume", "fast").returncode == 0
    table = trainyard("list").stdout.splitlines()
    assert table[0].split()[:2] == ["NAME", "ARCHITECTURE"]
    assert table[1].split()[:2] == ["fast", "yard-nano"]


def test_an_unknown_service_is_named(trainyard: Run):
    done = trainyard("pause", "slow")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: There is no TrainingService slow in namespace ")
