"""Image networks: what an image's labels become in a batch, losses, scores; and that each kind of training makes a version."""

import io
import json
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from trainyard_api.architectures import ARCHITECTURES, Task
from trainyard_api.report import Outcome
from trainyard_api.training import Training
from trainyard_cli.evaluation import evaluate
from trainyard_cli.modelsource import find
from trainyard_cli.predict import Wish, opened
from trainyard_cli.predict import run as predict
from trainyard_trainer import image_metrics, synth
from trainyard_trainer.assemble import build_loop
from trainyard_trainer.attempt import Attempt
from trainyard_trainer.augment import Canvas, Tile
from trainyard_trainer.batch import Batch
from trainyard_trainer.data import EvalBatches, canvas_shares, mixed_targets
from trainyard_trainer.image_network import network
from trainyard_trainer.image_task import ImageTask
from trainyard_trainer.optimizer import Optimizer
from trainyard_trainer.prepare import Prepared, prepare
from trainyard_trainer.publish import Model, Publishing, publish
from trainyard_trainer.records import Side
from trainyard_trainer.report import Reporter
from trainyard_trainer.store import Storage
from trainyard_trainer.voc_write import zip_writer

from tests.trainer.runs import run_spec

EYE = np.eye(3)


def tile(record: int, window: tuple[float, float, float, float], opaque: bool = False, boxes: bool = True) -> Tile:
    return Tile(record, EYE, window, opaque=opaque, boxes=boxes)


def test_pictures_share_a_canvas_by_what_is_seen_of_them() -> None:
    mosaic = Canvas(0, (tile(0, (0, 0, 5, 5)), tile(1, (5, 0, 10, 5)), tile(2, (0, 5, 10, 10))))
    assert canvas_shares(mosaic) == [(0, 0.25), (1, 0.25), (2, 0.5)]
    cutmix = Canvas(0, (tile(0, (0, 0, 10, 10)), tile(1, (0, 0, 5, 4), opaque=True)))
    assert canvas_shares(cutmix) == [(0, 0.8), (1, 0.2)]
    patch = Canvas(0, (tile(0, (0, 0, 10, 10)), tile(1, (0, 0, 5, 4), boxes=False)))
    assert canvas_shares(patch) == [(0, 1.0)]
    mixup = Canvas(0, (tile(0, (0, 0, 10, 10)),), blend=Canvas(3, (tile(3, (0, 0, 10, 10)),)), keep=0.75)
    assert canvas_shares(mixup) == [(0, 0.75), (3, 0.25)]


def test_targets_are_shares_and_what_does_not_count_in_one_picture_counts_in_no_mixture() -> None:
    answers = np.array([[1, 0, 0], [0, 1, -1]], np.float32)
    half = Canvas(0, (tile(0, (0, 0, 5, 10)), tile(1, (5, 0, 10, 10))))
    plain = Canvas(0, (tile(0, (0, 0, 10, 10)),))
    assert mixed_targets([half, plain], answers).tolist() == [[0.5, 0.5, -1], [1, 0, 0]]


def test_average_precision_is_the_area_at_all_recalls() -> None:
    # Right, wrong, right of three: precision 1 up to recall 1/2, 2/3 up to 1.
    answers = np.array([[1.0], [0], [1], [-1]])
    scores = np.array([[0.9], [0.8], [0.7], [0.95]])
    assert image_metrics.average_precision(answers, scores).tolist() == pytest.approx([0.5 + 0.5 * 2 / 3])
    nobody = image_metrics.average_precision(np.zeros((2, 1)), np.ones((2, 1)))
    assert np.isnan(nobody).all()


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_agrees_with_one_that_is_written_out(seed: int) -> None:
    random = np.random.default_rng(seed)
    answers = random.integers(0, 2, (40, 1)).astype(float)
    scores = random.integers(0, 15, (40, 1)) / 15  # many equal ones
    points = []
    for threshold in np.unique(scores):
        said = scores >= threshold
        points.append(((said & (answers > 0)).sum() / answers.sum(), (said & (answers > 0)).sum() / said.sum()))
    recalls = sorted({recall for recall, _ in points})
    area, before = 0.0, 0.0
    for recall in recalls:
        area += (recall - before) * max(p for r, p in points if r >= recall)
        before = recall
    assert image_metrics.average_precision(answers, scores)[0] == pytest.approx(area)


def test_f1_of_labels_and_of_answers() -> None:
    counts = image_metrics.class_counts(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]), 3)
    assert counts.f1[:2].tolist() == pytest.approx([0.8, 2 / 3])
    assert np.isnan(counts.f1[2])
    assert counts.macro_f1 == pytest.approx((0.8 + 2 / 3) / 2)
    assert counts.micro_f1 == pytest.approx(0.75)
    assert image_metrics.confusion(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]), 2).tolist() == [[2, 1], [0, 1]]
    tags = image_metrics.tag_counts(np.array([[1.0, 0], [-1, 1]]), np.array([[0.6, 0.9], [0.9, 0.2]]), 0.5)
    assert (tags.hit.tolist(), tags.false.tolist(), tags.missed.tolist()) == ([1, 0], [0, 1], [0, 1])


