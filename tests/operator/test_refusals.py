"""What the real API server refuses to an operator shows in the job within seconds, and is taken up by itself when it may be."""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from trainyard_api.run import Intake
from trainyard_operator.cluster import JOBS, MODEL_VERSIONS, TRAINING_JOBS, WORKLOADS, Cluster, Object, Resource
from trainyard_operator.decide.diagnosis import diagnose
from trainyard_operator.decide.model import AttemptJob
from trainyard_operator.decide.model import Metadata as ViewMetadata
from trainyard_operator.decide.subject import Subject
from trainyard_operator.events import Recorder
from trainyard_operator.metrics import Metrics
from trainyard_operator.queue import WorkQueue
from trainyard_operator.reconcile import Reconciler
from trainyard_operator.settings import Settings
from trainyard_operator.watch import Key, Kind, Watch

from devcluster import Cluster as Devcluster
from tests.operator.harness import QUOTAS, Yard

POLICIES = Resource(
    "admissionregistration.k8s.io", "v1", "validatingadmissionpolicies", "ValidatingAdmissionPolicy", namespaced=False
)
BINDINGS = Resource(POLICIES.group, "v1", "validatingadmissionpolicybindings", POLICIES.kind + "Binding", False)
WEBHOOKS = Resource(
    POLICIES.group, "v1", "validatingwebhookconfigurations", "ValidatingWebhookConfiguration", namespaced=False
)

# Kueue's kind, without its schema.
OPEN = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
WORKLOAD: Object = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {
        "name": "workloads.kueue.x-k8s.io",
        "annotations": {"api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/kueue"},
    },
    "spec": {
        "group": "kueue.x-k8s.io",
        "scope": "Namespaced",
        "names": {"plural": "workloads", "singular": "workload", "kind": "Workload"},
        "versions": [{"name": "v1beta2", "served": True, "storage": True, "schema": {"openAPIV3Schema": OPEN}}],
    },
}


async def deciding(api: Cluster, namespace: str, condition: Callable[[], Any], seconds: float = 40) -> None:
    """An operator's loop over what it lists, until the condition holds."""
    queue: WorkQueue[Key] = WorkQueue()
    watch = Watch(queue, nodes=False)
    watch.enabled = True
    settings = Settings(default_shared_memory="8Mi", default_memory="64Mi", watch_nodes=False)
    recorder = Recorder(api, "under-test")
    reconciler = Reconciler(api, watch, recorder, Metrics(), settings, lambda: Intake(url="https://127.0.0.1:1/"))
    tasks = [asyncio.create_task(queue.work(reconciler, 2)), asyncio.create_task(recorder.run())]
    began = time.monotonic()
    try:
        while not await condition():
            assert time.monotonic() - began < seconds, "the condition did not come true in time"
            await watch.resync(api, (namespace,))
            await asyncio.sleep(0.1)
        await asyncio.sleep(0.1)
    finally:
        for task in tasks:
            task.cancel()


def metadata(name: str, namespace: str | None = None) -> Object:
    return {"name": name} | ({"namespace": namespace} if namespace else {})


async def quota(api: Cluster, namespace: str) -> Callable[[], Any]:
    """No batch/v1 Job in the namespace; what raises it."""
    await Yard(api, namespace, None).quota("team", {"count/jobs.batch": "0"})
    raised = [{"op": "replace", "path": "/spec/hard/count~1jobs.batch", "value": "5"}]
    return lambda: api.patch(QUOTAS, namespace, "team", raised)


async def policy(api: Cluster, namespace: str) -> Callable[[], Any]:
    """A policy that lets no Job into the namespace; what removes it."""
    name = f"none-{namespace}"
    rules = [{"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}]
    selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    spec = {
        "matchConstraints": {"resourceRules": rules},
        "validations": [{"expression": "false", "message": "no Jobs here"}],
    }
    body = {"apiVersion": POLICIES.api_version, "kind": POLICIES.kind, "metadata": metadata(name), "spec": spec}
    made = await api.create(POLICIES, body)
    bound = {"policyName": name, "validationActions": ["Deny"], "matchResources": {"namespaceSelector": selector}}
    binding = await api.create(BINDINGS, body | {"kind": BINDINGS.kind, "spec": bound})
    await refused_by_server(api, namespace)

    async def remove() -> None:
        await api.delete(BINDINGS, None, name, uid=binding["metadata"]["uid"])
        await api.delete(POLICIES, None, name, uid=made["metadata"]["uid"])

    return remove


async def webhook(api: Cluster, namespace: str) -> Callable[[], Any]:
    """A webhook for Jobs of the namespace that nobody serves; what removes it."""
    name = f"dead-{namespace}"
    rules = [{"apiGroups": ["batch"], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["jobs"]}]
    hook = {
        "name": "dead.example.com",
        "clientConfig": {"url": "https://127.0.0.1:1/review"},
        "rules": rules,
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}},
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "failurePolicy": "Fail",
    }
    body = {"apiVersion": WEBHOOKS.api_version, "kind": WEBHOOKS.kind, "metadata": metadata(name), "webhooks": [hook]}
    made = await api.create(WEBHOOKS, body)
    await refused_by_server(api, namespace)
    return lambda: api.delete(WEBHOOKS, None, name, uid=made["metadata"]["uid"])


