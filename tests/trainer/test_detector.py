"""The detector's parts: overlaps, suppression, assignment, loss; and that a step never waits for the device."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from trainyard_api.training import Training
from trainyard_trainer.assign import CANDIDATES, assign
from trainyard_trainer.batch import Batch
from trainyard_trainer.box_task import LossSettings, loss_settings, parameter_count, select
from trainyard_trainer.boxes import complete_iou, pairwise_iou, suppress
from trainyard_trainer.detector import Detector, anchor_points, decode
from trainyard_trainer.errors import BadSpec
from trainyard_trainer.network import DISTANCE_BINS, NANO, STRIDES, Network, shape_of
from trainyard_trainer.optimizer import Average, Optimizer
from trainyard_trainer.records import Object

SIZE = 128


def a_batch(images: int = 2, objects: int = 3, seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(images, objects, 2, generator=random) * 70
    sides = 10 + torch.rand(images, objects, 2, generator=random) * 45
    return Batch(
        images=torch.rand(images, 3, SIZE, SIZE, generator=random).contiguous(memory_format=torch.channels_last),
        boxes=torch.cat((corner, corner + sides), -1),
        labels=torch.randint(0, 3, (images, objects), generator=random),
        difficult=torch.zeros(images, objects, dtype=torch.bool),
        counts=(objects,) * images,
        records=tuple(range(images)),
    )


@pytest.fixture(scope="module")
def detector() -> Detector:
    torch.manual_seed(0)
    return Detector.build("yard-nano", 3)


def test_yard_nano_has_about_two_million_parameters(detector: Detector) -> None:
    assert 1.5e6 < parameter_count(detector.network) < 2.5e6


def test_width_and_depth_make_the_larger_ones() -> None:
    assert shape_of(1, 1) == NANO
    twice = shape_of(2, 2)
    assert (twice.stem, twice.blocks, twice.stages) == (64, (2, 4, 4), (96, 192, 576))


def test_pairwise_iou_of_known_boxes() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30], [4, 4, 4, 4]])
    expected = torch.tensor([[1, 1 / 3, 0, 0], [1 / 3, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(pairwise_iou(boxes, boxes), expected)


def test_complete_iou_is_one_for_equal_boxes_and_below_the_iou_elsewhere() -> None:
    one = torch.tensor([[0.0, 0, 10, 20]])
    assert complete_iou(one, one).item() == pytest.approx(1.0, abs=1e-5)
    other = torch.tensor([[2.0, 1, 14, 16]])
    assert complete_iou(one, other).item() < pairwise_iou(one, other).item()


def test_complete_iou_of_a_degenerate_box_has_a_finite_gradient() -> None:
    point = torch.tensor([[5.0, 5, 5, 5]], requires_grad=True)
    complete_iou(point, torch.tensor([[0.0, 0, 10, 10]])).sum().backward()
    assert point.grad is not None
    assert torch.isfinite(point.grad).all()


def greedy(boxes: np.ndarray, labels: np.ndarray, threshold: float) -> list[bool]:
    """Non-maximum suppression as it is told: one box after the other."""
    keep: list[bool] = []
    overlaps = pairwise_iou(torch.from_numpy(boxes), torch.from_numpy(boxes)).numpy()
    for i in range(len(boxes)):
        keep.append(not any(keep[j] and labels[i] == labels[j] and overlaps[j, i] > threshold for j in range(i)))
    return keep


@pytest.mark.parametrize("seed", range(5))
def test_suppression_of_a_batch_equals_the_greedy_one(seed: int) -> None:
    random = np.random.default_rng(seed)
    corner = random.random((2, 120, 2)) * 60
    boxes = np.concatenate([corner, corner + 5 + random.random((2, 120, 2)) * 30], -1).astype(np.float32)
    labels = random.integers(0, 2, (2, 120))
    keep = suppress(torch.from_numpy(boxes), torch.from_numpy(labels), 0.5)
    for image in range(2):
        assert keep[image].tolist() == greedy(boxes[image], labels[image], 0.5)


def test_selection_keeps_the_best_of_each_label_and_orders_by_score() -> None:
    boxes = torch.tensor([[[0.0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60], [50, 50, 60, 60]]])
    scores = torch.tensor([[[0.9, 0.0], [0.8, 0.0], [0.3, 0.0], [0.0, 0.7]]])
    found = select(boxes, scores, score=0.05, iou=0.5, most=10)
    assert found.counts == (3,)
    assert found.scores[0, :3].tolist() == pytest.approx([0.9, 0.7, 0.3])
    assert found.labels[0, :3].tolist() == [0, 1, 0]
    assert select(boxes, scores, score=0.05, iou=0.5, most=1).counts == (2,)


def test_points_are_the_centres_of_cells() -> None:
    points, strides = anchor_points((64, 96), "cpu")
    assert len(points) == sum((64 // s) * (96 // s) for s in STRIDES)
    assert points[0].tolist() == [4, 4]
    assert points[1].tolist() == [12, 4]
    assert points[-1].tolist() == [80, 48]
    assert strides[-1] == 32


def test_a_sure_distribution_decodes_to_its_distance() -> None:
    distances = torch.full((1, 1, 4, DISTANCE_BINS), -50.0)
    for side, cells in enumerate((1, 2, 3, 4)):
        distances[0, 0, side, cells] = 50.0
    box = decode(distances, torch.tensor([[100.0, 100.0]]), torch.tensor([8.0]))
    assert box[0, 0].tolist() == pytest.approx([92, 84, 124, 132])


def assigned(batch: Batch, predicted: torch.Tensor | None = None):
    points, strides = anchor_points((SIZE, SIZE), "cpu")
    count = len(points)
    boxes = torch.cat((points - 20, points + 20), 1).expand(len(batch), -1, -1) if predicted is None else predicted
    probabilities = torch.full((len(batch), count, 3), 0.1)
    return points, assign(probabilities, boxes, points, strides, batch.boxes, batch.labels, batch.difficult)


def test_every_object_has_points_that_learn_it_even_one_smaller_than_the_grid() -> None:
    batch = a_batch(1, 2)
    boxes = torch.tensor([[[60.0, 60, 61, 61], [10, 10, 90, 90]]])
    small = Batch(batch.images, boxes, torch.tensor([[2, 0]]), batch.difficult[:, :2], (2,), (0,))
    _, targets = assigned(small)
    learnt = targets.quality[0] > 0
    assert (targets.scores[0, learnt].argmax(1) == 2).any()
    assert 0 < int((targets.scores[0, learnt].argmax(1) == 0).sum()) <= CANDIDATES


def test_padding_and_difficult_objects_are_not_learnt() -> None:
    batch = a_batch(1, 2)
    boxes = torch.tensor([[[10.0, 10, 60, 60], [70, 70, 120, 120]]])
    odd = Batch(batch.images, boxes, torch.tensor([[-1, 1]]), torch.tensor([[False, True]]), (0,), (0,))
    points, targets = assigned(odd)
    assert targets.quality.sum() == 0
    assert targets.scores.sum() == 0
    in_difficult = ((points > 70) & (points < 120)).all(1)
    assert targets.ignored[0, in_difficult].all()
    in_padding = ((points > 12) & (points < 58)).all(1)
    assert not targets.ignored[0, in_padding].any()


def test_the_best_point_of_an_object_aims_at_its_overlap() -> None:
    batch = a_batch(1, 1)
    _, targets = assigned(batch)
    points, _ = anchor_points((SIZE, SIZE), "cpu")
    overlaps = pairwise_iou(batch.boxes[0], torch.cat((points - 20, points + 20), 1))[0]
    assert targets.quality.max().item() == pytest.approx(overlaps[targets.quality[0] > 0].max().item(), abs=1e-5)


def test_a_batch_without_objects_has_a_finite_loss(detector: Detector) -> None:
    batch = a_batch(2, 1)
    empty = Batch(batch.images, batch.boxes * 0, torch.full((2, 1), -1), batch.difficult, (0, 0), (0, 1))
    loss = detector.loss(empty)
    assert torch.isfinite(loss.total)
    assert loss.parts["box"] == 0
    assert loss.parts["cls"] > 0


def test_label_weights_and_smoothing_change_the_loss(detector: Detector) -> None:
    batch = a_batch()
    plain = detector.loss(batch).parts["cls"].item()
    heavier = Detector(detector.network, 3, LossSettings(label_weights=(2.0, 2.0, 2.0))).loss(batch).parts["cls"].item()
    assert heavier == pytest.approx(2 * plain, rel=0.02)
    smooth = Detector(detector.network, 3, LossSettings(label_smoothing=0.2)).loss(batch).parts["cls"].item()
    assert smooth != pytest.approx(plain, rel=1e-4)


def test_loss_weights_weigh_the_parts_of_the_loss(detector: Detector) -> None:
    """Those that are not given are the architecture's own."""
    given = Training.model_validate({"lossWeights": {"box": 7.0, "dfl": 0.0}})
    settings = loss_settings(given, [], "abc")
    assert (settings.box, settings.cls, settings.dfl) == (7.0, LossSettings().cls, 0.0)
    loss = Detector(detector.network, 3, settings).loss(a_batch())
    wanted = 7.0 * loss.parts["box"] + settings.cls * loss.parts["cls"]
    assert loss.total.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_balanced_weights_make_up_for_how_often_a_label_occurs() -> None:
    often, seldom = (Object(label, (0.0, 0.0, 9.0, 9.0)) for label in "ab")
    objects = [[often] * 5 + [seldom] * 2, [often] * 4 + [seldom]]
    weights = loss_settings(Training.model_validate({"classWeights": {"balanced": True}}), objects, "ab").label_weights
    assert weights is not None
    assert 9 * weights[0] == pytest.approx(3 * weights[1])
    assert sum(weights) / 2 == pytest.approx(1)
    named = Training.model_validate({"classWeights": {"labels": {"b": 300}}})
    assert loss_settings(named, objects, "ab").label_weights == (1.0, 3.0)
    missing = Training.model_validate({"classWeights": {"labels": {"c": 300}}})
    with pytest.raises(BadSpec, match="names 'c', which is no label; the labels are a, b"):
        loss_settings(missing, objects, "ab")


