"""A job and its service become one RunSpec, and contradictions a sentence."""

from typing import Any

import pytest
from trainyard_api.architectures import Task
from trainyard_api.resolve import Attempt, Contradiction, run_spec
from trainyard_api.run import RunSpec, Start
from trainyard_api.trainingjob import TrainingJobSpec
from trainyard_api.trainingservice import TrainingServiceSpec

ATTEMPT = Attempt(name="blood-cells", namespace="vision", uid="0123456789abcdef")


def job(**fields: Any) -> TrainingJobSpec:
    base: dict[str, Any] = {
        "architecture": "yard-nano",
        "dataset": {"sources": [{"uri": "s3://vision/bccd.zip"}]},
        "output": {"uri": "s3://vision/models"},
    }
    return TrainingJobSpec.model_validate(base | fields)


def service(**fields: Any) -> TrainingServiceSpec:
    return TrainingServiceSpec.model_validate({"architecture": "yard-nano", "instance": {"gpus": 0}} | fields)


def test_a_three_line_job_gets_every_default() -> None:
    spec = run_spec(job(), service(), ATTEMPT).to_dict()
    assert spec["task"] == "Detection"
    assert spec["model"] == "blood-cells"
    assert spec["dataset"]["imageSize"] == 320
    assert (spec["dataset"]["split"]["trainPercent"], spec["dataset"]["split"]["seed"]) == (80, 0)
    assert spec["training"]["epochs"] == 100
    assert "steps" not in spec["training"]
    assert (spec["training"]["batchSize"], spec["training"]["learningRate"]) == (8, 0.002)
    assert spec["training"]["selectBy"] == "mAP50_95"
    assert spec["training"]["evaluateEveryEpochs"] == 1
    assert spec["start"] == {"weights": "Default", "attemptURIs": []}
    assert (spec["timeoutSeconds"], spec["drainSeconds"], spec["onTimeout"]) == (3600, 300, "Finish")
    assert spec["maxProcessStarts"] == 1


def test_the_spec_survives_its_json_form() -> None:
    spec = run_spec(job(training={"classWeights": {"balanced": True}}), service(), ATTEMPT)
    assert RunSpec.model_validate_json(spec.model_dump_json(by_alias=True)) == spec
    assert RunSpec.model_validate(spec.to_dict()) == spec


def test_a_job_overrides_its_service() -> None:
    spec = run_spec(
        job(policy={"timeoutSeconds": 60, "drainSeconds": 20, "onTimeout": "Fail"}, resources={"gpus": 2, "nodes": 3}),
        service(execution={"timeoutSeconds": 900, "maxAttempts": 5}),
        ATTEMPT,
    )
    assert (spec.timeout_seconds, spec.drain_seconds, spec.on_timeout) == (60, 20, "Fail")
    assert (spec.gpus, spec.nodes, spec.training.batch_size) == (2, 3, 32)
    assert spec.max_process_starts == 1


@pytest.mark.parametrize(
    ("architecture", "weights", "sentence"),
    [
        ("resnet18", {"box": 2.0}, "parts of a detector's loss"),
        ("ssd300-vgg16", {"dfl": 1.0}, "ssd300-vgg16 has no part dfl"),
    ],
)
def test_a_weight_of_a_part_that_the_loss_does_not_have_is_said(
    architecture: str, weights: dict[str, float], sentence: str
) -> None:
    with pytest.raises(Contradiction, match=sentence):
        run_spec(
            job(architecture=architecture, training={"lossWeights": weights}),
            service(architecture=architecture, instance={"gpus": 1}),
            ATTEMPT,
        )


def test_a_process_is_started_again_where_its_pod_is_alone() -> None:
    again = service(execution={"rerunAsProcess": True, "maxAttempts": 5})
    assert run_spec(job(), again, ATTEMPT).max_process_starts == 5
    assert run_spec(job(policy={"rerunAsProcess": False}), again, ATTEMPT).max_process_starts == 1
    with pytest.raises(Contradiction, match="rerunAsProcess to false, or nodes to 1"):
        run_spec(job(resources={"nodes": 2}), again, ATTEMPT)


