"""The layers of our own detectors: a cross-stage-partial backbone, a path-aggregation neck and a decoupled anchor-free head.

Sources: CSPNet (arXiv 1911.11929), PANet (1803.01534), the decoupled anchor-free head of FCOS (1904.01355) with the
distribution over distances of Generalized Focal Loss (2006.04388). Plain 3x3 and 1x1 convolutions only: on a CPU depthwise
ones are limited by memory and slower to train.

The first layer folds every 2x2 pixels into channels, so that the first convolution works at a quarter of the positions and
no activation of the full resolution is ever kept for the backward pass.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIDES = (8, 16, 32)
DISTANCE_BINS = 16
"""A side of a box is a distribution over 0..15 strides from its anchor point."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a network: channels of the stem (stride 4) and of the stages, neck and head at strides 8, 16 and 32.

    Multiples of 32 where the map is large: there the kernels for AVX2 and AVX512 are half as fast again as at 24 or 48.
    """

    stem: int
    stages: tuple[int, int, int]
    blocks: tuple[int, int, int]
    neck: tuple[int, int, int]
    head: tuple[int, int, int]
    """Per branch."""


NANO = Shape(stem=32, stages=(48, 96, 288), blocks=(1, 2, 2), neck=(48, 96, 160), head=(32, 48, 48))
"""Of width 1 and depth 1; the larger ones follow from it."""
CHANNEL_STEP = 16


def shape_of(width: float, depth: float) -> Shape:
    """The shape of `width` times the channels and `depth` times the blocks of `NANO`."""

    def wide(channels: int) -> int:
        return max(CHANNEL_STEP, CHANNEL_STEP * round(channels * width / CHANNEL_STEP))

    def wide3(levels: tuple[int, int, int]) -> tuple[int, int, int]:
        return wide(levels[0]), wide(levels[1]), wide(levels[2])

    b8, b16, b32 = (max(1, round(blocks * depth)) for blocks in NANO.blocks)
    return Shape(wide(NANO.stem), wide3(NANO.stages), (b8, b16, b32), wide3(NANO.neck), wide3(NANO.head))


class ConvNormAct(nn.Sequential):
    """Convolution without bias, batch normalisation, SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03),
            nn.SiLU(inplace=True),
        )


class Residual(nn.Module):
    """A 3x3 convolution, added to its input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = ConvNormAct(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.convolution(x)


class PartialStage(nn.Module):
    """Half of the channels go through the blocks, half go round them; a 1x1 convolution joins the two."""

    def __init__(self, inputs: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.split = ConvNormAct(inputs, outputs)
        self.blocks = nn.Sequential(*(Residual(outputs // 2) for _ in range(blocks)))
        self.join = ConvNormAct(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        around, through = self.split(x).chunk(2, 1)
        return self.join(torch.cat((around, self.blocks(through)), 1))


class Context(nn.Module):
    """Max-pooling at three sizes beside the input: each point sees most of the image (spatial pyramid pooling, 1406.4729)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.reduce = ConvNormAct(channels, half)
        self.join = ConvNormAct(half * 4, channels)

    def forward(self, x: Tensor) -> Tensor:
        levels = [self.reduce(x)]
        for _ in range(3):
            levels.append(F.max_pool2d(levels[-1], 5, 1, 2))
        return self.join(torch.cat(levels, 1))


