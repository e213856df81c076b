"""torchvision's detectors behind our losses: anchors, matching, and a step of each on what data really has."""

import io
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from trainyard_api.architectures import ARCHITECTURES
from trainyard_api.report import Outcome
from trainyard_api.training import Evaluation, Training
from trainyard_trainer import anchors, export, rcnn
from trainyard_trainer.assemble import build_loop
from trainyard_trainer.attempt import Attempt
from trainyard_trainer.batch import Batch
from trainyard_trainer.box_task import BoxTask
from trainyard_trainer.prepare import prepare
from trainyard_trainer.publish import Model, Publishing, publish
from trainyard_trainer.records import Object, Record
from trainyard_trainer.report import Reporter
from trainyard_trainer.store import Storage
from trainyard_trainer.task import Loss, Wanted
from trainyard_trainer.zoo import centreness, hard_negatives, match_points

from tests.trainer.runs import dataset, run_spec

NAMES = [name for name, entry in ARCHITECTURES.items() if entry.module in ("zoo", "rcnn")]
SMALL = {"ssd300-vgg16": 288}
LABELS = ("cat", "dog", "owl")


def a_batch(boxes: list[list[list[float]]], labels: list[list[int]], size: int = 64, difficult: bool = False) -> Batch:
    said = torch.tensor(labels)
    return Batch(
        images=torch.rand(len(boxes), 3, size, size, generator=torch.Generator().manual_seed(0)),
        boxes=torch.tensor(boxes, dtype=torch.float32),
        labels=said,
        difficult=torch.full(said.shape, difficult),
        counts=tuple(int((row >= 0).sum()) for row in said),
        records=tuple(range(len(boxes))),
    )


def a_record(width: int, height: int, *boxes: tuple[float, float, float, float]) -> Record:
    return Record("a", "a.jpg", "a.xml", 0, width, height, "x", objects=tuple(Object("cat", box) for box in boxes))


def test_shapes_are_those_of_the_objects_in_the_input() -> None:
    records = [a_record(200, 100, (0, 0, 50, 20)), a_record(100, 400, (0, 0, 40, 40), (3, 3, 3, 9))]
    assert anchors.object_shapes(records, (100, 100)).tolist() == [[25, 10], [10, 10]]


def test_anchors_are_fitted_where_there_are_objects_of_the_levels_size() -> None:
    random = np.random.default_rng(0)
    stock = [np.array([[32.0, 32], [40, 40]]), np.array([[64.0, 64], [80, 80]])]
    wide, tall = random.normal((30, 6), 1, (50, 2)), random.normal((7, 28), 1, (50, 2))
    first, second = anchors.fitted(stock, np.concatenate((wide, tall)))
    assert sorted(np.round(first / 10).tolist()) == [[1, 3], [3, 1]]
    assert second.tolist() == stock[1].tolist(), "there are no large objects"
    everywhere = anchors.fitted([stock[0], stock[0]], wide)
    np.testing.assert_array_equal(everywhere[0], everywhere[1])


def test_the_grid_is_ordered_by_level_row_column_and_shape() -> None:
    shapes = [torch.tensor([[4.0, 2], [8, 8]]), torch.tensor([[16.0, 16]])]
    found = anchors.grid(shapes, [(2, 3), (1, 1)], (32, 48), 0.5)
    assert len(found) == 2 * 3 * 2 + 1
    assert found[0].tolist() == [6, 7, 10, 9]
    assert found[2].tolist() == [22, 7, 26, 9]
    assert found[-1].tolist() == [16, 8, 32, 24]


def test_no_deltas_decode_to_the_anchor() -> None:
    anchor = torch.tensor([[10.0, 20, 30, 60]])
    assert torch.equal(anchors.decode(torch.zeros(1, 4), anchor, (10.0, 5.0)), anchor)
    moved = anchors.decode(torch.tensor([[10.0, 0, 0, 1e9]]), anchor, (10.0, 5.0))
    assert moved[0, :3:2].tolist() == [30, 50]
    assert torch.isfinite(moved).all()


def test_every_object_is_learnt_and_difficult_or_empty_ones_are_not() -> None:
    grid = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 60, 60]])
    batch = a_batch([[[0, 0, 10, 9], [19, 19, 23, 23]], [[40, 40, 60, 59], [50, 50, 50, 60]]], [[2, 1], [0, 1]])
    found = anchors.match(grid, batch, positive=0.5, negative=0.4)
    assert found.positive.tolist() == [[True, True, False], [False, False, True]]
    assert found.labels(batch)[found.positive].tolist() == [2, 1, 0]
    assert found.background.tolist() == [[False, False, True], [True, True, False]]
    hard = anchors.match(grid, a_batch([[[40, 40, 60, 59]]], [[0]], difficult=True), positive=0.5, negative=0.4)
    assert not hard.positive.any()
    assert hard.background.tolist() == [[True, True, False]]


