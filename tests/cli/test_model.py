"""`trainyard model …` against a real API server: what the operator would write is written by the tests."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from devcluster import Cluster
from tests import commands
from tests.commands import Done

Run = Callable[..., Done]


@pytest.fixture
def trainyard(crds: Cluster, namespace: str) -> Run:
    def run(*arguments: str) -> Done:
        return commands.trainyard(*arguments, "-n", namespace, "--kubeconfig", crds.kubeconfig, COLUMNS="200")

    return run


@pytest.fixture
def versions(crds: Cluster, namespace: str) -> None:
    """Two versions of cells, the first one ready, the second one still training, and one of dots."""
    for model, number in (("cells", 2), ("cells", 1), ("dots", 1)):
        spec = {
            "model": model, "version": number, "jobName": f"job-{model}", "jobUID": "u1", "architecture": "yard-nano",
            "task": "Detection", "uri": f"s3://vision/models/{model}/v{number}/",
        }  # fmt: skip
        made = {"apiVersion": "trainyard.dev/v1alpha1", "kind": "ModelVersion", "spec": spec}
        made |= {"metadata": {"name": f"{model}-v{number}", "namespace": namespace}}
        crds.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(made))
    status: dict[str, Any] = {"state": "Ready", "metric": "mAP50 0.871", "labels": ["RBC", "WBC"]}
    status |= {"validation": {"mAP50": 0.871, "recall": 0.8}, "test": {"mAP50": 0.85}}
    status |= {"artifacts": [{"name": "model.onnx", "uri": "s3://vision/models/cells/v1/a1/model.onnx", "size": 7}]}
    crds.kubectl(
        "-n", namespace, "patch", "modelversion", "cells-v1", "--subresource=status", "--type=merge",
        "-p", json.dumps({"status": status}),
    )  # fmt: skip


def test_versions_are_listed_by_model_and_number_and_shown(trainyard: Run, versions: None) -> None:
    lines = trainyard("model", "list").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "cells-v1", "cells-v2", "dots-v1"]
    assert lines[1].split()[1:8] == ["cells", "1", "Ready", "yard-nano", "mAP50", "0.871", "job-cells"]
    assert trainyard("model", "list", "--model", "dots", "-o", "name").stdout == "dots-v1\n"
    assert len(json.loads(trainyard("model", "list", "--state", "training", "-o", "json").stdout)["items"]) == 2
    shown = trainyard("model", "show", "cells-v1").stdout
    assert "RBC, WBC" in shown
    assert "validation   0.871   0.800" in shown
    assert "s3://vision/models/cells/v1/a1/model.onnx" in shown


def test_a_version_that_has_no_files_yet_or_does_not_exist_is_said_so(trainyard: Run, versions: None) -> None:
    done = trainyard("model", "download", "cells-v2")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: cells-v2 is Training, it has no files yet")
    assert "There is no ModelVersion nothing" in trainyard("model", "show", "nothing").stderr