class Backbone(nn.Module):
    """Images [batch, 3, height, width] in 0..1 to features at strides 8, 16 and 32."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        c8, c16, c32 = shape.stages
        b8, b16, b32 = shape.blocks
        self.stem = ConvNormAct(12, shape.stem, 3, 2)
        self.stage8 = nn.Sequential(ConvNormAct(shape.stem, c8, 3, 2), PartialStage(c8, c8, b8))
        self.stage16 = nn.Sequential(ConvNormAct(c8, c16, 3, 2), PartialStage(c16, c16, b16))
        self.stage32 = nn.Sequential(ConvNormAct(c16, c32, 3, 2), PartialStage(c32, c32, b32), Context(c32))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = F.pixel_unshuffle(images, 2).contiguous(memory_format=torch.channels_last)
        x8 = self.stage8(self.stem(x))
        x16 = self.stage16(x8)
        return x8, x16, self.stage32(x16)


class Neck(nn.Module):
    """Features go down from coarse to fine and up again, so that every level has both detail and context."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        c8, c16, c32 = shape.stages
        n8, n16, n32 = shape.neck
        self.lateral32 = ConvNormAct(c32, n32)
        self.fuse16 = PartialStage(n32 + c16, n16, 1)
        self.lateral16 = ConvNormAct(n16, n8)
        self.fuse8 = PartialStage(n8 + c8, n8, 1)
        self.up16 = ConvNormAct(n8, n16 // 2, 3, 2)
        self.merge16 = PartialStage(n16 // 2 + n16, n16, 1)
        self.up32 = ConvNormAct(n16, n32 // 2, 3, 2)
        self.merge32 = PartialStage(n32 // 2 + n32, n32, 1)

    def forward(self, features: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        x8, x16, x32 = features
        top = self.lateral32(x32)
        middle = self.fuse16(torch.cat((F.interpolate(top, scale_factor=2.0), x16), 1))
        fine = self.fuse8(torch.cat((F.interpolate(self.lateral16(middle), scale_factor=2.0), x8), 1))
        middle = self.merge16(torch.cat((self.up16(fine), middle), 1))
        top = self.merge32(torch.cat((self.up32(middle), top), 1))
        return fine, middle, top


class Predictor(nn.Module):
    """The head at one level: a 3x3 convolution whose halves know what there is and where it is, and a 1x1 for each.

    One convolution with twice the channels is the same arithmetic as one per branch, in a faster shape.
    """

    def __init__(self, inputs: int, hidden: int, labels: int) -> None:
        super().__init__()
        self.hidden = ConvNormAct(inputs, 2 * hidden, 3)
        self.classify = nn.Conv2d(hidden, labels, 1)
        self.locate = nn.Conv2d(hidden, 4 * DISTANCE_BINS, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        what, where = self.hidden(x).chunk(2, 1)
        return self.classify(what), self.locate(where)


class Head(nn.Module):
    """Per anchor point: a logit per label, and a distribution per side of the box."""

    def __init__(self, shape: Shape, labels: int) -> None:
        super().__init__()
        self.levels = nn.ModuleList(Predictor(n, h, labels) for n, h in zip(shape.neck, shape.head, strict=True))

    def forward(self, features: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits [batch, points, labels] and distances [batch, points, 4, bins], points ordered by stride, row, column."""
        raw = [level(x) for level, x in zip(self.levels, features, strict=True)]
        logits = torch.cat([what.flatten(2) for what, _ in raw], 2).transpose(1, 2)
        distances = torch.cat([where.flatten(2) for _, where in raw], 2).transpose(1, 2)
        return logits, distances.unflatten(2, (4, DISTANCE_BINS))


class Network(nn.Module):
    """The whole detector up to raw outputs: what is trained and what `model.onnx` starts from."""

    def __init__(self, shape: Shape, labels: int) -> None:
        super().__init__()
        self.backbone = Backbone(shape)
        self.neck = Neck(shape)
        self.head = Head(shape, labels)
        initialise(self)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(self.neck(self.backbone(images)))


def initialise(network: Network) -> None:
    """Kaiming-normal convolutions; a prior of 1 % per label (RetinaNet, 1708.02002); boxes that start about 3 strides wide to each side.

    A uniform distribution would start every box at 7.5 strides to each side, far from most objects, and the assigner, which
    looks at overlaps, would choose blindly in the first steps.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    bins = torch.arange(DISTANCE_BINS, dtype=torch.float32)
    for level in network.head.levels:
        assert isinstance(level, Predictor)
        nn.init.normal_(level.classify.weight, std=0.01)
        assert level.classify.bias is not None
        nn.init.constant_(level.classify.bias, -4.6)
        nn.init.normal_(level.locate.weight, std=0.01)
        with torch.no_grad():
            assert level.locate.bias is not None
            level.locate.bias.copy_((-bins / 3.5).repeat(4))
