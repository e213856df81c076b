"""What counts as a prediction: the fields of `evaluation`."""

import numpy as np
import pytest
import torch
from trainyard_api.architectures import ARCHITECTURES
from trainyard_api.training import Evaluation, Training
from trainyard_trainer import detector
from trainyard_trainer.box_task import Predictions
from trainyard_trainer.boxes import pairwise_iou
from trainyard_trainer.metrics import Detections, Truth
from trainyard_trainer.picture import COLOURS, drawn
from trainyard_trainer.task import Wanted


def predictions(**fields: int) -> Predictions:
    """Of an untrained network, which finds something everywhere."""
    entry = ARCHITECTURES["yard-nano"]
    torch.manual_seed(0)
    prediction = Evaluation.model_validate(fields)
    task = detector.build(entry, Wanted(entry.task, ("cat", "dog"), [], (64, 64), Training(), prediction))
    task.network.eval()
    return task.predict(torch.rand(1, 3, 64, 64), score=0.0)


def most_of_a_label(found: Predictions) -> int:
    return int(found.labels[0, : found.counts[0]].bincount().max())


def test_of_each_label_at_most_max_detections_are_kept() -> None:
    assert most_of_a_label(predictions()) > 3
    assert most_of_a_label(predictions(maxDetections=3)) == 3


@pytest.mark.parametrize("percent", [20, 60])
def test_no_two_boxes_of_a_label_overlap_more_than_the_iou_threshold(percent: int) -> None:
    found = predictions(iouThresholdPercent=percent)
    assert found.counts[0] < predictions(iouThresholdPercent=100).counts[0]
    for label in (0, 1):
        boxes = found.boxes[0, : found.counts[0]][found.labels[0, : found.counts[0]] == label]
        overlap = pairwise_iou(boxes[None], boxes[None])[0].fill_diagonal_(0)
        assert overlap.max() <= percent / 100


def test_pictures_show_what_reaches_the_score_threshold() -> None:
    pixels = np.zeros((100, 100, 3), np.uint8)
    boxes = np.array([[10.0, 10, 40, 40], [60, 60, 90, 90]])
    found = Detections(boxes, np.array([0.9, 0.3]), np.array([0, 1]))
    nothing = Truth(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool))
    for threshold, shown in ((0.25, [True, True]), (0.5, [True, False]), (0.95, [False, False])):
        picture = drawn(pixels, (100, 100), nothing, found, ("cat", "dog"), threshold)
        colours = {colour for _, colour in picture.getcolors(1 << 16) or ()}
        assert [tuple(bytes.fromhex(COLOURS[label][1:])) in colours for label in (0, 1)] == shown
