"""torchvision's one-stage detectors as tasks: SSD and SSDLite (arXiv 1512.02325, 1801.04381), RetinaNet (1708.02002), FCOS (1904.01355).

Network and names of weights are torchvision's; anchors, matching, losses and decoding are ours: dense tensors without host sync,
anchors fitted to the dataset, complete IoU for boxes, images without objects that teach something, boxes without area that do no harm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from trainyard_api.architectures import Architecture

from trainyard_trainer.anchors import Matches, Shapes, decode, fitted, grid, match, object_shapes
from trainyard_trainer.batch import Batch
from trainyard_trainer.box_task import BoxTask, LossSettings, Selection, loss_settings
from trainyard_trainer.boxes import areas, complete_iou
from trainyard_trainer.lean_torchvision import torchvision
from trainyard_trainer.normalise import Normalise
from trainyard_trainer.ranks import over_ranks
from trainyard_trainer.task import LabelRows, Loss, Wanted

SSD = torchvision.models.detection.ssd.SSD
LEAST_MOMENTUM = 0.1
"""Of batch statistics: with less, those of a short training still remember that they began at 0 and 1."""
NEGATIVES_PER_POSITIVE = 3
LEAST_NEGATIVES = 8
"""Of an image without objects, too."""
FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2.0
BOX_WEIGHT = 2.0
FCOS_RADIUS = 1.5


def build(architecture: Architecture, wanted: Wanted) -> BoxTask:
    """A detector with fresh weights. `architecture.source` names torchvision's function."""
    kind = KINDS[architecture.source]
    labels = len(wanted.labels)
    model = getattr(torchvision.models.detection, architecture.source)(
        weights=None, weights_backbone=None, num_classes=labels + kind.background
    )
    shapes = stock_shapes(model, wanted.size)
    if kind.fits:
        shapes = fitted(shapes, object_shapes(wanted.records, wanted.size))
    network = AnchorNetwork(model, shapes, 0.5 if isinstance(model, SSD) else 0.0).to(memory_format=torch.channels_last)
    settings = loss_settings(
        wanted.training, [r.objects for r in wanted.records], wanted.labels, LossSettings(box=BOX_WEIGHT)
    )
    prediction = wanted.prediction
    return kind(network, labels, settings, Selection(prediction.iou_threshold_percent / 100, prediction.max_detections))


def stock_shapes(model: Any, size: tuple[int, int]) -> list[Shapes]:
    """Widths and heights of torchvision's own anchors, per level, in pixels."""
    generator = model.anchor_generator
    if isinstance(model, SSD):
        return [pairs.numpy().astype(np.float64) * size for pairs in generator._wh_pairs]
    return [(cells[:, 2:] - cells[:, :2]).numpy().astype(np.float64) for cells in generator.cell_anchors]


class AnchorNetwork(nn.Module):
    """torchvision's backbone and head up to raw outputs. The shapes of the anchors belong to the weights and are stored with them."""

    def __init__(self, model: Any, shapes: Sequence[Shapes], offset: float) -> None:
        super().__init__()
        self.normalise = Normalise(model.transform.image_mean, model.transform.image_std)
        self.backbone = model.backbone
        self.head = model.head
        self.register_buffer("shapes", torch.from_numpy(np.concatenate(shapes)).float())
        self._counts = [len(level) for level in shapes]
        self._offset = offset
        quicken_statistics(self)

    def forward(self, images: Tensor) -> tuple[dict[str, Tensor], Tensor, tuple[int, ...]]:
        """Outputs of the head, anchors `[anchors, 4]`, and how many anchors each level has."""
        assert isinstance(self.shapes, Tensor)
        features = list(self.backbone(self.normalise(images)).values())
        cells = [(int(level.shape[-2]), int(level.shape[-1])) for level in features]
        size = int(images.shape[-2]), int(images.shape[-1])
        shapes = self.shapes.split(self._counts)
        counts = tuple(rows * columns * n for (rows, columns), n in zip(cells, self._counts, strict=True))
        return self.head(features), grid(shapes, cells, size, self._offset), counts


