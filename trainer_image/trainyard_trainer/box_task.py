"""What all detectors share: predictions, evaluation and the raw graph follow from what a subclass says about its raw outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from trainyard_api.training import Training

from trainyard_trainer.batch import Batch
from trainyard_trainer.boxes import suppress
from trainyard_trainer.errors import BadSpec
from trainyard_trainer.evaluate import BoxEvaluation, evaluate
from trainyard_trainer.records import Object, Record, StopFlag
from trainyard_trainer.task import LabelRows, Loss

LOWEST_SCORE = 0.001
"""mAP looks at all detections, also those that nobody would show."""


@dataclass(frozen=True)
class LossSettings:
    """Weights of the parts of the loss, smoothing of the score targets, and a weight per label (`[labels]`, or None)."""

    box: float = 2.5
    cls: float = 1.0
    dfl: float = 0.5
    label_smoothing: float = 0.0
    label_weights: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Predictions:
    """Of a batch: `boxes` `[batch, n, 4]` in pixels of the input, `scores` and `labels` `[batch, n]`, best first, and how many of
    the `n` rows are real in each image (`counts`, on the CPU)."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Selection:
    """Which boxes are predictions: overlap over which the weaker of two is dropped, and how many are kept per image and label."""

    iou: float = 0.6
    most: int = 100


class BoxTask(ABC):
    """A detector. `network` maps images `[batch, 3, height, width]` in 0..1 to raw outputs, which only the subclass understands."""

    fitted_tensors: tuple[str, ...] = ()
    outputs = ("boxes", "scores")
    ordered = True

    def __init__(
        self, network: nn.Module, labels: int, settings: LossSettings, selection: Selection | None = None
    ) -> None:
        self.network = network
        self.labels = labels
        self.settings = settings
        self.selection = selection or Selection()

    @property
    @abstractmethod
    def backbone(self) -> nn.Module: ...

    @property
    @abstractmethod
    def label_rows(self) -> Mapping[str, LabelRows | None]: ...

    @abstractmethod
    def loss_of(self, raw: Any, batch: Batch) -> Loss:
        """Loss of a batch from the network's raw outputs."""

    @abstractmethod
    def decoded(self, raw: Any, images: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes `[batch, n, 4]` in pixels of the input and scores `[batch, n, labels]` in 0..1."""

    @abstractmethod
    def raw_graph(self, size: tuple[int, int]) -> nn.Module: ...

    def loss(self, batch: Batch) -> Loss:
        """Loss of a batch; its sums are divided by what the global batch's targets add up to."""
        return self.loss_of(self.network(batch.images), batch)

    def weight(self, batch: Batch) -> float:
        return sum(batch.counts)

    @torch.no_grad()
    def predict(self, images: Tensor, *, score: float = LOWEST_SCORE) -> Predictions:
        """Boxes of a batch of images in 0..1, scores above `score`."""
        return self._predictions(self.network(images), images, score)

    @torch.no_grad()
    def loss_and_predictions(self, batch: Batch, *, score: float = LOWEST_SCORE) -> tuple[Loss, Predictions]:
        """Loss and predictions of a batch from one pass of the network."""
        raw = self.network(batch.images)
        return self.loss_of(raw, batch), self._predictions(raw, batch.images, score)

    def score(
        self,
        batches: Iterable[Batch],
        records: Sequence[Record],
        labels: Sequence[str],
        *,
        device: torch.device,
        autocast: torch.dtype | None = None,
        threshold: float | None = None,
        stop: StopFlag,
    ) -> BoxEvaluation | None:
        return evaluate(
            self, batches, records, labels, device=device, autocast=autocast, threshold=threshold, stop=stop
        )

    def _predictions(self, raw: Any, images: Tensor, score: float) -> Predictions:
        boxes, scores = self.decoded(raw, images)
        return select(boxes, scores, score=score, iou=self.selection.iou, most=self.selection.most)


def loss_settings(
    training: Training,
    objects: Iterable[Sequence[Object]],
    labels: Sequence[str],
    usual: LossSettings | None = None,
) -> LossSettings:
    """The architecture's weights (`usual`; None: those of our own), with what the spec overrides."""
    given = training.loss_weights
    usual = usual or LossSettings()
    counts = Counter(item.label for items in objects for item in items)
    return LossSettings(
        box=given.box if given and given.box is not None else usual.box,
        cls=given.cls if given and given.cls is not None else usual.cls,
        dfl=given.dfl if given and given.dfl is not None else usual.dfl,
        label_smoothing=training.label_smoothing,
        label_weights=label_weights(training, counts, labels),
    )


def label_weights(training: Training, counts: Mapping[str, int], labels: Sequence[str]) -> tuple[float, ...] | None:
    """A weight per label as `classWeights` says, or None. `balanced`: the inverse of how often a label occurs, mean 1."""
    asked = training.class_weights
    if asked is not None and asked.balanced:
        inverse = [1 / max(1, counts.get(label, 0)) for label in labels]
        return tuple(min(10.0, len(labels) * value / sum(inverse)) for value in inverse)
    if asked is not None and asked.labels is not None:
        unknown = sorted(set(asked.labels) - set(labels))
        if unknown:
            raise BadSpec(
                f"training.classWeights.labels names {unknown[0]!r}, which is no label; the labels are {', '.join(labels)}."
            )
        return tuple(asked.labels.get(label, 100) / 100 for label in labels)
    return None


def select(boxes: Tensor, scores: Tensor, *, score: float, iou: float, most: int, candidates: int = 400) -> Predictions:
    """The best boxes after non-maximum suppression within each label. A point may predict several labels.

    `boxes` `[batch, points, 4]`, `scores` `[batch, points, labels]` in 0..1.
    """
    labels = scores.shape[2]
    candidates = min(max(candidates, most), scores.shape[1] * labels)
    best, flat = scores.flatten(1).topk(candidates, dim=1)
    where = torch.div(flat, labels, rounding_mode="floor")
    found = boxes.gather(1, where[..., None].expand(-1, -1, 4))
    label = flat - where * labels
    keep = suppress(found, label, iou) & (best > score)
    same = label[:, :, None] == label[:, None, :]
    rank = ((same & keep[:, None, :]).to(torch.int32).tril(-1)).sum(2)
    keep &= rank < most
    order = torch.where(keep, best, -1.0).sort(dim=1, descending=True, stable=True).indices
    counts = tuple(int(n) for n in keep.sum(1).tolist())
    return Predictions(
        found.gather(1, order[..., None].expand(-1, -1, 4)), best.gather(1, order), label.gather(1, order), counts
    )


def parameter_count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
