"""Scores of detections, in numpy and float64: box mAP by COCO's rules, precision and recall, the confusion matrix.

The rules are those of pycocotools: detections of an image and label in the order of their score, the best 100 of them; each takes
the object that it overlaps most among those still free, if by at least the threshold; precision made monotone and read at 101
recalls; thresholds 0.50 to 0.95. Objects marked `difficult` are neither asked for nor held against: a detection that takes one
does not count. IoU and thresholds are float64: in float32 integer boxes differ by up to 6e-4 of mAP.

The matching is sequential in the detections of one image and label, but all images, labels and thresholds advance together:
round k places the k-th best detection of every image and label.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainyard_trainer.records import Record
from trainyard_trainer.told import finite, finite_mean

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

THRESHOLDS: Floats = np.linspace(0.5, 0.95, 10)
RECALLS: Floats = np.linspace(0.0, 1.0, 101)
MOST_DETECTIONS = 100
_CHUNK_ELEMENTS = 1 << 22
"""Largest padded overlap matrix at once (32 MiB)."""


@dataclass(frozen=True)
class Truth:
    """Objects of one image: `boxes` `[n, 4]` xyxy, `labels` and `difficult` `[n]`."""

    boxes: Floats
    labels: Ints
    difficult: Bools


def truth_of(record: Record, index: dict[str, int]) -> Truth:
    """The objects of a record, in pixels of the original."""
    objects = [o for o in record.objects if o.label in index]
    return Truth(
        np.array([o.box for o in objects], np.float64).reshape(-1, 4),
        np.array([index[o.label] for o in objects], np.int64),
        np.array([o.difficult for o in objects], bool),
    )


@dataclass(frozen=True)
class Detections:
    """Detections of one image in any order: `boxes` `[n, 4]` xyxy, `scores` and `labels` `[n]`."""

    boxes: Floats
    scores: Floats
    labels: Ints


@dataclass(frozen=True)
class BoxScores:
    """`average_precision` `[labels, thresholds]`, NaN for a label without objects. `threshold`: the confidence of the best F1 at
    IoU 0.5 over all labels (or the one that was given); `precision` and `recall` there, over all labels and per label (NaN where
    there is nothing to divide by)."""

    average_precision: Floats
    objects: Ints
    threshold: float
    precision: float
    recall: float
    label_precision: Floats
    label_recall: Floats

    @property
    def map50(self) -> float | None:
        return finite_mean(self.average_precision[:, 0])

    @property
    def map50_95(self) -> float | None:
        return finite_mean(self.average_precision)

    def details(self, labels: Sequence[str]) -> dict[str, Any]:
        """The scores over all labels, then a dictionary for each label."""
        per_label = [
            {"label": label, "objects": int(self.objects[i]), "mAP50": finite(self.average_precision[i, 0]),
             "mAP50_95": finite(self.average_precision[i].mean()), "precision": finite(self.label_precision[i]),
             "recall": finite(self.label_recall[i])}
            for i, label in enumerate(labels)
        ]  # fmt: skip
        return {
            "mAP50": self.map50, "mAP50_95": self.map50_95, "precision": self.precision, "recall": self.recall,
            "threshold": self.threshold, "labels": per_label,
        }  # fmt: skip


@dataclass(frozen=True)
class Matched:
    """Every detection that counts, over all images: its label, score, and per threshold whether it hit and whether it is ignored."""

    labels: Ints
    scores: Floats
    hit: Bools
    ignored: Bools


def box_scores(
    truths: Sequence[Truth], found: Sequence[Detections], labels: int, threshold: float | None = None
) -> BoxScores:
    """Scores of `found[i]` against `truths[i]`. `threshold`: confidence for precision and recall; default: that of the best F1."""
    if len(truths) != len(found):
        raise ValueError(f"{len(truths)} images have objects and {len(found)} have detections")
    matched = match(truths, found, labels)
    objects = np.zeros(labels, np.int64)
    for truth in truths:
        objects += np.bincount(truth.labels[~truth.difficult], minlength=labels)
    precision = np.full((labels, len(THRESHOLDS)), np.nan)
    for label in range(labels):
        if objects[label]:
            of_label = matched.labels == label
            precision[label] = _average_precision(
                matched.scores[of_label], matched.hit[of_label], matched.ignored[of_label], int(objects[label])
            )
    return _at_best_threshold(matched, precision, objects, threshold)


def match(truths: Sequence[Truth], found: Sequence[Detections], labels: int) -> Matched:
    """Which detections hit an object, at every threshold; images in order, per label by falling score."""
    pieces = [
        _sort(labels, image, truth, detections)
        for image, (truth, detections) in enumerate(zip(truths, found, strict=True))
    ]
    groups_d = np.concatenate([p[0] for p in pieces]) if pieces else np.zeros(0, np.int64)
    boxes_d = np.concatenate([p[1] for p in pieces]) if pieces else np.zeros((0, 4))
    scores = np.concatenate([p[2] for p in pieces]) if pieces else np.zeros(0)
    groups_g = np.concatenate([p[3] for p in pieces]) if pieces else np.zeros(0, np.int64)
    boxes_g = np.concatenate([p[4] for p in pieces]) if pieces else np.zeros((0, 4))
    hard = np.concatenate([p[5] for p in pieces]) if pieces else np.zeros(0, bool)

    hit = np.zeros((len(scores), len(THRESHOLDS)), bool)
    ignored = np.zeros_like(hit)
    for d, g in _chunks(groups_d, groups_g):
        taken = _match_padded(_overlaps(boxes_d, boxes_g, d, g), (d >= 0), (g >= 0), (hard[g] & (g >= 0)))
        valid = d >= 0
        hit[d[valid]] = taken[0][valid]
        ignored[d[valid]] = taken[1][valid]
    return Matched(groups_d % labels, scores, hit & ~ignored, ignored)


def confusion_matrix(
    truths: Sequence[Truth], found: Sequence[Detections], labels: int, threshold: float, iou: float = 0.5
) -> Ints:
    """`[labels + 1, labels + 1]`: rows are the true label, columns the predicted one; the last of each is background.

    Detections from the confidence `threshold` on take, best overlap first and whatever their label, the object that they overlap
    by at least `iou`. Difficult objects and what takes them are left out.
    """
    matrix = np.zeros((labels + 1, labels + 1), np.int64)
    for truth, detections in zip(truths, found, strict=True):
        chosen = detections.scores >= threshold
        boxes, predicted = detections.boxes[chosen], detections.labels[chosen]
        overlaps = box_iou(boxes, truth.boxes)
        free_d, free_g = np.ones(len(boxes), bool), np.ones(len(truth.boxes), bool)
        for flat in np.argsort(-overlaps, axis=None, kind="stable"):
            d, g = divmod(int(flat), max(len(truth.boxes), 1))
            if overlaps[d, g] < iou:
                break
            if free_d[d] and free_g[g]:
                free_d[d] = free_g[g] = False
                if not truth.difficult[g]:
                    matrix[truth.labels[g], predicted[d]] += 1
        np.add.at(matrix[labels], predicted[free_d], 1)
        np.add.at(matrix[:, labels], truth.labels[free_g & ~truth.difficult], 1)
    return matrix


def _sort(labels: int, image: int, truth: Truth, found: Detections) -> tuple[Ints, Floats, Floats, Ints, Floats, Bools]:
    """Of one image: group (image, label), box and score of the detections that count; group, box and difficulty of its objects."""
    order = np.lexsort((np.arange(len(found.scores)), -found.scores, found.labels))
    of = found.labels[order]
    rank = np.arange(len(of)) - np.searchsorted(of, of, side="left")
    order = order[rank < MOST_DETECTIONS]
    easy_first = np.lexsort((truth.difficult, truth.labels))
    return (
        image * labels + found.labels[order].astype(np.int64),
        found.boxes[order].astype(np.float64).reshape(-1, 4),
        found.scores[order].astype(np.float64),
        image * labels + truth.labels[easy_first].astype(np.int64),
        truth.boxes[easy_first].astype(np.float64).reshape(-1, 4),
        truth.difficult[easy_first].astype(bool),
    )


def _chunks(groups_d: Ints, groups_g: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Padded indices `[groups, detections]` and `[groups, objects]` (-1: none) of the groups that have both, alike sizes together."""
    both = np.intersect1d(groups_d, groups_g)
    first_d, last_d = np.searchsorted(groups_d, both, "left"), np.searchsorted(groups_d, both, "right")
    first_g, last_g = np.searchsorted(groups_g, both, "left"), np.searchsorted(groups_g, both, "right")
    count_d, count_g = last_d - first_d, last_g - first_g
    order = np.lexsort((count_g, count_d))
    start = 0
    while start < len(order):
        stop, most_d, most_g = start, 0, 0
        while stop < len(order):
            d, g = max(most_d, count_d[order[stop]]), max(most_g, count_g[order[stop]])
            if stop > start and d * g * (stop - start + 1) > _CHUNK_ELEMENTS:
                break
            most_d, most_g, stop = d, g, stop + 1
        rows = order[start:stop]
        yield _padded(first_d[rows], count_d[rows], int(most_d)), _padded(first_g[rows], count_g[rows], int(most_g))
        start = stop


