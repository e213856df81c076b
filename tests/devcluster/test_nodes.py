"""Nodes as a cluster's user sees them: pods run, and a node can be frozen, killed and brought back."""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
from collections.abc import Iterator

import pytest

from devcluster import Cluster, processes

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of one node that may be broken; it counts as unreachable after 15 s."""
    state = tmp_path_factory.mktemp("fragile")
    with Cluster.start("fragile", state=state, nodes=1, gpus=1, node_grace_seconds=15) as cluster:
        yield cluster


def test_a_job_runs_on_a_gpu_of_a_node_and_kubectl_shows_its_logs(
    cluster: Cluster, nodes: tuple[str, ...], namespace: str
) -> None:
    container = {
        "name": "main",
        "image": "local/shell",
        "command": ["sh", "-c", "echo this is $(hostname)"],
        "resources": {"limits": {"nvidia.com/gpu": 1}},
    }
    template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "hello"}, "spec": {"template": template}}
    cluster.kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(job))
    cluster.kubectl("wait", "-n", namespace, "--for=condition=Complete", "job/hello", "--timeout=50s")
    assert "this is hello-" in cluster.kubectl("logs", "-n", namespace, "job/hello")
    host = cluster.kubectl("get", "pods", "-n", namespace, "--output=jsonpath={.items[0].spec.nodeName}")
    assert host in nodes


def test_more_gpus_than_any_node_has_cannot_be_scheduled(
    cluster: Cluster, nodes: tuple[str, ...], namespace: str
) -> None:
    resources = {"limits": {"nvidia.com/gpu": 5}}
    container = {"name": "main", "image": "local/shell", "command": ["true"], "resources": resources}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "greedy"}, "spec": {"containers": [container]}}
    cluster.kubectl("apply", "-n", namespace, "-f", "-", stdin=json.dumps(pod))
    cluster.kubectl("wait", "-n", namespace, "--for=condition=PodScheduled=False", "pod/greedy", "--timeout=30s")
    why = cluster.kubectl("get", "pod", "greedy", "-n", namespace, "--output=jsonpath={.status.conditions[0].message}")
    assert f"{len(nodes)} Insufficient nvidia.com/gpu" in why


def test_a_frozen_node_becomes_unreachable_while_its_pods_run_on(fragile: Cluster) -> None:
    process = run_pod(fragile, "frozen")
    fragile.freeze_node(0)
    fragile.kubectl("wait", "--for=condition=Ready=Unknown", "node/node-0", "--timeout=50s")
    assert processes.is_alive(process)
    fragile.thaw_node(0)
    fragile.kubectl("wait", "--for=condition=Ready=True", "node/node-0", "--timeout=50s")
    assert processes.is_alive(process)


def test_a_killed_node_takes_its_pods_with_it_and_can_come_back(fragile: Cluster) -> None:
    process = run_pod(fragile, "killed")
    fragile.kill_node(0)
    assert processes.wait_gone([process], 10)
    fragile.restart_node(0)
    fragile.kubectl("wait", "--for=condition=Ready=True", "node/node-0", "--timeout=50s")
    run_pod(fragile, "after")


def test_down_ends_the_pods_even_of_a_cluster_whose_supervisor_was_killed(fragile: Cluster) -> None:
    process = run_pod(fragile, "left")
    status = fragile.status()
    assert status is not None
    processes.send(status.supervisor, signal.SIGKILL)
    fragile.stop()
    assert not processes.is_alive(process)


def run_pod(cluster: Cluster, name: str) -> processes.ProcessRecord:
    """Runs a pod of one sleeping process, and returns that process as this machine sees it."""
    seconds = str(10**6 + secrets.randbelow(10**6))
    cluster.kubectl("run", name, "--image=local/shell", "--", "sleep", seconds)
    cluster.kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=50s")
    found = subprocess.run(["pgrep", "--full", f"^sleep {seconds}$"], capture_output=True, text=True, check=True)
    record = processes.record(int(found.stdout))
    assert record is not None
    return record
