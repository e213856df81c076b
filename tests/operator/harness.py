"""Runs the operator as a process, kills it, and waits for what it should bring about."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trainyard_operator.cluster import (
    JOBS,
    MODEL_VERSIONS,
    PODS,
    TRAINING_BUDGETS,
    TRAINING_JOBS,
    TRAINING_SERVICES,
    Cluster,
    Resource,
)

from devcluster.access import free_port

QUOTAS = Resource("", "v1", "resourcequotas", "ResourceQuota")
FAKE_TRAINER = Path(__file__).parent / "fake_trainer"
POLL_SECONDS = 0.4
FINAL = {"Succeeded", "Failed", "Stopped", "Canceled", "Aborted"}
Object = dict[str, Any]


class Operator:
    """The operator under test, started again as often as a test likes; its ports and its identity stay.

    A short lease is lost where the machine stands still for seconds, and who lost it ends: `restarted` starts it again then,
    as the kubelet does.
    """

    def __init__(
        self,
        kubeconfig: Path,
        namespace: str,
        log: Path,
        *,
        restarted: bool = False,
        module: str = "trainyard_operator",
        environment: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        """`settings` are the operator's own; `module` is what is run, with `environment` over this process's."""
        self.restarted = restarted
        self.namespace = namespace
        self.log = log
        self._module = module
        self.probe_port, self.intake_port = free_port(), free_port()
        own = {
            "namespace": namespace,
            "watch_namespaces": namespace,
            "identity": "operator-under-test",
            "lease_seconds": 90,
            "probe_host": "127.0.0.1",
            "probe_port": self.probe_port,
            "intake_host": "127.0.0.1",
            "intake_port": self.intake_port,
            "intake_url": f"https://127.0.0.1:{self.intake_port}",
            "report_seconds": 0.1,
            "default_cpu": "10m",
            "default_memory": "64Mi",
            "default_shared_memory": "8Mi",
            "log_format": "text",
            "log_level": "DEBUG" if os.environ.get("TRAINYARD_TEST_DEBUG") else "INFO",
        } | settings
        self._environment = {key: value for key, value in os.environ.items() if not key.startswith("TRAINYARD_")}
        self._environment |= {"KUBECONFIG": str(kubeconfig)} | dict(environment or {})
        for key, value in own.items():
            text = json.dumps(value) if isinstance(value, dict | list) else str(value)
            self._environment[f"TRAINYARD_{key.upper()}"] = text
        self.process: subprocess.Popen[bytes] | None = None
        self.restarts = 0
        """How often it ended by itself and was started again."""
        self._wanted = False
        self._lock = threading.Lock()

    def start(self) -> None:
        self._wanted = True
        self._run()
        if self.restarted:
            threading.Thread(target=self._run_again, args=(self.process,), daemon=True).start()

    def _run(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", self._module], env=self._environment, stdout=log, stderr=log
            )

    def _run_again(self, process: subprocess.Popen[bytes]) -> None:
        """Until somebody else ends it."""
        while True:
            process.wait()
            with self._lock:
                if not self._wanted or self.process is not process:
                    return
                self.restarts += 1
                self._run()
                assert self.process is not None
                process = self.process

    async def ready(self, seconds: float = 90) -> None:
        """Wait until the operator decides; says what its log says when it ends instead."""
        deadline = time.monotonic() + seconds
        while "trainyard_leader 1.0" not in (await asyncio.to_thread(self.get, "/metrics"))[1]:
            assert self.process is not None
            waiting = self.process.poll() is None and time.monotonic() < deadline
            assert waiting, f"not ready:\n{self.log.read_text()[-3000:]}"
            await asyncio.sleep(0.1)

    async def serving(self, seconds: float = 90) -> None:
        """Wait until it takes reports, whether it leads or not."""
        deadline = time.monotonic() + seconds
        while True:
            if (await asyncio.to_thread(self.get, "/readyz"))[0] == 200:
                return
            assert time.monotonic() < deadline, f"takes no reports:\n{self.log.read_text()[-3000:]}"
            await asyncio.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL: no chance to write anything down."""
        with self._lock:
            self._wanted = False
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def end(self, seconds: float = 8) -> int:
        """SIGTERM; the exit code."""
        with self._lock:
            self._wanted = False
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def get(self, path: str) -> tuple[int, str]:
        """GET from the probe port; 0 when nobody answers."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.probe_port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()
        except OSError:
            return 0, ""


async def leading(operators: list[Operator], seconds: float = 60) -> Operator:
    """The one that leads now, as soon as one does."""
    deadline = time.monotonic() + seconds
    while True:
        for operator in operators:
            if "trainyard_leader 1.0" in (await asyncio.to_thread(operator.get, "/metrics"))[1]:
                return operator
        assert time.monotonic() < deadline, f"nobody leads:\n{operators[0].log.read_text()[-3000:]}"
        await asyncio.sleep(0.1)


class Yard:
    """A namespace with the operator's objects in it, and short words for what tests do there."""

    def __init__(self, api: Cluster, namespace: str, operator: "Operator | None") -> None:
        self.api = api
        self.namespace = namespace
        self.operator = operator

    async def service(self, name: str, **spec: Any) -> Object:
        """A service of yard-nano that runs the fake trainer on CPU."""
        defaults: Object = {
            "architecture": "yard-nano",
            "image": "local/python",
            "instance": {"gpus": 0, "cpu": "10m", "memory": "64Mi"},
            "scaling": {"maxInstances": 12},
            "execution": {"drainSeconds": 5, "backoffSeconds": 1},
            "env": [{"name": "PYTHONPATH", "value": str(FAKE_TRAINER)}],
        }
        for key, value in spec.items():
            defaults[key] = defaults[key] | value if isinstance(value, dict) and key in defaults else value
        metadata = {"namespace": self.namespace, "name": name}
        body = {
            "apiVersion": "trainyard.dev/v1alpha1",
            "kind": "TrainingService",
            "metadata": metadata,
            "spec": defaults,
        }
        return await self.api.create(TRAINING_SERVICES, body)

    async def patch_service(self, name: str, **spec: Any) -> None:
        """Change fields of a service's spec, named by their paths (`scaling__maxInstances`)."""
        operations = [
            {"op": "add", "path": "/spec/" + path.replace("__", "/"), "value": value} for path, value in spec.items()
        ]
        await self.api.patch(TRAINING_SERVICES, self.namespace, name, operations)

    async def budget(self, name: str = "team", **spec: Any) -> Object:
        body = {
            "apiVersion": "trainyard.dev/v1alpha1",
            "kind": "TrainingBudget",
            "metadata": {"namespace": self.namespace, "name": name},
            "spec": spec,
        }
        return await self.api.create(TRAINING_BUDGETS, body)

    async def quota(self, name: str, hard: Mapping[str, str]) -> Object:
        """A ResourceQuota; only once the quota controller has counted does the API server enforce it by number."""
        metadata = {"namespace": self.namespace, "name": name}
        body = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": metadata, "spec": {"hard": dict(hard)}}
        made = await self.api.create(QUOTAS, body)
        await self.object_until(QUOTAS, name, lambda status: status.get("used"))
        return made

    async def object_until(
        self, resource: Resource, name: str, condition: Callable[[Object], Any], seconds: float = 60
    ) -> Object:
        """The status of any object once `condition` holds for it."""
        deadline = time.monotonic() + seconds
        while True:
            status = (await self.api.get(resource, self.namespace, name)).get("status") or {}
            if condition(status):
                return status
            assert time.monotonic() < deadline, f"{resource.kind} {name}: {json.dumps(status, indent=1)}"
            await asyncio.sleep(0.2)

    async def job(self, name: str, *attempts: Object, service: str | None = "fake", **spec: Any) -> Object:
        """A job whose attempts do what is told, on `service`."""
        labels = spec.pop("labels", {})
        body = training_job(self.namespace, name, *attempts, service=service, **spec)
        body["metadata"]["labels"] = labels
        return await self.api.create(TRAINING_JOBS, body)

    async def edit(self, name: str, **spec: Any) -> None:
        """Change fields of a job's spec; None removes one."""
        operations = [
            {"op": "remove", "path": f"/spec/{key}"}
            if value is None
            else {"op": "add", "path": f"/spec/{key}", "value": value}
            for key, value in spec.items()
        ]
        await self.api.patch(TRAINING_JOBS, self.namespace, name, operations)

    async def status(self, name: str) -> Object:
        return (await self.api.get(TRAINING_JOBS, self.namespace, name))["status"]

    async def until(
        self, name: str, condition: str | Callable[[Object], Any], seconds: float = 150, what: str = ""
    ) -> Object:
        """The job's status once `condition` (a state, or a predicate of the status) holds."""
        deadline = time.monotonic() + seconds
        while True:
            status = await self.status(name)
            if status["state"] == condition if isinstance(condition, str) else condition(status):
                return status
            if time.monotonic() > deadline:
                wanted = what or (condition if isinstance(condition, str) else "the condition")
                raise AssertionError(
                    f"job {name} did not reach {wanted} in {seconds} s: {json.dumps(status, indent=1)}"
                )
            await asyncio.sleep(POLL_SECONDS)

    async def finished(self, name: str, seconds: float = 150) -> Object:
        """The status of the job when it is over."""
        return await self.until(name, lambda status: status["state"] in FINAL, seconds, "a final state")

    async def children(self, name: str) -> list[str]:
        """Names of the batch/v1 Jobs and pods of a job."""
        label = f"trainyard.dev/job={name}"
        found = [await self.api.list_all(kind, self.namespace, labels=label) for kind in (JOBS, PODS)]
        return [item["metadata"]["name"] for items in found for item in items]

    async def gone(self, name: str, seconds: float = 90) -> None:
        """Wait until nothing of a deleted job is left."""
        deadline = time.monotonic() + seconds
        while left := await self.children(name):
            assert time.monotonic() < deadline, f"{left} of job {name} are still there"
            await asyncio.sleep(0.2)

    async def versions(self, name: str) -> list[Object]:
        items = await self.api.list_all(MODEL_VERSIONS, self.namespace)
        return [item for item in items if item["spec"]["jobName"] == name]

    async def version_in(self, name: str, state: str, seconds: float = 30) -> Object:
        """Status of the job's only version once it is in `state`: it is written after the job's own."""
        deadline = time.monotonic() + seconds
        while True:
            found = [version.get("status", {}) for version in await self.versions(name)]
            if [status.get("state") for status in found] == [state]:
                return found[0]
            assert time.monotonic() < deadline, f"the versions of {name} are {found}"
            await asyncio.sleep(0.1)

    async def events(self, name: str, kind: str = "TrainingJob", *reasons: str, seconds: float = 30) -> list[Object]:
        """The Events about an object once there is one of each of `reasons`: they follow the status that they speak of."""
        path = f"/api/v1/namespaces/{self.namespace}/events"
        query = {"fieldSelector": f"involvedObject.kind={kind},involvedObject.name={name}"}
        deadline = time.monotonic() + seconds
        while True:
            items = (await self.api.request("GET", path, query=query))["items"]
            missing = set(reasons) - {item["reason"] for item in items}
            if not missing:
                return items
            assert time.monotonic() < deadline, f"no Event {missing} about {kind} {name}: {items}"
            await asyncio.sleep(POLL_SECONDS)


def training_job(namespace: str, name: str, *attempts: Object, service: str | None = "fake", **spec: Any) -> Object:
    """A TrainingJob whose attempts do what FAKE_TRAINER is told."""
    resources = spec.pop("resources", {})
    if attempts:
        resources = resources | {"env": [{"name": "FAKE_TRAINER", "value": json.dumps(attempts)}]}
    body: Object = {
        "architecture": "yard-nano",
        "dataset": {"sources": [{"uri": "s3://vision/data.zip"}]},
        "output": {"uri": "s3://vision/models"},
        "resources": resources,
    } | spec
    if service is not None:
        body["serviceName"] = service
    metadata = {"namespace": namespace, "name": name}
    return {"apiVersion": "trainyard.dev/v1alpha1", "kind": "TrainingJob", "metadata": metadata, "spec": body}
