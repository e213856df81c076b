"""What is done to one image of a batch, drawn as plain numbers: which pictures go where, and how colours change. No torch.

A `Canvas` is a pure function of (seed, sample number): the draw never looks at pixels. Strengths are those of
`trainyard_api.training.Augmentation`. Matrices are 3x3, from pixels of the original picture to pixels of the network's input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
from trainyard_api.dataset import Resize
from trainyard_api.training import Augmentation

Rect = tuple[float, float, float, float]
Size = tuple[int, int]
"""Width and height in pixels."""

MOSAIC_CENTER = (0.25, 0.75)
PATCH_SIDE = (0.1, 0.3)
"""Share of the input's side that an erased rectangle or a pasted patch takes."""


@dataclass(frozen=True)
class Strengths:
    """Every strength as a share (0 to 1), degrees, or pixels; all zero: nothing is done."""

    horizontal_flip: float = 0
    vertical_flip: float = 0
    rotate: float = 0
    shear: float = 0
    perspective: float = 0
    crop: float = 0
    scale: float = 0
    translate: float = 0
    brightness: float = 0
    contrast: float = 0
    gamma: float = 0
    saturation: float = 0
    hue: float = 0
    blur: float = 0
    noise: float = 0
    jpeg: float = 0
    erase: float = 0
    distractor: float = 0
    mosaic: float = 0
    mixup: float = 0
    cutmix: float = 0

    @classmethod
    def of(cls, augmentation: Augmentation) -> Strengths:
        units = {"rotate": 1.0, "shear": 1.0, "blur": 0.1}
        return cls(**{f.name: augmentation.strength(f.name) * units.get(f.name, 0.01) for f in fields(cls)})


@dataclass(frozen=True)
class Tile:
    """A picture, or a part of it, on the canvas. `window` is where it may be seen; tiles later in the list cover earlier ones.

    `source` restricts what is taken of the picture (its own pixels; None: all). `boxes` tells whether its objects come along;
    `opaque` whether its window is cleared first.
    """

    record: int
    matrix: np.ndarray
    window: Rect
    source: Rect | None = None
    boxes: bool = True
    opaque: bool = False


@dataclass(frozen=True)
class Colour:
    """`matrix` and `shift` act on RGB from 0 to 1, `contrast` then pulls from the mean; the others are strengths of this image."""

    matrix: np.ndarray
    contrast: float = 1.0
    gamma: float = 1.0
    blur: float = 0.0
    noise: float = 0.0
    jpeg: int = 0


@dataclass(frozen=True)
class Canvas:
    """One image of a batch. `blend` is another canvas mixed in, with the share `1 - keep`; `noise_offset` picks the noise."""

    record: int
    tiles: tuple[Tile, ...]
    colour: Colour | None = None
    erased: tuple[Rect, ...] = ()
    blend: Canvas | None = None
    keep: float = 1.0
    noise_offset: int = 0


@dataclass(frozen=True)
class Draw:
    """What a draw needs to know: the sizes of the originals, the input's size, the indices to take partners from."""

    sizes: Sequence[Size]
    partners: Sequence[int]
    size: Size
    resize: Resize
    strengths: Strengths
    boxes: Callable[[int], np.ndarray] = field(default=lambda record: np.zeros((0, 4)))
    """Boxes `[n, 4]` of a record, so that pasted patches hold no object."""


def sample(seed: int, number: int, count: int) -> int:
    """Position of sample `number` in the data: `permutation(seed, number // count)[number % count]`."""
    epoch, within = divmod(number, count)
    return int(_permutation(seed, epoch, count)[within])


_last_permutation: dict[tuple[int, int, int], np.ndarray] = {}


def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    key = (seed, epoch, count)
    found = _last_permutation.get(key)
    if found is None:
        if len(_last_permutation) >= 4:
            _last_permutation.clear()
        found = _last_permutation[key] = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(count)
    return found


def plain(record: int, draw: Draw) -> Canvas:
    """The picture brought to the input's size, nothing else."""
    matrix = fit(draw.sizes[record], draw.size, draw.resize)
    return Canvas(record, (Tile(record, matrix, (0, 0, *draw.size)),))


def fit(original: Size, size: Size, resize: Resize) -> np.ndarray:
    """The matrix of a resize without augmentation, centred."""
    sx, sy = size[0] / original[0], size[1] / original[1]
    if resize is Resize.LETTERBOX:
        sx = sy = min(sx, sy)
    elif resize is Resize.CENTER_CROP:
        sx = sy = max(sx, sy)
    return _translation((size[0] - sx * original[0]) / 2, (size[1] - sy * original[1]) / 2) @ np.diag([sx, sy, 1.0])


