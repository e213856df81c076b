"""Scores of an image network on one side of a dataset: a class for each image, or any number of tags."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from trainyard_api.status import LabelMetrics, Scores

from trainyard_trainer import image_metrics
from trainyard_trainer.image_metrics import F1_THRESHOLD, Counts, Floats, Ints
from trainyard_trainer.picture import MOST_TILES, Line, write_answers
from trainyard_trainer.records import Record
from trainyard_trainer.told import WORST_LABELS, finite, finite_mean

SHOWN_ANSWERS = 5


@dataclass(frozen=True)
class ClassEvaluation:
    """`truth` `[images]` is each image's class, `found` `[images, labels]` the probabilities."""

    loss: float
    records: tuple[int, ...]
    truth: Ints
    found: Floats

    @property
    def threshold(self) -> float:
        """A class is always the most probable one."""
        return 0.0

    @cached_property
    def predicted(self) -> Ints:
        return self.found.argmax(1)

    @cached_property
    def counts(self) -> Counts:
        return image_metrics.class_counts(self.truth, self.predicted, self.found.shape[1])

    @property
    def accuracy(self) -> float:
        return float((self.truth == self.predicted).mean())

    def value(self, metric: str) -> float:
        return self.accuracy

    def scores(self, labels: Sequence[str], step: int, *, per_class: bool = True) -> Scores:
        numbers = self.numbers()
        return Scores(
            validation_loss=finite(self.loss), accuracy=self.accuracy, precision=numbers["precision"],
            recall=numbers["recall"], step=step,
            per_class=_worst(labels, self.counts, self.counts.recall) if per_class else None,
        )  # fmt: skip

    def numbers(self) -> dict[str, float | None]:
        """Precision and recall are means over the labels: over images, both would be the accuracy."""
        return {
            "accuracy": self.accuracy, "precision": finite_mean(self.counts.precision), "recall": finite_mean(self.counts.recall),
            "macroF1": self.counts.macro_f1, "microF1": self.counts.micro_f1,
        }  # fmt: skip

    def details(self, labels: Sequence[str]) -> dict[str, Any]:
        return {
            "images": len(self.records), **self.numbers(), "loss": finite(self.loss),
            "labels": _per_label(labels, self.counts),
            "confusion": image_metrics.confusion(self.truth, self.predicted, len(labels)).tolist(),
        }  # fmt: skip

    def joined(self, other: ClassEvaluation) -> ClassEvaluation:
        return ClassEvaluation(
            _joined_loss(self, other), self.records + other.records,
            np.concatenate((self.truth, other.truth)), np.concatenate((self.found, other.found)),
        )  # fmt: skip

    def draw(
        self,
        path: Path,
        pixels: Callable[[int], np.ndarray],
        records: Sequence[Record],
        labels: Sequence[str],
        threshold: float,
    ) -> None:
        """The class of each image and what was said, green where they agree."""
        chosen = range(min(MOST_TILES, len(self.records)))
        lines: list[list[Line]] = []
        for i in chosen:
            said, true = int(self.predicted[i]), int(self.truth[i])
            lines.append([(f"{labels[said]} {self.found[i, said]:.2f}", said == true)])
            if said != true:
                lines[-1].append((f"is {labels[true]}", None))
        write_answers(path, [pixels(self.records[i]) for i in chosen], lines)


