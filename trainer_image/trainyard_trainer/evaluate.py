"""Scores of a detector on one side of a dataset: loss, mAP, precision and recall, in pixels of the original images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from trainyard_api.status import LabelMetrics, Scores

from trainyard_trainer.batch import Batch
from trainyard_trainer.metrics import BoxScores, Detections, Truth, box_scores, confusion_matrix, truth_of
from trainyard_trainer.picture import MOST_TILES, write_predictions
from trainyard_trainer.records import Record, StopFlag
from trainyard_trainer.told import WORST_LABELS, finite

if TYPE_CHECKING:
    from trainyard_trainer.box_task import BoxTask


@dataclass(frozen=True)
class BoxEvaluation:
    """`found` and `truths` are per image, in the order of `records`."""

    boxes: BoxScores
    loss: float
    records: tuple[int, ...]
    truths: tuple[Truth, ...]
    found: tuple[Detections, ...]

    @property
    def threshold(self) -> float:
        return self.boxes.threshold

    def value(self, metric: str) -> float:
        """`mAP50_95` or `mAP50`; 0 when no label has an object."""
        return (self.boxes.map50 if metric == "mAP50" else self.boxes.map50_95) or 0.0

    def scores(self, labels: Sequence[str], step: int, *, per_class: bool = True) -> Scores:
        """As the status shows them."""
        b = self.boxes
        return Scores(
            validation_loss=finite(self.loss),
            mAP50=finite(b.map50),
            mAP50_95=finite(b.map50_95),
            precision=finite(b.precision),
            recall=finite(b.recall),
            step=step,
            per_class=self._worst(labels) if per_class else None,
        )

    def numbers(self) -> dict[str, float | None]:
        b = self.boxes
        return {"mAP50": b.map50, "mAP50_95": b.map50_95, "precision": b.precision, "recall": b.recall}

    def details(self, labels: Sequence[str]) -> dict[str, Any]:
        """Scores, the threshold of the best F1, every label, the confusion matrix."""
        b = self.boxes
        return {
            "images": len(self.records), **b.details(labels), "loss": finite(self.loss),
            "confusion": confusion_matrix(self.truths, self.found, len(labels), b.threshold).tolist(),
        }  # fmt: skip

    def joined(self, other: BoxEvaluation) -> BoxEvaluation:
        truths, found = self.truths + other.truths, self.found + other.found
        boxes = box_scores(truths, found, len(self.boxes.objects), self.boxes.threshold)
        loss = (self.loss * len(self.truths) + other.loss * len(other.truths)) / len(truths)
        return BoxEvaluation(boxes, loss, self.records + other.records, truths, found)

    def draw(
        self,
        path: Path,
        pixels: Callable[[int], np.ndarray],
        records: Sequence[Record],
        labels: Sequence[str],
        threshold: float,
    ) -> None:
        chosen = range(min(MOST_TILES, len(self.records)))
        write_predictions(
            path,
            [pixels(self.records[i]) for i in chosen],
            [(records[self.records[i]].width, records[self.records[i]].height) for i in chosen],
            [self.truths[i] for i in chosen],
            [self.found[i] for i in chosen],
            labels,
            threshold,
        )

    def _worst(self, labels: Sequence[str]) -> tuple[LabelMetrics, ...]:
        b = self.boxes
        images = np.zeros(len(labels), np.int64)
        for truth in self.truths:
            images[np.unique(truth.labels[~truth.difficult])] += 1
        told = [
            LabelMetrics(
                label=label,
                images=int(images[i]),
                objects=int(b.objects[i]),
                mAP50=finite(b.average_precision[i, 0]),
                mAP50_95=finite(b.average_precision[i].mean()),
                precision=finite(b.label_precision[i]),
                recall=finite(b.label_recall[i]),
            )
            for i, label in enumerate(labels)
        ]
        told.sort(key=lambda one: -1.0 if one.map50_95 is None else one.map50_95)
        return tuple(told[:WORST_LABELS])


def evaluate(
    task: BoxTask,
    batches: Iterable[Batch],
    records: Sequence[Record],
    labels: Sequence[str],
    *,
    device: torch.device,
    autocast: torch.dtype | None = None,
    threshold: float | None = None,
    stop: StopFlag,
) -> BoxEvaluation | None:
    """Scores over all batches, or None when asked to stop, which is looked at before every batch.

    `autocast` is the precision of the network (None: FP32). `threshold`: confidence for precision and recall, found by the best
    F1 when not given.
    """
    index = {label: i for i, label in enumerate(labels)}
    truths: list[Truth] = []
    found: list[Detections] = []
    seen: list[int] = []
    losses = 0.0
    was_training = task.network.training
    task.network.eval()
    try:
        for batch in batches:
            if stop():
                return None
            moved = batch.to(device)
            with torch.autocast(device.type, autocast or torch.bfloat16, enabled=autocast is not None):
                loss, predictions = task.loss_and_predictions(moved)
            losses += float(loss.total) * len(batch)
            for image, record in enumerate(batch.records):
                n = predictions.counts[image]
                truths.append(truth_of(records[record], index))
                found.append(
                    Detections(
                        batch.to_original(image, predictions.boxes[image, :n]).numpy(),
                        predictions.scores[image, :n].double().cpu().numpy(),
                        predictions.labels[image, :n].cpu().numpy(),
                    )
                )
                seen.append(record)
    finally:
        task.network.train(was_training)
    scores = box_scores(truths, found, len(labels), threshold)
    return BoxEvaluation(scores, losses / max(1, len(seen)), tuple(seen), tuple(truths), tuple(found))