def augmented(record: int, draw: Draw, seed: int, number: int) -> Canvas:
    """The canvas of sample `number`, whose anchor is `record`."""
    random = np.random.Generator(np.random.Philox(key=[seed ^ 0x5EED, number]))
    s = draw.strengths
    canvas = _composed(record, draw, random)
    if random.random() < s.mixup:
        other = _composed(_partner(draw, random), replace(draw, strengths=replace(s, mosaic=0.0)), random)
        canvas = replace(canvas, blend=other, keep=float(random.beta(8.0, 8.0)))
    erased = (_patch(draw.size, random),) if random.random() < s.erase else ()
    return replace(canvas, colour=_colour(s, random), erased=erased, noise_offset=int(random.integers(1 << 30)))


def _composed(record: int, draw: Draw, random: np.random.Generator) -> Canvas:
    s = draw.strengths
    tiles = _mosaic(record, draw, random) if random.random() < s.mosaic else (_single(record, draw, random),)
    if random.random() < s.cutmix:
        other = _single(_partner(draw, random), draw, random)
        x, y = random.uniform(0, 0.6, 2)
        w, h = random.uniform(0.3, 0.6, 2)
        width, height = draw.size
        window = (round(x * width), round(y * height), round(min(x + w, 1) * width), round(min(y + h, 1) * height))
        tiles = (*tiles, replace(other, window=window, opaque=True))
    if random.random() < s.distractor and (tile := _distractor(draw, random)) is not None:
        tiles = (*tiles, tile)
    return Canvas(record, tuple(tiles))


def _single(record: int, draw: Draw, random: np.random.Generator) -> Tile:
    """One picture over the whole canvas, moved about the canvas' centre."""
    s, (width, height) = draw.strengths, draw.size
    source, matrix = None, fit(draw.sizes[record], draw.size, draw.resize)
    if s.crop:
        source = _crop(draw.sizes[record], s.crop, random)
        part = (source[2] - source[0], source[3] - source[1])
        matrix = fit(part, draw.size, draw.resize) @ _translation(-source[0], -source[1])  # type: ignore[arg-type]
    gain = 1 + random.uniform(-s.scale, s.scale)
    moved = _translation(
        random.uniform(-s.translate, s.translate) * width, random.uniform(-s.translate, s.translate) * height
    )
    about = _about(_linear(s, random, gain), width / 2, height / 2)
    return Tile(record, moved @ about @ _perspective(s, random, draw.size) @ matrix, (0, 0, width, height), source)


def _mosaic(record: int, draw: Draw, random: np.random.Generator) -> tuple[Tile, ...]:
    """Four pictures that touch in one point; each is seen in its quadrant."""
    s, (width, height) = draw.strengths, draw.size
    cx, cy = round(random.uniform(*MOSAIC_CENTER) * width), round(random.uniform(*MOSAIC_CENTER) * height)
    gain = 1 + random.uniform(-s.scale, s.scale)
    members = [record, *(_partner(draw, random) for _ in range(3))]
    windows = ((0, 0, cx, cy), (cx, 0, width, cy), (0, cy, cx, height), (cx, cy, width, height))
    tiles = []
    for quadrant, (member, window) in enumerate(zip(members, windows, strict=True)):
        w, h = draw.sizes[member]
        linear = _linear(s, random, gain * min(width / w, height / h))
        placed = _about(linear, 0, 0) @ _translation(-w / 2, -h / 2)
        x1, y1, x2, y2 = _extent(placed, w, h)
        x = cx - (x2 if quadrant in (0, 2) else x1)
        y = cy - (y2 if quadrant in (0, 1) else y1)
        tiles.append(Tile(member, _translation(x, y) @ placed, window))
    return tuple(tiles)


def _partner(draw: Draw, random: np.random.Generator) -> int:
    return draw.partners[int(random.integers(len(draw.partners)))]


def _distractor(draw: Draw, random: np.random.Generator) -> Tile | None:
    """A patch of another picture without any object in it, somewhere; None when chance finds none."""
    window = _patch(draw.size, random)
    side = window[2] - window[0], window[3] - window[1]
    for _ in range(8):
        record = _partner(draw, random)
        w, h = draw.sizes[record]
        scale = min(draw.size[0] / w, draw.size[1] / h)
        pw, ph = side[0] / scale, side[1] / scale
        if pw >= w or ph >= h:
            continue
        x, y = random.uniform(0, w - pw), random.uniform(0, h - ph)
        boxes = draw.boxes(record)
        if not ((boxes[:, 0] < x + pw) & (boxes[:, 2] > x) & (boxes[:, 1] < y + ph) & (boxes[:, 3] > y)).any():
            matrix = _translation(window[0], window[1]) @ np.diag([scale, scale, 1.0]) @ _translation(-x, -y)
            return Tile(record, matrix, window, boxes=False)
    return None