@dataclass(frozen=True)
class TagEvaluation:
    """`answers` `[images, labels]` are 1 (has the tag), 0, or -1 (does not count), `found` the probabilities. `threshold`: that of
    the best F1, or the one that was given."""

    loss: float
    records: tuple[int, ...]
    answers: Floats
    found: Floats
    threshold: float

    @cached_property
    def average_precision(self) -> Floats:
        return image_metrics.average_precision(self.answers, self.found)

    @cached_property
    def counts(self) -> Counts:
        return image_metrics.tag_counts(self.answers, self.found, self.threshold)

    @property
    def map(self) -> float | None:
        return finite_mean(self.average_precision)

    def value(self, metric: str) -> float:
        return self.map or 0.0

    def scores(self, labels: Sequence[str], step: int, *, per_class: bool = True) -> Scores:
        return Scores(
            validation_loss=finite(self.loss), mAP=self.map, precision=self.counts.micro_precision,
            recall=self.counts.micro_recall, step=step,
            per_class=_worst(labels, self.counts, self.average_precision) if per_class else None,
        )  # fmt: skip

    def numbers(self) -> dict[str, float | None]:
        at_half = image_metrics.tag_counts(self.answers, self.found, F1_THRESHOLD)
        return {
            "mAP": self.map, "precision": self.counts.micro_precision, "recall": self.counts.micro_recall,
            "macroF1": at_half.macro_f1, "microF1": at_half.micro_f1,
        }  # fmt: skip

    def details(self, labels: Sequence[str]) -> dict[str, Any]:
        per_label = _per_label(labels, self.counts)
        for told, value in zip(per_label, self.average_precision, strict=True):
            told["averagePrecision"] = finite(value)
        return {
            "images": len(self.records), **self.numbers(), "threshold": self.threshold, "loss": finite(self.loss),
            "labels": per_label,
        }  # fmt: skip

    def joined(self, other: TagEvaluation) -> TagEvaluation:
        return TagEvaluation(
            _joined_loss(self, other), self.records + other.records,
            np.concatenate((self.answers, other.answers)), np.concatenate((self.found, other.found)), self.threshold,
        )  # fmt: skip

    def draw(
        self,
        path: Path,
        pixels: Callable[[int], np.ndarray],
        records: Sequence[Record],
        labels: Sequence[str],
        threshold: float,
    ) -> None:
        """The tags that were said, green where they are true, and those that were missed."""
        chosen = range(min(MOST_TILES, len(self.records)))
        lines: list[list[Line]] = []
        for i in chosen:
            order = np.argsort(-self.found[i], kind="stable")[:SHOWN_ANSWERS]
            told: list[Line] = [
                (
                    f"{labels[k]} {self.found[i, k]:.2f}",
                    bool(self.answers[i, k] > 0.5) if self.answers[i, k] >= 0 else None,
                )
                for k in map(int, order)
                if self.found[i, k] >= threshold
            ]
            missed = [labels[int(k)] for k in np.flatnonzero((self.answers[i] > 0.5) & (self.found[i] < threshold))]
            lines.append([*told, *((f"has {label}", None) for label in missed[:SHOWN_ANSWERS])])
        write_answers(path, [pixels(self.records[i]) for i in chosen], lines)


def _per_label(labels: Sequence[str], counts: Counts) -> list[dict[str, Any]]:
    precision, recall, f1 = counts.precision, counts.recall, counts.f1
    return [
        {"label": label, "images": int(counts.hit[i] + counts.missed[i]), "precision": finite(precision[i]),
         "recall": finite(recall[i]), "f1": finite(f1[i])}
        for i, label in enumerate(labels)
    ]  # fmt: skip


def _worst(labels: Sequence[str], counts: Counts, by: Floats) -> tuple[LabelMetrics, ...]:
    """The labels with the lowest `by`, those that cannot be judged first."""
    precision, recall = counts.precision, counts.recall
    order = np.argsort(np.where(np.isfinite(by), by, -1.0), kind="stable")[:WORST_LABELS]
    return tuple(
        LabelMetrics(
            label=labels[i],
            images=int(counts.hit[i] + counts.missed[i]),
            precision=finite(precision[i]),
            recall=finite(recall[i]),
        )
        for i in map(int, order)
    )


def _joined_loss(one: ClassEvaluation | TagEvaluation, other: ClassEvaluation | TagEvaluation) -> float:
    images = len(one.records), len(other.records)
    return (one.loss * images[0] + other.loss * images[1]) / sum(images)