def _padded(first: Ints, count: Ints, width: int) -> Ints:
    offsets = np.arange(width)
    return np.where(offsets < count[:, None], first[:, None] + offsets, -1)


def _overlaps(boxes_d: Floats, boxes_g: Floats, d: Ints, g: Ints) -> Floats:
    return box_iou(boxes_d[d], boxes_g[g])


def box_iou(one: Floats, other: Floats) -> Floats:
    """`[..., n, m]` of `[..., n, 4]` and `[..., m, 4]`."""
    width = np.minimum(one[..., :, None, 2], other[..., None, :, 2]) - np.maximum(
        one[..., :, None, 0], other[..., None, :, 0]
    )
    height = np.minimum(one[..., :, None, 3], other[..., None, :, 3]) - np.maximum(
        one[..., :, None, 1], other[..., None, :, 1]
    )
    shared = np.clip(width, 0, None) * np.clip(height, 0, None)
    area1 = (one[..., 2] - one[..., 0]) * (one[..., 3] - one[..., 1])
    area2 = (other[..., 2] - other[..., 0]) * (other[..., 3] - other[..., 1])
    union = area1[..., :, None] + area2[..., None, :] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _match_padded(overlaps: Floats, real_d: Bools, real_g: Bools, hard: Bools) -> tuple[Bools, Bools]:
    """Per detection and threshold, `[groups, detections, thresholds]`: whether it took an object, whether a difficult one."""
    groups, detections, objects = overlaps.shape
    thresholds = np.minimum(THRESHOLDS, 1 - 1e-10)
    free = np.repeat(real_g[:, None, :], len(thresholds), 1)
    taken = np.zeros((groups, detections, len(thresholds)), bool)
    ignored = np.zeros_like(taken)
    easy = ~hard[:, None, :]
    for k in range(detections):
        iou = overlaps[:, None, k, :]
        reach = free & (iou >= thresholds[:, None]) & real_d[:, k, None, None]
        # An object that counts goes before a difficult one, however small its overlap.
        preferred = reach & easy
        reach = np.where(preferred.any(2, keepdims=True), preferred, reach)
        # Among equal overlaps the last object is taken, as in pycocotools.
        value = np.where(reach, iou, -1.0)[..., ::-1]
        best = objects - 1 - value.argmax(2)
        some = reach.any(2)
        taken[:, k] = some
        ignored[:, k] = some & np.take_along_axis(np.broadcast_to(~easy, reach.shape), best[..., None], 2)[..., 0]
        g, t = np.nonzero(some)
        free[g, t, best[g, t]] = False
    return taken, ignored


