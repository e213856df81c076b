"""`make bench-map`: our box mAP against faster-coco-eval and pycocotools on the same detections: time, and the largest difference."""

import contextlib
import io
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from trainyard_trainer.metrics import Detections, Truth, box_scores

IMAGES, LABELS, ROUNDS = 500, 20, 3
TOLERANCE = 1e-6


def main() -> None:
    truths, found = a_case(np.random.default_rng(0))
    told, results = coco_inputs(truths, found)
    runs: dict[str, Callable[[], tuple[float, float]]] = {
        "ours": lambda: ours(truths, found),
        "faster-coco-eval": lambda: theirs("faster-coco-eval", told, results),
        "pycocotools": lambda: theirs("pycocotools", told, results),
    }
    scores: dict[str, tuple[float, float]] = {}
    times: dict[str, float] = {}
    for name, run in runs.items():
        taken = []
        for _ in range(ROUNDS):
            begun = time.process_time()
            scores[name] = run()
            taken.append(time.process_time() - begun)
        times[name] = statistics.median(taken)
    difference = max(abs(a - b) for name in runs for a, b in zip(scores["ours"], scores[name], strict=True))
    objects, detections = sum(len(t.labels) for t in truths), sum(len(f.labels) for f in found)
    print(
        f"{IMAGES} images, {LABELS} labels, {objects} objects, {detections} detections; CPU seconds, median of {ROUNDS}"
    )
    print(f"{'':<18}{'seconds':>9}{'mAP50_95':>12}{'mAP50':>12}{'ours is':>12}")
    for name in runs:
        print(
            f"{name:<18}{times[name]:>9.3f}{scores[name][0]:>12.8f}{scores[name][1]:>12.8f}{times[name] / times['ours']:>11.1f}x"
        )
    print(f"largest difference {difference:.2e} (allowed {TOLERANCE})")
    summary = {"bench": "map", "largestDifference": difference, "tolerance": TOLERANCE}
    summary |= {"seconds": {name: round(value, 4) for name, value in times.items()}}
    print(json.dumps(summary))
    sys.exit(0 if difference <= TOLERANCE else 1)


def a_case(random: np.random.Generator) -> tuple[list[Truth], list[Detections]]:
    """Objects, a few detections near each, and noise up to 100 an image; a tenth of the objects are difficult."""
    truths, found = [], []
    for _ in range(IMAGES):
        n = int(random.integers(1, 20))
        corner = random.random((n, 2)) * 400
        boxes = np.concatenate([corner, corner + 10 + random.random((n, 2)) * 150], 1)
        labels = random.integers(0, LABELS, n)
        copies = np.repeat(np.arange(n), random.integers(0, 4, n))
        near = boxes[copies] + random.normal(0, 6, (len(copies), 4))
        start = random.random((100 - len(copies), 2)) * 400
        noise = np.concatenate([start, start + 5 + random.random((len(start), 2)) * 100], 1)
        every = np.concatenate([near, noise])
        every[:, 2:] = np.maximum(every[:, 2:], every[:, :2] + 1)
        scores = np.concatenate([random.beta(4, 2, len(near)), random.beta(1, 6, len(noise))])
        said = np.concatenate([labels[copies], random.integers(0, LABELS, len(noise))])
        truths.append(Truth(boxes, labels, random.random(n) < 0.1))
        found.append(Detections(every, scores, said))
    return truths, found


def ours(truths: Sequence[Truth], found: Sequence[Detections]) -> tuple[float, float]:
    scores = box_scores(truths, found, LABELS)
    return scores.map50_95 or 0.0, scores.map50 or 0.0


def coco_inputs(truths: Sequence[Truth], found: Sequence[Detections]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Difficult objects get an area outside of COCO's range, which is how its evaluators leave them out."""
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []

    def flat(box: np.ndarray) -> list[float]:
        return [float(box[0]), float(box[1]), float(box[2] - box[0]), float(box[3] - box[1])]

    for image, (truth, detections) in enumerate(zip(truths, found, strict=True), 1):
        for box, label, difficult in zip(truth.boxes, truth.labels, truth.difficult, strict=True):
            x, y, width, height = flat(box)
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image, "category_id": int(label) + 1, "iscrowd": 0,
                 "area": 2e10 if difficult else width * height, "bbox": [x, y, width, height]}
            )  # fmt: skip
        for box, score, label in zip(detections.boxes, detections.scores, detections.labels, strict=True):
            results.append({"image_id": image, "category_id": int(label) + 1, "score": float(score), "bbox": flat(box)})
    told = {
        "info": {}, "images": [{"id": i + 1, "width": 600, "height": 600} for i in range(len(truths))],
        "annotations": annotations, "categories": [{"id": i + 1, "name": str(i)} for i in range(LABELS)],
    }  # fmt: skip
    return told, results


def theirs(name: str, told: dict[str, Any], results: list[dict[str, Any]]) -> tuple[float, float]:
    """Matching and accumulating, with the loading of what was found."""
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
        evaluator = Evaluator(truth, truth.loadRes([dict(result) for result in results]), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return float(evaluator.stats[0]), float(evaluator.stats[1])


if __name__ == "__main__":
    main()
