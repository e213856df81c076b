"""What is compared: how each system is started, what a user applies, and what its objects show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from ground import NAMESPACE, ROOT, Ground, documents
from trainyard_operator.cluster import JOBS, PODS, TRAINING_JOBS, TRAINING_SERVICES, Resource

from devcluster import Cluster

Object = dict[str, Any]
IMAGE = "bench/trainer:1"
SERVICE = "bench"
CONTROLLERS = frozenset({"operator", "kueue", "jobset", "trainer"})
"""Names of the processes that are a system's own."""
PROBE_PORT = 18080
OPERATOR_NAMESPACE = "default"
INSTALLED = frozenset(
    {
        "ServiceAccount",
        "Role",
        "RoleBinding",
        "ClusterRole",
        "ClusterRoleBinding",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    }
)
"""What of the chart concerns the API server; the rest runs the operator inside a cluster."""


class System:
    """What a user applies is an object of `unit`; a Job or pod made for it has its name in the label `label`."""

    name: str
    unit: Resource
    label: str

    def unit_of(self, child: Object) -> str | None:
        """The name of the applied object that a Job or pod belongs to."""
        return (child["metadata"].get("labels") or {}).get(self.label)

    def body(self, name: str) -> Object:
        raise NotImplementedError

    def marks(self, obj: Object) -> Iterable[str]:
        """States of the applied object, `succeeded` among them."""
        raise NotImplementedError

    def build(self) -> None:
        """Make its programs, where they are not in the cache yet."""

    def setup(self) -> list[tuple[Resource, Object]]:
        """What has to be there before the first object."""
        return []

    @contextmanager
    def running(self, ground: Ground) -> Iterator[dict[str, int]]:
        """Its controllers, by name of the process."""
        yield {}


def conditions(obj: Object) -> set[str]:
    return {each["type"] for each in (obj.get("status") or {}).get("conditions") or () if each["status"] == "True"}


class Plain(System):
    """batch/v1 Jobs alone: the floor under everything else."""

    name, unit, label = "plain Jobs", JOBS, "batch.kubernetes.io/job-name"

    def body(self, name: str) -> Object:
        container = {"name": "main", "image": IMAGE, "resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}}
        template = {"spec": {"restartPolicy": "Never", "containers": [container]}}
        metadata = {"namespace": NAMESPACE, "name": name}
        spec = {"template": template, "backoffLimit": 0}
        return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}

    def unit_of(self, child: Object) -> str | None:
        return super().unit_of(child) or child["metadata"]["name"]

    def marks(self, obj: Object) -> Iterable[str]:
        if "Complete" in conditions(obj):
            yield "succeeded"


class Trainyard(System):
    name, unit, label = "Trainyard", TRAINING_JOBS, "trainyard.dev/job"
    slots = 10_000

    def body(self, name: str) -> Object:
        spec = {
            "architecture": "yard-nano",
            "serviceName": SERVICE,
            "dataset": {"sources": [{"uri": "s3://bench/data.zip"}]},
            "output": {"uri": "s3://bench/models"},
        }
        metadata = {"namespace": NAMESPACE, "name": name}
        return {"apiVersion": "trainyard.dev/v1alpha1", "kind": "TrainingJob", "metadata": metadata, "spec": spec}

    def marks(self, obj: Object) -> Iterable[str]:
        state = (obj.get("status") or {}).get("state", "Created")
        if state == "Succeeded":
            yield "succeeded"
        elif state in ("Failed", "Aborted", "Unspecified"):
            yield "failed"
        elif state == "Queued":
            yield "queued"

    def setup(self) -> list[tuple[Resource, Object]]:
        spec = {
            "architecture": "yard-nano",
            "instance": {"gpus": 0, "cpu": "100m", "memory": "64Mi"},
            "scaling": {"maxInstances": self.slots},
        }
        metadata = {"namespace": NAMESPACE, "name": SERVICE}
        body = {"apiVersion": "trainyard.dev/v1alpha1", "kind": "TrainingService", "metadata": metadata, "spec": spec}
        return [(TRAINING_SERVICES, body)]

    @contextmanager
    def running(self, ground: Ground) -> Iterator[dict[str, int]]:
        with operator_process(ground.cluster, ground.folder / "operator.log") as process:
            yield {"operator": process.pid}


