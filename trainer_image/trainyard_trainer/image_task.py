"""An image network as a task: one class for each image (`Classification`), or any number of tags (`Tagging`).

Targets are shares: an image that augmentation blended of several (mosaic, mixup, cutmix) has each one's labels by its share of
the area (mixup: arXiv 1710.09412, CutMix: 1905.04899, mosaic: RICAP, 1811.09030).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from trainyard_api.architectures import Task as TaskName

from trainyard_trainer import image_metrics
from trainyard_trainer.batch import Batch
from trainyard_trainer.image_evaluate import ClassEvaluation, TagEvaluation
from trainyard_trainer.normalise import Normalise
from trainyard_trainer.ranks import over_ranks
from trainyard_trainer.records import Record, StopFlag
from trainyard_trainer.task import LabelRows, Loss


class ImageNetwork(nn.Module):
    """Images `[batch, 3, height, width]` in 0..1 to a logit per label: `backbone` to features, `head` from there."""

    def __init__(self, backbone: nn.Module, features: int, labels: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(features, labels)
        self.normalise = Normalise()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(self.normalise(images)))


@dataclass
class ImageTask:
    """`label_weights` `[labels]` or None: how much each label counts in the loss."""

    network: ImageNetwork
    task: TaskName
    label_smoothing: float = 0.0
    label_weights: tuple[float, ...] | None = None

    fitted_tensors = ()
    outputs = ("scores",)
    ordered = True

    @property
    def backbone(self) -> nn.Module:
        return self.network.backbone

    @property
    def label_rows(self) -> Mapping[str, LabelRows]:
        return {"head.weight": LabelRows(), "head.bias": LabelRows()}

    def loss(self, batch: Batch) -> Loss:
        return self._loss(self.network(batch.images), batch)

    def weight(self, batch: Batch) -> float:
        return len(batch)

    @torch.no_grad()
    def predict(self, images: Tensor) -> Tensor:
        """Probabilities `[batch, labels]`; those of classes add up to 1."""
        return self._probabilities(self.network(images))

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
    ) -> ClassEvaluation | TagEvaluation | None:
        truths: list[np.ndarray] = []
        found: list[np.ndarray] = []
        seen: list[int] = []
        losses = 0.0
        was_training = self.network.training
        self.network.eval()
        try:
            with torch.no_grad():
                for batch in batches:
                    if stop():
                        return None
                    moved = batch.to(device)
                    with torch.autocast(device.type, autocast or torch.bfloat16, enabled=autocast is not None):
                        logits = self.network(moved.images)
                    losses += float(self._loss(logits, moved).total) * len(batch)
                    found.append(self._probabilities(logits).double().cpu().numpy())
                    truths.append(_targets(batch).double().numpy())
                    seen.extend(batch.records)
        finally:
            self.network.train(was_training)
        answers, scores, loss = np.concatenate(truths), np.concatenate(found), losses / max(1, len(seen))
        if self.task is TaskName.CLASSIFICATION:
            return ClassEvaluation(loss, tuple(seen), answers.argmax(1), scores)
        if threshold is None:
            threshold = image_metrics.best_threshold(answers, scores)
        return TagEvaluation(loss, tuple(seen), answers, scores, threshold)

    def raw_graph(self, size: tuple[int, int]) -> nn.Module:
        return RawGraph(self.network, self.task)

    def _probabilities(self, logits: Tensor) -> Tensor:
        return probabilities(logits.float(), self.task)

    def _loss(self, logits: Tensor, batch: Batch) -> Loss:
        """Cross-entropy, weighted by label; tags that do not count are left out. A mean over the global batch."""
        logits, targets = logits.float(), _targets(batch)
        weights = torch.ones(logits.shape[1], device=logits.device)
        if self.label_weights is not None:
            weights = torch.tensor(self.label_weights).to(logits.device, non_blocking=True)
        smoothing = self.label_smoothing
        if self.task is TaskName.CLASSIFICATION:
            shares = targets * weights
            smoothed = shares * (1 - smoothing) + shares.sum(1, keepdim=True) * (smoothing / logits.shape[1])
            total = -(smoothed * logits.log_softmax(1)).sum() / over_ranks(shares.sum()).clamp(min=1e-6)
        else:
            counts = (targets >= 0) * weights
            wanted = targets.clamp(min=0) * (1 - smoothing) + smoothing / 2
            each = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
            total = (each * counts).sum() / over_ranks(counts.sum()).clamp(min=1e-6)
        return Loss(total, {"cls": total.detach()})


class RawGraph(nn.Module):
    """Images `[batch, 3, height, width]` in 0..1 to scores `[batch, labels]` in 0..1."""

    def __init__(self, network: ImageNetwork, task: TaskName) -> None:
        super().__init__()
        self.network = network
        self.task = task

    def forward(self, images: Tensor) -> Tensor:
        return probabilities(self.network(images), self.task)


def probabilities(logits: Tensor, task: TaskName) -> Tensor:
    return logits.softmax(1) if task is TaskName.CLASSIFICATION else logits.sigmoid()


def _targets(batch: Batch) -> Tensor:
    assert batch.targets is not None
    return batch.targets
