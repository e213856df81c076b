"""A detector of one's own, in a few dozen lines: every cell near the centre of an object says what it is and how far its sides are."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from trainyard_trainer import private
from trainyard_trainer.batch import Batch
from trainyard_trainer.task import LabelRows

STRIDE = 8


class Centers(nn.Module):
    """Images to a grid: the logarithms of four distances in cells, then a logit for each label."""

    label_rows: ClassVar = {f"head.{kind}": LabelRows(before=4) for kind in ("weight", "bias")}

    def __init__(self, labels: int) -> None:
        super().__init__()
        channels = (3, 16, 32, 64, 64)
        layers: list[nn.Module] = []
        for before, after, stride in zip(channels, channels[1:], (2, 2, 2, 1), strict=False):
            layers += [nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.backbone = nn.Sequential(*layers)
        self.head = nn.Conv2d(64, 4 + labels, 1)
        assert self.head.bias is not None
        nn.init.constant_(self.head.bias[4:], -4.0)  # in the beginning there is hardly anything anywhere

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.backbone(images)).flatten(2).transpose(1, 2)  # [batch, cells, 4 + labels]


def cells(images: Tensor) -> Tensor:
    """Centres `[cells, 2]` in pixels."""
    height, width = images.shape[2] // STRIDE, images.shape[3] // STRIDE
    y = (torch.arange(height, device=images.device) + 0.5) * STRIDE
    x = (torch.arange(width, device=images.device) + 0.5) * STRIDE
    return torch.stack((x.repeat(height), y.repeat_interleave(width, output_size=height * width)), 1)


def boxes(raw: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    """What the network means: boxes `[batch, cells, 4]` in pixels, scores `[batch, cells, labels]`."""
    centers, sides = cells(images), raw[..., :4].clamp(-4, 4).exp() * STRIDE
    return torch.cat((centers - sides[..., :2], centers + sides[..., 2:]), 2), raw[..., 4:].sigmoid()


def loss(raw: Tensor, batch: Batch) -> Mapping[str, Tensor]:
    """The training function: focal loss on the labels, L1 on the logarithms of the distances of the cells in an object's middle. Means
    over the images, each divided by its own count."""
    centers = cells(batch.images)[None, :, None]
    middles = (batch.boxes[..., :2] + batch.boxes[..., 2:])[:, None] / 2
    near = ((centers - middles).abs().amax(-1) < STRIDE) & (batch.labels >= 0)[:, None]  # [batch, cells, objects]
    positive, which = near.any(2), near.int().argmax(2)
    true = batch.boxes.gather(1, which[..., None].expand(-1, -1, 4))
    label = batch.labels.gather(1, which).clamp(min=0)
    what = F.one_hot(label, raw.shape[2] - 4) * positive[..., None].float()
    count = positive.sum(1).clamp(min=1)

    logits = raw[..., 4:]
    wrong = (logits.sigmoid() - what).abs()
    focal = wrong.square() * F.binary_cross_entropy_with_logits(logits, what, reduction="none")
    distances = torch.cat((centers[:, :, 0] - true[..., :2], true[..., 2:] - centers[:, :, 0]), 2).clamp(min=1) / STRIDE
    missed = (raw[..., :4] - distances.log()).abs().mean(2) * positive
    return {"cls": (focal.sum((1, 2)) / count).mean(), "box": (missed.sum(1) / count).mean()}


if __name__ == "__main__":
    private.detector("private/centers", network=Centers, loss=loss, boxes=boxes, image_size=256, learning_rate=2e-3)