def test_padding_takes_no_anchor_from_an_object() -> None:
    grid = torch.tensor([[0.0, 0, 10, 10], [20, 20, 30, 30]])
    batch = a_batch([[[0, 0, 10, 9], [0, 0, 0, 0], [0, 0, 0, 0]]], [[2, -1, -1]])
    found = anchors.match(grid, batch, positive=0.5, negative=0.4)
    assert found.owner[0, 0] == 0
    assert found.positive.tolist() == [[True, False]]


def test_hard_negatives_are_the_worst_and_some_even_without_objects() -> None:
    background = torch.ones(2, 40, dtype=torch.bool)
    positive = torch.zeros_like(background)
    positive[0, :4], background[0, :4] = True, False
    loss = torch.arange(80.0).view(2, 40)
    chosen = hard_negatives(
        loss, anchors.Matches(torch.zeros_like(background, dtype=torch.int64), positive, background)
    )
    assert chosen.sum(1).tolist() == [12, 8]
    assert chosen[0, -12:].all()


def test_points_learn_the_smallest_object_of_their_levels_size() -> None:
    grid = anchors.grid([torch.tensor([[8.0, 8]]), torch.tensor([[16.0, 16]])], [(8, 8), (4, 4)], (64, 64), 0.0)
    batch = a_batch([[[8, 8, 40, 40], [16, 16, 32, 32]]], [[0, 1]])
    found = match_points(grid, (64, 16), batch)
    at = (grid[:, 0] + 4 == 24) & (grid[:, 1] + 4 == 24) & (grid[:, 2] - grid[:, 0] == 8)
    assert found.labels(batch)[0, at].tolist() == [1]
    assert found.positive[0, at].all()
    assert centreness(grid, found.boxes(batch))[0, at].item() == pytest.approx(1.0)
    assert not found.positive[0, 64:].any(), "no object is as large as the second level's"


def built(name: str) -> BoxTask:
    entry = ARCHITECTURES[name]
    side = SMALL.get(name, 64)
    record = a_record(side, side, *((4.0, 4.0, 4.0 + n, 12.0 + n) for n in range(1, 40)))
    wanted = Wanted(entry.task, LABELS, [record], (side, side), Training(), Evaluation())
    torch.manual_seed(0)
    return import_module(f"trainyard_trainer.{entry.module}").build(entry, wanted)


