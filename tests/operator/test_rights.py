"""The chart's rights on the real API server: the operator's work needs each of them, and nothing more.

The operator runs with the token of the chart's service account; the API server's audit log says what it asked for.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from kubernetes.client import CoreV1Api
from trainyard_operator.cluster import TRAINING_BUDGETS, TRAINING_JOBS, TRAINING_SERVICES, Cluster

from devcluster import Cluster as Devcluster
from tests.chart.chart import render
from tests.namespaces import fresh_namespace
from tests.operator.audit import requests
from tests.operator.harness import FAKE_TRAINER, Object, Operator, Yard

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(280)]

RBAC = {"ServiceAccount", "Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}
RARE = {
    # (group, resource, verb): when it is needed.
    ("", "events", "get"): "the same sentence about the same object again, by another replica",
    ("", "events", "patch"): "the same",
    ("", "pods", "get"): "a pod that the ledger knows and the watch has not shown",
    ("batch", "jobs", "get"): "a Job that is there already, to be adopted; one that the watch has not shown",
    ("", "services", "get"): "a headless Service that is there already",
    ("trainyard.dev", "modelversions", "get"): "a version that is there already, or was changed meanwhile",
    ("trainyard.dev", "trainingservices", "get"): "a service that somebody else has just made or changed",
    ("trainyard.dev", "trainingbudgets", "get"): "a budget that was changed meanwhile",
    ("trainyard.dev", "trainingjobs", "get"): "every report; a job that was changed meanwhile",
    ("kueue.x-k8s.io", "workloads", "list"): "a Job that Kueue holds back",
    ("", "secrets", "update"): "the renewal of the intake's certificate",
} | {
    (group, resource, "list"): "an API server that does not begin a watch with what there is (WatchList)"
    for group, resource in (
        ("trainyard.dev", "trainingbudgets"),
        ("trainyard.dev", "trainingservices"),
        ("trainyard.dev", "trainingjobs"),
        ("trainyard.dev", "modelversions"),
        ("batch", "jobs"),
        ("", "pods"),
        ("", "nodes"),
    )
}
"""Rights that an ordinary day does not show. Each names its occasion."""


@dataclass(frozen=True)
class Installed:
    """An operator with the rights of a chart's release."""

    yard: Yard
    operator: Operator
    account: str
    objects: list[Object]
    audit: Path
    begun: int

    def asked(self) -> tuple[set[tuple[str, str, str]], list[Any]]:
        """(group, resource, verb) of every request of the operator that was let through, and those that were forbidden."""
        mine = [r for r in requests(self.audit, self.begun) if r.user == self.account]
        granted = {(r.group, r.resource, r.verb) for r in mine if r.code != 403}
        return granted, [r for r in mine if r.code == 403]

    def rules(self) -> set[tuple[str, str, str]]:
        """(group, resource, verb) of every right of the operator."""
        found: set[tuple[str, str, str]] = set()
        bound = [o for o in self.objects if o["kind"] in ("RoleBinding", "ClusterRoleBinding")]
        names = {(o["roleRef"]["kind"], o["roleRef"]["name"]) for o in bound}
        for role in (o for o in self.objects if (o["kind"], o["metadata"]["name"]) in names):
            for rule in role["rules"]:
                found |= {
                    (group, resource, verb)
                    for group in rule["apiGroups"]
                    for resource in rule["resources"]
                    for verb in rule["verbs"]
                }
        return found


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["cluster", "namespaces"])
async def installed(
    crds: Devcluster,
    core: CoreV1Api,
    nodes: tuple[str, ...],
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> AsyncIterator[Installed]:
    with fresh_namespace(core) as namespace:
        async with _installed(crds, namespace, request.param, tmp_path_factory.mktemp("rights")) as found:
            yield found


@asynccontextmanager
async def _installed(crds: Devcluster, namespace: str, mode: str, folder: Path) -> AsyncIterator[Installed]:
    # Cold starts, warm instances and gangs: all of them are let in where the restricted standard is enforced.
    crds.kubectl("label", "namespace", namespace, "pod-security.kubernetes.io/enforce=restricted")
    settings = ["crds.create=false", "userRoles.create=false", "podPolicy.create=false"]
    settings += [f"watchNamespaces={{{namespace}}}"] if mode == "namespaces" else []
    rendered = render(*settings, release=namespace, namespace=namespace)
    objects = [each for each in rendered if each["kind"] in RBAC]
    crds.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all(objects))
    api = await Cluster.connect(str(crds.kubeconfig))
    name = next(o["metadata"]["name"] for o in objects if o["kind"] == "ServiceAccount")
    path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
    token = (await api.request("POST", path, body={"kind": "TokenRequest", "spec": {}}))["status"]["token"]
    default = {"image": "local/python", "env": [{"name": "PYTHONPATH", "value": str(FAKE_TRAINER)}]}
    operator = Operator(
        crds.kubeconfig_with(token, folder / "kubeconfig"),
        namespace,
        folder / "operator.log",
        lease_name=f"{name}-operator",
        intake_secret=f"{name}-intake-tls",
        watch_nodes="true" if mode == "cluster" else "false",
        default_service=default | {"instance": {"gpus": 0, "cpu": "10m", "memory": "64Mi"}},
        keep_finished_seconds=2,
        lease_seconds=20,
        restarted=True,
    )
    yard = Yard(api, namespace, operator)
    audit = crds.layout.logs / "audit.log"
    found = Installed(yard, operator, f"system:serviceaccount:{namespace}:{name}", objects, audit, audit.stat().st_size)
    try:
        operator.start()
        await operator.ready()
        yield found
    finally:
        operator.kill()
        crds.kubectl("delete", "-f", "-", "--wait=false", "--ignore-not-found", stdin=yaml.safe_dump_all(objects))
        await api.close()


