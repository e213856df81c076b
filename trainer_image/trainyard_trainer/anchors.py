"""Anchor boxes: shapes fitted to a dataset, where they lie, boxes decoded from them, and which of them learns which object.

Stock anchors of torchvision's detectors begin at 32 or 64 px, so that smaller objects are hardly ever matched. Here each level's
shapes are the centres of a k-means on the objects of its size, by overlap (YOLOv2, arXiv 1612.08242).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from trainyard_trainer.batch import Batch
from trainyard_trainer.boxes import areas, pairwise_iou
from trainyard_trainer.records import Record

ROUNDS = 30
MOST_OBJECTS = 5000
LEAST_PER_SHAPE = 2
"""With fewer objects of its size per shape, a level keeps its stock shapes."""
LARGEST_GROWTH = math.log(1000 / 16)
"""A decoded side is at most this often (as a logarithm) its anchor's."""

Shapes = np.ndarray
"""Widths and heights `[shapes, 2]` in pixels of the input."""


def object_shapes(records: Sequence[Record], size: tuple[int, int]) -> Shapes:
    """Widths and heights of all objects, with the images fitted into an input of (width, height)."""
    found = []
    for record in records:
        scale = min(size[0] / record.width, size[1] / record.height)
        for item in record.objects:
            x1, y1, x2, y2 = item.box
            found.append((scale * (x2 - x1), scale * (y2 - y1)))
    shapes = np.array(found, np.float64).reshape(-1, 2)
    shapes = shapes[(shapes > 0.5).all(1)]
    return shapes[:: max(1, math.ceil(len(shapes) / MOST_OBJECTS))]


def fitted(stock: Sequence[Shapes], objects: Shapes) -> list[Shapes]:
    """As many shapes for each level as `stock` has there. A level is for the objects that are nearer to its stock sizes than to the
    next level's; where all levels have the same stock, all get the same shapes."""
    if all(np.array_equal(level, stock[0]) for level in stock):
        return [_clusters(objects, stock[0])] * len(stock)
    sizes = np.sqrt(objects.prod(1))
    result, low = [], 0.0
    for number, level in enumerate(stock):
        high = math.inf
        if number + 1 < len(stock):
            high = math.sqrt(np.sqrt(level.prod(1)).max() * np.sqrt(stock[number + 1].prod(1)).min())
        result.append(_clusters(objects[(sizes >= low) & (sizes < high)], level))
        low = high
    return result


def _clusters(objects: Shapes, stock: Shapes) -> Shapes:
    """Centres of a k-means with 1 - IoU as the distance, smallest first; the stock when there are too few objects."""
    count = len(stock)
    if len(objects) < LEAST_PER_SHAPE * count:
        return stock
    by_area = objects[np.argsort(objects.prod(1), kind="stable")]
    centres = by_area[((np.arange(count) + 0.5) / count * len(by_area)).astype(int)].copy()
    for _ in range(ROUNDS):
        owner = _shape_iou(objects, centres).argmax(1)
        moved = np.array(
            [np.median(objects[owner == k], 0) if (owner == k).any() else centres[k] for k in range(count)]
        )
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres[np.argsort(centres.prod(1), kind="stable")]


def _shape_iou(one: Shapes, other: Shapes) -> np.ndarray:
    """IoU `[n, m]` of boxes with the same centre."""
    shared = np.minimum(one[:, None], other[None]).prod(2)
    return shared / (one.prod(1)[:, None] + other.prod(1)[None] - shared)


def grid(shapes: Sequence[Tensor], cells: Sequence[tuple[int, int]], size: tuple[int, int], offset: float) -> Tensor:
    """Anchors `[anchors, 4]` in pixels, ordered by level, row, column, shape.

    `shapes[level]` is `[n, 2]`, `cells[level]` the (rows, columns) of its feature map, `size` (height, width) of the input; `offset`
    is where in its cell an anchor's centre is, in cells.
    """
    found = []
    for own, (rows, columns) in zip(shapes, cells, strict=True):
        y = (torch.arange(rows, device=own.device) + offset) * (size[0] / rows)
        x = (torch.arange(columns, device=own.device) + offset) * (size[1] / columns)
        centres = torch.stack((x.repeat(rows), y.repeat_interleave(columns, output_size=rows * columns)), 1)
        found.append(torch.cat((centres[:, None] - own / 2, centres[:, None] + own / 2), -1).flatten(0, 1))
    return torch.cat(found)


def decode(deltas: Tensor, anchors: Tensor, weights: tuple[float, float]) -> Tensor:
    """Boxes `[..., 4]` from offsets of the centre and logarithms of the sides, as in R-CNN (arXiv 1311.2524). `weights` divide the
    offsets and the logarithms."""
    sides = anchors[..., 2:] - anchors[..., :2]
    centres = anchors[..., :2] + sides / 2
    centres = centres + deltas[..., :2] / weights[0] * sides
    half = sides * (deltas[..., 2:] / weights[1]).clamp(max=LARGEST_GROWTH).exp() / 2
    return torch.cat((centres - half, centres + half), -1)


@dataclass(frozen=True)
class Matches:
    """What each anchor learns, all `[batch, anchors]`: the index of its object, whether it learns it (`positive`), or that there is
    nothing (`background`); neither: not asked."""

    owner: Tensor
    positive: Tensor
    background: Tensor

    def boxes(self, batch: Batch) -> Tensor:
        """The objects' boxes `[batch, anchors, 4]`; where there is none, any."""
        return batch.boxes.gather(1, self.owner[..., None].expand(-1, -1, 4))

    def labels(self, batch: Batch) -> Tensor:
        """The objects' labels `[batch, anchors]`; where there is none, 0."""
        return batch.labels.clamp(min=0).gather(1, self.owner)


@torch.no_grad()
def match(anchors: Tensor, batch: Batch, *, positive: float, negative: float, force: bool = True) -> Matches:
    """An anchor learns the object that it overlaps most, from an IoU of `positive` on; with `force`, each object's best anchor does
    so below that, too. `anchors` `[anchors, 4]` or `[batch, anchors, 4]`. Under an IoU of `negative` it learns that there is nothing, unless
    it lies on a difficult object. Boxes without an area are no objects. No host sync.
    """
    real = (batch.labels >= 0) & (areas(batch.boxes) > 0)
    overlaps = pairwise_iou(batch.boxes, anchors)
    asked = torch.where((real & ~batch.difficult)[..., None], overlaps, -1.0)
    best, owner = asked.max(1)
    chosen = best >= positive
    if force:
        top, where = asked.max(2)
        count = anchors.shape[-2]
        where = torch.where(top > 0, where, count)
        forced = torch.zeros(len(batch), count + 1, dtype=torch.bool, device=anchors.device)
        forced = forced.scatter(1, where, True)[:, :count]
        index = torch.arange(where.shape[1], device=anchors.device).expand_as(where)
        of = torch.nn.functional.pad(owner, (0, 1)).scatter(1, where, index)[:, :count]
        owner = torch.where(forced, of, owner)
        chosen = chosen | forced
    hard = torch.where((real & batch.difficult)[..., None], overlaps, -1.0).amax(1) >= negative
    return Matches(owner, chosen, (best < negative) & ~chosen & ~hard)
