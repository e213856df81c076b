"""Where the benchmarks run: a real control plane, with nodes and pods by kwok, whose pods run for as long as they are told.

A pod of kwok that belongs to a Job ends well after its annotation `bench.trainyard.dev/milliseconds`, else after a second, with
the completion record of a trainer as its termination message: to the operator it is a training that published its version.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from devcluster import Cluster, processes
from devcluster.tools import GoTool, programs_folder

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KWOK = GoTool(
    name="kwok",
    folder=HERE / "kwok",
    package="sigs.k8s.io/kwok/cmd/kwok",
    programs=("kwok",),
    version_of="sigs.k8s.io/kwok",
    version_variables=("sigs.k8s.io/kwok/pkg/consts.Version={version}",),
)
NAMESPACE = "bench"
NODES = 20
PODS_PER_NODE = 2000
POD_MILLISECONDS = 1000
NODE_GRACE_SECONDS = 120
Object = dict[str, Any]

CONFIGURATION: Object = {
    "apiVersion": "config.kwok.x-k8s.io/v1alpha1",
    "kind": "KwokConfiguration",
    "options": {
        "manageAllNodes": True,
        "cidr": "10.0.0.1/16",
        "nodeLeaseDurationSeconds": 40,
        "podPlayStageParallelism": 16,
        "nodePlayStageParallelism": 4,
        "nodeLeaseParallelism": 4,
        "podsOnNodeSyncParallelism": 4,
    },
}
ALIVE = {"key": ".metadata.deletionTimestamp", "operator": "DoesNotExist"}
# A trainer's completion record; %s is the model.
RECORD = (
    '{"exitCode":0,"reason":"Completed","step":100,"steps":100,"trainingSeconds":1,'
    '"manifestURI":"s3://bench/models/%s/v1/manifest.json"}'
)


def stage(
    name: str, matching: list[Object], after: Object, *, kind: str = "Pod", delay: Object | None = None
) -> Object:
    spec: Object = {
        "resourceRef": {"apiGroup": "v1", "kind": kind},
        "selector": {"matchExpressions": matching},
        "next": after,
    }
    if delay:
        spec["delay"] = delay
    return {"apiVersion": "kwok.x-k8s.io/v1alpha1", "kind": "Stage", "metadata": {"name": name}, "spec": spec}


def phase(value: str) -> Object:
    return {"key": ".status.phase", "operator": "In", "values": [value]}


SIZE = {"cpu": "10k", "memory": "100Ti", "ephemeral-storage": "100Ti", "pods": str(PODS_PER_NODE)}
READY = {"type": "Ready", "status": "True", "reason": "KubeletReady", "message": "by kwok"}
STAGES = (
    stage(
        "node-is-ready",
        [
            {
                "key": '.status.conditions.[] | select( .type == "Ready" ) | .status',
                "operator": "NotIn",
                "values": ["True"],
            }
        ],
        {"statusTemplate": yaml.safe_dump({"capacity": SIZE, "allocatable": SIZE, "conditions": [READY]})},
        kind="Node",
    ),
    stage(
        "pod-runs",
        [ALIVE, phase("Pending")],
        {
            "statusTemplate": """
{{ $now := Now }}
phase: Running
startTime: {{ $now | Quote }}
conditions:
{{ range $type := list "Initialized" "ContainersReady" "Ready" }}
- {type: {{ $type }}, status: "True", lastTransitionTime: {{ $now | Quote }}}
{{ end }}
containerStatuses:
{{ range .spec.containers }}
- name: {{ .name | Quote }}
  image: {{ .image | Quote }}
  ready: true
  restartCount: 0
  state: {running: {startedAt: {{ $now | Quote }}}}
{{ end }}
"""
        },
    ),
    stage(
        "pod-ends",
        [ALIVE, phase("Running"), {"key": ".metadata.ownerReferences.[].kind", "operator": "In", "values": ["Job"]}],
        {
            "statusTemplate": f"""
{{{{ $now := Now }}}}
{{{{ $root := . }}}}
phase: Succeeded
containerStatuses:
{{{{ range .spec.containers }}}}
- name: {{{{ .name | Quote }}}}
  image: {{{{ .image | Quote }}}}
  ready: false
  restartCount: 0
  started: false
  state:
    terminated:
      exitCode: 0
      reason: Completed
      startedAt: {{{{ $root.status.startTime | Quote }}}}
      finishedAt: {{{{ $now | Quote }}}}
      {{{{ if index $root.metadata.labels "trainyard.dev/model" }}}}
      message: {{{{ printf {json.dumps(RECORD)} (index $root.metadata.labels "trainyard.dev/model") | Quote }}}}
      {{{{ end }}}}
{{{{ end }}}}
"""
        },
        delay={
            "durationMilliseconds": POD_MILLISECONDS,
        },
    ),
    stage("pod-goes", [{"key": ".metadata.deletionTimestamp", "operator": "Exists"}], {"delete": True}),
)


@dataclass(frozen=True)
class Ground:
    """The running control plane with its nodes; `pids` by name, of everything whose CPU time is counted."""

    cluster: Cluster
    folder: Path
    pids: dict[str, int]


@contextmanager
def ground(folder: Path) -> Iterator[Ground]:
    """A cluster with the project's CRDs and `NODES` nodes of kwok in it, for as long as the block runs."""
    kwok = programs_folder(KWOK) / "kwok"
    owner = processes.record(os.getpid())
    state = folder / "cluster"
    with Cluster.start("bench", state=state, owner=owner, node_grace_seconds=NODE_GRACE_SECONDS) as cluster:
        cluster.kubectl("create", "namespace", NAMESPACE)
        cluster.define(ROOT / "crds")
        cluster.kubectl("apply", "--filename", "-", stdin=yaml.safe_dump_all(node(index) for index in range(NODES)))
        config = folder / "kwok.yaml"
        config.write_text(yaml.safe_dump_all([CONFIGURATION, *STAGES]))
        arguments = [str(kwok), f"--kubeconfig={cluster.kubeconfig}", f"--config={config}", "--server-address="]
        with (folder / "kwok.log").open("wb") as log:
            process = subprocess.Popen(arguments, stdout=log, stderr=log)
        try:
            cluster.kubectl("wait", "--for=condition=Ready", "node", "--all", "--timeout=60s")
            wait_for_garbage_collector(cluster)
            status = cluster.status()
            assert status is not None
            pids = {each.name: each.process.pid for each in status.components if each.process}
            yield Ground(cluster, folder, pids | {"kwok": process.pid})
        finally:
            process.terminate()
            process.wait(10)


def wait_for_garbage_collector(cluster: Cluster, plural: str = "trainingjobs", seconds: float = 180) -> None:
    """It learns of new kinds every 30 seconds; until then it asks for the owner of every child again and again."""
    watched = re.compile(rf'^apiserver_longrunning_requests{{.*resource="{plural}".*verb="WATCH"', re.MULTILINE)
    deadline = time.monotonic() + seconds
    while not watched.search(cluster.kubectl("get", "--raw", "/metrics")):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the garbage collector does not watch {plural} after {seconds:.0f} s")
        time.sleep(1)


def documents(text: str) -> list[Object]:
    """What is in a YAML stream, read in C: PyYAML's own reader takes half a minute over the CRDs of a peer."""
    return [each for each in yaml.load_all(text, yaml.CSafeLoader) if each]


def node(index: int) -> Object:
    labels = {"kubernetes.io/hostname": f"kwok-{index}", "kubernetes.io/os": "linux", "type": "kwok"}
    metadata = {"name": f"kwok-{index}", "labels": labels, "annotations": {"kwok.x-k8s.io/node": "fake"}}
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata}
