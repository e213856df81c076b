"""torchvision's Faster R-CNN (arXiv 1506.01497) as a task: proposals from anchors, then a look at each of them.

Network and names of weights are torchvision's. Ours: a fixed number of proposals and samples, so that every tensor is dense and no
step waits for the device; one box per proposal whatever its label; anchors fitted to the dataset; complete IoU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from trainyard_api.architectures import Architecture

from trainyard_trainer.anchors import Matches, Shapes, decode, fitted, grid, match, object_shapes
from trainyard_trainer.batch import Batch
from trainyard_trainer.box_task import BoxTask, LossSettings, Selection, loss_settings
from trainyard_trainer.boxes import complete_iou, pairwise_iou
from trainyard_trainer.lean_torchvision import torchvision
from trainyard_trainer.normalise import Normalise
from trainyard_trainer.ranks import over_ranks
from trainyard_trainer.task import LabelRows, Loss, Wanted
from trainyard_trainer.zoo import BOX_WEIGHT, DecodedGraph, quicken_statistics

CANDIDATES, PROPOSALS = 800, 250
"""Anchors of the highest scores that become boxes, and how many of these are left after suppression."""
PROPOSAL_IOU = 0.7
SUPPRESSION_ROUNDS = 8
"""Chains of overlaps are hardly ever longer; a fixed number needs no look at the device, and a graph can hold it."""
ANCHOR_SAMPLES, ANCHOR_POSITIVES = 256, 128
BOX_SAMPLES, BOX_POSITIVES = 256, 64
ANCHOR_CODING, BOX_CODING = (1.0, 1.0), (10.0, 5.0)
DROPPED = -1e9
POOLED, RATIO = 7, 2
CANONICAL_SIDE, CANONICAL_STRIDE = 224, 16


def build(architecture: Architecture, wanted: Wanted) -> FasterRCNNTask:
    """A detector with fresh weights. `architecture.source` names torchvision's function."""
    labels = len(wanted.labels)
    model = getattr(torchvision.models.detection, architecture.source)(
        weights=None, weights_backbone=None, num_classes=labels + 1
    )
    stock = [(c[:, 2:] - c[:, :2]).numpy().astype(np.float64) for c in model.rpn.anchor_generator.cell_anchors]
    shapes = fitted(stock, object_shapes(wanted.records, wanted.size))
    network = TwoStageNetwork(model, shapes).to(memory_format=torch.channels_last)
    objects = [record.objects for record in wanted.records]
    settings = loss_settings(wanted.training, objects, wanted.labels, LossSettings(box=BOX_WEIGHT))
    prediction = wanted.prediction
    selection = Selection(prediction.iou_threshold_percent / 100, prediction.max_detections)
    return FasterRCNNTask(network, labels, settings, selection)


@dataclass(frozen=True)
class Raw:
    """Feature maps of the levels that boxes are looked at on, a logit and four deltas per anchor, the anchors."""

    features: tuple[Tensor, ...]
    objectness: Tensor
    deltas: Tensor
    anchors: Tensor