def test_a_short_timeout_leaves_half_of_it_to_train() -> None:
    assert run_spec(job(policy={"timeoutSeconds": 60}), service(), ATTEMPT).drain_seconds == 30


def test_steps_stand_alone() -> None:
    training = run_spec(job(training={"steps": 50, "evaluateEverySteps": 25}), service(), ATTEMPT).training
    assert (training.epochs, training.steps) == (None, 50)
    assert (training.evaluate_every_epochs, training.evaluate_every_steps) == (None, 25)


def test_subsets_take_the_place_of_the_split() -> None:
    dataset = job(
        dataset={"sources": [{"uri": "s3://vision/a.zip"}], "subsets": {"train": {"imageSet": "train"}}}
    ).dataset
    spec = run_spec(job(dataset=dataset), service(), ATTEMPT)
    assert spec.dataset.split is None
    assert spec.training.select_by is None, "there are no validation images to select by"


def test_what_the_attempt_says_is_taken_over() -> None:
    start = Start(manifestURI="s3://vision/models/cells/v1/manifest.json", parent_version="cells-v1")
    attempt = Attempt("cells", "vision", "u", run=2, number=4, version=3, start=start, trained_seconds=7, finish=True)
    spec = run_spec(job(model="cells", startFrom={"version": 1}), service(), attempt)
    assert (spec.run, spec.attempt, spec.version, spec.trained_seconds, spec.finish) == (2, 4, 3, 7, True)
    assert spec.start == start


def test_early_stopping_watches_what_selects() -> None:
    training = run_spec(job(training={"selectBy": "mAP50", "earlyStopping": {}}), service(), ATTEMPT).training
    assert training.early_stopping is not None
    assert (training.early_stopping.metric, training.early_stopping.patience_epochs) == ("mAP50", 20)


def test_a_private_architecture_keeps_its_own_defaults() -> None:
    own = {"architecture": "private/my-net"}
    spec = run_spec(job(**own, task="Tagging"), service(**own, image="registry.example/my-net:1"), ATTEMPT)
    assert spec.task is Task.TAGGING
    assert (spec.dataset.image_size, spec.training.batch_size, spec.training.learning_rate) == (None, None, None)


@pytest.mark.parametrize(
    ("of_job", "of_service", "sentence"),
    [
        ({}, {"architecture": "resnet18"}, "the job's architecture is yard-nano, but its service trains resnet18"),
        ({"architecture": "yard-nono"}, {"architecture": "yard-nono"}, "did you mean yard-nano?"),
        ({"architecture": "private/x"}, {"architecture": "private/x"}, "set task to Detection"),
        ({"task": "Tagging"}, {}, "yard-nano cannot do Tagging; set task to Detection"),
        (
            {"training": {"selectBy": "accuracy"}},
            {},
            "selectBy accuracy does not fit Detection; write mAP50_95 or mAP50",
        ),
        ({"training": {"earlyStopping": {"metric": "mAP"}}}, {}, "earlyStopping.metric mAP does not fit Detection"),
        (
            {
                "dataset": {
                    "sources": [{"uri": "s3://vision/a.zip"}],
                    "split": {"trainPercent": 90, "validationPercent": 0},
                },
                "training": {"earlyStopping": {}},
            },
            {},
            "need validation images",
        ),
        ({"startFrom": {"version": 7}}, {}, "startFrom.version 7 was not found"),
        ({"startFrom": {"job": "other"}}, {}, "startFrom.job other was not found"),
        (
            {"architecture": "fcos-resnet50-fpn"},
            {"architecture": "fcos-resnet50-fpn"},
            "fcos-resnet50-fpn needs a GPU; set gpus to at least 1",
        ),
    ],
)
def test_a_contradiction_is_a_sentence(of_job: dict[str, Any], of_service: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Contradiction) as error:
        run_spec(job(**of_job), service(**of_service), ATTEMPT)
    assert sentence in str(error.value)
