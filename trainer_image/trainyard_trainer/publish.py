"""A trained model becomes a version on storage: score it, export it, upload it, and last of all put the manifest.

The manifest is put only if none is there, so that of two attempts that finish exactly one publishes. A version is what its
manifest names, with sha256; whatever else lies in its folder does not count.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trainyard_api.report import Outcome, Phase, Result
from trainyard_api.run import RunSpec
from trainyard_api.status import Metrics
from trainyard_api.storage import attempt_uri, manifest_uri, version_name

from trainyard_trainer import export, history
from trainyard_trainer.box_task import parameter_count
from trainyard_trainer.checkpoint import Checkpoints, sha256_of
from trainyard_trainer.data import EvalBatches
from trainyard_trainer.prepare import Prepared
from trainyard_trainer.records import Side, never
from trainyard_trainer.report import Reporter
from trainyard_trainer.store import Storage
from trainyard_trainer.task import Evaluation, Task
from trainyard_trainer.versions import publish_copy, published_before, result_of

LEAST_PATIENCE = 30.0
SPARE_SECONDS = 60.0
REPORT = "report.html"
MOST_LOOKED_AT = 1000
SHARE_OF_TRAINING = 0.05
"""At most this share of the images that were trained on is looked at once more."""
SHARE_OF_TIME_LEFT = 0.1
"""At most this share of the time left goes into each thing that the version can do without."""


@dataclass(frozen=True)
class Model:
    """What is published: a network with its best weights, those after `best_step` of the `step` steps that were taken."""

    task: Task
    best_step: int
    step: int
    steps: int
    outcome: Outcome
    message: str


@dataclass(frozen=True)
class Publishing:
    """Where and what for. `ends_at` is when the process is killed, on `time.monotonic`'s scale."""

    spec: RunSpec
    prepared: Prepared
    size: tuple[int, int]
    storage: Storage
    reporter: Reporter
    folder: Path
    device: torch.device
    ends_at: float
    training_seconds: int
    """Of the whole run; `attempt_seconds` is this attempt's part of it (None: all of it)."""
    resumed_from: int | None = None
    checkpoints: Checkpoints | None = None
    attempt_seconds: int | None = None


def publish(model: Model, p: Publishing) -> Result:
    """Scores, exports, uploads, commits. Everything is made locally first: a storage that is away loses nothing."""
    p.folder.mkdir(parents=True, exist_ok=True)
    p.reporter.phase(Phase.EVALUATING, "scoring the best model")
    began = time.monotonic()
    validation = _evaluate(model, p, Side.VALIDATION, None)
    test = _evaluate(model, p, Side.TEST, validation.threshold if validation else None)
    training = _look_at_training(model, p, time.monotonic() - began, validation)
    p.reporter.phase(Phase.EXPORTING)
    names = _write_files(model, p, validation, test)
    manifest = _manifest(model, p, names, validation, test)

    p.reporter.phase(Phase.UPLOADING)
    checkpoint_step = _checkpoint_step(p)
    patience = max(LEAST_PATIENCE, p.ends_at - time.monotonic() - SPARE_SECONDS)
    storage = p.storage.with_patience(patience)
    lines = _upload(storage, p, names)
    uri = manifest_uri(p.spec.version_uri)
    if not storage.put_if_absent(uri, json.dumps(manifest, ensure_ascii=False, indent=1).encode()):
        result = published_before(p.spec, storage)
        assert result is not None
        return result.model_copy(
            update={"message": "another attempt of this run had published the version already; it stands."}
        )
    publish_copy(p.spec, storage, p.reporter, p.folder)
    _clear_older(storage, p.spec)
    evaluations = {Side.TRAIN: training, Side.VALIDATION: validation, Side.TEST: test}
    _write_report(storage, p, manifest, {side: one for side, one in evaluations.items() if one is not None}, lines)
    _tell_test(p, validation, test, model.best_step)
    result = result_of(manifest, uri)
    return result.model_copy(
        update={
            "message": model.message,
            "checkpoint_step": checkpoint_step,
            "resumed_from_step": p.resumed_from,
            "training_seconds": p.training_seconds if p.attempt_seconds is None else p.attempt_seconds,
        }
    )


def _evaluate(
    model: Model, p: Publishing, side: Side, threshold: float | None, members: Sequence[int] | None = None
) -> Evaluation | None:
    """FP32 scores of a side, or of some of its records; None when it has no images."""
    if not p.prepared.of(side):
        return None
    batches = EvalBatches(p.prepared, side, size=p.size, batch_size=8, resize=p.spec.dataset.resize, records=members)
    dataset = p.prepared.dataset
    return model.task.score(batches, dataset.records, dataset.labels, device=p.device, threshold=threshold, stop=never)


