"""Whole attempts: from a RunSpec to a version, killed and resumed, and every bad end with its exit code."""

import json
import signal
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from trainyard_api.report import ExitCode
from trainyard_api.run import RunSpec
from trainyard_trainer.checkpoint import sha256_of

from tests.trainer.runs import Trainer, dataset, run_spec

pytestmark = [pytest.mark.training, pytest.mark.timeout(900)]


def local(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    """A training that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    trainer = Trainer(run_spec(folder, data), folder)
    assert trainer.end() == ExitCode.DONE, trainer.errors()
    return trainer


def weights(spec: RunSpec) -> str:
    """sha256 of the published weights, which the manifest must agree with."""
    manifest = json.loads(local(f"{spec.version_uri}manifest.json").read_text())
    file = next(file for file in manifest["files"] if file["name"] == "model.safetensors")
    path = local(spec.version_uri + file["path"])
    assert sha256_of(path) == file["sha256"]
    return file["sha256"]


def losses(spec: RunSpec) -> dict[int, float]:
    """Loss of every step that this attempt took: that of the last one depends on every bit of the weights before it."""
    lines = map(json.loads, local(spec.attempt_uri + "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line["loss"] for line in lines if line["kind"] == "step"}


def test_a_version_has_its_files_and_a_manifest_that_names_them(whole: Trainer) -> None:
    spec = whole.spec
    manifest = json.loads(local(f"{spec.version_uri}manifest.json").read_text())
    names = {file["name"] for file in manifest["files"]}
    assert names == {"model.safetensors", "labels.txt", "dataset.json", "metrics.json", "predictions.png"}
    for file in manifest["files"]:
        path = local(spec.version_uri + file["path"])
        assert (path.stat().st_size, sha256_of(path)) == (file["size"], file["sha256"])
    assert manifest["labels"] == local(spec.version_uri + "a1/labels.txt").read_text().split()
    for name in ("spec.json", "dataset.json", "metrics.jsonl", "report.html"):
        assert local(spec.run_uri + name).stat().st_size > 0
    lines = [json.loads(line) for line in local(spec.run_uri + "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "step"] == list(range(1, 13))


def test_an_attempt_leaves_its_log_its_metrics_and_what_tensorboard_reads(whole: Trainer) -> None:
    folder = local(whole.spec.attempt_uri)
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert log == whole.lines, "the log is what stdout said"
    assert log[-1]["event"] == "result"
    reader = EventAccumulator(str(folder)).Reload()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"]
    losses = reader.Scalars("training/loss")
    assert [event.step for event in losses] == list(range(1, 13))
    assert [event.value for event in losses] == pytest.approx([line["loss"] for line in steps])
    assert [event.wall_time for event in losses] == pytest.approx([line["time"] for line in steps])
    tags = set(reader.Tags()["scalars"])
    assert {"training/box", "training/cls", "training/dfl", "training/learningRate", "validation/mAP50"} <= tags
    assert [event.step for event in reader.Scalars("validation/mAP50_95")] == [5, 10, 12]


def test_the_termination_message_is_the_completion_record(whole: Trainer) -> None:
    result = whole.result
    assert result["manifestURI"] == f"{whole.spec.version_uri}manifest.json"
    assert (result["exitCode"], result["reason"], result["step"]) == (0, "Completed", 12)
    assert 0 <= result["metrics"]["mAP50"] <= 1


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_training_goes_on_to_the_same_weights_bit_for_bit(
    how: signal.Signals, whole: Trainer, data: Path, tmp_path: Path
) -> None:
    first = Trainer(run_spec(tmp_path, data), tmp_path)
    pointer = local(f"{first.spec.attempt_uri}checkpoints/latest.json")
    first.reached(7)
    if how is signal.SIGKILL:
        # Checkpoints are written beside the training: what counts is that one is there.
        first.wait_for(lambda _: pointer.exists())
    first.send(how)
    code = first.end()
    latest = json.loads(pointer.read_text())
    if how is signal.SIGTERM:
        assert code == ExitCode.INTERRUPTED, first.errors()
        assert first.result["checkpointStep"] == latest["step"] >= 7
    else:
        assert code == -signal.SIGKILL
        assert latest["step"] % 3 == 0
    second = Trainer(run_spec(tmp_path, data, attempt=2, resumeFrom=[first.spec.attempt_uri]), tmp_path)
    assert second.end() == ExitCode.DONE, second.errors()
    assert second.result["resumedFromStep"] == latest["step"]
    assert weights(second.spec) == weights(whole.spec)
    assert losses(second.spec).items() <= losses(whole.spec).items()
    assert 12 in losses(second.spec)
    assert not list(local(first.spec.attempt_uri + "checkpoints").glob("*")), (
        "who publishes clears the older checkpoints"
    )


def test_two_processes_take_the_steps_of_one_and_stop_together(whole: Trainer, data: Path, tmp_path: Path) -> None:
    """Two GPUs, whose place the CPU takes: the same global batches, the same numbers to float error, one end."""
    trainer = Trainer(run_spec(tmp_path, data, gpus=2), tmp_path, {"TRAINYARD_ALLOW_CPU": "1"})
    children = Path(f"/proc/{trainer.process.pid}/task/{trainer.process.pid}/children")
    trainer.reached(4)
    ranks = [int(pid) for pid in children.read_text().split()]
    assert len(ranks) == 2
    trainer.send(signal.SIGTERM)
    assert trainer.end() == ExitCode.INTERRUPTED, trainer.errors()
    assert not [pid for pid in ranks if Path(f"/proc/{pid}").exists()]
    latest = json.loads(local(f"{trainer.spec.attempt_uri}checkpoints/latest.json").read_text())
    assert trainer.result["checkpointStep"] == latest["step"] >= 4
    expected, found = losses(whole.spec), losses(trainer.spec)
    assert len(found) >= 4
    for step, loss in found.items():
        assert loss == pytest.approx(expected[step], rel=2e-3), step


def test_stopped_before_the_first_step_says_that_there_is_no_checkpoint(data: Path, tmp_path: Path) -> None:
    trainer = Trainer(run_spec(tmp_path, data), tmp_path)
    trainer.wait_for(lambda line: line.get("phase") == "Fetching")
    trainer.send(signal.SIGTERM)
    assert trainer.end() == ExitCode.INTERRUPTED
    assert "checkpointStep" not in trainer.result


def test_a_run_that_was_published_is_reported_and_not_trained_again(whole: Trainer, data: Path) -> None:
    spec = whole.spec.model_copy(update={"attempt": 2})
    again = Trainer(spec, whole.folder)
    assert again.end() == ExitCode.DONE
    assert again.result["manifestURI"] == whole.result["manifestURI"]
    assert not [line for line in again.lines if line["event"] == "step"]


def test_a_version_of_another_run_is_never_overwritten(whole: Trainer, data: Path, tmp_path: Path) -> None:
    other = whole.spec.model_copy(update={"uid": "f" * 32})
    trainer = Trainer(other, tmp_path)
    assert trainer.end() == ExitCode.VERSION_TAKEN
    assert trainer.result["version"] == 1
    assert "highest" in trainer.result["message"]


def test_another_training_does_not_go_on_from_this_checkpoint(data: Path, tmp_path: Path) -> None:
    first = Trainer(run_spec(tmp_path, data), tmp_path)
    first.reached(4)
    first.send(signal.SIGTERM)
    assert first.end() == ExitCode.INTERRUPTED
    changed = {"steps": 12, "batchSize": 4, "checkpointEverySteps": 3, "learningRate": 0.1}
    spec = run_spec(tmp_path, data, attempt=2, resumeFrom=[first.spec.attempt_uri], training=changed)
    second = Trainer(spec, tmp_path)
    assert second.end() == ExitCode.BAD_SPEC
    assert "another training" in second.result["message"]
    finished = Trainer(run_spec(tmp_path, data, attempt=3, resumeFrom=[first.spec.attempt_uri], finish=True), tmp_path)
    assert finished.end() == ExitCode.DONE, finished.errors()
    assert finished.result["reason"] == "FinishedEarly"


def test_a_training_continues_from_a_version_with_its_labels_and_sides(
    whole: Trainer, tmp_path: Path, data: Path
) -> None:
    start = {"manifestURI": whole.result["manifestURI"], "parentVersion": "shapes-v1"}
    training = {"steps": 2, "batchSize": 4, "learningRate": 1e-6, "warmupSteps": 0}
    spec = run_spec(tmp_path, data, start=start, training=training, uid="e" * 32, version=2)
    trainer = Trainer(spec, tmp_path)
    assert trainer.end() == ExitCode.DONE, trainer.errors()
    manifest = json.loads(local(f"{spec.version_uri}manifest.json").read_text())
    assert manifest["parentVersion"] == "shapes-v1"
    mine = json.loads(local(spec.run_uri + "dataset.json").read_text())["sides"]
    theirs = json.loads(local(whole.spec.run_uri + "dataset.json").read_text())["sides"]
    assert mine == theirs


def test_time_that_is_too_short_is_planned_and_what_there_is_gets_published(data: Path, tmp_path: Path) -> None:
    training = {"steps": 100_000, "batchSize": 4, "evaluateEverySteps": 1000, "maxDurationSeconds": 8}
    trainer = Trainer(run_spec(tmp_path, data, training=training), tmp_path)
    assert trainer.end() == ExitCode.DONE, trainer.errors()
    assert trainer.result["reason"] == "MaxDurationReached"
    lowered = [line for line in trainer.lines if line.get("reason") == "StepsLowered"]
    assert not lowered or trainer.result["steps"] < 100_000


BAD = {
    "an unknown architecture": ({"architecture": "yard-gigantic"}, ExitCode.BAD_SPEC, "yard-gigantic"),
    "a size that does not fit": ({"dataset": {"imageSize": 100}}, ExitCode.BAD_SPEC, "multiple of 32"),
    "another task": ({"task": "Classification"}, ExitCode.BAD_SPEC, "Detection"),
    "no such data": (
        {"dataset": {"sources": [{"uri": "file:///nowhere/data.zip"}]}},
        ExitCode.STORAGE_REFUSED,
        "nowhere",
    ),
    "FP16 on a CPU": ({"training": {"steps": 2, "precision": "FP16"}}, ExitCode.BAD_SPEC, "FP16"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_done_is_said(name: str, data: Path, tmp_path: Path) -> None:
    changes, code, words = BAD[name]
    changes = dict(changes)
    if "dataset" in changes:
        changes["dataset"] = {"sources": [{"uri": data.as_uri()}], "split": {}, **changes["dataset"]}
    trainer = Trainer(run_spec(tmp_path, data, **changes), tmp_path)
    assert trainer.end() == code, trainer.errors()
    assert words in trainer.result["message"]


def test_a_missing_gpu_is_no_silent_training_on_a_cpu(data: Path, tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    trainer = Trainer(run_spec(tmp_path, data, gpus=1), tmp_path, {"TRAINYARD_ALLOW_CPU": "0"})
    assert trainer.end() == ExitCode.GPU_MISSING
    assert "TRAINYARD_ALLOW_CPU" not in trainer.result["message"]
    assert "driver" in trainer.result["message"]


def test_a_spec_that_is_none_is_said(tmp_path: Path) -> None:
    import os
    import subprocess
    import sys

    path, message = tmp_path / "run.json", tmp_path / "message"
    path.write_text('{"job": "x"}')
    environment = os.environ | {"TRAINYARD_RUN_SPEC": str(path), "TRAINYARD_TERMINATION_LOG": str(message)}
    done = subprocess.run([sys.executable, "-m", "trainyard_trainer"], env=environment, capture_output=True)
    assert done.returncode == ExitCode.BAD_SPEC
    assert "namespace" in json.loads(message.read_text())["message"]