def quicken_statistics(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.momentum is not None:
            module.momentum = max(module.momentum, LEAST_MOMENTUM)


Raw = tuple[dict[str, Tensor], Tensor, tuple[int, ...]]


class DecodedGraph(nn.Module):
    """Images `[batch, 3, height, width]` in 0..1 to boxes `[batch, n, 4]` in pixels of the input and scores `[batch, n, labels]`."""

    def __init__(self, task: BoxTask) -> None:
        super().__init__()
        self.network = task.network
        self._decoded = task.decoded

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self._decoded(self.network(images), images)


class OneStage(BoxTask):
    """What the three kinds share. `background`: whether column 0 of the logits means that there is nothing; `fits`: whether anchors
    are fitted to the dataset."""

    background = 0
    fits = True
    fitted_tensors = ("shapes",)
    network: AnchorNetwork

    @property
    def backbone(self) -> nn.Module:
        return self.network.backbone

    @property
    def label_rows(self) -> Mapping[str, LabelRows]:
        """The last convolutions of the classification head: rows of a label once for each anchor of a place."""
        rows = {}
        for name, module in self.network.head.classification_head.named_modules():
            if isinstance(module, nn.Conv2d) and _is_last(name):
                groups = module.out_channels // (self.labels + self.background)
                for kind in ("weight", "bias"):
                    rows[f"head.classification_head.{name}.{kind}"] = LabelRows(groups, self.background)
        return rows

    def raw_graph(self, size: tuple[int, int]) -> nn.Module:
        return DecodedGraph(self)

    def _label_weights(self, like: Tensor) -> Tensor:
        """`[labels]`."""
        if self.settings.label_weights is None:
            return torch.ones(self.labels, device=like.device)
        return torch.tensor(self.settings.label_weights).to(like.device, non_blocking=True)

    def _total(self, box: Tensor, cls: Tensor, **parts: Tensor) -> Loss:
        total = self.settings.box * box + self.settings.cls * cls
        for part in parts.values():
            total = total + part
        told = {"box": box, "cls": cls, **parts}
        return Loss(total, {name: part.detach() for name, part in told.items()})


class SSDTask(OneStage):
    """SSD: softmax with a background, anchors matched from an IoU of 0.5 on, hard negatives 3 to 1 in each image."""

    background = 1
    coding = (10.0, 5.0)

    def loss_of(self, raw: Raw, batch: Batch) -> Loss:
        outputs, anchors, _ = raw
        logits = outputs["cls_logits"].float()
        matches = match(anchors, batch, positive=0.5, negative=0.5)
        wanted = torch.where(matches.positive, matches.labels(batch) + 1, 0)
        each = F.cross_entropy(
            logits.flatten(0, 1), wanted.flatten(), reduction="none", label_smoothing=self.settings.label_smoothing
        ).view_as(wanted)
        weights = torch.where(matches.positive, self._label_weights(logits)[matches.labels(batch)], 0.0)
        negatives = hard_negatives(each.detach(), matches)
        total = over_ranks(matches.positive.sum()).clamp(min=1)
        cls = (each * (weights + negatives)).sum() / total
        boxes = decode(outputs["bbox_regression"].float(), anchors, self.coding)
        return self._total(box_loss(boxes, matches, batch) / total, cls)

    def decoded(self, raw: Raw, images: Tensor) -> tuple[Tensor, Tensor]:
        outputs, anchors, _ = raw
        boxes = decode(outputs["bbox_regression"].float(), anchors, self.coding)
        return boxes, outputs["cls_logits"].float().softmax(-1)[..., 1:]


class RetinaNetTask(OneStage):
    """RetinaNet: focal loss over all anchors; learnt from an IoU of 0.5 on, nothing there below 0.4."""

    coding = (1.0, 1.0)

    def loss_of(self, raw: Raw, batch: Batch) -> Loss:
        outputs, anchors, _ = raw
        matches = match(anchors, batch, positive=0.5, negative=0.4)
        total = over_ranks(matches.positive.sum()).clamp(min=1)
        cls = self._focal(outputs["cls_logits"].float(), matches, batch) / total
        boxes = decode(outputs["bbox_regression"].float(), anchors, self.coding)
        return self._total(box_loss(boxes, matches, batch) / total, cls)

    def decoded(self, raw: Raw, images: Tensor) -> tuple[Tensor, Tensor]:
        outputs, anchors, _ = raw
        return decode(outputs["bbox_regression"].float(), anchors, self.coding), outputs["cls_logits"].float().sigmoid()

    def _focal(self, logits: Tensor, matches: Matches, batch: Batch) -> Tensor:
        """Sum of the focal losses of all anchors that are asked."""
        wanted = F.one_hot(matches.labels(batch), self.labels) * matches.positive[..., None]
        asked = (matches.positive | matches.background)[..., None]
        each = focal_loss(logits, wanted.to(logits.dtype), self.settings.label_smoothing)
        return (each * asked * self._label_weights(logits)).sum()


class FCOSTask(RetinaNetTask):
    """FCOS: a point learns the smallest object in whose middle it lies, on the level of the object's size; centre-ness as quality."""

    fits = False

    def loss_of(self, raw: Raw, batch: Batch) -> Loss:
        outputs, anchors, counts = raw
        matches = match_points(anchors, counts, batch)
        total = over_ranks(matches.positive.sum()).clamp(min=1)
        cls = self._focal(outputs["cls_logits"].float(), matches, batch) / total
        box = box_loss(self._boxes(outputs, anchors), matches, batch) / total
        near = centreness(anchors, matches.boxes(batch))
        each = F.binary_cross_entropy_with_logits(outputs["bbox_ctrness"].float()[..., 0], near, reduction="none")
        return self._total(box, cls, centre=(each * matches.positive).sum() / total)

    def decoded(self, raw: Raw, images: Tensor) -> tuple[Tensor, Tensor]:
        outputs, anchors, _ = raw
        quality = outputs["bbox_ctrness"].float().sigmoid()
        return self._boxes(outputs, anchors), (outputs["cls_logits"].float().sigmoid() * quality).sqrt()

    def _boxes(self, outputs: dict[str, Tensor], anchors: Tensor) -> Tensor:
        """From distances in anchor sides to the four sides of the box."""
        sides = anchors[..., 2:] - anchors[..., :2]
        centres = anchors[..., :2] + sides / 2
        distances = outputs["bbox_regression"].float()
        return torch.cat((centres - distances[..., :2] * sides, centres + distances[..., 2:] * sides), -1)


KINDS: dict[str, type[OneStage]] = {
    "ssdlite320_mobilenet_v3_large": SSDTask,
    "ssd300_vgg16": SSDTask,
    "retinanet_resnet50_fpn_v2": RetinaNetTask,
    "fcos_resnet50_fpn": FCOSTask,
}


def _is_last(name: str) -> bool:
    """Of the modules in a classification head: `cls_logits`, or the last one of a level."""
    parts = name.split(".")
    return name == "cls_logits" or (parts[0] == "module_list" and (len(parts) == 2 or parts[2:] == ["1"]))


def box_loss(boxes: Tensor, matches: Matches, batch: Batch) -> Tensor:
    """Sum of 1 - complete IoU over the anchors that learn an object."""
    overlap = complete_iou(boxes, matches.boxes(batch))
    return torch.where(matches.positive, 1 - overlap, 0.0).sum()


def hard_negatives(loss: Tensor, matches: Matches) -> Tensor:
    """Which anchors teach that there is nothing: those with the largest loss, in each image 3 times as many as learn an object."""
    wanted = (NEGATIVES_PER_POSITIVE * matches.positive.sum(1)).clamp(min=LEAST_NEGATIVES, max=loss.shape[1])
    candidates = torch.where(matches.background, loss, -1.0)
    least = candidates.sort(1, descending=True).values.gather(1, wanted[:, None] - 1)
    return matches.background & (candidates >= least)


def focal_loss(logits: Tensor, wanted: Tensor, smoothing: float = 0.0) -> Tensor:
    """Focal loss (arXiv 1708.02002) of each logit."""
    target = wanted * (1 - smoothing)
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    missed = (logits.sigmoid() - target).abs().pow(FOCAL_GAMMA)
    return each * missed * torch.where(wanted > 0, FOCAL_ALPHA, 1 - FOCAL_ALPHA)


@torch.no_grad()
def match_points(anchors: Tensor, counts: Sequence[int], batch: Batch) -> Matches:
    """FCOS's rule for the centres of `anchors` `[points, 4]`, whose sides are the level's stride; `counts` are points per level."""
    stride = anchors[:, 2] - anchors[:, 0]
    x, y = (anchors[:, 0] + stride / 2).contiguous(), (anchors[:, 1] + stride / 2).contiguous()
    x1, y1, x2, y2 = (side[..., None] for side in batch.boxes.unbind(-1))
    nearest = torch.minimum(torch.minimum(x - x1, x2 - x), torch.minimum(y - y1, y2 - y))
    farthest = torch.maximum(torch.maximum(x - x1, x2 - x), torch.maximum(y - y1, y2 - y))
    central = torch.maximum((x - (x1 + x2) / 2).abs(), (y - (y1 + y2) / 2).abs()) < FCOS_RADIUS * stride
    low, high = 4 * stride, 8 * stride
    low[: counts[0]] = 0.0
    high[-counts[-1] :] = math.inf
    area = areas(batch.boxes)
    inside = (nearest > 0) & ((batch.labels >= 0) & (area > 0))[..., None]
    fits = inside & central & (farthest > low) & (farthest < high) & ~batch.difficult[..., None]
    smallest, owner = torch.where(fits, area[..., None], math.inf).min(1)
    positive = smallest < math.inf
    hard = (inside & batch.difficult[..., None]).any(1)
    return Matches(owner, positive, ~positive & ~hard)


def centreness(anchors: Tensor, boxes: Tensor) -> Tensor:
    """1 at the centre of a box, 0 at its border: `[batch, points]`."""
    centres = (anchors[..., :2] + anchors[..., 2:]) / 2
    before, after = (centres - boxes[..., :2]).clamp(min=0), (boxes[..., 2:] - centres).clamp(min=0)
    ratio = torch.minimum(before, after) / torch.maximum(before, after).clamp(min=1e-6)
    return ratio.prod(-1).sqrt()
