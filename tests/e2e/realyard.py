"""Short words for what the tests of this folder do in the cluster with the installed chart."""

import hashlib
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from trainyard_api import API_VERSION
from trainyard_cli.cluster import Cluster as Client

from demo.stage import split_uri
from devcluster import Cluster

Object = dict[str, Any]
NAMESPACE, BUCKET = "vision", "vision"
FINAL = ("Succeeded", "Failed", "Stopped", "Canceled", "Aborted")
PATIENCE = 480.0
"""Seconds; a job of these tests takes a tenth of it on a machine that does nothing else."""


class Yard:
    """The namespace `vision` of the installed cluster, and short words for what tests do there."""

    def __init__(self, cluster: Cluster, s3: Any) -> None:
        self.cluster, self.s3 = cluster, s3
        self.client = Client(NAMESPACE, kubeconfig=str(cluster.kubeconfig))

    def put(self, key: str, data: bytes) -> str:
        """Store an object; its address."""
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=data)
        return f"s3://{BUCKET}/{key}"

    def get(self, uri: str) -> bytes:
        bucket, key = split_uri(uri)
        return self.s3.get_object(Bucket=bucket, Key=key)["Body"].read()

    def keys(self, prefix: str) -> list[str]:
        return [each["Key"] for each in self.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])]

    def apply(self, name: str, uri: str, **spec: Any) -> None:
        """A job as small as one gets: 64 pixels, one epoch; `spec` is laid over it, field by field."""
        whole: Object = {
            "architecture": "yard-nano",
            "dataset": {"sources": [{"uri": uri}], "imageSize": 64},
            "output": {"uri": f"s3://{BUCKET}/models"},
            "training": {"epochs": 1},
        }
        for key, value in spec.items():
            whole[key] = whole.get(key, {}) | value if isinstance(value, dict) else value
        self.create("TrainingJob", name, whole)

    def create(self, kind: str, name: str, spec: Object) -> None:
        """An object of one of our kinds."""
        body = {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec}
        self.client.request("POST", self.client.path(f"{kind.lower()}s"), body=body)

    def edit(self, name: str, **spec: Any) -> None:
        self.client.patch_job(name, {"spec": spec})

    def until(self, name: str, what: str, holds: Callable[[Object], Any], seconds: float = PATIENCE) -> Object:
        """The job's status once `holds(status)`; fails with what it is instead when that takes too long."""
        deadline, status = time.monotonic() + seconds, {}
        while time.monotonic() < deadline:
            status = self.client.get_job(name).get("status", {})
            if holds(status):
                return status
            time.sleep(0.4)
        log = self.cluster.kubectl("-n", NAMESPACE, "logs", f"-ltrainyard.dev/job={name}", "--tail=5", check=False)
        operator = self.cluster.kubectl(
            "-n", "trainyard-system", "logs", "deployment/trainyard", "--tail=15", check=False
        )
        pytest.fail(f"{name} was not {what} after {seconds} s: {json.dumps(status, indent=1)}\n{log}\n{operator}")

    def finished(self, name: str, seconds: float = PATIENCE) -> Object:
        """The status of a job that has come to its end."""
        return self.until(name, "at its end", lambda status: status.get("state") in FINAL, seconds)

    def object(self, plural: str, name: str) -> Object:
        """An object of one of our kinds."""
        return self.client.get(plural, name)

    def version_in(self, name: str, state: str, seconds: float = 30.0) -> Object:
        """The version once it is in `state`: it is written after the job's own."""
        deadline = time.monotonic() + seconds
        while (version := self.object("modelversions", name)).get("status", {}).get("state") != state:
            assert time.monotonic() < deadline, f"version {name} is {json.dumps(version.get('status'), indent=1)}"
            time.sleep(0.2)
        return version

    def children(self, plural: str, job: str) -> list[Object]:
        """Pods or batch/v1 Jobs of a job, by label."""
        return self.labelled(plural, f"trainyard.dev/job={job}")

    def labelled(self, plural: str, labels: str) -> list[Object]:
        return self._listed(plural, {"labelSelector": labels})

    def told(self, job: str, *reasons: str, seconds: float = 30.0) -> None:
        """Waits for Events of these reasons: they are sent after the status."""
        deadline = time.monotonic() + seconds
        query = {"fieldSelector": f"involvedObject.kind=TrainingJob,involvedObject.name={job}"}
        while not {*reasons} <= (seen := {each["reason"] for each in self._listed("events", query)}):
            assert time.monotonic() < deadline, f"the Events of {job} are {seen}"
            time.sleep(0.2)

    def _listed(self, plural: str, query: dict[str, str]) -> list[Object]:
        group = "/apis/batch/v1" if plural == "jobs" else "/api/v1"
        return self.client.request("GET", f"{group}/namespaces/{NAMESPACE}/{plural}", query=query)["items"]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
