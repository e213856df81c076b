"""What the API server accepts, and the defaults that it fills in."""

from typing import Any

import pytest
from trainyard_api.modelversion import ModelVersion
from trainyard_api.trainingbudget import TrainingBudget
from trainyard_api.trainingjob import TrainingJob
from trainyard_api.trainingservice import TrainingService

from tests.api.api_server import Api, Manifest, manifest

pytestmark = pytest.mark.cluster

MODELS = {model.__name__: model for model in (TrainingJob, TrainingService, TrainingBudget, ModelVersion)}
SHA = "0" * 64
JOB_DEFAULTS: Manifest = {
    "rerun": 0,
    "startFrom": {"weights": "Default"},
    "suspend": False,
}
DATASET_DEFAULTS: Manifest = {
    "labelPolicy": "Union",
    "limits": {"boxOrigin": "Auto", "maxBytes": "2Gi", "maxPixels": 64_000_000, "maxRepairPercent": 5},
    "resize": "Letterbox",
    "unannotated": "Skip",
    "withoutObjects": "Use",
}
SERVICE_DEFAULTS: Manifest = {
    "execution": {
        "backoffSeconds": 10,
        "drainSeconds": 300,
        "maxAttempts": 3,
        "maxDisruptions": 20,
        "onReset": "Rerun",
        "onTimeout": "Finish",
        "rerunAsProcess": False,
        "stallTimeoutSeconds": 600,
        "startTimeoutSeconds": 900,
        "timeoutSeconds": 3600,
    },
    "instance": {"gpuResourceName": "nvidia.com/gpu", "gpus": 1, "nodes": 1, "preemptible": False},
    "paused": False,
    "reset": 0,
    "scaling": {
        "concurrency": 1,
        "idleSeconds": 300,
        "maxInstances": 1,
        "minInstances": 0,
        "onScaleDown": "Wait",
        "type": "Autoscale",
    },
}


def filled(expected: Any, given: Any) -> Any:
    """What was given, with the defaults that it leaves room for."""
    if isinstance(expected, dict) and isinstance(given, dict):
        return {
            name: filled(expected[name], given[name])
            if name in expected and name in given
            else given.get(name, expected.get(name))
            for name in {*expected, *given}
        }
    return given


def with_defaults(kind: str, spec: Manifest) -> Manifest:
    match kind:
        case "TrainingJob":
            own_start = {} if "startFrom" not in spec else {"startFrom": spec["startFrom"]}
            return filled(JOB_DEFAULTS | {"dataset": DATASET_DEFAULTS}, spec) | own_start
        case "TrainingService":
            return filled(SERVICE_DEFAULTS, spec)
        case "TrainingBudget":
            return filled({"period": "Month"}, spec)
        case _:
            return filled({"run": 0}, spec)


EVERY_TRAINING: Manifest = {
    "epochs": 30, "batchSize": 16, "gradientAccumulation": 2, "optimizer": "SGD", "momentum": 0.937, "learningRate": 0.01,
    "finalLearningRatePercent": 5, "weightDecay": 0.0005, "gradientClipNorm": 0, "labelSmoothing": 0.1,
    "lossWeights": {"box": 7.5, "cls": 0.5, "dfl": 1.5}, "multiScalePercent": 25, "schedule": "Linear", "warmupSteps": 100,
    "freezeEpochs": 3, "emaDecay": 0.998, "precision": "FP32", "classWeights": {"labels": {"WBC": 100, "Platelets": 300}},
    "seed": 7, "checkpointEverySteps": 50, "evaluateEverySteps": 200, "selectBy": "mAP50",
    "earlyStopping": {"metric": "validationLoss", "patienceEpochs": 5, "minDelta": 0.01}, "maxDurationSeconds": 600,
}  # fmt: skip
EVERY_AUGMENTATION: Manifest = {
    "preset": "Light", "horizontalFlip": 50, "verticalFlip": 50, "rotate": 10, "shear": 5, "perspective": 2, "crop": 10,
    "scale": 50, "translate": 10, "brightness": 25, "contrast": 25, "gamma": 20, "saturation": 40, "hue": 2, "blur": 5,
    "noise": 3, "jpeg": 30, "erase": 10, "distractor": 5, "mosaic": 50, "mixup": 10, "cutmix": 5, "offLastPercent": 20,
}  # fmt: skip
EVERY_RESOURCE: Manifest = {
    "gpus": 0, "cpu": 4, "memory": "8Gi", "nodes": 1, "preemptible": True, "machineType": "large",
    "nodeSelector": {"kubernetes.io/arch": "amd64", "zone": ""}, "image": "registry.example/trainer@sha256:" + SHA,
    "tolerations": [{"key": "gpu", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}, {"operator": "Exists"}],
    "secretNames": ["extra", "more.keys"], "env": [{"name": "OMP_NUM_THREADS", "value": "2"}, {"name": "EMPTY", "value": ""}],
}  # fmt: skip
EVERY_POLICY: Manifest = {
    "timeoutSeconds": 900, "onTimeout": "Fail", "drainSeconds": 60, "onReset": "Fail", "maxAttempts": 5, "maxDisruptions": 0,
    "backoffSeconds": 1, "startTimeoutSeconds": 60, "stallTimeoutSeconds": 120, "rerunAsProcess": True, "priority": -5,
}  # fmt: skip


