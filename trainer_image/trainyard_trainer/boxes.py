"""Arithmetic on boxes `(x1, y1, x2, y2)` as dense tensors: overlaps and non-maximum suppression. No host sync but where it says so."""

import math

import torch
from torch import Tensor


def areas(boxes: Tensor) -> Tensor:
    """`[..., 4]` to `[...]`; degenerate boxes have area 0."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def pairwise_iou(one: Tensor, other: Tensor) -> Tensor:
    """IoU `[..., n, m]` of `[..., n, 4]` and `[..., m, 4]`.

    Coordinate by coordinate: operations over a last dimension of 2 or 4 are several times slower.
    """
    a1, b1, a2, b2 = (x[..., :, None] for x in one.unbind(-1))
    c1, d1, c2, d2 = (x[..., None, :].contiguous() for x in other.unbind(-1))
    width = (torch.minimum(a2, c2) - torch.maximum(a1, c1)).clamp_(min=0)
    height = (torch.minimum(b2, d2) - torch.maximum(b1, d1)).clamp_(min=0)
    shared = width.mul_(height)
    union = areas(one)[..., :, None] + areas(other)[..., None, :]
    return shared / union.sub_(shared).clamp_(min=1e-9)


def complete_iou(one: Tensor, other: Tensor) -> Tensor:
    """Complete IoU (arXiv 1911.08287) of boxes matched one to one, `[..., 4]` to `[...]`.

    IoU less the squared distance of the centres over that of the enclosing box's corners, less a term for the aspect ratio. A
    box without width or height has a finite value and gradient.
    """
    sides1, sides2 = one[..., 2:] - one[..., :2], other[..., 2:] - other[..., :2]
    shared = (torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2])).clamp(min=0)
    intersection = shared[..., 0] * shared[..., 1]
    union = sides1[..., 0] * sides1[..., 1] + sides2[..., 0] * sides2[..., 1] - intersection
    iou = intersection / (union + 1e-7)
    enclosing = torch.maximum(one[..., 2:], other[..., 2:]) - torch.minimum(one[..., :2], other[..., :2])
    diagonal = enclosing.square().sum(-1) + 1e-7
    centres = (one[..., :2] + one[..., 2:] - other[..., :2] - other[..., 2:]).square().sum(-1) / 4
    turn = torch.atan(sides2[..., 0] / (sides2[..., 1] + 1e-7)) - torch.atan(sides1[..., 0] / (sides1[..., 1] + 1e-7))
    aspect = (4 / math.pi**2) * turn.square()
    with torch.no_grad():
        weight = aspect / (1 - iou + aspect + 1e-7)
    return iou - centres / diagonal - weight * aspect


def suppress(boxes: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Greedy non-maximum suppression within each label: keep mask `[batch, n]`.

    `boxes` `[batch, n, 4]` and `labels` `[batch, n]` are ordered by falling score. All images at once: a box is dropped when a
    kept box before it overlaps it by more than `threshold`, so what is kept is the fixed point of that rule, and repeating the
    rule reaches it after as many rounds as the longest chain of overlaps (a handful). Syncs with the host once a round.
    """
    n = boxes.shape[1]
    overlaps = (pairwise_iou(boxes, boxes) > threshold) & (labels[:, :, None] == labels[:, None, :])
    earlier = torch.ones(n, n, dtype=torch.bool, device=boxes.device).triu(1)
    overlaps &= earlier
    keep = torch.ones(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
    for _ in range(n):
        following = ~(overlaps & keep[:, :, None]).any(1)
        if torch.equal(following, keep):
            break
        keep = following
    return keep
