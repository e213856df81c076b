"""`predictions.png`: images of a dataset with the boxes that were annotated (thin, white) and found (in the label's colour)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from trainyard_trainer.metrics import Detections, Truth

COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#42d4f4", "#f032e6", "#bfef45", "#9a6324", "#808000")
TILE = 400
MOST_TILES = 12


def write_predictions(
    path: Path,
    images: Sequence[np.ndarray],
    originals: Sequence[tuple[int, int]],
    truths: Sequence[Truth],
    found: Sequence[Detections],
    labels: Sequence[str],
    threshold: float,
) -> None:
    """A sheet of at most 12 images. `images` are RGB arrays of any size, `originals` the (width, height) that the boxes refer to."""
    tiles = [
        _tile(image, original, truth, detections, labels, threshold)
        for image, original, truth, detections in zip(images, originals, truths, found, strict=True)
    ][:MOST_TILES]
    columns = min(3, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * TILE, rows * TILE), "#202020")
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number % columns * TILE, number // columns * TILE))
    sheet.save(path)


def _tile(
    pixels: np.ndarray,
    original: tuple[int, int],
    truth: Truth,
    found: Detections,
    labels: Sequence[str],
    threshold: float,
) -> Image.Image:
    scale = TILE / max(original)
    size = (max(1, round(original[0] * scale)), max(1, round(original[1] * scale)))
    tile = Image.new("RGB", (TILE, TILE), "#202020")
    tile.paste(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BILINEAR), (0, 0))
    draw = ImageDraw.Draw(tile)
    font = ImageFont.load_default(11)
    for box in truth.boxes:
        draw.rectangle([v * scale for v in _ordered(box)], outline="white", width=1)
    for i in np.argsort(found.scores, kind="stable"):
        if found.scores[i] < threshold:
            continue
        colour = COLOURS[int(found.labels[i]) % len(COLOURS)]
        x1, y1, x2, y2 = (v * scale for v in _ordered(found.boxes[i]))
        draw.rectangle((x1, y1, x2, y2), outline=colour, width=2)
        draw.text((x1 + 2, y1 + 1), f"{labels[int(found.labels[i])]} {found.scores[i]:.2f}", fill=colour, font=font)
    return tile


def _ordered(box: np.ndarray) -> tuple[float, float, float, float]:
    """Pillow refuses boxes whose corners are swapped, which a hardly trained network may say."""
    x1, y1, x2, y2 = (float(v) for v in box)
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
