"""What the API server refuses, and the sentence that it answers."""

import re
from typing import Any

import pytest
from trainyard_api.consistency import contradictions
from trainyard_api.resolve import Attempt, Contradiction, run_spec
from trainyard_api.rules import RULES
from trainyard_api.run import RunSpec
from trainyard_api.trainingjob import TrainingJobSpec
from trainyard_api.trainingservice import TrainingServiceSpec

from tests.api.api_server import Api, Manifest, Refused, manifest

NO_VALIDATION: Manifest = {"dataset": {"split": {"trainPercent": 90, "validationPercent": 0}}}
TRAIN: Manifest = {"train": {"imageSet": "train"}}
SHA = "0" * 64


def dataset(**fields: Any) -> Manifest:
    return {"dataset": fields}


def training(**fields: Any) -> Manifest:
    return {"training": fields}


def start(**fields: Any) -> Manifest:
    return {"startFrom": fields}


def resources(**fields: Any) -> Manifest:
    return {"resources": fields}


JOBS: list[tuple[Manifest, str]] = [
    # architecture and task
    ({"architecture": ...}, "spec.architecture: Required value"),
    ({"architecture": "yolo"}, 'spec.architecture: Invalid value: "yolo": ' "there is no such architecture; choose one that `trainyard architectures` lists"),
    ({"architecture": "YARD-NANO"}, "there is no such architecture"),
    ({"architecture": "private/"}, "there is no such architecture"),
    ({"architecture": "a" * 61}, "spec.architecture: Too long: may not be more than 60 bytes"),
    ({"architecture": "private/own"}, "a private architecture needs task: Detection, Classification or Tagging"),
    ({"task": "Segmentation"}, 'supported values: "Detection", "Classification", "Tagging"'),
    ({"task": "Tagging"}, "the architecture cannot do this task; leave task out, or choose a detector"),
    ({"architecture": "resnet18", "task": "Detection"}, "an image network for Classification and Tagging"),
    # names
    ({"serviceName": "My_Service"}, "spec.serviceName: Invalid value: \"My_Service\": write a name of lower-case letters"),
    ({"serviceName": "a" * 64}, "spec.serviceName: Too long: may not be more than 63 bytes"),
    ({"model": "Blood Cells"}, "spec.model: Invalid value: \"Blood Cells\": write a name of lower-case letters, digits and -"),
    ({"model": "m" * 53}, "spec.model: Too long: may not be more than 52 bytes"),
    ({"model": ""}, "spec.model in body should be at least 1 chars long"),
    ({"versionName": "v" * 129}, "spec.versionName: Too long: may not be more than 128 bytes"),
    ({"description": "d" * 4097}, "spec.description: Too long: may not be more than 4096 bytes"),
    # dataset
    ({"dataset": ...}, "spec.dataset: Required value"),
    (dataset(sources=[]), "spec.dataset.sources in body should have at least 1 items"),
    (dataset(sources=[{"uri": "s3://vision/a.zip"}] * 65), "spec.dataset.sources: Too many: 65: must have at most 64 items"),
    (dataset(sources=[{"uri": "https://example.org/bccd.zip"}]), "write an S3 address such as s3://bucket/folder/"),
    (dataset(sources=[{"uri": "file:///data/bccd.zip"}]), "file:// works with `trainyard run` alone"),
    (dataset(sources=[{"uri": "s3://Vision/bccd.zip"}]), "write an S3 address such as s3://bucket/folder/"),
    (dataset(sources=[{"uri": "s3://vision"}]), "write a / at the end to read the bucket as a folder"),
    (dataset(sources=[{"url": "s3://vision/bccd.zip"}]), 'unknown field "spec.dataset.sources[0].url"'),
    (dataset(sources="s3://vision/bccd.zip"), 'spec.dataset.sources in body must be of type array: "string"'),
    (dataset(secretName="My Secret"), "write the name of a Kubernetes object"),
    (dataset(labelPolicy="Intersection"), 'spec.dataset.labelPolicy: Unsupported value: "Intersection"'),
    (dataset(labels=[]), "spec.dataset.labels in body should have at least 1 items"),
    (dataset(labels=["WBC", "RBC", "WBC"]), 'spec.dataset.labels[2]: Duplicate value: "WBC"'),
    (dataset(labels=["RBC "]), "write a label without control characters and without blanks at its ends"),
    (dataset(labels=["R\tBC"]), "write a label without control characters"),
    (dataset(labels=["x" * 129]), "spec.dataset.labels[0]: Too long: may not be more than 128 bytes"),
    ({"architecture": "resnet18"} | dataset(labels=["cat"]), "a classification needs at least two labels"),
    (dataset(split={"trainPercent": 90}), "must sum to 100; those left out count as 80, 10 and 10"),
    (dataset(split={"trainPercent": 70, "validationPercent": 20, "testPercent": 20}), "must sum to 100"),
    (dataset(split={"trainPercent": 0, "validationPercent": 50, "testPercent": 50}), "trainPercent must be above 0"),
    (dataset(split={"trainPercent": 120}), "spec.dataset.split.trainPercent in body should be less than or equal to 100"),
    (dataset(split={"trainPercent": 33.4}), 'must be of type integer: "number"'),
    (dataset(split={"seed": -1}), "spec.dataset.split.seed in body should be greater than or equal to 0"),
    (dataset(split={"maxTestImages": 0}), "spec.dataset.split.maxTestImages in body should be greater than or equal to 1"),
    (dataset(split={"seed": 1}, subsets=TRAIN), "spec.dataset: Forbidden: write split or subsets, not both"),
    (dataset(subsets={}), "spec.dataset.subsets.train: Required value"),
    (dataset(subsets={"train": {}}), "write exactly one of imageSet, folder, pattern, labels and listURI"),
    (dataset(subsets={"train": {"imageSet": "a", "folder": "b"}}), "write exactly one of imageSet, folder, pattern"),
    (dataset(subsets={"train": {"imageSet": "Main/train"}}), "write the name of a list under ImageSets/Main such as train"),
    (dataset(subsets={"train": {"folder": "../other"}}), "write a folder below the dataset's root"),
    (dataset(subsets={"train": {"listURI": "list.txt"}}), "write an S3 address such as"),
    (dataset(unannotated="Ignore"), 'supported values: "Skip", "Background"'),
    (dataset(withoutObjects="Background"), 'supported values: "Use", "Skip"'),
    (dataset(limits={"maxBytes": "2 GB"}), "write a quantity above 0, such as 4 or 500m for cpu, 512Mi or 2Gi for sizes"),
    (dataset(limits={"maxBytes": 0}), "write a quantity above 0"),
    (dataset(limits={"maxPixels": 10}), "spec.dataset.limits.maxPixels in body should be greater than or equal to 1024"),
    (dataset(limits={"maxRepairPercent": 101}), "should be less than or equal to 100"),
    (dataset(limits={"boxOrigin": 2}), "spec.dataset.limits.boxOrigin: Invalid value: 2: write Auto, 0 or 1"),
    (dataset(imageSize="320*240"), "write a side of 32 to 4096 pixels such as 320, or WIDTHxHEIGHT such as 640x384"),
    (dataset(imageSize=300), "spec.dataset.imageSize: Invalid value: the sides must be multiples of 32 from 64 on for this architecture"),
    (dataset(imageSize=32), "the sides must be multiples of 32 from 64 on"),
    (dataset(imageSize="640x360"), "the sides must be multiples of 32 from 64 on for this architecture, such as 320, 416 or 640x384"),
    (dataset(imageSize=16), "write a side of 32 to 4096 pixels"),
    (dataset(resize="Crop"), 'supported values: "Letterbox", "Stretch", "CenterCrop"'),
    # startFrom
    (start(), "write exactly one of weights, version, modelVersion, job and uri"),
    (start(version=1, job="other"), "write exactly one of weights, version, modelVersion, job and uri"),
    (start(weights="Coco"), 'spec.startFrom.weights: Unsupported value: "Coco": supported values: "Default", "None"'),
    (start(version=0), "spec.startFrom.version in body should be greater than or equal to 1"),
    (start(uri="s3://vision/w.safetensors"), "spec.startFrom.sha256: Required value: uri needs sha256"),
    (start(uri="s3://vision/w.safetensors", sha256="ABC"), "write the 64 hexadecimal digits that sha256sum prints"),
    (start(version=1, sha256=SHA), "spec.startFrom.sha256: Forbidden: sha256 belongs to uri"),
    (start(job="blood-cells"), "a job cannot start from itself; name another job"),
    # training
    (training(epochs=10, steps=100), "spec.training: Forbidden: write epochs or steps, not both"),
    (training(epochs=0), "spec.training.epochs in body should be greater than or equal to 1"),
    (training(epochs="10"), 'spec.training.epochs in body must be of type integer: "string"'),
    (training(evaluateEveryEpochs=1, evaluateEverySteps=10), "write evaluateEveryEpochs or evaluateEverySteps, not both"),
    (training(batchSize=8, gradientAccumulation=3), "gradientAccumulation must divide batchSize, such as 4 of 32"),
    (training(learningRate=0), "spec.training.learningRate in body should be greater than 0"),
    (training(learningRate=11), "spec.training.learningRate in body should be less than or equal to 10"),
    (training(momentum=1), "spec.training.momentum in body should be less than 1"),
    (training(optimizer="Lion"), 'supported values: "AdamW", "SGD"'),
    (training(schedule="Exponential"), 'supported values: "Cosine", "Linear", "Step", "Constant"'),
    (training(precision="INT8"), 'supported values: "Auto", "BF16", "FP16", "FP32"'),
    (training(epochs=10, freezeEpochs=10), "freezeEpochs must be below epochs"),
    (training(steps=10, warmupSteps=10), "warmupSteps must be below steps"),
    (training(classWeights="Balanced"), 'spec.training.classWeights in body must be of type object: "string"'),
    (training(classWeights={}), "write exactly one of balanced: true and labels"),
    (training(classWeights={"balanced": True, "labels": {"RBC": 50}}), "write exactly one of balanced: true and labels"),
    (training(classWeights={"labels": {"RBC": 0}}), "should be greater than or equal to 1"),
    (dataset(labels=["A", "B"]) | training(classWeights={"labels": {"C": 50}}), "must be one of dataset.labels"),
    (training(lossWeights={"box": 0, "cls": 0, "dfl": 0}), "at least one part of the loss needs a weight above 0"),
    (training(selectBy="accuracy"), "write mAP50_95 or mAP50 for Detection, accuracy for Classification"),
    ({"architecture": "resnet18"} | training(selectBy="mAP50"), "accuracy for Classification, mAP for Tagging"),
    (training(selectBy="F1"), 'spec.training.selectBy: Unsupported value: "F1"'),
    (training(earlyStopping={"metric": "mAP"}), "mAP for Tagging (or validationLoss)"),
    (training(earlyStopping={"patienceEpochs": 0}), "should be greater than or equal to 1"),
    (NO_VALIDATION | training(selectBy="mAP50"), "selectBy needs validation images; raise dataset.split.validationPercent"),
    (NO_VALIDATION | training(earlyStopping={}), "earlyStopping needs validation images"),
    (dataset(subsets=TRAIN) | training(earlyStopping={}), "name dataset.subsets.validation, or leave earlyStopping out"),
    (training(maxDurationSeconds=0), "spec.training.maxDurationSeconds in body should be greater than or equal to 1"),
    (training(epoch=10), 'unknown field "spec.training.epoch"'),
    # augmentation, evaluation
    ({"augmentation": {"preset": "Heavy"}}, 'supported values: "None", "Light", "Default", "Strong"'),
    ({"augmentation": {"mosaic": 101}}, "spec.augmentation.mosaic in body should be less than or equal to 100"),
    ({"augmentation": {"rotate": 181}}, "spec.augmentation.rotate in body should be less than or equal to 180"),
    ({"evaluation": {"iouThresholdPercent": 0}}, "should be greater than or equal to 1"),
    # resources, policy, output, the rest
    (resources(gpus=-1), "spec.resources.gpus in body should be greater than or equal to 0"),
    ({"architecture": "fcos-resnet50-fpn"} | resources(gpus=0), "this architecture needs a GPU; write gpus of at least 1"),
    (resources(memory="lots"), "spec.resources.memory: Invalid value: \"lots\": write a quantity above 0"),
    (resources(cpu=0.5), "spec.resources.cpu in body must be of type integer,string"),
    (resources(nodeSelector={"my zone": "a"}), "write node labels as Kubernetes has them, such as kubernetes.io/arch: amd64"),
    (resources(tolerations=[{"operator": "Exists", "key": "gpu", "value": "x"}]), "operator Exists takes no value"),
    (resources(tolerations=[{"value": "x"}]), "a toleration without key needs operator: Exists"),
    (resources(tolerations=[{"key": "gpu", "tolerationSeconds": 1}]), "tolerationSeconds needs effect: NoExecute"),
    (resources(env=[{"name": "1X", "value": "a"}]), "write a variable's name of letters, digits and _"),
    (resources(env=[{"name": "A"}, {"name": "A"}]), "Duplicate value"),
    (resources(env=[{"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}]), "credentials do not go into a manifest; put them into a Secret"),
    (resources(env=[{"name": "A", "valueFrom": {}}]), 'unknown field "spec.resources.env[0].valueFrom"'),
    (resources(image="my image"), "write an image without blanks"),
    ({"policy": {"timeoutSeconds": 5}}, "spec.policy.timeoutSeconds in body should be greater than or equal to 10"),
    ({"policy": {"onTimeout": "Ignore"}}, 'supported values: "Finish", "Fail"'),
    ({"policy": {"maxAttempts": 0}}, "spec.policy.maxAttempts in body should be greater than or equal to 1"),
    ({"policy": {"priority": "high"}}, 'must be of type integer: "string"'),
    ({"output": ...}, "spec.output: Required value"),
    ({"output": {"uri": "vision/models"}}, "spec.output.uri: Invalid value: \"vision/models\": write an S3 address"),
    ({"output": {"publishURI": "gs://vision/x"}}, "spec.output.publishURI: Invalid value"),
    ({"suspend": "yes"}, 'spec.suspend in body must be of type boolean: "string"'),
    ({"end": "Stop"}, 'spec.end: Unsupported value: "Stop": supported values: "Finish", "Abort"'),
    ({"rerun": 10_000}, "spec.rerun in body should be less than or equal to 9999"),
    ({"ttlSecondsAfterFinished": -1}, "spec.ttlSecondsAfterFinished in body should be greater than or equal to 0"),
    ({"epochs": 30}, 'unknown field "spec.epochs"'),
]  # fmt: skip

SERVICES: list[tuple[Manifest, str]] = [
    ({"architecture": "yolo"}, 'spec.architecture: Invalid value: "yolo": ' "there is no such architecture; choose one that `trainyard architectures` lists"),
    ({"architecture": "private/own"}, "spec.image: Required value: a private architecture needs image"),
    ({"architecture": "fcos-resnet50-fpn", "instance": {"gpus": 0}}, "this architecture needs a GPU"),
    ({"scaling": {"concurrency": 2}}, "concurrency above 1 shares one GPU: name the shared resource"),
    ({"scaling": {"concurrency": 0}}, "spec.scaling.concurrency in body should be greater than or equal to 1"),
    ({"scaling": {"type": "Manual"}}, 'supported values: "Autoscale", "Fixed"'),
    ({"scaling": {"maxInstances": -1}}, "spec.scaling.maxInstances in body should be greater than or equal to 0"),
    ({"scaling": {"minInstances": 1}, "queue": {"kueueQueueName": "team"}}, "with kueueQueueName there are no standby instances; write minInstances: 0"),
    ({"scaling": {"type": "Fixed"}, "queue": {"kueueQueueName": "team"}}, "write type: Autoscale"),
    ({"queue": {"maxLength": -1}}, "spec.queue.maxLength in body should be greater than or equal to 0"),
    ({"cache": {"claimName": "data", "hostPath": "/data"}}, "write at most one of emptyDir, claimName and hostPath"),
    ({"cache": {"emptyDir": {}, "claimName": "data"}}, "write at most one of emptyDir, claimName and hostPath"),
    ({"cache": {"hostPath": "/data/../etc"}}, "write an absolute path without . and .. in it"),
    ({"cache": {"hostPath": "data"}}, "write an absolute path"),
    ({"instance": {"gpuResourceName": "gpu"}}, "write an extended resource such as nvidia.com/gpu"),
    ({"instance": {"sharedMemory": "-1Gi"}}, "spec.instance.sharedMemory: Invalid value: \"-1Gi\": write a quantity above 0"),
    ({"instance": {"nodes": 0}}, "spec.instance.nodes in body should be greater than or equal to 1"),
    ({"instance": {"machineType": "A100 80G"}}, "write a name of lower-case letters, digits and -"),
    ({"instance": {"affinity": {"podAfinity": {}}}}, 'unknown field "spec.instance.affinity.podAfinity"'),
    ({"execution": {"drainSeconds": 0}}, "spec.execution.drainSeconds in body should be greater than or equal to 1"),
    ({"execution": {"onReset": "Retry"}}, 'supported values: "Rerun", "Fail"'),
    ({"secretNames": ["a", "a"]}, 'spec.secretNames[1]: Duplicate value: "a"'),
    ({"serviceAccountName": "Me"}, "write the name of a Kubernetes object"),
    ({"weightsURI": "/weights"}, "write an S3 address such as"),
    ({"reset": -1}, "spec.reset in body should be greater than or equal to 0"),
    ({"paused": 1}, 'spec.paused in body must be of type boolean: "integer"'),
]  # fmt: skip

BUDGETS: list[tuple[Manifest, str]] = [
    ({"trainingMinutes": ...}, "spec.trainingMinutes: Required value"),
    ({"trainingMinutes": -1}, "spec.trainingMinutes in body should be greater than or equal to 0"),
    ({"period": "Year"}, 'supported values: "Day", "Week", "Month", "Total"'),
    ({"services": []}, "spec.services in body should have at least 1 items"),
    ({"services": ["One Service"]}, "write a name of lower-case letters, digits and -"),
    ({"services": ["a", "a"]}, 'spec.services[1]: Duplicate value: "a"'),
]

VERSIONS: list[tuple[Manifest, str]] = [
    ({"model": "other"}, "a ModelVersion is named <model>-v<version>, such as blood-cells-v3"),
    ({"version": 0}, "spec.version in body should be greater than or equal to 1"),
    ({"task": "Segmentation"}, 'supported values: "Detection", "Classification", "Tagging"'),
    ({"jobUID": ...}, "spec.jobUID: Required value"),
]

TABLE = [
    pytest.param(kind, patch, sentence, id=f"{kind}-{index}-{sentence[:40]}")
    for kind, rows in (
        ("TrainingJob", JOBS),
        ("TrainingService", SERVICES),
        ("TrainingBudget", BUDGETS),
        ("ModelVersion", VERSIONS),
    )
    for index, (patch, sentence) in enumerate(rows)
]


@pytest.mark.cluster
@pytest.mark.parametrize(("kind", "patch", "sentence"), TABLE)
def test_a_bad_manifest_is_answered_with_a_sentence(api: Api, kind: str, patch: Manifest, sentence: str) -> None:
    with pytest.raises(Refused) as refusal:
        api.create(manifest(kind, patch), dry_run=True)
    assert without_value(sentence) in without_value(str(refusal.value))


def without_value(sentence: str) -> str:
    """Where a rule refuses a field, older API servers show its type and newer ones its value."""
    return re.sub(r"(Invalid value: )(?:\"[^\"]*\"|[\w.-]+): ", r"\1", sentence)


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("kind", "name", "sentence"),
    [
        (
            "TrainingJob",
            "j" * 46,
            "the name of a TrainingJob has at most 45 characters: lower-case letters, digits and -",
        ),
        ("TrainingJob", "blood.cells", "the name of a TrainingJob has at most 45 characters"),
        ("TrainingService", "s" * 64, "the name of a TrainingService has at most 63 characters"),
        ("TrainingBudget", "team.a", "the name of a TrainingBudget has at most 63 characters"),
        ("ModelVersion", "cells-3", "a ModelVersion is named <model>-v<version>"),
    ],
)
def test_a_bad_name_is_answered_with_a_sentence(api: Api, kind: str, name: str, sentence: str) -> None:
    with pytest.raises(Refused) as refusal:
        api.create(manifest(kind, name=name), dry_run=True)
    assert sentence in str(refusal.value)


ONLY_IN_A_CLUSTER = (
    # rules of Kubernetes itself, and of what only a cluster has
    "file:// works with `trainyard run` alone",
    "a job cannot start from itself",
    "credentials do not go into a manifest",
    "write node labels as Kubernetes has them",
    "operator Exists takes no value",
    "a toleration without key needs operator: Exists",
    "tolerationSeconds needs effect: NoExecute",
    "Duplicate value",
    # said by the trainer when it opens the bucket
    "write a / at the end to read the bucket as a folder",
    # a laptop reads what can only mean one thing
    'spec.training.epochs in body must be of type integer: "string"',
    'spec.suspend in body must be of type boolean: "string"',
)


def resolved(patch: Manifest) -> RunSpec:
    """What `trainyard run` would train, without an API server in between."""
    job = TrainingJobSpec.model_validate(manifest("TrainingJob", patch)["spec"], extra="forbid")
    service = TrainingServiceSpec(architecture=job.architecture, image="own")
    return run_spec(job, service, Attempt(name="blood-cells", namespace="default", uid="0" * 8))


@pytest.mark.parametrize(
    ("patch", "sentence"),
    [(patch, sentence) for patch, sentence in JOBS if not sentence.startswith(ONLY_IN_A_CLUSTER)],
)
def test_what_the_api_server_refuses_a_laptop_refuses_too(patch: Manifest, sentence: str) -> None:
    with pytest.raises((ValueError, Contradiction)):
        resolved(patch)


MESSAGES = {rule.message for rules in RULES.values() for rule in rules}


@pytest.mark.parametrize(
    "patch", [patch for patch, sentence in JOBS if sentence.split(": ")[-1] in " ".join(sorted(MESSAGES))]
)
def test_a_laptop_says_it_in_the_same_words(patch: Manifest) -> None:
    found = contradictions(TrainingJobSpec.model_validate(manifest("TrainingJob", patch)["spec"]))
    for path_and_sentence in found:
        sentence = path_and_sentence.split(": ", 1)[1]
        assert any(sentence.startswith(message) for message in MESSAGES), sentence