@contextmanager
def operator_process(cluster: Cluster, log: Path, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """The operator, outside the cluster, with the rights and the token of the chart's account.

    `settings` are its own, over those that keep it on this machine.
    """
    own = {
        "namespace": OPERATOR_NAMESPACE,
        # There is nobody to take over: a machine that is used up to the last must not end the only replica.
        "lease_seconds": "60",
        "probe_host": "127.0.0.1",
        "probe_port": str(PROBE_PORT),
        "intake_host": "127.0.0.1",
        "intake_port": "18443",
        "intake_url": "https://127.0.0.1:18443",
    } | settings
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TRAINYARD_")}
    environment |= {f"TRAINYARD_{key.upper()}": value for key, value in own.items()}
    environment["KUBECONFIG"] = str(installed_account(cluster, log.with_name("operator-kubeconfig")))
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "trainyard_operator"], env=environment, stdout=out, stderr=out
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def installed_account(cluster: Cluster, path: Path) -> Path:
    """A kubeconfig at `path` for the account of the chart, which is installed as far as it concerns the API server."""
    chart = ("trainyard", str(ROOT / "helm" / "trainyard"), "--namespace", OPERATOR_NAMESPACE)
    objects = documents(cluster.helm("template", *chart, "--set", "crds.create=false"))
    objects = [each for each in objects if each["kind"] in INSTALLED]
    cluster.kubectl("apply", "--filename", "-", stdin=yaml.safe_dump_all(objects))
    (account,) = (each["metadata"]["name"] for each in objects if each["kind"] == "ServiceAccount")
    return cluster.kubeconfig_of(account, OPERATOR_NAMESPACE, path)


class AttemptJobs(Plain):
    """The Jobs that Trainyard makes, without Trainyard: what of its cost is that of its pods."""

    name = "attempt Jobs"
    pattern = Trainyard()
    template: Object

    def setup(self) -> list[tuple[Resource, Object]]:
        return [*self.pattern.setup(), (TRAINING_JOBS, self.pattern.body("pattern"))]

    @contextmanager
    def running(self, ground: Ground) -> Iterator[dict[str, int]]:
        """The operator makes one Job, which is copied, and ends."""
        kubectl = ground.cluster.kubectl
        with self.pattern.running(ground):
            kubectl("--namespace", NAMESPACE, "wait", "--for=create", "job/pattern-r0-a1", "--timeout=60s")
            made = json.loads(kubectl("--namespace", NAMESPACE, "get", "job", "pattern-r0-a1", "--output=json"))
        kubectl("--namespace", NAMESPACE, "delete", "trainingjob", "pattern")
        for metadata in (made["metadata"], made["spec"]["template"]["metadata"]):
            metadata["labels"] = {key: each for key, each in metadata["labels"].items() if "trainyard" in key}
        metadata = {"namespace": NAMESPACE, "labels": made["metadata"]["labels"]}
        spec = {key: each for key, each in made["spec"].items() if key != "selector"}
        self.template = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}
        yield {}

    def body(self, name: str) -> Object:
        return self.template | {"metadata": self.template["metadata"] | {"name": name}}


CHILDREN = (JOBS, PODS)


def child_marks(obj: Object) -> Iterable[str]:
    """States of a Job or a pod, told apart by their name."""
    status = obj.get("status") or {}
    if obj["kind"] == "Job":
        yield "job"
        if not obj["spec"].get("suspend"):
            yield "unsuspended"
        if {"Complete", "Failed"} & conditions(obj):
            yield "job ended"
    else:
        if status.get("phase") == "Running":
            yield "pod running"
        elif status.get("phase") in ("Succeeded", "Failed"):
            yield "pod ended"