def _look_at_training(model: Model, p: Publishing, seconds: float, validation: Evaluation | None) -> Evaluation | None:
    """Scores of training images, for the report's second look at annotations: as many as cost little beside the training itself.

    `seconds` is what scoring validation and test took.
    """
    members = p.prepared.of(Side.TRAIN)
    trained = model.step * (p.spec.training.batch_size or 8)
    each = seconds / max(1, len(p.prepared.of(Side.VALIDATION)) + len(p.prepared.of(Side.TEST)))
    affordable = max(0.0, p.ends_at - time.monotonic() - SPARE_SECONDS) * SHARE_OF_TIME_LEFT / max(each, 1e-4)
    count = int(min(len(members), MOST_LOOKED_AT, trained * SHARE_OF_TRAINING, affordable))
    if count == 0:
        return None
    chosen = [members[i * len(members) // count] for i in range(count)]
    return _evaluate(model, p, Side.TRAIN, validation.threshold if validation else None, chosen)


def _write_files(model: Model, p: Publishing, validation: Evaluation | None, test: Evaluation | None) -> list[str]:
    """Writes the version's files into the folder and returns their names."""
    task, labels, folder = model.task, p.prepared.dataset.labels, p.folder
    task.network.eval().to("cpu")
    # One entry: the library writes several in any order, and equal models should be equal files.
    about = {"trainyard": json.dumps({"architecture": p.spec.architecture, "labels": labels}, ensure_ascii=False)}
    export.write_weights(task.network, folder / "model.safetensors", about)
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
    (folder / "dataset.json").write_text(p.prepared.to_json(), encoding="utf-8")
    export.write_json(folder / "metrics.json", _metrics_json(p, validation, test, model))
    names = ["model.safetensors", "labels.txt", "dataset.json", "metrics.json"]
    names += _write_onnx(task, p)
    shown = test or validation
    if shown is not None:
        threshold = p.spec.evaluation.score_threshold_percent / 100
        shown.draw(folder / "predictions.png", p.prepared.pixels.image, p.prepared.dataset.records, labels, threshold)
        names.append("predictions.png")
    return names


def _write_onnx(task: Task, p: Publishing) -> list[str]:
    """The two graphs, or none and a warning when they do not compute what torch does. `TRAINYARD_ONNX=0` leaves them out."""
    if os.environ.get("TRAINYARD_ONNX") == "0":
        return []
    side = next((s for s in (Side.TEST, Side.VALIDATION, Side.TRAIN) if p.prepared.of(s)), Side.TRAIN)
    members = p.prepared.of(side)[:3]
    batch = EvalBatches(
        p.prepared, side, size=p.size, batch_size=3, resize=p.spec.dataset.resize, records=members
    ).batch(0)
    try:
        differences = export.write_onnx(task, p.size, p.folder, _contiguous(batch.images), p.spec.evaluation)
    except ImportError as error:
        p.reporter.warn("ONNXMissing", f"no ONNX file was made: {error}.")
        return []
    p.reporter.line("onnx", differences=differences)
    if any(difference > export.TOLERANCE[name] for name, difference in differences.items()):
        told = " and ".join(f"its {name} are up to {difference:.3g} off" for name, difference in differences.items())
        p.reporter.warn("ONNXDiffers", f"the ONNX file was left out: {told}.")
        return []
    return ["model.onnx", "model-nms.onnx"] if "boxes" in task.outputs else ["model.onnx"]


def _contiguous(images: Tensor) -> Tensor:
    return images.contiguous(memory_format=torch.contiguous_format)


def _metrics_json(
    p: Publishing, validation: Evaluation | None, test: Evaluation | None, model: Model
) -> dict[str, Any]:
    """Scores of both sides and of the two together, the threshold of the best F1, confusion matrices, every label."""
    labels = p.prepared.dataset.labels
    told: dict[str, Any] = {
        "bestStep": model.best_step,
        "step": model.step,
        "steps": model.steps,
        "parameters": parameter_count(model.task.network),
    }
    for name, evaluation in (
        ("validation", validation),
        ("test", test),
        ("validationAndTest", validation.joined(test) if validation and test else None),
    ):
        if evaluation is None:
            continue
        told[name] = evaluation.details(labels)
    return told


def _manifest(
    model: Model, p: Publishing, names: Sequence[str], validation: Evaluation | None, test: Evaluation | None
) -> dict[str, Any]:
    spec, labels = p.spec, p.prepared.dataset.labels
    folder = f"a{spec.attempt}/"

    def slim(evaluation: Evaluation | None) -> dict[str, Any] | None:
        return evaluation.scores(labels, model.best_step, per_class=False).to_dict() if evaluation else None

    told = {
        "format": 1, "name": version_name(spec.model, spec.version), "model": spec.model, "version": spec.version,
        "versionName": spec.version_name, "description": spec.description, "architecture": spec.architecture,
        "task": spec.task.value, "labels": list(labels), "job": spec.job, "namespace": spec.namespace, "uid": spec.uid,
        "run": spec.run, "attempt": spec.attempt, "runURI": spec.run_uri, "parentVersion": spec.start.parent_version,
        "outcome": model.outcome.value, "message": model.message, "bestStep": model.best_step, "step": model.step,
        "steps": model.steps, "trainingSeconds": p.training_seconds, "validation": slim(validation), "test": slim(test),
        "datasetDigest": p.prepared.dataset.digest, "trainer": _trainer_version(), "torch": str(torch.__version__),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "evaluation": spec.evaluation.to_dict(),
        "onnx": export.onnx_description(p.size, spec.dataset.resize.value, labels, model.task.outputs, spec.evaluation) if "model.onnx" in names else None,
        "files": [
            {"name": name, "path": folder + name, "size": (p.folder / name).stat().st_size, "sha256": sha256_of(p.folder / name)}
            for name in names
        ],
    }  # fmt: skip
    return {key: value for key, value in told.items() if value is not None}


def _checkpoint_step(p: Publishing) -> int | None:
    """Step of the checkpoint that the next attempt would go on from, once the last one has arrived."""
    if p.checkpoints is None:
        return p.resumed_from
    p.checkpoints.wait(max(0.0, p.ends_at - time.monotonic()) * SHARE_OF_TIME_LEFT)
    saved = p.checkpoints.saved
    step = saved.step if saved else p.resumed_from
    p.reporter.progress(checkpoint_step=step)
    return step


def _upload(storage: Storage, p: Publishing, names: Sequence[str]) -> list[history.Line]:
    """The version's files and those of the run; returns the lines of the run's metrics."""
    spec = p.spec
    for number, name in enumerate(names):
        p.reporter.phase(Phase.UPLOADING, f"uploading {name}", 100 * number // len(names))
        storage.upload(p.folder / name, f"{spec.version_uri}a{spec.attempt}/{name}")
    run = spec.run_uri
    storage.upload(p.folder / "dataset.json", f"{run}dataset.json")
    without_intake = spec.model_copy(update={"intake": None})
    storage.put_bytes(f"{run}spec.json", json.dumps(without_intake.to_dict(), ensure_ascii=False, indent=1).encode())
    p.reporter.flush()
    own = p.folder.parent / history.FILE
    attempts = history.of_attempts(storage, [uri for uri in spec.resume_from if uri != spec.attempt_uri])
    attempts.append(history.parse(own.read_bytes()) if own.exists() else [])
    lines = history.merged(attempts)
    storage.put_bytes(f"{run}{history.FILE}", history.dumped(lines))
    return lines


def _write_report(
    storage: Storage,
    p: Publishing,
    manifest: dict[str, Any],
    evaluations: dict[Side, Evaluation],
    lines: Sequence[history.Line],
) -> None:
    """`report.html` of the run, once the version stands: whatever goes wrong here is a warning."""
    from trainyard_trainer.runreport import environment_facts, report_html

    p.reporter.phase(Phase.UPLOADING, f"writing {REPORT}")
    try:
        facts = environment_facts(p.device, manifest["trainer"])
        text = report_html(manifest, p.spec, p.prepared, evaluations, lines, p.reporter.warnings, facts)
        storage.with_patience(LEAST_PATIENCE).put_bytes(f"{p.spec.run_uri}{REPORT}", text.encode())
    except Exception as error:
        p.reporter.warn("ReportMissing", f"{REPORT} could not be written: {type(error).__name__}: {error}")


def _clear_older(storage: Storage, spec: RunSpec) -> None:
    """Checkpoints of the run's earlier attempts: only the newest is kept, which is this attempt's."""
    for number in range(1, spec.attempt):
        storage.clear(f"{attempt_uri(spec.run_uri, number)}checkpoints/")


def _tell_test(p: Publishing, validation: Evaluation | None, test: Evaluation | None, step: int) -> None:
    labels = p.prepared.dataset.labels
    p.reporter.metrics(
        Metrics(
            best=validation.scores(labels, step) if validation else None,
            test=test.scores(labels, step) if test else None,
        )
    )


def _trainer_version() -> str:
    try:
        return version("trainyard")
    except PackageNotFoundError:
        return "unknown"