def _extent(matrix: np.ndarray, width: int, height: int) -> Rect:
    """The box around a picture moved by an affine matrix."""
    (a, b, x), (c, d, y), _ = matrix.tolist()
    across, down = sorted((0.0, a * width)), sorted((0.0, c * width))
    also_across, also_down = sorted((0.0, b * height)), sorted((0.0, d * height))
    return (
        x + across[0] + also_across[0],
        y + down[0] + also_down[0],
        x + across[1] + also_across[1],
        y + down[1] + also_down[1],
    )


def _linear(s: Strengths, random: np.random.Generator, gain: float) -> np.ndarray:
    """Turn, shear, scale and mirror: a 2x2 matrix."""
    matrix = np.diag([gain, gain])
    if s.rotate:
        angle = math.radians(random.uniform(-s.rotate, s.rotate))
        matrix = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]) @ matrix
    if s.shear:
        x, y = (math.tan(math.radians(a)) for a in random.uniform(-s.shear, s.shear, 2))
        matrix = np.array([[1, x], [y, 1]]) @ matrix
    across, down = random.random(2).tolist()
    return matrix * (-1.0 if across < s.horizontal_flip else 1.0, -1.0 if down < s.vertical_flip else 1.0)


def _perspective(s: Strengths, random: np.random.Generator, size: Size) -> np.ndarray:
    """The projection that moves the canvas' corners by a share of its side."""
    if not s.perspective:
        return np.eye(3)
    corners = np.array([[0, 0], [size[0], 0], [size[0], size[1]], [0, size[1]]], float)
    moved = corners + random.uniform(-s.perspective / 2, s.perspective / 2, (4, 2)) * np.array(size)
    rows, right = [], []
    for (x, y), (u, v) in zip(corners, moved, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        right += [u, v]
    return np.append(np.linalg.solve(np.array(rows), np.array(right)), 1.0).reshape(3, 3)


def _crop(original: Size, strength: float, random: np.random.Generator) -> Rect:
    w, h = (1 - random.uniform(0, strength, 2)) * original
    x, y = random.uniform(0, original[0] - w), random.uniform(0, original[1] - h)
    return (x, y, x + w, y + h)


def _patch(size: Size, random: np.random.Generator) -> Rect:
    w, h = (max(2, round(share * side)) for share, side in zip(random.uniform(*PATCH_SIDE, 2), size, strict=True))
    x, y = int(random.integers(0, size[0] - w + 1)), int(random.integers(0, size[1] - h + 1))
    return (x, y, x + w, y + h)


_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_RGB = np.linalg.inv(_YIQ)


def _colour(s: Strengths, random: np.random.Generator) -> Colour | None:
    """Brightness, saturation and hue are one matrix: hue turns the chroma plane of YIQ, saturation stretches it."""
    brightness, saturation, contrast = (1 + random.uniform(-x, x) for x in (s.brightness, s.saturation, s.contrast))
    turn = 2 * math.pi * random.uniform(-s.hue, s.hue)
    gamma = math.exp(random.uniform(-s.gamma, s.gamma))
    blur, noise, jpeg = random.random(3) * (s.blur, s.noise, 100 * s.jpeg)
    if not any((s.brightness, s.saturation, s.contrast, s.hue, s.gamma, s.blur, s.noise, s.jpeg)):
        return None
    chroma = saturation * np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    middle = np.eye(3)
    middle[1:, 1:] = chroma
    return Colour(brightness * (_RGB @ middle @ _YIQ), contrast, gamma, float(blur), float(noise), round(jpeg))


def project(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points `[n, 2]` through a 3x3 matrix."""
    moved = points @ matrix[:2, :2].T + matrix[:2, 2]
    if matrix[2, 0] == 0 and matrix[2, 1] == 0:
        return moved / matrix[2, 2]
    return moved / (points @ matrix[2, :2] + matrix[2, 2])[:, None]


def _translation(x: float, y: float) -> np.ndarray:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], float)


def _about(linear: np.ndarray, x: float, y: float) -> np.ndarray:
    """A 2x2 matrix about a point, as 3x3."""
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = np.array([x, y]) - linear @ (x, y)
    return matrix
