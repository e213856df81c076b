"""A namespace is a boundary: whatever a user writes into a job, nothing of another namespace is read, run on or written."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from trainyard_operator.cluster import (
    JOBS,
    MODEL_VERSIONS,
    PODS,
    SECRETS,
    TRAINING_JOBS,
    TRAINING_SERVICES,
    Cluster,
    RejectedError,
)

from devcluster import Cluster as Devcluster
from tests.operator.harness import Object, Operator, Yard, training_job

pytestmark = pytest.mark.timeout(280)

CRDS = Path(__file__).resolve().parents[2] / "crds"
NAMES = {
    "architecture",
    "serviceName",
    "model",
    "dataset.secretName",
    "startFrom.modelVersion",
    "startFrom.job",
    "resources.machineType",
    "resources.secretNames[]",
    "output.secretName",
}
"""Fields of a job that name an object: one of the job's own namespace, or of the chart's lists."""
HARMLESS = {
    "versionName": "text",
    "description": "text",
    "dataset.sources[].uri": "storage, with the Secrets above",
    "dataset.labels[]": "text",
    "startFrom.uri": "storage, with the Secrets above",
    "startFrom.sha256": "a digest",
    "resources.nodeSelector{}": "nodes belong to nobody",
    "resources.tolerations[].key": "nodes belong to nobody",
    "resources.tolerations[].value": "nodes belong to nobody",
    "resources.image": "runs with the rights of the job's own namespace",
    "resources.env[].name": "text for the trainer",
    "resources.env[].value": "text for the trainer",
    "output.uri": "storage, with the Secrets above",
    "output.publishURI": "storage, with the Secrets above",
} | {
    f"dataset.subsets.{side}.{field}": "within the dataset"
    for side in ("train", "validation", "test")
    for field in ("imageSet", "folder", "pattern", "labels[]", "listURI")
}
"""Every other text of a job, and why it reaches nothing."""
ELSEWHERE = ("theirs/cells", "../theirs/cells", "theirs:cells", "theirs%2Fcells", "namespaces/theirs/secrets/cells")


def texts(schema: Object, path: str = "") -> Iterator[str]:
    """Paths of the strings that a user may choose."""
    if schema.get("type") == "string" and "enum" not in schema:
        yield path.lstrip(".")
    for name, each in (schema.get("properties") or {}).items():
        yield from texts(each, f"{path}.{name}")
    if "items" in schema:
        yield from texts(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from texts(schema["additionalProperties"], f"{path}{{}}")


def with_text(path: str, text: str) -> Object:
    """The part of a spec that has `text` at `path`."""
    value: Any = text
    for part in reversed(path.split(".")):
        value = {part.removesuffix("[]"): [value] if part.endswith("[]") else value}
    return value


def merged(into: Object, more: Object) -> Object:
    return into | {k: merged(into.get(k, {}), v) if isinstance(v, dict) else v for k, v in more.items()}


def test_every_text_of_a_job_is_known_to_reach_nothing_or_is_a_name():
    [file] = CRDS.glob("*trainingjobs.yaml")
    crd = yaml.load(file.read_text(), yaml.CSafeLoader)
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    assert set(texts(spec)) == NAMES | HARMLESS.keys()


@pytest.mark.parametrize("path", sorted(NAMES))
async def test_a_name_cannot_say_where(path: str, api: Cluster, crds: Devcluster):
    for name in ELSEWHERE:
        body = training_job("default", "outsider", service=None)
        body["spec"] = merged(body["spec"], with_text(path, name))
        with pytest.raises(RejectedError, match=path.split(".")[-1].removesuffix("[]")):
            await api.request("POST", TRAINING_JOBS.path("default"), body=body, query={"dryRun": "All"})


async def test_names_mean_objects_of_the_jobs_own_namespace(
    api: Cluster, crds: Devcluster, namespace: str, module_namespace: str, nodes: tuple[str, ...], tmp_path: Path
):
    """The same names in two namespaces, and an operator that serves both."""
    mine = module_namespace
    operator = Operator(crds.kubeconfig, namespace, tmp_path / "operator.log", watch_namespaces=f"{namespace},{mine}")
    theirs, yard = Yard(api, namespace, operator), Yard(api, mine, operator)
    try:
        operator.start()
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"namespace": namespace, "name": "storage"}}
        await api.create(SECRETS, secret | {"stringData": {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}})
        await theirs.service("gpu")
        await theirs.job("cells", {"steps": 1}, service="gpu", dataset=dataset("storage"))
        await theirs.finished("cells")
        await theirs.version_in("cells", "Ready")
        before = await everything(api, namespace)

        await yard.service("own")
        await yard.job("on-their-service", {}, service="gpu")
        await yard.job("from-their-version", {}, service="own", startFrom={"modelVersion": "cells-v1"})
        await yard.job("from-their-job", {}, service="own", startFrom={"job": "cells"})
        await yard.job("with-their-secret", {}, service="own", dataset=dataset("storage"))
        await yard.job("into-their-model", {"steps": 1}, service="own", model="cells")
        for name, reason in (
            ("on-their-service", "ServiceNotFound"),
            ("from-their-version", "StartVersionNotFound"),
            ("from-their-job", "StartJobNotFound"),
        ):
            status = await yard.until(name, lambda status, reason=reason: status.get("reason") == reason, what=reason)
            assert mine in status["message"]
        missing = await yard.until(
            "with-their-secret", lambda s: "storage" in (s.get("message") or ""), what="the diagnosis"
        )
        assert missing["state"] == "Preparing"
        made = await yard.finished("into-their-model")
        assert (made["state"], made["version"]) == ("Succeeded", "cells-v1")
        version = await api.get(MODEL_VERSIONS, mine, "cells-v1")
        assert version["spec"]["jobName"] == "into-their-model"
        # Nothing of theirs was as much as touched, and nothing new is there.
        assert await everything(api, namespace) == before
    finally:
        operator.kill()


def dataset(secret: str) -> Object:
    return {"sources": [{"uri": "s3://vision/data.zip"}], "secretName": secret}


async def everything(api: Cluster, namespace: str) -> dict[str, Any]:
    """Which objects are in a namespace, and what of them a person or a program has written; a status is the operator's own."""
    kinds = (TRAINING_JOBS, TRAINING_SERVICES, MODEL_VERSIONS, SECRETS, JOBS, PODS)
    found = [(kind, await api.list_all(kind, namespace)) for kind in kinds]
    return {
        f"{kind.kind} {item['metadata']['name']}": (item["metadata"]["uid"], item.get("spec") or item.get("data"))
        for kind, items in found
        for item in items
    }
