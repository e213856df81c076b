"""Scores of image networks, in numpy and float64: accuracy, F1, precision and recall, average precision of tags.

Average precision is Pascal VOC's since 2010: precision made monotone, and the area below it at *all* recalls ("all-point").
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainyard_trainer.records import Record

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

F1_THRESHOLD = 0.5


@dataclass(frozen=True)
class Counts:
    """Per label: said and true, said and not true, true and not said."""

    hit: Ints
    false: Ints
    missed: Ints

    @property
    def precision(self) -> Floats:
        """Per label; NaN where nothing was said."""
        return _ratio(self.hit, self.hit + self.false)

    @property
    def recall(self) -> Floats:
        """Per label; NaN where nothing is true."""
        return _ratio(self.hit, self.hit + self.missed)

    @property
    def f1(self) -> Floats:
        """Per label; NaN where nothing is true and nothing was said."""
        return _ratio(2 * self.hit, 2 * self.hit + self.false + self.missed)

    @property
    def macro_f1(self) -> float | None:
        """Every label counts the same."""
        return float(np.nanmean(self.f1)) if np.isfinite(self.f1).any() else None

    @property
    def micro_f1(self) -> float:
        """Every answer counts the same."""
        return _total(2 * self.hit, 2 * self.hit + self.false + self.missed)

    @property
    def micro_precision(self) -> float:
        return _total(self.hit, self.hit + self.false)

    @property
    def micro_recall(self) -> float:
        return _total(self.hit, self.hit + self.missed)


def answers(records: Sequence[Record], labels: Sequence[str]) -> np.ndarray:
    """What each image has, `[records, labels]` float32: 1 yes, 0 no, -1 does not count."""
    index = {label: i for i, label in enumerate(labels)}
    told = np.zeros((len(records), len(labels)), np.float32)
    for row, record in zip(told, records, strict=True):
        for label, value in record.tags:
            if label in index:
                row[index[label]] = {1: 1.0, 0: -1.0, -1: 0.0}[value]
    return told


def class_counts(truth: Ints, predicted: Ints, labels: int) -> Counts:
    """Of one class per image: `truth` and `predicted` `[images]`."""
    hit = np.bincount(truth[truth == predicted], minlength=labels)
    said, true = np.bincount(predicted, minlength=labels), np.bincount(truth, minlength=labels)
    return Counts(hit, said - hit, true - hit)


def confusion(truth: Ints, predicted: Ints, labels: int) -> Ints:
    """`[labels, labels]`: rows are the true class, columns the predicted one."""
    matrix = np.zeros((labels, labels), np.int64)
    np.add.at(matrix, (truth, predicted), 1)
    return matrix


def tag_counts(answers: Floats, scores: Floats, threshold: float) -> Counts:
    """Of tags: `answers` `[images, labels]` are 1, 0, or -1 (does not count); said is what scores `threshold` or more."""
    said, counts = scores >= threshold, answers >= 0
    true = answers > 0.5
    return Counts((said & true).sum(0), (said & ~true & counts).sum(0), (~said & true).sum(0))


def average_precision(answers: Floats, scores: Floats) -> Floats:
    """Per label, `[labels]`, of `[images, labels]` as in `tag_counts`; NaN for a label that no image has."""
    result = np.full(answers.shape[1], np.nan)
    for label in range(answers.shape[1]):
        counts = answers[:, label] >= 0
        true = answers[counts, label] > 0.5
        if true.any():
            result[label] = _area(true, scores[counts, label])
    return result


def best_threshold(answers: Floats, scores: Floats) -> float:
    """The score at which F1 over all labels and images together is highest; 0.5 when no image has a tag."""
    counts = answers >= 0
    true, said = answers[counts] > 0.5, scores[counts]
    if not true.any():
        return F1_THRESHOLD
    order = np.argsort(-said, kind="stable")
    hits = np.cumsum(true[order])
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + true.sum())
    # Answers of equal score are said together or not at all.
    last_of_equals = np.append(np.diff(said[order]) != 0, True)
    return float(said[order][np.where(last_of_equals, f1, -1).argmax()])


def _area(true: Bools, scores: Floats) -> float:
    """Area below the precision made monotone; images of equal score come together."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(true[order])
    last_of_equals = np.append(np.diff(scores[order]) != 0, True)
    precision = (hits / np.arange(1, len(order) + 1))[last_of_equals]
    recall = (hits / hits[-1])[last_of_equals]
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * precision).sum())


def _ratio(part: Ints, whole: Ints) -> Floats:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)


def _total(part: Ints, whole: Ints) -> float:
    return float(part.sum() / whole.sum()) if whole.sum() else 0.0