async def an_ordinary_day(yard: Yard) -> None:
    """A default service, a retry, a stop and a resume, an abort, a time to live, a budget, an image that is
    not there, a warm instance that is taken, a gang."""
    budget = {"apiVersion": "trainyard.dev/v1alpha1", "kind": "TrainingBudget"}
    metadata = {"namespace": yard.namespace, "name": "team"}
    await yard.api.create(
        TRAINING_BUDGETS, budget | {"metadata": metadata, "spec": {"trainingMinutes": 600, "period": "Week"}}
    )
    await yard.service("fake")
    await yard.job("plain", {"steps": 1}, service=None, ttlSecondsAfterFinished=1)
    await yard.job("retried", {"exit": 1}, {})
    await yard.job("stopped", {"steps": 1, "hang": True}, {})
    await yard.job("aborted", {"steps": 1, "hang": True}, policy={"drainSeconds": 60})
    await yard.job("unpulled", {}, resources={"image": "registry.example/none:1"})
    await yard.service("warm", scaling={"minInstances": 1, "maxInstances": 1})
    await yard.job("gang", {"steps": 1}, resources={"nodes": 2})
    await yard.until("stopped", "Running")
    await yard.edit("stopped", suspend=True)
    await yard.until("aborted", "Running")
    await yard.edit("aborted", end="Abort")
    await yard.until("stopped", "Stopped")
    await yard.edit("stopped", suspend=False)
    await yard.object_until(TRAINING_SERVICES, "warm", lambda status: status.get("standbyInstances") == 1)
    await yard.job("taker", service="warm")
    for name, state in (
        ("taker", "Succeeded"),
        ("gang", "Succeeded"),
        ("stopped", "Succeeded"),
        ("retried", "Succeeded"),
        ("aborted", "Aborted"),
    ):
        await yard.until(name, state)
    await yard.until("unpulled", lambda status: status.get("reason") == "ImagePull")
    await yard.gone("aborted")
    deadline = time.monotonic() + 60
    while await yard.api.find(TRAINING_JOBS, yard.namespace, "plain"):
        assert time.monotonic() < deadline, "the time to live is over and the job is still there"
        await asyncio.sleep(0.2)


@pytest.mark.usefixtures("only_gang")
async def test_the_rights_of_the_chart_are_enough_and_none_is_unused(installed: Installed):
    await an_ordinary_day(installed.yard)
    asked, forbidden = installed.asked()
    assert forbidden == []
    rules = installed.rules()
    used = {key for key in asked if key in rules}
    admission = {("trainyard.dev", "trainingjobs/finalizers", "update")}
    # Asked for by the API server's own admission (blockOwnerDeletion), not by a request.
    unused = rules - used - admission - RARE.keys()
    assert unused == set(), json.dumps(sorted(unused))
    text = installed.operator.log.read_text()
    assert "Traceback" not in text, text[text.index("Traceback") - 300 :][:3000]
