"""What may change in an object that exists, and what may not."""

from typing import Any

import pytest
from trainyard_api.execution import Policy
from trainyard_api.trainingjob import TrainingJobSpec

from tests.api.api_server import Api, Manifest, Refused, manifest

pytestmark = pytest.mark.cluster

JOB_SENTENCE = "cannot be changed; make a new job for it (suspend, end, rerun, policy.priority, ttlSecondsAfterFinished and description can be changed)"
SHORT, LONG = "short", "long"
"""Two jobs: one that says only what it must, one that says everything."""

# What the long job says, and another value of each.
SAID: dict[str, tuple[Any, Any]] = {
    "architecture": ("yard-nano", "yard-small"),
    "task": ("Detection", "Tagging"),
    "serviceName": ("one", "two"),
    "model": ("cells", "other"),
    "versionName": ("first", "second"),
    "dataset": ({"sources": [{"uri": "s3://vision/a.zip"}]}, {"sources": [{"uri": "s3://vision/b.zip"}]}),
    "startFrom": ({"version": 1}, {"version": 2}),
    "training": ({"steps": 10}, {"steps": 20}),
    "augmentation": ({"preset": "Light"}, {"preset": "Strong"}),
    "evaluation": ({"maxDetections": 10}, {"maxDetections": 20}),
    "resources": ({"gpus": 1}, {"gpus": 2}),
    "output": ({"uri": "s3://vision/models"}, {"uri": "s3://vision/elsewhere"}),
}
POLICY: dict[str, tuple[Any, Any]] = {
    "timeoutSeconds": (60, 120),
    "onTimeout": ("Finish", "Fail"),
    "drainSeconds": (10, 20),
    "onReset": ("Rerun", "Fail"),
    "maxAttempts": (1, 2),
    "maxDisruptions": (1, 2),
    "backoffSeconds": (1, 2),
    "startTimeoutSeconds": (60, 120),
    "stallTimeoutSeconds": (60, 120),
    "rerunAsProcess": (True, False),
}
MUTABLE: dict[str, Any] = {
    "suspend": True,
    "end": "Finish",
    "rerun": 1,
    "policy": {"priority": 5},
    "ttlSecondsAfterFinished": 60,
    "description": "changed",
}
REQUIRED = {"architecture", "dataset", "output"}


@pytest.fixture(scope="module", autouse=True)
def jobs(api: Api) -> None:
    api.create(manifest("TrainingJob", name=SHORT))
    said = {name: value for name, (value, _) in SAID.items()} | {"policy": {k: v for k, (v, _) in POLICY.items()}}
    api.create(manifest("TrainingJob", said, name=LONG))


def aliases(model: type[TrainingJobSpec | Policy]) -> set[str]:
    return {str(field.alias) for field in model.model_fields.values()}


def refusal(api: Api, name: str, spec: Manifest) -> str:
    with pytest.raises(Refused) as refused:
        api.patch("TrainingJob", name, {"spec": spec}, dry_run=True)
    return str(refused.value)


def test_the_tables_know_every_field() -> None:
    assert SAID.keys() | MUTABLE.keys() == aliases(TrainingJobSpec)
    assert POLICY.keys() | {"priority"} == aliases(Policy)


@pytest.mark.parametrize("field", SAID)
def test_a_job_s_field_cannot_be_changed(api: Api, field: str) -> None:
    assert f"spec.{field}: Forbidden: {JOB_SENTENCE}" in refusal(api, LONG, {field: SAID[field][1]})


@pytest.mark.parametrize("field", sorted(SAID.keys() - REQUIRED))
def test_a_job_s_field_cannot_be_added_or_removed(api: Api, field: str) -> None:
    assert f"spec.{field}: Forbidden: {JOB_SENTENCE}" in refusal(api, SHORT, {field: SAID[field][0]})
    assert f"spec.{field}: Forbidden: {JOB_SENTENCE}" in refusal(api, LONG, {field: None})


@pytest.mark.parametrize("field", POLICY)
def test_a_policy_cannot_be_changed_added_or_removed(api: Api, field: str) -> None:
    before, after = POLICY[field]
    sentence = f"spec.policy.{field}: Forbidden: {JOB_SENTENCE}"
    assert sentence in refusal(api, LONG, {"policy": {field: after}})
    assert sentence in refusal(api, LONG, {"policy": {field: None}})
    assert f"spec.policy: Forbidden: {JOB_SENTENCE}" in refusal(api, SHORT, {"policy": {field: before}})