def test_the_best_threshold_says_equal_scores_together() -> None:
    answers = np.array([[1.0], [1], [0], [0]])
    assert image_metrics.best_threshold(answers, np.array([[0.9], [0.4], [0.3], [0.1]])) == 0.4
    assert image_metrics.best_threshold(answers, np.array([[0.9], [0.4], [0.4], [0.1]])) == 0.4
    assert image_metrics.best_threshold(np.zeros((2, 1)), np.ones((2, 1))) == 0.5


def a_batch(targets: list[list[float]], seed: int = 0) -> Batch:
    images = len(targets)
    return Batch(
        images=torch.rand(images, 3, 64, 64, generator=torch.Generator().manual_seed(seed)),
        boxes=torch.zeros(images, 1, 4),
        labels=torch.full((images, 1), -1),
        difficult=torch.zeros(images, 1, dtype=torch.bool),
        counts=(0,) * images,
        records=tuple(range(images)),
        targets=torch.tensor(targets),
    )


class Said(torch.nn.Module):
    """Always the same logits."""

    def __init__(self, logits: list[list[float]]) -> None:
        super().__init__()
        self.logits = torch.nn.Parameter(torch.tensor(logits))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits


def a_task(task: Task, logits: list[list[float]], **settings: object) -> ImageTask:
    return ImageTask(Said(logits), task, **settings)  # type: ignore[arg-type]


LOGITS = [[2.0, 0.5], [0.1, -1.0]]


def test_the_loss_of_classes_is_torchs() -> None:
    logits, truth = torch.tensor(LOGITS), torch.tensor([0, 1])
    batch = a_batch([[1, 0], [0, 1]])
    weights = torch.tensor([1.0, 3.0])
    own = a_task(Task.CLASSIFICATION, LOGITS).loss(batch).total
    torch.testing.assert_close(own, torch.nn.functional.cross_entropy(logits, truth))
    own = a_task(Task.CLASSIFICATION, LOGITS, label_weights=(1.0, 3.0)).loss(batch).total
    torch.testing.assert_close(own, torch.nn.functional.cross_entropy(logits, truth, weights))
    own = a_task(Task.CLASSIFICATION, LOGITS, label_smoothing=0.2).loss(batch).total
    torch.testing.assert_close(own, torch.nn.functional.cross_entropy(logits, truth, label_smoothing=0.2))


def test_the_loss_of_tags_leaves_out_what_does_not_count() -> None:
    bce = torch.nn.functional.binary_cross_entropy_with_logits
    own = a_task(Task.TAGGING, LOGITS).loss(a_batch([[1, -1], [0, 1]])).total
    each = bce(torch.tensor(LOGITS), torch.tensor([[1.0, 0], [0, 1]]), reduction="none")
    torch.testing.assert_close(own, (each.sum() - each[0, 1]) / 3)
    heavy = a_task(Task.TAGGING, LOGITS, label_weights=(1.0, 3.0)).loss(a_batch([[1, 0], [0, 1]])).total
    torch.testing.assert_close(heavy, (each * torch.tensor([1.0, 3.0])).sum() / 8)
    nothing = a_task(Task.TAGGING, LOGITS).loss(a_batch([[-1, -1], [-1, -1]])).total
    assert nothing.item() == 0


@pytest.mark.training
def test_the_loss_falls_on_one_batch() -> None:
    torch.manual_seed(0)
    task = ImageTask(network("mobilenet_v3_small", 2), Task.TAGGING)
    optimizer = Optimizer(list(task.network.parameters()), Training())
    batch = a_batch([[1, 0], [0, 1], [1, 1], [0, 0]])
    losses = []
    for _ in range(12):
        loss = task.loss(batch)
        loss.total.backward()
        optimizer.step(1e-3, loss.total.detach())
        losses.append(loss.total.item())
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("name", [name for name, entry in ARCHITECTURES.items() if entry.module == "image_network"])
def test_every_image_network_of_the_catalogue_is_torchvisions_with_a_head_of_ours(name: str) -> None:
    with torch.device("meta"):
        made = network(ARCHITECTURES[name].source, 7)
        assert made.eval()(torch.zeros(2, 3, 64, 96)).shape == (2, 7)


# Trainings


def zip_of(path: Path, *, single: bool, images: int = 24) -> Path:
    """Pictures of circles and squares; lists of a third label, `bright`, for tagging: yes, no, not sure, and some without concept."""
    names = synth.label_names(synth.Kind.SHAPES, 2)
    with zip_writer(path) as archive:
        answers = []
        for index in range(images):
            few = (1, 1) if single else (0, 2)
            drawn = synth.draw(np.random.default_rng([5, index]), names, synth.Kind.SHAPES, (72, 64), few)
            light = np.minimum(np.asarray(drawn.image).astype(int) + (60 if index % 3 == 0 else 0), 255)
            data = io.BytesIO()
            Image.fromarray(light.astype(np.uint8)).save(data, "PNG")
            archive.add(f"p{index:02d}", ".png", data.getvalue(), (72, 64), drawn.objects)
            answers.append(f"p{index:02d} {(1, -1, 0)[index % 3]}")
        if not single:
            archive.add_list("bright_trainval", answers)
    return path


