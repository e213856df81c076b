"""Small generated datasets, for demonstrations and tests: coloured shapes or characters on uneven ground, as a Pascal VOC zip. No torch.

The same arguments give the same bytes.
"""

from __future__ import annotations

import colorsys
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from trainyard_trainer.errors import BadSpec
from trainyard_trainer.records import Box, Object
from trainyard_trainer.voc_write import zip_writer

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "ring", "hexagon")
CHARACTERS = "ABCDEFGHJKLMNPRSTUVWXYZ23456789"
MARGIN = 3
"""Pixels between an object and the border of the image."""


class Kind(StrEnum):
    SHAPES = "shapes"
    CHARACTERS = "characters"


@dataclass(frozen=True)
class Picture:
    """One generated image with its objects; boxes are whole pixels."""

    image: Image.Image
    objects: tuple[Object, ...]


def write_zip(
    path: Path,
    *,
    images: int = 120,
    size: tuple[int, int] = (320, 240),
    labels: int = 3,
    kind: Kind = Kind.SHAPES,
    seed: int = 0,
    objects: tuple[int, int] = (2, 6),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[str, ...]:
    """Writes the zip and returns its labels. `size` is width and height; `objects` the fewest and most of an image."""
    names = label_names(kind, labels)
    with zip_writer(path) as writer:
        for index in range(images):
            picture = draw(np.random.default_rng([seed, index]), names, kind, size, objects)
            data = io.BytesIO()
            picture.image.save(data, "JPEG", quality=90)
            writer.add(f"{kind.value}_{index:05d}", ".jpg", data.getvalue(), picture.image.size, picture.objects)
            progress(index + 1, images)
    return names


def label_names(kind: Kind, count: int) -> tuple[str, ...]:
    """The labels of a kind. Raises BadSpec when there are not so many."""
    known = SHAPES if kind is Kind.SHAPES else tuple(CHARACTERS)
    if not 1 <= count <= len(known):
        raise BadSpec(f"{kind.value} have 1 to {len(known)} labels, not {count}.")
    return known[:count]


def draw(
    random: np.random.Generator,
    labels: Sequence[str],
    kind: Kind,
    size: tuple[int, int],
    objects: tuple[int, int] = (2, 6),
) -> Picture:
    """One picture; objects hardly overlap."""
    image = _ground(random, size)
    pen = ImageDraw.Draw(image)
    placed: list[Object] = []
    for _ in range(int(random.integers(objects[0], objects[1] + 1))):
        place = _free_place(random, size, [item.box for item in placed])
        if place is None:
            continue
        number = int(random.integers(len(labels)))
        colour = _colour(random, number, len(labels))
        if kind is Kind.SHAPES:
            box = _shape(pen, labels[number], place, float(random.uniform(-0.3, 0.3)), colour)
        else:
            box = _character(pen, labels[number], place, colour)
        x1, y1, x2, y2 = box
        placed.append(Object(labels[number], (round(x1), round(y1), round(x2), round(y2))))
    return Picture(image, tuple(placed))


def _ground(random: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """An uneven ground of muted colours, with a little noise."""
    coarse = Image.fromarray(random.integers(90, 180, (4, 5, 3), dtype=np.uint8))
    smooth = np.asarray(
        coarse.resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(8)), dtype=np.float32
    )
    noisy = smooth + random.normal(0, 5, smooth.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def _free_place(random: np.random.Generator, size: tuple[int, int], taken: Sequence[Box]) -> Box | None:
    """A square with little in it already, or None."""
    short = min(size)
    for _ in range(20):
        side = float(random.uniform(0.14, 0.36)) * short
        x = float(random.uniform(MARGIN, size[0] - MARGIN - side))
        y = float(random.uniform(MARGIN, size[1] - MARGIN - side))
        box = (x, y, x + side, y + side)
        if all(_overlap(box, other) < 0.1 * side * side for other in taken):
            return box
    return None


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _colour(random: np.random.Generator, number: int, count: int) -> tuple[int, int, int]:
    """A strong colour; labels differ in hue, and each varies about its own."""
    hue = (number / count + float(random.uniform(-0.06, 0.06))) % 1
    r, g, b = colorsys.hsv_to_rgb(hue, float(random.uniform(0.7, 1)), float(random.uniform(0.6, 1)))
    return round(255 * r), round(255 * g), round(255 * b)


def _shape(pen: ImageDraw.ImageDraw, name: str, place: Box, turn: float, colour: tuple[int, int, int]) -> Box:
    """Draws a shape into a square and returns the box around it."""
    x, y, radius = (place[0] + place[2]) / 2, (place[1] + place[3]) / 2, (place[2] - place[0]) / 2
    edge = tuple(channel // 3 for channel in colour)
    if name in ("circle", "ring"):
        pen.ellipse(
            place,
            fill=colour if name == "circle" else None,
            outline=edge if name == "circle" else colour,
            width=2 if name == "circle" else max(3, round(radius / 3)),
        )
        return place
    points = [(x + radius * r * math.cos(a + turn), y + radius * r * math.sin(a + turn)) for a, r in _CORNERS[name]]
    pen.polygon(points, fill=colour, outline=edge)
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    return min(xs), min(ys), max(xs), max(ys)


def _polygon(corners: int, start: float = -90) -> list[tuple[float, float]]:
    return [(math.radians(start + 360 * i / corners), 1.0) for i in range(corners)]


_CORNERS: dict[str, list[tuple[float, float]]] = {
    "square": _polygon(4, 45),
    "triangle": _polygon(3),
    "star": [(math.radians(-90 + 36 * i), 1.0 if i % 2 == 0 else 0.45) for i in range(10)],
    "diamond": [(math.radians(90 * i), 1.0 if i % 2 == 0 else 0.6) for i in range(4)],
    "cross": [(math.radians(45 * (i // 3 * 2) + (-20, 20, 45)[i % 3]), (1.0, 1.0, 0.48)[i % 3]) for i in range(12)],
    "hexagon": _polygon(6, 0),
}


def _character(pen: ImageDraw.ImageDraw, name: str, place: Box, colour: tuple[int, int, int]) -> Box:
    """Draws a character into a square and returns the box around its ink."""
    font = ImageFont.load_default(place[3] - place[1])
    left, top, right, bottom = pen.textbbox((0, 0), name, font=font)
    x = place[0] + (place[2] - place[0] - (right - left)) / 2 - left
    y = place[1] + (place[3] - place[1] - (bottom - top)) / 2 - top
    pen.text((x, y), name, fill=colour, font=font, stroke_width=1)
    return x + left, y + top, x + right, y + bottom
