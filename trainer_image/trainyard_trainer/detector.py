"""Our one-stage detector as a task: loss of a batch, predictions of images.

Built of `network` (layers), `assign` (which point learns what) and `boxes` (overlaps). The losses are binary cross-entropy on
soft targets (TOOD, arXiv 2108.07755), complete IoU (1911.08287) and distribution focal loss (GFL, 2006.04388), with the weights of
PP-YOLOE's paper (2203.16250). Nothing in `loss` waits for the device: masks are dense, counts come from the CPU.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from trainyard_api.training import Training

from trainyard_trainer.assign import assign
from trainyard_trainer.batch import Batch
from trainyard_trainer.boxes import complete_iou, suppress
from trainyard_trainer.errors import BadSpec
from trainyard_trainer.network import DISTANCE_BINS, SHAPES, STRIDES, Network
from trainyard_trainer.ranks import over_ranks
from trainyard_trainer.records import Object


@dataclass(frozen=True)
class LossSettings:
    """Weights of the parts of the loss, smoothing of the score targets, and a weight per label (`[labels]`, or None)."""

    box: float = 2.5
    cls: float = 1.0
    dfl: float = 0.5
    label_smoothing: float = 0.0
    label_weights: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Loss:
    """`total` has a gradient; `parts` are detached scalars on the device: box, cls, dfl."""

    total: Tensor
    parts: Mapping[str, Tensor]


@dataclass(frozen=True)
class Predictions:
    """Of a batch: `boxes` `[batch, n, 4]` in pixels of the input, `scores` and `labels` `[batch, n]`, best first, and how many of
    the `n` rows are real in each image (`counts`, on the CPU)."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    counts: tuple[int, ...]


@dataclass
class Detector:
    """A network and how it is trained. `size` is (width, height) of the input; both multiples of 32."""

    network: Network
    labels: int
    settings: LossSettings = field(default_factory=LossSettings)

    @staticmethod
    def build(architecture: str, labels: int, settings: LossSettings | None = None) -> "Detector":
        """A detector with fresh weights, drawn on the CPU from torch's generator. KeyError for one that is not ours."""
        network = Network(SHAPES[architecture], labels).to(memory_format=torch.channels_last)
        return Detector(network, labels, settings or LossSettings())

    def loss(self, batch: Batch) -> Loss:
        """Loss of a batch; its sums are divided by what the global batch's targets add up to."""
        return self._loss(self.network(batch.images), batch)

    def _loss(self, raw: tuple[Tensor, Tensor], batch: Batch) -> Loss:
        logits, distances = raw[0].float(), raw[1].float()
        points, strides = anchor_points(batch.images.shape[-2:], logits.device)
        predicted = decode(distances, points, strides)
        targets = assign(
            logits.detach().sigmoid(), predicted.detach(), points, strides, batch.boxes, batch.labels, batch.difficult
        )
        total = over_ranks(targets.quality.sum()).clamp(min=1.0)
        cls = self._classification(logits, targets.scores, targets.ignored) / total
        overlap = complete_iou(predicted, targets.boxes)
        box = ((1 - overlap) * targets.quality).sum() / total
        dfl = (_distribution_focal(distances, targets.boxes, points, strides) * targets.quality).sum() / total
        s = self.settings
        return Loss(
            s.box * box + s.cls * cls + s.dfl * dfl, {"box": box.detach(), "cls": cls.detach(), "dfl": dfl.detach()}
        )

    def _classification(self, logits: Tensor, scores: Tensor, ignored: Tensor) -> Tensor:
        """Sum of the cross-entropies; points in difficult objects do not count."""
        if self.settings.label_smoothing:
            scores = scores * (1 - self.settings.label_smoothing)
        each = F.binary_cross_entropy_with_logits(logits, scores, reduction="none")
        if self.settings.label_weights is not None:
            each = each * torch.as_tensor(self.settings.label_weights, dtype=each.dtype).to(
                each.device, non_blocking=True
            )
        return torch.where(ignored[..., None], 0.0, each).sum()

    @torch.no_grad()
    def predict(self, images: Tensor, *, score: float, iou: float, most: int) -> Predictions:
        """Boxes of a batch of images in 0..1; up to `most` per image and label, scores above `score`."""
        return self._predictions(self.network(images), images, score, iou, most)

    @torch.no_grad()
    def score(self, batch: Batch, *, score: float, iou: float, most: int) -> tuple[Loss, Predictions]:
        """Loss and predictions of a batch from one pass of the network."""
        raw = self.network(batch.images)
        return self._loss(raw, batch), self._predictions(raw, batch.images, score, iou, most)

    def _predictions(
        self, raw: tuple[Tensor, Tensor], images: Tensor, score: float, iou: float, most: int
    ) -> Predictions:
        logits, distances = raw[0].float(), raw[1].float()
        points, strides = anchor_points(images.shape[-2:], logits.device)
        return select(decode(distances, points, strides), logits.sigmoid(), score=score, iou=iou, most=most)