def dataset(**fields: Any) -> Manifest:
    return {"dataset": fields}


JOBS: dict[str, Manifest] = {
    "three lines": {},
    "an image network": {"architecture": "resnet18"},
    "tagging": {"architecture": "convnext-tiny", "task": "Tagging"},
    "a private architecture": {"architecture": "private/own", "task": "Detection", "serviceName": "own"},
    "several sources": dataset(sources=[{"uri": "s3://vision/a.zip"}, {"uri": "s3://vision/b/"}, {"uri": "s3://bucket.name/"}]),
    "identical labels": dataset(labelPolicy="Identical", secretName="vision-s3"),
    "labels of any script": dataset(labels=["WBC", "RBC", "thrombocyte cluster", "красные", "細胞"]),
    "one label": dataset(labels=["cell"]),
    "a split": dataset(split={"trainPercent": 70, "validationPercent": 20, "testPercent": 10, "maxTestImages": 50, "seed": 3}),
    "a split that keeps the defaults": dataset(split={"seed": 3}),
    "a split without a test": dataset(split={"trainPercent": 90, "testPercent": 0}),
    "no validation": dataset(split={"trainPercent": 90, "validationPercent": 0}),
    "image sets": dataset(subsets={"train": {"imageSet": "train"}, "validation": {"imageSet": "val"}, "test": {"imageSet": "test"}}),
    "other subsets": dataset(subsets={"train": {"folder": "day/1"}, "validation": {"pattern": "n*_[0-9].jpg"}, "test": {"labels": ["WBC"]}}),
    "a list of names": dataset(subsets={"train": {"listURI": "s3://vision/train.txt"}}),
    "background": dataset(unannotated="Background", withoutObjects="Skip", resize="Stretch"),
    "limits": dataset(limits={"maxBytes": "20Gi", "maxImages": 1000, "maxPixels": 2048, "maxRepairPercent": 0, "boxOrigin": 1}),
    "limits as a number": dataset(limits={"maxBytes": 1_000_000, "boxOrigin": "0"}),
    "any size for an image network": {"architecture": "resnet18"} | dataset(imageSize=225),
    "a square": dataset(imageSize=640),
    "a rectangle": dataset(imageSize="640x384", resize="CenterCrop"),
    "from scratch": {"startFrom": {"weights": "None"}},
    "from a version": {"model": "cells", "startFrom": {"version": 3}},
    "from another model": {"startFrom": {"modelVersion": "other-v2"}},
    "from another job": {"startFrom": {"job": "other"}},
    "from a file": {"startFrom": {"uri": "s3://vision/w.safetensors", "sha256": SHA}},
    "steps": {"training": {"steps": 500}},
    "every training field": {"training": EVERY_TRAINING},
    "balanced": {"training": {"classWeights": {"balanced": True}}},
    "early stopping": {"training": {"earlyStopping": {}}},
    "accuracy": {"architecture": "resnet18", "training": {"selectBy": "accuracy"}},
    "every augmentation": {"augmentation": EVERY_AUGMENTATION},
    "no augmentation": {"augmentation": {"preset": "None"}},
    "evaluation": {"evaluation": {"scoreThresholdPercent": 0, "iouThresholdPercent": 50, "maxDetections": 300}},
    "every resource": {"resources": EVERY_RESOURCE},
    "every policy": {"policy": EVERY_POLICY},
    "output": {"output": {"secretName": "out", "publishURI": "s3://vision/published/"}},
    "created suspended": {"suspend": True, "ttlSecondsAfterFinished": 0, "rerun": 2, "description": "a\nb", "versionName": "first"},
    "the longest names": {"model": "m" * 52, "serviceName": "s" * 63},
}  # fmt: skip

