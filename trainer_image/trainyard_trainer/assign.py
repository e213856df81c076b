"""Which anchor point learns which object: task-aligned assignment (TOOD, arXiv 2108.07755), on dense tensors without host sync."""

from dataclasses import dataclass

import torch
from torch import Tensor

from trainyard_trainer.boxes import pairwise_iou

CANDIDATES = 10
OVERLAP_POWER = 6
"""Of the overlap in the alignment; the power of the score is 1."""


@dataclass(frozen=True)
class Targets:
    """What every anchor point should say. A point without an object has weight 0 everywhere.

    `boxes` `[batch, points, 4]` in pixels; `quality` `[batch, points]` in 0..1, how well score and overlap agree there, 0 where
    there is no object; `scores` `[batch, points, labels]`: `quality` at the object's label; `ignored` `[batch, points]` bool:
    points inside a difficult object, which learn nothing about labels.
    """

    boxes: Tensor
    quality: Tensor
    scores: Tensor
    ignored: Tensor


@torch.no_grad()
def assign(
    probabilities: Tensor,
    predicted: Tensor,
    points: Tensor,
    strides: Tensor,
    boxes: Tensor,
    labels: Tensor,
    difficult: Tensor,
) -> Targets:
    """Targets of a batch.

    `probabilities` `[batch, points, labels]` and `predicted` `[batch, points, 4]` are what the network says now; `points`
    `[points, 2]` and `strides` `[points]` in pixels; `boxes` `[batch, objects, 4]`, `labels` `[batch, objects]` (-1: no object),
    `difficult` `[batch, objects]`.

    An object's candidates are the points inside it, and at least those within one stride of its centre, so that an object
    smaller than the grid has some too. The best `CANDIDATES` by score * overlap^6 learn it; a point wanted by several objects
    takes the one that it overlaps most.
    """
    present = labels >= 0
    inside = _inside(points, strides, boxes)
    overlap = pairwise_iou(boxes, predicted)
    index = labels.clamp(min=0)[:, :, None].expand(-1, -1, points.shape[0])
    score = probabilities.transpose(1, 2).gather(1, index)
    # The overlap is kept off 0: before the first boxes fit, score alone decides.
    cubed = overlap.clamp(min=1e-3).pow(OVERLAP_POWER // 2)
    alignment = (score * cubed * cubed).masked_fill_(~(inside & (present & ~difficult)[:, :, None]), 0.0)

    best = alignment.topk(min(CANDIDATES, points.shape[0]), dim=2)
    chosen = torch.zeros_like(alignment).scatter_(2, best.indices, (best.values > 0).to(alignment.dtype)) > 0
    owner = torch.where(chosen, overlap, -1.0).argmax(1)
    mine = torch.zeros_like(chosen).scatter_(1, owner[:, None, :], True)
    chosen &= mine

    # Normalised per object, so that its best point's target is its best overlap.
    alignment = torch.where(chosen, alignment, 0.0)
    peak_alignment = alignment.amax(2, keepdim=True)
    peak_overlap = torch.where(chosen, overlap, 0.0).amax(2, keepdim=True)
    quality = (alignment / peak_alignment.clamp(min=1e-30) * peak_overlap).amax(1)
    target_boxes = boxes.gather(1, owner[:, :, None].expand(-1, -1, 4))
    target_labels = labels.clamp(min=0).gather(1, owner)
    scores = torch.zeros_like(probabilities).scatter_(
        2, target_labels[:, :, None], quality[:, :, None].to(probabilities.dtype)
    )
    ignored = (inside & (difficult & present)[:, :, None]).any(1) & ~chosen.any(1)
    return Targets(target_boxes, quality, scores, ignored)


def _inside(points: Tensor, strides: Tensor, boxes: Tensor) -> Tensor:
    """`[batch, objects, points]`: whether a point is in the box, or within one stride of its centre in a box that is smaller."""
    result = None
    for axis in (0, 1):
        low, high = boxes[..., axis, None], boxes[..., axis + 2, None]
        reach = torch.maximum((high - low) / 2, strides * 0.75)
        within = ((low + high) / 2 - points[:, axis].contiguous()).abs_() < reach
        result = within if result is None else result.logical_and_(within)
    assert result is not None
    return result
