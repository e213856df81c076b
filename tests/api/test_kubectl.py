"""What people see who use kubectl, and GitOps tools that apply the same manifest for ever."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from trainyard_api.crd import KINDS

from devcluster import Cluster
from tests.api.api_server import Api, Manifest, manifest
from tests.api.test_good_manifests import EVERY_AUGMENTATION, EVERY_POLICY, EVERY_RESOURCE, EVERY_TRAINING

pytestmark = pytest.mark.cluster

Kubectl = Callable[..., str]


@pytest.fixture(scope="module")
def kubectl(crds: Cluster, api: Api) -> Kubectl:
    """kubectl in the namespace of these tests; returns what it prints."""

    def run(*arguments: str, check: bool = True) -> str:
        return crds.kubectl(*arguments, "--namespace", api.namespace, check=check)

    return run


@pytest.fixture
def manifests(tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A file with all kinds in it, once as short and once as long as can be."""
    prefix = request.node.name.replace("_", "-").split("[")[0][-30:].strip("-")
    everything: Manifest = {
        "dataset": {
            "sources": [{"uri": "s3://vision/a.zip"}, {"uri": "s3://vision/b/"}],
            "labels": ["WBC", "Platelets"],
            "split": {"seed": 3},
            "limits": {"maxBytes": "5Gi", "boxOrigin": 0},
            "imageSize": "640x384",
        },
        "training": EVERY_TRAINING,
        "augmentation": EVERY_AUGMENTATION,
        "resources": EVERY_RESOURCE,
        "policy": EVERY_POLICY,
        "suspend": True,
    }
    service: Manifest = {
        "instance": {"cpu": 2, "memory": "4Gi", "nodeSelector": {"a": "b"}, "tolerations": [{"operator": "Exists"}]},
        "scaling": {"maxInstances": 2},
        "env": [{"name": "A", "value": "1"}],
        "secretNames": ["s3"],
        "cache": {"emptyDir": {}},
    }
    objects = [
        manifest("TrainingJob", name=f"{prefix}-short"),
        manifest("TrainingJob", everything, name=f"{prefix}-long"),
        manifest("TrainingService", name=f"{prefix}-short"),
        manifest("TrainingService", service, name=f"{prefix}-long"),
        manifest("TrainingBudget", {"services": ["a"]}, name=prefix),
        manifest("ModelVersion", {"model": prefix}, name=f"{prefix}-v3"),
    ]
    path = tmp_path / "manifests.yaml"
    path.write_text(yaml.safe_dump_all(objects))
    return str(path)


def facts(kubectl: Kubectl, path: str, *fields: str) -> list[list[Any]]:
    """The named metadata of every object of the file."""
    items = json.loads(kubectl("get", "--filename", path, "--output", "json"))["items"]
    return [[item["metadata"][field] for field in fields] for item in items]


def outcomes(text: str) -> set[str]:
    """The last word of each line that kubectl printed: created, configured, unchanged."""
    return {line.rsplit(" ", 1)[1] for line in text.splitlines()}


def test_a_manifest_applied_again_changes_nothing(kubectl: Kubectl, manifests: str) -> None:
    assert outcomes(kubectl("apply", "--filename", manifests)) == {"created"}
    before = facts(kubectl, manifests, "generation", "resourceVersion")
    assert outcomes(kubectl("apply", "--filename", manifests)) == {"unchanged"}
    assert facts(kubectl, manifests, "generation", "resourceVersion") == before
    assert kubectl("diff", "--filename", manifests) == "", "a GitOps tool would see drift"


def test_a_manifest_applied_on_the_server_again_changes_nothing(kubectl: Kubectl, manifests: str) -> None:
    kubectl("apply", "--server-side", "--filename", manifests)
    # The first write after the creation, whosever it is, stores the default status that a read shows from the start.
    for kind in KINDS:
        kubectl("annotate", kind.plural, "--all", "touched=true")
    before = facts(kubectl, manifests, "generation", "resourceVersion")
    kubectl("apply", "--server-side", "--filename", manifests)
    assert facts(kubectl, manifests, "generation", "resourceVersion") == before
    assert kubectl("diff", "--server-side", "--filename", manifests) == "", "a GitOps tool would see drift"