SERVICES: dict[str, Manifest] = {
    "one line": {},
    "private": {"architecture": "private/own", "image": "registry.example/own:1"},
    "on CPU": {"instance": {"gpus": 0, "cpu": "2", "memory": "4Gi", "sharedMemory": "1Gi", "ephemeralStorage": "20Gi"}},
    "a shared GPU": {"scaling": {"concurrency": 2}, "instance": {"sharedGpuResourceName": "nvidia.com/gpu.shared"}},
    "concurrency on CPU": {"scaling": {"concurrency": 4, "maxInstances": 0}, "instance": {"gpus": 0}},
    "Kueue": {"queue": {"kueueQueueName": "team", "maxLength": 50}},
    "placed": {
        "instance": {
            "nodeSelector": {"a": "b"},
            "tolerations": [{"key": "gpu", "value": "x"}],
            "affinity": {
                "nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference": {}}]}
            },
            "priorityClassName": "high",
            "runtimeClassName": "nvidia",
        }
    },
    "a claim": {"cache": {"claimName": "data"}},
    "a folder of the node": {"cache": {"hostPath": "/var/cache/trainyard.v1"}},
    "a folder of the pod": {"cache": {"emptyDir": {}}},
    "a bounded folder of the pod": {"cache": {"emptyDir": {"sizeLimit": "10Gi"}}},
    "fixed": {"scaling": {"type": "Fixed", "maxInstances": 3, "onScaleDown": "Drain"}, "paused": True, "reset": 2},
    "access": {"secretNames": ["s3"], "serviceAccountName": "trainer", "env": [{"name": "A", "value": "$(B)"}]},
    "execution": {"execution": {"timeoutSeconds": 60, "rerunAsProcess": True}, "weightsURI": "s3://vision/weights/"},
}

BUDGETS: dict[str, Manifest] = {
    "a month": {},
    "a week of two services": {"period": "Week", "services": ["a", "b"], "trainingMinutes": 0},
}

VERSIONS: dict[str, Manifest] = {
    "a version": {},
    "a version with everything": {"run": 2, "versionName": "first", "description": "text", "parentVersion": "cells-v2"},
}

TABLE = [
    pytest.param(kind, patch, id=f"{kind}: {name}")
    for kind, rows in (
        ("TrainingJob", JOBS),
        ("TrainingService", SERVICES),
        ("TrainingBudget", BUDGETS),
        ("ModelVersion", VERSIONS),
    )
    for name, patch in rows.items()
]


@pytest.mark.parametrize(("kind", "patch"), TABLE)
def test_a_good_manifest_comes_back_with_the_right_defaults(api: Api, kind: str, patch: Manifest) -> None:
    offered = manifest(kind, patch)
    accepted = api.create(offered, dry_run=True)
    assert accepted["spec"] == with_defaults(kind, offered["spec"])


@pytest.mark.parametrize(("kind", "patch"), TABLE)
def test_the_models_read_what_the_api_server_gives_and_add_nothing_to_it(api: Api, kind: str, patch: Manifest) -> None:
    accepted = api.create(manifest(kind, patch), dry_run=True)
    model = MODELS[kind].model_validate(accepted)
    assert MODELS[kind].model_validate(model.to_dict()) == model
    assert api.create(accepted | {"spec": model.spec.to_dict()}, dry_run=True)["kind"] == kind


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("TrainingJob", {"observedGeneration": -1, "state": "Created"}),
        ("TrainingService", {"observedGeneration": -1}),
        ("TrainingBudget", {"observedGeneration": -1}),
        ("ModelVersion", {"observedGeneration": -1, "state": "Training"}),
    ],
)
def test_a_new_object_has_a_status_at_once(api: Api, kind: str, status: Manifest) -> None:
    given = manifest(kind) | {"status": {"observedGeneration": 7}}
    assert api.create(given, dry_run=True)["status"] == status


def test_a_job_s_name_may_have_45_characters_and_a_service_s_63(api: Api) -> None:
    assert api.create(manifest("TrainingJob", name="j" * 45), dry_run=True)
    assert api.create(manifest("TrainingService", name="s" * 63), dry_run=True)