@pytest.mark.training
def test_the_loss_falls_on_one_batch() -> None:
    torch.manual_seed(1)
    detector = Detector.build("yard-nano", 3)
    optimizer = Optimizer(list(detector.network.parameters()), Training())
    batch = a_batch()
    losses = []
    for _ in range(8):
        loss = detector.loss(batch)
        loss.total.backward()
        optimizer.step(2e-3, loss.total.detach())
        losses.append(loss.total.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.training
def test_a_step_never_waits_for_the_device() -> None:
    """Fake CUDA tensors have no values: reading one on the host, `nonzero` and the like raise."""
    with FakeTensorMode():
        with torch.device("cuda"):
            network = Network(NANO, 3)
        batch = a_batch_on("cuda")
        loss = Detector(network, 3, LossSettings(label_weights=(1.0, 2.0, 1.0))).loss(batch)
        # The backward pass needs a real device; its kernels are those of the forward pass, none of which reads a value.
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer, average = Optimizer(list(network.parameters()), Training()), Average(network)
        norm, fine = optimizer.step(1e-3, loss.total.detach())
        average.update(0.9)
        assert norm.device.type == fine.device.type == "cuda"


def test_reading_a_value_would_be_noticed() -> None:
    with FakeTensorMode(), pytest.raises(Exception, match="_local_scalar_dense"):
        torch.zeros(3, device="cuda").sum().item()


def a_batch_on(device: str) -> Batch:
    return Batch(
        images=torch.rand(2, 3, SIZE, SIZE, device=device),
        boxes=torch.rand(2, 3, 4, device=device),
        labels=torch.zeros(2, 3, dtype=torch.int64, device=device),
        difficult=torch.zeros(2, 3, dtype=torch.bool, device=device),
        counts=(3, 3),
        records=(0, 1),
    )


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_on_a_gpu_has_no_sync() -> None:
    torch.manual_seed(0)
    detector = Detector.build("yard-nano", 3)
    detector.network.to("cuda")
    optimizer, average = Optimizer(list(detector.network.parameters()), Training()), Average(detector.network)
    batches = [a_batch(seed=seed).to("cuda") for seed in range(3)]
    for number, batch in enumerate(batches):
        torch.cuda.set_sync_debug_mode("error" if number else "default")
        try:
            with torch.autocast("cuda", torch.bfloat16):
                loss = detector.loss(batch)
            loss.total.backward()
            optimizer.step(1e-3, loss.total.detach())
            average.update(0.9)
        finally:
            torch.cuda.set_sync_debug_mode("default")