@pytest.fixture(scope="module", params=NAMES)
def detector(request: pytest.FixtureRequest) -> Iterator[tuple[str, BoxTask]]:
    """One of torchvision's, made once for the tests below; two-stage ones look at few boxes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rcnn, "PROPOSALS", 24)
        patch.setattr(rcnn, "BOX_SAMPLES", 24)
        patch.setattr(rcnn, "BOX_POSITIVES", 8)
        yield request.param, built(request.param)


@pytest.mark.training
def test_a_step_survives_images_without_objects_and_boxes_without_area(detector: tuple[str, BoxTask]) -> None:
    name, task = detector
    task.network.train()
    boxes = [[[0.0, 0, 0, 0], [0, 0, 0, 0]], [[8, 8, 40, 50], [20, 20, 20, 44]]]
    labels = [[-1, -1], [2, 0]]
    if name in SMALL:  # One image is enough of the slow network; its losses are SSDLite's.
        boxes, labels = boxes[1:], labels[1:]
    loss = task.loss(a_batch(boxes, labels, SMALL.get(name, 64)))
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert loss.parts["box"] > 0
    for parameter in task.network.parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all()
        parameter.grad = None
    if name in SMALL:
        return
    with torch.no_grad():
        nothing = task.loss(a_batch([[[0.0, 0, 0, 0]]] * 2, [[-1]] * 2, SMALL.get(name, 64)))
    assert torch.isfinite(nothing.total)
    assert nothing.parts["box"] == 0
    assert nothing.parts["cls"] > 0, "a background-only image teaches something"


@pytest.mark.training
def test_weights_of_losses_and_labels_and_smoothing_act(detector: tuple[str, BoxTask]) -> None:
    name, task = detector
    images = 1 if name in SMALL else 2
    batch = a_batch([[[8, 8, 40, 50], [20, 20, 44, 44]]] * images, [[2, 0]] * images, SMALL.get(name, 64))
    # With statistics that were never learnt, an untrained network answers the same everywhere.
    task.network.train()

    @torch.no_grad()
    def loss(**changes: object) -> Loss:
        torch.manual_seed(0)  # two-stage detectors draw samples
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(task, "settings", replace(task.settings, **changes))
            return task.loss_of(raw, batch)

    with torch.no_grad():
        raw = task.network(batch.images)
    plain = loss()
    assert loss(label_weights=(3.0, 3.0, 3.0)).parts["cls"] > 1.05 * plain.parts["cls"]
    assert loss(label_smoothing=0.3).parts["cls"].item() != pytest.approx(plain.parts["cls"].item(), rel=1e-4)
    for part in ("box", "cls"):
        weight = getattr(task.settings, part)
        more = loss(**{part: 3 * weight}).total - plain.total
        assert more.item() == pytest.approx(2 * weight * plain.parts[part].item(), rel=1e-3)


@pytest.mark.training
def test_rows_of_labels_are_found_in_the_weights(detector: tuple[str, BoxTask]) -> None:
    _, task = detector
    state = task.network.state_dict()
    assert task.label_rows
    for name, rows in task.label_rows.items():
        assert state[name].shape[0] == rows.groups * (rows.before + len(LABELS))


@pytest.mark.training
def test_the_graph_says_what_torch_says(detector: tuple[str, BoxTask], tmp_path: Path) -> None:
    name, task = detector
    side, images = SMALL.get(name, 64), 1 if name in SMALL else 3
    batch = torch.rand(images, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # Statistics of these images: an untrained network answers the same everywhere else.
        task.network.train()(batch)
    task.network.eval()
    state = task.network.state_dict()
    # Before any training all places score the same but for the last bits.
    for weight in (key for key in (*task.label_rows, "rpn.head.cls_logits.weight") if key in state):
        if weight.endswith("weight"):
            state[weight].normal_(std=0.05)
    differences = export.write_onnx(task, (side, side), tmp_path, batch, Evaluation())
    assert differences["boxes"] < export.TOLERANCE["boxes"]
    assert differences["scores"] < export.TOLERANCE["scores"]
    boxes, scores = run_graph(tmp_path / "model.onnx", batch)
    assert boxes.shape[:2] == scores.shape[:2]
    assert scores.shape == (images, boxes.shape[1], len(LABELS))
    assert scores.std() > 1e-4, "it tells places apart"
    (detections,) = run_graph(tmp_path / "model-nms.onnx", batch)
    best = [detections[detections[:, 0] == image][:, 5].max() for image in range(images)]
    np.testing.assert_allclose(best, scores.max((1, 2)), atol=1e-6)


def run_graph(path: Path, images: torch.Tensor) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return [np.asarray(output) for output in session.run(None, {"images": images.numpy()})]


@pytest.mark.training
def test_a_training_makes_a_version_that_keeps_its_anchors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TRAINYARD_ONNX", "0")
    data = dataset(tmp_path, images=16)
    spec = run_spec(
        tmp_path, data, architecture="ssdlite320-mobilenet-v3",
        training={"steps": 3, "batchSize": 4, "evaluateEverySteps": 2, "checkpointEverySteps": 2},
    )  # fmt: skip
    prepared = prepare(spec.dataset, spec.task, Storage(), tmp_path / "cache", image_size=(64, 64))
    out = io.StringIO()
    reporter = Reporter(spec, tmp_path / "metrics.jsonl", out=out)
    loop = build_loop(
        Attempt(spec, reporter, tmp_path, lambda: False, time.monotonic()), Storage(), (64, 64), None, prepared
    )
    fitted = loop.network.state_dict()["shapes"].clone()
    ending = loop.run()
    assert ending.outcome is Outcome.COMPLETED
    assert ending.best is not None
    assert torch.equal(ending.best.weights["shapes"], fitted)
    assert fitted.min() < 30, "the objects have 10 to 25 px"
    loop.network.load_state_dict(ending.best.weights)
    result = publish(
        Model(loop.work.task, ending.best.step, 3, 3, Outcome.COMPLETED, "done."),
        Publishing(
            spec, prepared, (64, 64), Storage(), reporter, tmp_path / "version", torch.device("cpu"),
            time.monotonic() + 600, 1,
        ),
    )  # fmt: skip
    assert result.metrics is not None
    assert result.metrics.map50 is not None
    assert {artifact.name for artifact in result.artifacts} >= {"model.safetensors", "predictions.png", "metrics.json"}


@pytest.mark.training
@pytest.mark.parametrize("name", ["ssdlite320-mobilenet-v3", "fasterrcnn-mobilenet-v3-fpn"])
def test_a_step_never_waits_for_the_device(name: str) -> None:
    task = built(name)
    with FakeTensorMode() as mode:
        for module in task.network.modules():
            for parts in (module._parameters, module._buffers):
                for key, value in parts.items():
                    if value is not None:
                        parts[key] = mode.from_tensor(value).to("cuda")  # type: ignore[assignment]
        batch = Batch(
            images=torch.rand(2, 3, 64, 64, device="cuda"),
            boxes=torch.rand(2, 3, 4, device="cuda"),
            labels=torch.zeros(2, 3, dtype=torch.int64, device="cuda"),
            difficult=torch.zeros(2, 3, dtype=torch.bool, device="cuda"),
            counts=(3, 3),
            records=(0, 1),
        )
        assert task.loss(batch).total.device.type == "cuda"