def test_client_side_and_server_side_apply_may_follow_each_other(kubectl: Kubectl, manifests: str) -> None:
    """Nothing of the object changes; kubectl itself re-writes its own annotation, of a ConfigMap just the same."""
    kubectl("apply", "--filename", manifests)
    kubectl("apply", "--server-side", "--filename", manifests)
    kubectl("apply", "--filename", manifests)
    assert outcomes(kubectl("apply", "--filename", manifests)) == {"unchanged"}
    kubectl("apply", "--server-side", "--filename", manifests)
    assert {generation for (generation,) in facts(kubectl, manifests, "generation")} == {1}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_the_crd_is_established_and_structural(crds: Cluster, kind: Any) -> None:
    crd = json.loads(crds.kubectl("get", "crd", f"{kind.plural}.trainyard.dev", "--output", "json"))
    conditions = {condition["type"]: condition["status"] for condition in crd["status"]["conditions"]}
    assert conditions["Established"] == "True"
    assert conditions["NamesAccepted"] == "True"
    assert "NonStructuralSchema" not in conditions


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("tj", "One training, from data to a model version."),
        ("tj.spec.dataset.split", "trainPercent"),
        ("tj.spec.training.epochs", "default 100, unless steps is given"),
        ("tj.spec.augmentation.blur", "in tenths of a pixel"),
        ("tj.spec.startFrom.sha256", "Checksum of the file at uri."),
        ("tj.status.attempts.cause", "Why it ended."),
        ("tsvc.spec.execution.drainSeconds", "Time to save and upload a checkpoint"),
        ("tsvc.spec.scaling", "maxInstances"),
        ("tb.spec.period", "Day, Week (from Monday) or Month in UTC"),
        ("mv.spec.parentVersion", "The ModelVersion it continues."),
    ],
)
def test_kubectl_explains_every_field(kubectl: Kubectl, path: str, text: str) -> None:
    assert text in " ".join(kubectl("explain", path).split())


JOB_STATUS: Manifest = {
    "state": "Running",
    "reason": "Training",
    "serviceName": "mgmt-train-yard-nano",
    "version": "cells-v1",
    "trainingSeconds": 125,
    "summary": {
        "progress": "63%",
        "epoch": "19/30",
        "step": "190/300",
        "metric": "mAP50 0.871",
        "eta": "4m10s",
        "attempt": "1/3",
    },
}


def columns(table: str) -> list[str]:
    """The headings of a table; those of two words are joined by one blank."""
    return [heading.strip() for heading in table.splitlines()[0].split("  ") if heading.strip()]


def test_the_table_of_jobs(kubectl: Kubectl, api: Api) -> None:
    api.create(manifest("TrainingJob", name="shown"))
    api.patch("TrainingJob", "shown", {"status": JOB_STATUS}, status=True)
    narrow, wide = kubectl("get", "tj", "shown"), kubectl("get", "tj", "shown", "--output", "wide")
    assert columns(narrow) == ["NAME", "STATE", "PROGRESS", "EPOCH", "METRIC", "ATTEMPT", "SERVICE", "VERSION", "AGE"]
    assert columns(wide) == [*columns(narrow), "STEP", "ETA", "TRAINING TIME", "REASON"]
    for value in ("Running", "63%", "19/30", "mAP50 0.871", "1/3", "mgmt-train-yard-nano", "cells-v1"):
        assert value in narrow
    for value in ("190/300", "4m10s", "125", "Training"):
        assert value in wide.splitlines()[1]