def prepared_of(folder: Path, task: Task) -> tuple[Path, Prepared]:
    data = zip_of(folder / f"{task}.zip", single=task is Task.CLASSIFICATION)
    spec = run_spec(folder, data)
    return data, prepare(spec.dataset, task, Storage(), folder / "cache", image_size=(64, 64))


def test_tags_come_from_objects_and_lists_and_pictures_without_concept_are_learnt_from(tmp_path: Path) -> None:
    _, prepared = prepared_of(tmp_path, Task.TAGGING)
    assert prepared.dataset.labels == ("bright", "circle", "square")
    assert len(prepared.dataset.records) == 24
    assert any(not record.objects for record in prepared.dataset.records)
    for batch in EvalBatches(prepared, Side.TRAIN, size=(64, 64), batch_size=8):
        assert batch.targets is not None
        for record, row in zip(batch.records, batch.targets.tolist(), strict=True):
            known = prepared.dataset.records[record]
            assert row[0] == (1, 0, -1)[int(known.name[1:]) % 3]
            assert row[1:] == [float(any(o.label == label for o in known.objects)) for label in ("circle", "square")]


@pytest.mark.training
@pytest.mark.parametrize(
    ("task", "metric", "training"),
    [
        (Task.CLASSIFICATION, "accuracy", {"labelSmoothing": 0.1, "classWeights": {"balanced": True}}),
        (Task.TAGGING, "mAP", {"freezeEpochs": 1}),
    ],
)
def test_a_training_makes_a_version(
    task: Task, metric: str, training: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    data, prepared = prepared_of(tmp_path, task)
    spec = run_spec(
        tmp_path, data, architecture="mobilenet-v3-small", task=task.value,
        training={"steps": 6, "batchSize": 6, "evaluateEverySteps": 3, "selectBy": metric} | training,
        augmentation={"mosaic": 50, "mixup": 50, "cutmix": 50, "distractor": 50, "erase": 50},
    )  # fmt: skip
    out = io.StringIO()
    reporter = Reporter(spec, tmp_path / "metrics.jsonl", out=out)
    attempt = Attempt(spec, reporter, tmp_path, lambda: False, time.monotonic())
    loop = build_loop(attempt, Storage(), (64, 64), None, prepared)
    ending = loop.run()
    assert ending.outcome is Outcome.COMPLETED
    assert ending.best is not None
    loop.network.load_state_dict(ending.best.weights)
    model = Model(loop.work.task, ending.best.step, 6, 6, Outcome.COMPLETED, "done.")
    result = publish(
        model,
        Publishing(
            spec, prepared, (64, 64), Storage(), reporter, tmp_path / "version", torch.device("cpu"),
            time.monotonic() + 600, 1,
        ),
    )  # fmt: skip
    assert result.metrics is not None
    value = {"accuracy": result.metrics.accuracy, "mAP": result.metrics.map}[metric]
    assert value is not None
    assert 0 <= value <= 1
    assert result.metrics.validation_loss is not None
    told = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {"macroF1", "microF1", metric, "validationLoss"} <= set(next(x for x in told if x["kind"] == "evaluation"))
    folder = tmp_path / "version"
    assert Image.open(folder / "predictions.png").size[0] > 0
    details = json.loads((folder / "metrics.json").read_text())["validationAndTest"]
    assert [one["label"] for one in details["labels"]] == list(prepared.dataset.labels)
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"images": np.zeros((3, 3, 64, 64), np.float32)})
    assert np.shape(scores) == (3, len(prepared.dataset.labels))
    if task is Task.CLASSIFICATION:
        assert np.asarray(scores).sum(1) == pytest.approx(np.ones(3), abs=1e-5)
    assert "ONNXDiffers" not in out.getvalue()
    page = Path(spec.run_uri.removeprefix("file://")) / "report.html"
    assert "Annotations worth a second look" in page.read_text()
    version = find(spec.version_uri, lambda: pytest.fail("no cluster is asked"))
    told = evaluate([version], data.as_uri(), tmp_path / "evaluation", quiet=True)
    assert told["images"] == len(prepared.of(Side.VALIDATION)) + len(prepared.of(Side.TEST))
    assert told[metric] == pytest.approx(details[metric], abs=0.1)
    assert told["failures"]["images"] <= told["images"]
    picture = tmp_path / "picture.png"
    Image.fromarray(prepared.pixels.image(0)).save(picture)
    (seen,) = predict([opened(version)], Wish((picture,), tmp_path / "drawn", score=0.0), quiet=True)
    assert len(seen["found"]) == (1 if task is Task.CLASSIFICATION else len(prepared.dataset.labels))
    assert (tmp_path / "drawn/picture.jpg").exists()