async def refused_by_server(api: Cluster, namespace: str) -> None:
    """Wait until the API server has taken the new rule in: a Job is refused."""
    pod = {"restartPolicy": "Never", "containers": [{"name": "c", "image": "local/shell"}]}
    spec = {"suspend": True, "template": {"spec": pod}}
    body = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata("probe", namespace), "spec": spec}
    path = JOBS.path(namespace)
    deadline = time.monotonic() + 20
    while True:
        try:
            await api.request("POST", path, query={"dryRun": "All"}, body=body)
        except Exception:
            return
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    ("cause", "reason", "words"),
    [
        (quota, "Quota", "ResourceQuota team of namespace"),
        (policy, "AdmissionDenied", "denies it: no Jobs here"),
        (webhook, "WebhookUnavailable", "admission webhook dead.example.com does not answer"),
    ],
)
async def test_a_job_that_the_cluster_refuses_says_why_and_starts_by_itself_when_it_may(
    api: Cluster, namespace: str, cause: Callable[[Cluster, str], Any], reason: str, words: str
):
    yard = Yard(api, namespace, None)
    await yard.service("fake")
    relieve = await cause(api, namespace)
    try:
        await yard.job("refused", {})

        async def said() -> bool:
            return (await yard.status("refused")).get("reason") == reason

        await deciding(api, namespace, said)
        status = await yard.status("refused")
        assert (status["state"], len(status["attempts"])) == ("Preparing", 1)
        assert words in status["message"]
        events = [event for event in await yard.events("refused") if event["reason"] == reason]
        assert [event["type"] for event in events] == ["Warning"]
        assert words in events[0]["message"]
    finally:
        await relieve()

    async def made() -> bool:
        return await api.find(JOBS, namespace, "refused-r0-a1") is not None

    await deciding(api, namespace, made)
    job = await api.get(TRAINING_JOBS, namespace, "refused")
    assert len(job["status"]["attempts"]) == 1


async def test_a_job_whose_name_is_taken_names_what_is_in_its_way(api: Cluster, namespace: str):
    yard = Yard(api, namespace, None)
    await yard.service("fake")
    pod = {"restartPolicy": "Never", "containers": [{"name": "c", "image": "local/shell"}]}
    other = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata("taken-r0-a1", namespace)}
    made = await api.create(JOBS, other | {"spec": {"suspend": True, "template": {"spec": pod}}})
    await yard.job("taken", {})

    async def said() -> bool:
        return (await yard.status("taken")).get("reason") == "NameTaken"

    async def adopted() -> bool:
        return bool((await yard.status("taken"))["attempts"][0].get("jobUID"))

    await deciding(api, namespace, said)
    assert f"kubectl delete jobs.batch taken-r0-a1 -n {namespace}" in (await yard.status("taken"))["message"]
    await api.delete(JOBS, namespace, "taken-r0-a1", uid=made["metadata"]["uid"])
    await deciding(api, namespace, adopted)


async def test_a_version_made_while_its_job_was_deleted_is_not_forgotten(api: Cluster, namespace: str):
    """The job's deletion is seen between the request that makes the version and its answer."""
    queue: WorkQueue[Key] = WorkQueue()
    watch = Watch(queue, nodes=False)
    settings = Settings(watch_nodes=False)
    reconciler = Reconciler(
        api, watch, Recorder(api, "x"), Metrics(), settings, lambda: Intake(url="https://127.0.0.1:1/")
    )
    spec = {"model": "m", "version": 1, "jobName": "gone", "jobUID": "u", "run": 0, "architecture": "yard-nano"}
    spec |= {"task": "Detection", "uri": "s3://vision/models/m/v1/"}
    body = {"apiVersion": MODEL_VERSIONS.api_version, "kind": "ModelVersion", "metadata": metadata("m-v1", namespace)}
    # Taken in as the answer to an own write is: nobody is woken.
    watch.caches.versions.apply(await api.create(MODEL_VERSIONS, body | {"spec": spec}))
    assert await reconciler(Key(Kind.JOB, namespace, "gone")) is None
    key = await queue.get()
    assert await reconciler(key) is None
    status = (await api.get(MODEL_VERSIONS, namespace, "m-v1"))["status"]
    assert (status["state"], status["reason"]) == ("Failed", "JobDeleted")


async def test_what_kueue_says_about_a_job_that_it_holds_back_is_read(api: Cluster, crds: Devcluster, namespace: str):
    """Kueue itself does not run here: its kind is, without its schema, and what it wrote once."""
    crds.kubectl("apply", "--filename", "-", stdin=json.dumps(WORKLOAD))
    crds.kubectl("wait", "--for=condition=Established", "crd", WORKLOAD["metadata"]["name"], "--timeout=60s")
    watch = Watch(WorkQueue(), nodes=False)
    settings = Settings(watch_nodes=False)
    reconciler = Reconciler(
        api, watch, Recorder(api, "x"), Metrics(), settings, lambda: Intake(url="https://127.0.0.1:1/")
    )
    body = json.loads((Path(__file__).parents[1] / "fixtures" / "kueue" / "quota-in-use.json").read_text())
    uid = body["metadata"]["ownerReferences"][0]["uid"]
    body["metadata"] = {key: body["metadata"][key] for key in ("name", "labels", "ownerReferences")}
    body["metadata"]["namespace"] = namespace
    await api.create(WORKLOADS[0], body)
    long_ago = datetime.now(UTC) - timedelta(minutes=1)
    labels = {"kueue.x-k8s.io/queue-name": "team-a"}
    job = AttemptJob(ViewMetadata(namespace, "cells-r0-a1", uid, 1, long_ago), labels, suspended=True)
    other = replace(job, metadata=replace(job.metadata, uid="another"))
    found = await reconciler._workloads_of(namespace, (job, other))
    assert [(view.name, view.job_uid) for view in found] == [(body["metadata"]["name"], uid)]
    said = diagnose(job, (), (), Subject(namespace, "fake"), found)
    assert said
    assert "LocalQueue team-a has not admitted Job cells-r0-a1: couldn't assign flavors" in said.message
    assert await reconciler._workloads_of(namespace, (replace(job, suspended=False),)) == ()