def test_a_policy_cannot_be_removed_as_a_whole(api: Api) -> None:
    assert f"spec.policy: Forbidden: {JOB_SENTENCE}" in refusal(api, LONG, {"policy": None})


@pytest.mark.parametrize("name", [SHORT, LONG])
@pytest.mark.parametrize("field", MUTABLE)
def test_these_fields_of_a_job_can_be_changed_and_taken_back(api: Api, name: str, field: str) -> None:
    value = MUTABLE[field]
    changed = api.patch("TrainingJob", name, {"spec": {field: value}})["spec"][field]
    assert changed == value or changed.items() >= value.items()
    undo = {"priority": None} if field == "policy" else None
    taken_back = api.patch("TrainingJob", name, {"spec": {field: undo}})["spec"]
    assert taken_back.get(field) in (None, False, 0, {}, {key: value for key, (value, _) in POLICY.items()})


def test_class_weights_cannot_be_changed(api: Api) -> None:
    api.create(manifest("TrainingJob", {"training": {"classWeights": {"labels": {"A": 10}}}}, name="weighted"))
    assert JOB_SENTENCE in refusal(api, "weighted", {"training": {"classWeights": {"labels": {"A": 20}}}})
    assert JOB_SENTENCE in refusal(api, "weighted", {"training": {"classWeights": {"labels": {"B": 20}}}})
    assert JOB_SENTENCE in refusal(api, "weighted", {"training": {"classWeights": None}})


def test_status_can_be_written_while_the_spec_stays(api: Api) -> None:
    written = api.patch(
        "TrainingJob",
        SHORT,
        [
            {"op": "test", "path": "/status/state", "value": "Created"},
            {"op": "add", "path": "/status/state", "value": "Queued"},
            {"op": "add", "path": "/status/revision", "value": 1},
            {"op": "add", "path": "/status/summary", "value": {"progress": "63%"}},
        ],
        status=True,
    )
    assert (written["status"]["state"], written["status"]["revision"]) == ("Queued", 1)


@pytest.mark.parametrize(
    ("status", "sentence"),
    [
        ({"state": "Sleeping"}, 'status.state: Unsupported value: "Sleeping"'),
        ({"queuePosition": 0}, "queuePosition in body should be greater than or equal to 1"),
        ({"message": "m" * 4097}, "status.message: Too long: may not be more than 4096 bytes"),
        ({"progress": {"phase": "Training", "percent": 101}}, "should be less than or equal to 100"),
        ({"conditions": [{"type": "Ready"}]}, "status.conditions[0].status: Required value"),
    ],
)
def test_a_status_that_makes_no_sense_is_refused(api: Api, status: Manifest, sentence: str) -> None:
    with pytest.raises(Refused) as refused:
        api.patch("TrainingJob", LONG, {"status": status}, status=True, dry_run=True)
    assert sentence in str(refused.value)


def test_a_service_can_be_changed_save_its_architecture(api: Api) -> None:
    api.create(manifest("TrainingService", name="changing"))
    changes: Manifest = {
        "image": "registry.example/trainer:2",
        "scaling": {"maxInstances": 4},
        "instance": {"gpus": 0},
        "execution": {"timeoutSeconds": 60},
        "paused": True,
        "reset": 1,
    }
    spec = api.patch("TrainingService", "changing", {"spec": changes})["spec"]
    assert (spec["image"], spec["scaling"]["maxInstances"], spec["paused"]) == ("registry.example/trainer:2", 4, True)
    with pytest.raises(Refused, match="cannot be changed; make a new service for another architecture"):
        api.patch("TrainingService", "changing", {"spec": {"architecture": "resnet18"}})


def test_a_version_says_what_it_was_made_from_for_good(api: Api) -> None:
    api.create(manifest("ModelVersion"))
    assert api.patch("ModelVersion", "cells-v3", {"spec": {"description": "better"}})["spec"]["description"] == "better"
    for change in ({"jobName": "other"}, {"parentVersion": "cells-v2"}, {"task": "Tagging"}, {"uri": "s3://vision/x/"}):
        with pytest.raises(Refused, match="cannot be changed: it says what the version was made from"):
            api.patch("ModelVersion", "cells-v3", {"spec": change})


def test_a_budget_can_be_raised(api: Api) -> None:
    api.create(manifest("TrainingBudget"))
    assert api.patch("TrainingBudget", "team", {"spec": {"trainingMinutes": 900}})["spec"]["trainingMinutes"] == 900
