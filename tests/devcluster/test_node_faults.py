"""Nodes that freeze, are killed, and come back; and sandboxes without root."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import CoordinationV1Api, CoreV1Api, V1ContainerStateTerminated, V1Pod

from devcluster import Cluster
from devcluster.node import faults
from devcluster.node.process import start_ticks
from devcluster.node.sandbox import Sandbox, arguments
from tests.devcluster.replay import Node, make_node


def until(condition: Callable[[], Any], what: str, seconds: float = 60.0) -> Any:
    """The condition's first answer that is true."""
    deadline = time.monotonic() + seconds
    while not (answer := condition()):
        assert time.monotonic() < deadline, f"not seen within {seconds:.0f} s: {what}"
        time.sleep(0.1)
    return answer


@pytest.fixture
def node(cluster: Cluster, core: CoreV1Api, tmp_path: Path) -> Iterator[Node]:
    """A node of the test's own, ready."""
    index = 150 + os.getpid() % 40
    addresses = cluster.addresses
    name = f"fault-{index}"
    node = make_node(
        name, cluster.kubeconfig, tmp_path / "node", str(addresses.node(index)), str(addresses.node_pods(index)), 1
    )
    # Cordoned before it is there: the scheduler would give it the pods of other tests, which would be lost with it.
    core.create_node({"metadata": {"name": name}, "spec": {"unschedulable": True}})
    node.start()

    def ready() -> bool:
        found = core.list_node(field_selector=f"metadata.name={name}").items
        return any(
            (one.type, one.status) == ("Ready", "True") for each in found for one in each.status.conditions or []
        )

    until(ready, f"node {name} to be ready")
    yield node
    node.end()
    core.delete_node(name)


@pytest.fixture
def pod(core: CoreV1Api, namespace: str, node: Node) -> V1Pod:
    """A pod that runs on the node until it is ended."""
    container = {
        "name": "main",
        "image": "local/shell",
        "command": ["sh", "-c", "trap 'exit 9' TERM; sleep 4000 & wait"],
    }
    spec = {"nodeName": node.name, "restartPolicy": "Never", "containers": [container]}
    core.create_namespaced_pod(namespace, {"metadata": {"name": "p"}, "spec": spec})

    def running() -> V1Pod | None:
        found = core.read_namespaced_pod("p", namespace)
        return found if found.status.phase == "Running" else None

    return until(running, "the pod to run")


def run_folder(node: Node, pod: V1Pod) -> Path:
    return node.state / "pods" / pod.metadata.uid / "containers" / "main" / "0"


def pids(node: Node, pod: V1Pod) -> tuple[int, int]:
    """bubblewrap's pid, and that of the container's process 1."""
    folder = run_folder(node, pod)
    status = json.loads((folder / "status").read_text().splitlines()[0])
    return json.loads((folder / "run.json").read_text())["monitor"], status["child-pid"]


def container_end(core: CoreV1Api, pod: V1Pod) -> V1ContainerStateTerminated | None:
    found = core.read_namespaced_pod(pod.metadata.name, pod.metadata.namespace)
    return found.status.container_statuses[0].state.terminated


@pytest.mark.cluster
def test_a_node_that_is_killed_leaves_nothing_and_says_so_when_it_is_back(core: CoreV1Api, node: Node, pod: V1Pod):
    monitor, child = pids(node, pod)
    faults.kill(node.state)
    until(lambda: start_ticks(monitor) is None and start_ticks(child) is None, "the end of the container")
    assert node.process is not None
    node.process.wait(10)
    node.start()
    ended = until(lambda: container_end(core, pod), "the end in the pod's status")
    assert (ended.exit_code, ended.reason) == (255, "Unknown")


@pytest.mark.cluster
def test_a_frozen_node_does_nothing_while_its_container_runs_on(core: CoreV1Api, node: Node, pod: V1Pod):
    _, child = pids(node, pod)
    leases = CoordinationV1Api(core.api_client)

    def heartbeat() -> datetime:
        return leases.read_namespaced_lease(node.name, "kube-node-lease").spec.renew_time

    faults.freeze(node.state)
    try:
        renewed = heartbeat()
        core.delete_namespaced_pod("p", pod.metadata.namespace)
        # Long enough for two heartbeats, and for a node that lives to have ended the container.
        deadline = time.monotonic() + 5
        until(lambda: time.monotonic() > deadline, "five seconds")
        assert heartbeat() == renewed
        assert start_ticks(child) is not None
    finally:
        faults.thaw(node.state)
    until(lambda: start_ticks(child) is None, "the end of the container, once the node is back")
    until(lambda: heartbeat() != renewed, "a heartbeat")


@pytest.mark.cluster
def test_what_runs_of_a_pod_that_is_no_more_is_killed_when_the_node_is_back(core: CoreV1Api, node: Node, pod: V1Pod):
    _, child = pids(node, pod)
    node.stop(signal.SIGKILL)
    core.delete_namespaced_pod("p", pod.metadata.namespace, grace_period_seconds=0)
    until(lambda: not core.list_namespaced_pod(pod.metadata.namespace).items, "the end of the pod's object")
    assert start_ticks(child) is not None, "nobody is there to end it"
    node.start()
    until(lambda: start_ticks(child) is None, "the end of the orphan")
    until(lambda: not run_folder(node, pod).exists(), "the end of its files")


@pytest.mark.cluster
def test_a_container_whose_bubblewrap_is_killed_ends_and_nobody_knows_how(core: CoreV1Api, node: Node, pod: V1Pod):
    monitor, child = pids(node, pod)
    os.kill(monitor, signal.SIGKILL)
    ended = until(lambda: container_end(core, pod), "the end in the pod's status")
    assert (ended.exit_code, ended.reason) == (255, "Unknown")
    until(lambda: start_ticks(child) is None, "the end of the container")


@pytest.mark.skipif(os.getuid() != 0, reason="an ordinary user runs every other test in this way")
def test_a_sandbox_needs_no_root(tmp_path: Path):
    somebody = 65534
    layer = Path("/var/tmp") / f"devcluster-{os.getpid()}"
    layer.mkdir()
    try:
        os.chown(layer, somebody, somebody)
        script = (
            "id -u; echo x > /tmp/f && cat /tmp/f; touch /etc/passwd 2>/dev/null || echo read-only; kill -9 $$; echo 1"
        )
        sandbox = Sandbox(layer, (), "host", 1000, 1000, False, "/", ("sh", "-c", script))
        read, write = os.pipe()
        command = arguments(sandbox, write)
        done = subprocess.run(
            command, user=somebody, group=somebody, extra_groups=[], pass_fds=[write], capture_output=True, text=True
        )
        os.close(write)
        with os.fdopen(read) as status:
            lines = [json.loads(line) for line in status]
    finally:
        subprocess.run(["rm", "-rf", str(layer)], check=True)
    assert done.stdout.splitlines() == ["1000", "x", "read-only", "1"], done.stderr
    # Process 1 of a pid namespace cannot kill itself, so it went on to its end.
    assert lines[-1] == {"exit-code": 0}