def test_the_table_of_services(kubectl: Kubectl, api: Api) -> None:
    api.create(manifest("TrainingService", name="shown"))
    status = {"instances": 2, "running": 3, "queued": 5, "state": "Degraded"}
    api.patch("TrainingService", "shown", {"status": status}, status=True)
    table = kubectl("get", "tsvc", "shown")
    assert columns(table) == ["NAME", "ARCHITECTURE", "INSTANCES", "RUNNING", "QUEUED", "MAX", "STATUS", "AGE"]
    assert table.splitlines()[1].split()[:7] == ["shown", "yard-nano", "2", "3", "5", "1", "Degraded"]


def test_the_tables_of_versions_and_budgets(kubectl: Kubectl, api: Api) -> None:
    api.create(manifest("ModelVersion", {"model": "shown"}, name="shown-v3"))
    api.patch("ModelVersion", "shown-v3", {"status": {"state": "Ready", "metric": "mAP50 0.9"}}, status=True)
    table = kubectl("get", "mv", "shown-v3")
    assert columns(table) == ["NAME", "MODEL", "VERSION", "STATE", "ARCHITECTURE", "METRIC", "JOB", "AGE"]
    assert table.splitlines()[1].split()[1:6] == ["shown", "3", "Ready", "yard-nano", "mAP50"]
    api.create(manifest("TrainingBudget", name="shown"))
    assert columns(kubectl("get", "tb", "shown")) == [
        "NAME",
        "MINUTES",
        "PERIOD",
        "USED",
        "RESERVED",
        "REMAINING",
        "AGE",
    ]


def test_all_kinds_are_one_category(kubectl: Kubectl, api: Api) -> None:
    api.create(manifest("TrainingJob", name="grouped"))
    api.create(manifest("TrainingService", name="grouped"))
    names = kubectl("get", "trainyard", "--output", "name")
    assert {"trainingjob.trainyard.dev/grouped", "trainingservice.trainyard.dev/grouped"} <= set(names.splitlines())


def test_jobs_are_found_by_state_and_service(kubectl: Kubectl, api: Api) -> None:
    api.create(manifest("TrainingJob", name="fresh"))
    api.create(manifest("TrainingJob", {"model": "found"}, name="done"))
    api.patch("TrainingJob", "done", {"status": {"state": "Succeeded", "serviceName": "svc"}}, status=True)
    assert kubectl("get", "tj", "--field-selector", "status.state=Succeeded", "--output", "name").split() == [
        "trainingjob.trainyard.dev/done"
    ]
    assert "fresh" in api.names("TrainingJob", "status.state=Created")
    assert "done" not in api.names("TrainingJob", "status.state=Created")
    assert api.names("TrainingJob", "spec.model=found") == ["done"]
    assert api.names("TrainingJob", "status.serviceName=svc") == ["done"]


def test_versions_are_found_by_model_and_state(api: Api) -> None:
    api.create(manifest("ModelVersion", {"model": "sought"}, name="sought-v3"))
    assert api.names("ModelVersion", "spec.model=sought,status.state=Training") == ["sought-v3"]
    assert api.names("ModelVersion", "spec.model=sought,status.state=Ready") == []


def test_a_service_is_scaled_by_kubectl(kubectl: Kubectl, api: Api) -> None:
    api.create(manifest("TrainingService", name="scaled"))
    api.patch("TrainingService", "scaled", {"status": {"instances": 1, "selector": "a=b"}}, status=True)
    kubectl("scale", "tsvc/scaled", "--replicas=4")
    assert kubectl("get", "tsvc", "scaled", "--output", "jsonpath={.spec.scaling.maxInstances}") == "4"
    scale = json.loads(kubectl("get", "tsvc", "scaled", "--subresource=scale", "--output", "json"))
    assert (scale["spec"]["replicas"], scale["status"]) == (4, {"replicas": 1, "selector": "a=b"})
    kubectl("scale", "tsvc/scaled", "--replicas=0")
    assert kubectl("get", "tsvc", "scaled", "--output", "jsonpath={.spec.scaling.maxInstances}") == "0"