class TwoStageNetwork(nn.Module):
    """torchvision's modules under torchvision's names; `forward` is the first stage, `look` the second."""

    def __init__(self, model: Any, shapes: Sequence[Shapes]) -> None:
        super().__init__()
        self.normalise = Normalise(model.transform.image_mean, model.transform.image_std)
        self.backbone = model.backbone
        self.rpn = nn.ModuleDict({"head": model.rpn.head})
        predictor = model.roi_heads.box_predictor
        predictor.bbox_pred = nn.Linear(predictor.bbox_pred.in_features, 4)
        self.roi_heads = nn.ModuleDict({"box_head": model.roi_heads.box_head, "box_predictor": predictor})
        self.register_buffer("shapes", torch.from_numpy(np.concatenate(shapes)).float())
        self._counts = [len(level) for level in shapes]
        self._looked_at = tuple(model.roi_heads.box_roi_pool.featmap_names)
        quicken_statistics(self)

    def forward(self, images: Tensor) -> Raw:
        assert isinstance(self.shapes, Tensor)
        by_name = self.backbone(self.normalise(images))
        levels = list(by_name.values())
        objectness, deltas = self.rpn["head"](levels)
        cells = [(int(level.shape[-2]), int(level.shape[-1])) for level in levels]
        size = int(images.shape[-2]), int(images.shape[-1])
        return Raw(
            tuple(by_name[name] for name in self._looked_at if name in by_name),
            torch.cat([_by_anchor(level, 1) for level in objectness], 1)[..., 0].float(),
            torch.cat([_by_anchor(level, 4) for level in deltas], 1).float(),
            grid(self.shapes.split(self._counts), cells, size, 0.0),
        )

    def look(self, features: Sequence[Tensor], boxes: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Logits `[batch, boxes, 1 + labels]` (0: nothing there) and deltas `[batch, boxes, 4]` of boxes `[batch, boxes, 4]`."""
        pooled = _pooled(features, boxes, width)
        logits, deltas = self.roi_heads["box_predictor"](self.roi_heads["box_head"](pooled))
        batch, count = boxes.shape[:2]
        return logits.view(batch, count, -1).float(), deltas.view(batch, count, 4).float()


class FasterRCNNTask(BoxTask):
    network: TwoStageNetwork
    fitted_tensors = ("shapes",)
    ordered = False

    @property
    def backbone(self) -> nn.Module:
        return self.network.backbone

    @property
    def label_rows(self) -> Mapping[str, LabelRows]:
        return {f"roi_heads.box_predictor.cls_score.{kind}": LabelRows(before=1) for kind in ("weight", "bias")}

    def loss_of(self, raw: Raw, batch: Batch) -> Loss:
        size = batch.images.shape[-2:]
        rpn = self._first_stage(raw, batch)
        boxes, _ = proposals(raw, size)
        # Objects are looked at from the beginning, when no proposal is near them yet.
        boxes = torch.cat((boxes, batch.boxes), 1)
        matches = match(boxes, batch, positive=0.5, negative=0.5, force=False)
        index, positive, background = sampled(matches, BOX_SAMPLES, BOX_POSITIVES)
        chosen = boxes.gather(1, index[..., None].expand(-1, -1, 4))
        logits, deltas = self.network.look(raw.features, chosen, size[1])

        labels = matches.labels(batch).gather(1, index)
        wanted = torch.where(positive, labels + 1, 0)
        each = F.cross_entropy(
            logits.flatten(0, 1), wanted.flatten(), reduction="none", label_smoothing=self.settings.label_smoothing
        ).view_as(wanted)
        weights = torch.ones_like(each)
        if self.settings.label_weights is not None:
            own = torch.tensor(self.settings.label_weights).to(each.device, non_blocking=True)
            weights = torch.where(positive, own[labels], 1.0)
        asked = positive | background
        cls = (each * weights * asked).sum() / over_ranks(asked.sum()).clamp(min=1)
        aims = matches.boxes(batch).gather(1, index[..., None].expand(-1, -1, 4))
        overlap = complete_iou(decode(deltas, chosen, BOX_CODING), aims)
        box = torch.where(positive, 1 - overlap, 0.0).sum() / over_ranks(positive.sum()).clamp(min=1)
        s = self.settings
        total = s.box * box + s.cls * cls + rpn
        return Loss(total, {"box": box.detach(), "cls": cls.detach(), "rpn": rpn.detach()})

    def decoded(self, raw: Raw, images: Tensor) -> tuple[Tensor, Tensor]:
        boxes, real = proposals(raw, images.shape[-2:])
        logits, deltas = self.network.look(raw.features, boxes, int(images.shape[-1]))
        return decode(deltas, boxes, BOX_CODING), logits.softmax(-1)[..., 1:] * real[..., None]

    def raw_graph(self, size: tuple[int, int]) -> nn.Module:
        return DecodedGraph(self)

    def _first_stage(self, raw: Raw, batch: Batch) -> Tensor:
        """Loss of the proposals: is there something, and where."""
        matches = match(raw.anchors, batch, positive=0.7, negative=0.3)
        index, positive, background = sampled(matches, ANCHOR_SAMPLES, ANCHOR_POSITIVES)
        each = F.binary_cross_entropy_with_logits(
            raw.objectness.gather(1, index), positive.to(torch.float32), reduction="none"
        )
        asked = positive | background
        what = (each * asked).sum() / over_ranks(asked.sum()).clamp(min=1)
        wide = index[..., None].expand(-1, -1, 4)
        boxes = decode(raw.deltas.gather(1, wide), raw.anchors[index], ANCHOR_CODING)
        overlap = complete_iou(boxes, matches.boxes(batch).gather(1, wide))
        where = torch.where(positive, 1 - overlap, 0.0).sum() / over_ranks(positive.sum()).clamp(min=1)
        return what + where


@torch.no_grad()
def proposals(raw: Raw, size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Boxes `[batch, n, 4]` worth a look, within an image of (height, width), and which of them are real `[batch, n]`."""
    score, index = raw.objectness.topk(min(CANDIDATES, raw.objectness.shape[1]), dim=1)
    boxes = decode(raw.deltas.gather(1, index[..., None].expand(-1, -1, 4)), raw.anchors[index], ANCHOR_CODING)
    x1, y1, x2, y2 = boxes.unbind(-1)
    x1, x2 = x1.clamp(0, int(size[1])), x2.clamp(0, int(size[1]))
    y1, y2 = y1.clamp(0, int(size[0])), y2.clamp(0, int(size[0]))
    boxes = torch.stack((x1, y1, x2, y2), -1)
    keep = suppressed(boxes, PROPOSAL_IOU) & (x2 - x1 > 1) & (y2 - y1 > 1)
    best, order = torch.where(keep, score, DROPPED).topk(min(PROPOSALS, score.shape[1]), dim=1)
    return boxes.gather(1, order[..., None].expand(-1, -1, 4)), best > DROPPED


def suppressed(boxes: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression of boxes `[batch, n, 4]` ordered by falling score: what is kept, `[batch, n]`.

    A box is dropped when a kept one before it overlaps it: the rule is repeated a fixed number of times (`boxes.suppress` repeats it
    until nothing changes, and looks at the device for that).
    """
    n = boxes.shape[1]
    earlier = torch.ones(n, n, device=boxes.device).triu(1)
    overlaps = (pairwise_iou(boxes, boxes) > threshold).to(boxes.dtype) * earlier
    keep = torch.ones_like(boxes[..., 0])
    for _ in range(SUPPRESSION_ROUNDS):
        keep = (torch.bmm(keep[:, None], overlaps)[:, 0] == 0).to(boxes.dtype)
    return keep > 0


@torch.no_grad()
def sampled(matches: Matches, count: int, positives: int) -> tuple[Tensor, Tensor, Tensor]:
    """`count` anchors or boxes of each image by lot, at most `positives` of them with an object: their indices, which of them learn
    an object, and which that there is nothing; neither: there were not so many. All `[batch, n]`."""
    lot = torch.rand(matches.positive.shape, device=matches.positive.device)
    available = lot.shape[1]
    some, own = torch.where(matches.positive, lot, -1.0).topk(min(positives, available), dim=1)
    rest, other = torch.where(matches.background, lot, -1.0).topk(min(count - positives, available), dim=1)
    nothing = torch.zeros_like(other, dtype=torch.bool)
    none = torch.zeros_like(own, dtype=torch.bool)
    return torch.cat((own, other), 1), torch.cat((some >= 0, nothing), 1), torch.cat((none, rest >= 0), 1)


def _by_anchor(level: Tensor, columns: int) -> Tensor:
    """`[batch, shapes * columns, rows, columns]` to `[batch, anchors, columns]`, in the order of `grid`."""
    batch, _, rows, across = level.shape
    return level.view(batch, -1, columns, rows, across).permute(0, 3, 4, 1, 2).reshape(batch, -1, columns)


def _pooled(features: Sequence[Tensor], boxes: Tensor, width: int) -> Tensor:
    """Features `[batch * boxes, channels, 7, 7]` of boxes, each from the level of its size (FPN, arXiv 1612.03144).

    Every level pools every box and all but one are dropped: a box's level is known on the device only.
    """
    image = (torch.ones_like(boxes[..., :1]).cumsum(0) - 1).flatten(0, 1)
    flat = boxes.flatten(0, 1)
    sides = (flat[:, 2:] - flat[:, :2]).clamp(min=1e-6)
    strides = [width / int(level.shape[-1]) for level in features]
    first = math.log2(CANONICAL_STRIDE / strides[0])
    level = torch.floor(torch.log2(sides.prod(1).sqrt() / CANONICAL_SIDE) + first + 1e-6)
    level = level.clamp(0, len(features) - 1)
    regions = torch.cat((image, flat), 1).detach()
    total = None
    for number, (feature, stride) in enumerate(zip(features, strides, strict=True)):
        own = torchvision.ops.roi_align(feature.float(), regions, (POOLED, POOLED), 1 / stride, RATIO)
        own = own * (level == number).to(own.dtype)[:, None, None, None]
        total = own if total is None else total + own
    assert total is not None
    return total
