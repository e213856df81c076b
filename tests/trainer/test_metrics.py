"""Our box mAP is COCO's, to the last digit that matters."""

import contextlib
import io

import numpy as np
import pytest
from trainyard_trainer.metrics import Detections, Truth, box_scores, confusion_matrix

DIFFICULT_AREA = 2e10
"""Outside of COCO's range of areas: how its evaluators are told that an object is difficult."""


def random_case(seed: int, images: int = 30, labels: int = 4) -> tuple[list[Truth], list[Detections]]:
    """Integer boxes, so that overlaps meet thresholds exactly; equal scores; difficult objects; more than 100 detections."""
    rng = np.random.default_rng(seed)
    truths, found = [], []
    for image in range(images):
        n = int(rng.integers(0, 12))
        corner = rng.integers(0, 80, (n, 2))
        boxes = np.concatenate([corner, corner + rng.integers(1, 40, (n, 2))], 1).astype(float)
        names = rng.integers(0, labels, n)
        truths.append(Truth(boxes, names, rng.random(n) < 0.2))
        copies = np.repeat(np.arange(n), rng.integers(0, 4, n))
        noise = int(rng.integers(0, 8)) if image else 450
        random = rng.integers(0, 80, (noise, 2))
        near = boxes[copies] + rng.integers(-4, 5, (len(copies), 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        every = np.concatenate([near, np.concatenate([random, random + rng.integers(1, 30, (noise, 2))], 1)])
        said = np.concatenate([names[copies], rng.integers(0, labels, noise)])
        wrong = rng.random(len(said)) < 0.1
        said = np.where(wrong, rng.integers(0, labels, len(said)), said)
        found.append(Detections(every.astype(float), np.round(rng.random(len(every)), 2), said))
    return truths, found


def coco_inputs(truths: list[Truth], found: list[Detections], labels: int) -> tuple[dict, list[dict]]:
    annotations, results = [], []
    for image, (truth, detections) in enumerate(zip(truths, found, strict=True)):
        for box, label, difficult in zip(truth.boxes, truth.labels, truth.difficult, strict=True):
            x1, y1, x2, y2 = box.tolist()
            area = DIFFICULT_AREA if difficult else (x2 - x1) * (y2 - y1)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image + 1, "category_id": int(label) + 1, "iscrowd": 0, "area": area,
                 "bbox": [x1, y1, x2 - x1, y2 - y1]}
            )  # fmt: skip
        for box, score, label in zip(detections.boxes, detections.scores, detections.labels, strict=True):
            x1, y1, x2, y2 = box.tolist()
            results.append(
                {
                    "image_id": image + 1,
                    "category_id": int(label) + 1,
                    "score": float(score),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                }
            )
    told = {
        "info": {}, "images": [{"id": i + 1, "width": 200, "height": 200} for i in range(len(truths))],
        "annotations": annotations, "categories": [{"id": i + 1, "name": str(i)} for i in range(labels)],
    }  # fmt: skip
    return told, results


def oracle(name: str, told: dict, results: list[dict]) -> tuple[float, float]:
    """mAP50_95 and mAP50 by somebody else."""
    with contextlib.redirect_stdout(io.StringIO()):
        if name == "pycocotools":
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval as Evaluator
        else:
            from faster_coco_eval import COCO
            from faster_coco_eval import COCOeval_faster as Evaluator
        truth = COCO()
        truth.dataset = told
        truth.createIndex()
        evaluator = Evaluator(truth, truth.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return float(evaluator.stats[0]), float(evaluator.stats[1])


@pytest.mark.parametrize("name", ["pycocotools", "faster_coco_eval"])
@pytest.mark.parametrize("seed", range(6))
def test_map_equals_the_reference_to_1e_6(name: str, seed: int) -> None:
    truths, found = random_case(seed)
    ours = box_scores(truths, found, 4)
    expected = oracle(name, *coco_inputs(truths, found, 4))
    assert (ours.map50_95, ours.map50) == pytest.approx(expected, abs=1e-6)


def test_the_cases_have_what_makes_them_hard() -> None:
    truths, found = random_case(0)
    assert any(t.difficult.any() for t in truths)
    assert max(np.bincount(f.labels).max() for f in found if len(f.labels)) > 100


def test_a_difficult_object_is_neither_asked_for_nor_held_against() -> None:
    box = np.array([[10.0, 10, 50, 50]])
    easy = np.array([[60.0, 60, 90, 90]])
    truth = Truth(np.concatenate([box, easy]), np.zeros(2, np.int64), np.array([True, False]))
    hit = Detections(np.concatenate([box, easy]), np.array([0.9, 0.8]), np.zeros(2, np.int64))
    scores = box_scores([truth], [hit], 1)
    assert scores.map50_95 == pytest.approx(1.0)
    assert (scores.precision, scores.recall) == (1.0, 1.0)


def test_labels_without_objects_do_not_count() -> None:
    truth = Truth(np.array([[0.0, 0, 10, 10]]), np.array([1]), np.array([False]))
    found = Detections(truth.boxes, np.array([0.5]), np.array([1]))
    scores = box_scores([truth], [found], 3)
    assert scores.map50 == pytest.approx(1.0)
    assert np.isnan(scores.average_precision[[0, 2]]).all()


def test_no_objects_at_all_is_no_score() -> None:
    nothing = Truth(np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool))
    found = Detections(np.array([[0.0, 0, 5, 5]]), np.array([0.9]), np.array([0]))
    assert box_scores([nothing], [found], 2).map50_95 is None
    assert box_scores([], [], 2).map50 is None


def test_the_threshold_is_that_of_the_best_f1() -> None:
    boxes = np.array([[0.0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]])
    truth = Truth(boxes[:2], np.zeros(2, np.int64), np.zeros(2, bool))
    found = Detections(boxes, np.array([0.9, 0.6, 0.3]), np.zeros(3, np.int64))
    scores = box_scores([truth], [found], 1)
    assert (scores.threshold, scores.precision, scores.recall) == (0.6, 1.0, 1.0)
    lower = box_scores([truth], [found], 1, threshold=0.2)
    assert lower.precision == pytest.approx(2 / 3)


def test_confusion_matrix_has_rows_of_truth_and_a_background() -> None:
    boxes = np.array([[0.0, 0, 10, 10], [20, 20, 30, 30], [60, 60, 70, 70]])
    truth = Truth(boxes, np.array([0, 1, 1]), np.array([False, False, True]))
    found = Detections(
        np.array([[0.0, 0, 10, 10], [60, 60, 70, 70], [100, 100, 110, 110]]),
        np.array([0.9, 0.8, 0.7]),
        np.array([1, 1, 0]),
    )
    matrix = confusion_matrix([truth], [found], 2, threshold=0.5)
    assert matrix.tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