def loss_settings(training: Training, objects: Iterable[Sequence[Object]], labels: Sequence[str]) -> LossSettings:
    """The architecture's weights, with what the spec overrides. `balanced`: the inverse of how often a label occurs, mean 1."""
    given = training.loss_weights
    weights = None
    asked = training.class_weights
    if asked is not None and asked.balanced:
        counts = Counter(item.label for items in objects for item in items)
        inverse = [1 / max(1, counts[label]) for label in labels]
        weights = tuple(min(10.0, len(labels) * value / sum(inverse)) for value in inverse)
    elif asked is not None and asked.labels is not None:
        unknown = sorted(set(asked.labels) - set(labels))
        if unknown:
            raise BadSpec(
                f"training.classWeights.labels names {unknown[0]!r}, which is no label; the labels are {', '.join(labels)}."
            )
        weights = tuple(asked.labels.get(label, 100) / 100 for label in labels)
    usual = LossSettings()
    return LossSettings(
        box=given.box if given and given.box is not None else usual.box,
        cls=given.cls if given and given.cls is not None else usual.cls,
        dfl=given.dfl if given and given.dfl is not None else usual.dfl,
        label_smoothing=training.label_smoothing,
        label_weights=weights,
    )


def anchor_points(size: tuple[int, int] | torch.Size, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Centres `[points, 2]` of all grid cells in pixels (x, y), and their strides `[points]`, for an input of (height, width)."""
    height, width = size
    points, strides = [], []
    for stride in STRIDES:
        rows, columns = height // stride, width // stride
        y = (torch.arange(rows, device=device) + 0.5) * stride
        x = (torch.arange(columns, device=device) + 0.5) * stride
        points.append(torch.stack((x.repeat(rows), y.repeat_interleave(columns, output_size=rows * columns)), 1))
        strides.append(torch.full((rows * columns,), float(stride), device=device))
    return torch.cat(points), torch.cat(strides)


def decode(distances: Tensor, points: Tensor, strides: Tensor) -> Tensor:
    """Boxes `[batch, points, 4]` in pixels from distributions `[batch, points, 4, bins]`: the expected distance to each side."""
    bins = torch.arange(DISTANCE_BINS, dtype=distances.dtype, device=distances.device)
    expected = (distances.softmax(-1) * bins).sum(-1) * strides[:, None]
    return torch.cat((points - expected[..., :2], points + expected[..., 2:]), -1)


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


def _distribution_focal(distances: Tensor, boxes: Tensor, points: Tensor, strides: Tensor) -> Tensor:
    """`[batch, points]`: cross-entropy against the two bins around each side's true distance, mean of the four sides."""
    true = torch.cat((points - boxes[..., :2], boxes[..., 2:] - points), -1) / strides[:, None]
    true = true.clamp(0, DISTANCE_BINS - 1 - 0.01)
    below = true.floor()
    share = true - below
    logs = distances.log_softmax(-1)
    low = logs.gather(-1, below.long()[..., None])[..., 0]
    high = logs.gather(-1, below.long()[..., None] + 1)[..., 0]
    return -(low * (1 - share) + high * share).mean(-1)


def parameter_count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
