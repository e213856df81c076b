"""The example of a private architecture, as its image would run it: stopped, resumed, exported, reported."""

import json
import signal
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch
from trainyard_api.architectures import ARCHITECTURES, Architecture, Task
from trainyard_api.report import ExitCode
from trainyard_trainer import private
from trainyard_trainer.batch import Batch
from trainyard_trainer.errors import BadSpec
from trainyard_trainer.synth import write_zip

from tests.trainer import centers
from tests.trainer.centers import EXAMPLE
from tests.trainer.continued import Job
from tests.trainer.runs import Trainer, run_spec


def local(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))


@pytest.mark.training
@pytest.mark.timeout(900)
def test_a_network_and_two_functions_get_everything_else_from_the_package(tmp_path: Path) -> None:
    data = tmp_path / "shapes.zip"
    write_zip(data, images=40, size=(96, 64), labels=2, objects=(1, 3))
    changes = {
        "architecture": "private/centers",
        "training": {"steps": 120, "batchSize": 8, "evaluateEverySteps": 60, "checkpointEverySteps": 20},
        "augmentation": {"preset": "None"},
    }
    first = Trainer(run_spec(tmp_path, data, **changes), tmp_path, program=EXAMPLE)
    first.reached(25)
    first.send(signal.SIGTERM)
    assert first.end() == ExitCode.INTERRUPTED, first.errors()
    stopped_at = first.result["checkpointStep"]
    assert stopped_at >= 25

    again = run_spec(tmp_path, data, **changes, attempt=2, resumeFrom=[first.spec.attempt_uri])
    second = Trainer(again, tmp_path, {"TRAINYARD_ONNX": "1"}, program=EXAMPLE)
    assert second.end() == ExitCode.DONE, second.errors()
    assert (second.result["resumedFromStep"], second.result["step"]) == (stopped_at, 120)
    manifest = json.loads(local(f"{again.version_uri}manifest.json").read_text())
    assert {"model.safetensors", "model.onnx", "model-nms.onnx"} <= {file["name"] for file in manifest["files"]}
    assert manifest["validation"]["mAP50"] > 0.1, "it has learnt something"
    lines = [json.loads(line) for line in local(f"{again.run_uri}metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "step"]
    assert len(losses) == 120
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    assert "private/centers" in local(f"{again.run_uri}report.html").read_text()


def test_only_a_private_name_can_be_added_to_the_catalogue() -> None:
    with pytest.raises(ValueError, match="no private architecture"):
        private.register(
            Architecture("yard-nano", (Task.DETECTION,), 320, 8, 32, 1e-3), lambda wanted: pytest.fail("never built")
        )


@pytest.mark.parametrize(
    ("training", "field"),
    [
        ({"lossWeights": {"box": 2}}, "training.lossWeights"),
        ({"labelSmoothing": 0.1}, "training.labelSmoothing"),
        ({"classWeights": {"balanced": True}}, "training.classWeights"),
        ({"labelSmoothing": 0.1, "lossWeights": {"cls": 2}}, "training.lossWeights, training.labelSmoothing"),
    ],
)
def test_settings_that_nothing_takes_are_refused(training: dict[str, Any], field: str) -> None:
    with pytest.raises(BadSpec) as refused:
        centers.task(**training)
    expected = f"private/centers brings a loss and a network of its own, which do not take {field}; leave it out."
    assert str(refused.value) == expected


def test_a_backbone_can_be_frozen_only_where_there_is_one() -> None:
    class Whole(centers.example.Centers):
        def __init__(self, labels: int) -> None:
            super().__init__(labels)
            self.layers, self.backbone = self.backbone, None

    assert centers.task(freezeEpochs=1).backbone is not None
    with pytest.raises(BadSpec, match=r"training\.freezeEpochs \(the network has no backbone\); leave it out"):
        centers.task(network=Whole, freezeEpochs=1)


def test_parts_of_a_batch_weigh_as_many_images_as_they_have() -> None:
    task = centers.task()
    task.network.eval()
    labels = torch.tensor([[0, 1], [2, -1], [-1, -1]])
    boxes = torch.tensor([[4.0, 4, 20, 24], [30, 30, 60, 50]]).expand(3, 2, 4)
    batch = Batch(torch.rand(3, 3, 64, 64), boxes, labels, labels < -1, (2, 1, 0), (0, 1, 2))
    parts = batch.split(2)
    with torch.no_grad():
        shared = sum(task.loss(part).total * task.weight(part) for part in parts) / task.weight(batch)
        torch.testing.assert_close(shared, task.loss(batch).total)


@pytest.fixture(params=["named", "silent"])
def named(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the network of `private/centers` says where its labels are; it is in the catalogue during the test."""
    named = request.param == "named"
    network = centers.example.Centers if named else centers.Silent
    entry = Architecture(centers.NAME, (Task.DETECTION,), 64, 8, 32, 1e-3, module="private")
    monkeypatch.setitem(ARCHITECTURES, entry.name, entry)
    monkeypatch.setitem(private._builders, entry.name, lambda wanted: centers.task(wanted, network))
    return named


def test_the_same_labels_keep_all_weights(named: bool, tmp_path: Path) -> None:
    theirs, mine = Job(tmp_path / "v1", centers.NAME), Job(tmp_path / "v2", centers.NAME, seed=2)
    drawn = torch.random.get_rng_state()
    mine.continues(theirs.version())
    assert all(torch.equal(tensor, mine.state[name]) for name, tensor in theirs.state.items())
    assert mine.warnings() == {}
    assert torch.equal(torch.random.get_rng_state(), drawn), "what is drawn next is the same whatever was continued"


@pytest.mark.parametrize("labels", [("c", "b", "a"), ("c", "new", "a", "more")])
def test_other_labels_keep_their_rows_where_the_network_names_them_and_start_anew_where_not(
    labels: tuple[str, ...], named: bool, tmp_path: Path
) -> None:
    theirs, mine = Job(tmp_path / "v1", centers.NAME), Job(tmp_path / "v2", centers.NAME, labels, seed=2)
    fresh, old = mine.continues(theirs.version()), theirs.state
    for name, tensor in mine.state.items():
        if not name.startswith("head."):
            assert torch.equal(tensor, old[name])
        elif named:
            assert torch.equal(tensor[[0, 1, 2, 3, 4, 6]], old[name][[0, 1, 2, 3, 6, 4]]), "distances, c, a"
        else:
            assert torch.equal(tensor, fresh[name])
    told = mine.warnings()["LabelsDifferFromPreviousVersion"]
    anew = "2 tensors of the head start anew, as nothing says which of their rows are which label's"
    assert (anew in told) is not named
    assert told.endswith("all other weights are kept.")