def _average_precision(scores: Floats, hit: Bools, ignored: Bools, objects: int) -> Floats:
    """`[thresholds]`: precision at 101 recalls, averaged."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(hit[order], 0, dtype=np.float64)
    misses = np.cumsum(~hit[order] & ~ignored[order], 0, dtype=np.float64)
    recall = hits / objects
    precision = hits / (hits + misses + np.spacing(1))
    precision = np.maximum.accumulate(precision[::-1], 0)[::-1]
    result = np.zeros(hit.shape[1])
    for t in range(hit.shape[1]):
        at = np.searchsorted(recall[:, t], RECALLS, side="left")
        inside = at < len(recall)
        result[t] = precision[at[inside], t].sum() / len(RECALLS)
    return result


def _at_best_threshold(matched: Matched, precision: Floats, objects: Ints, threshold: float | None) -> BoxScores:
    """Adds precision and recall at IoU 0.5 and one confidence for all labels."""
    counts = ~matched.ignored[:, 0]
    labels, scores, hit = matched.labels[counts], matched.scores[counts], matched.hit[counts, 0]
    if threshold is None:
        threshold = _best_threshold(scores, hit, int(objects.sum()))
    chosen = scores >= threshold
    width = len(objects)
    hits = np.bincount(labels[chosen & hit], minlength=width)
    said = np.bincount(labels[chosen], minlength=width)
    with np.errstate(invalid="ignore", divide="ignore"):
        return BoxScores(
            precision,
            objects,
            threshold,
            float(hits.sum() / said.sum()) if said.sum() else 0.0,
            float(hits.sum() / objects.sum()) if objects.sum() else 0.0,
            hits / said,
            hits / objects,
        )


def _best_threshold(scores: Floats, hit: Bools, objects: int) -> float:
    """The confidence at which F1 over all labels is highest; 0.5 when nothing was found or asked for."""
    if not objects or not hit.any():
        return 0.5
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(hit[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + objects)
    # Detections of equal score are said together or not at all.
    last_of_equals = np.append(np.diff(scores[order]) != 0, True)
    return float(scores[order][np.where(last_of_equals, f1, -1).argmax()])
