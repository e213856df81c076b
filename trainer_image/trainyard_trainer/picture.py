"""Pictures for people: images of a dataset with the boxes that were annotated (thin, white) and found (in the label's colour),
or with the answers of an image network written on them, and crops. `predictions.png` is a sheet of them. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from trainyard_trainer.metrics import Detections, Truth

COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#42d4f4", "#f032e6", "#bfef45", "#9a6324", "#808000")
TILE = 400
GAP = 6
MOST_TILES = 12

Line = tuple[str, bool | None]
"""A line of text, and whether it is right (green), wrong (red) or neither (white)."""
_ANSWER_COLOURS = {True: "#3cb44b", False: "#e6194b", None: "#ffffff"}


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
        drawn(image, original, truth, detections, labels, threshold)
        for image, original, truth, detections in zip(images, originals, truths, found, strict=True)
    ][:MOST_TILES]
    _write_sheet(path, tiles)


def write_answers(path: Path, images: Sequence[np.ndarray], lines: Sequence[Sequence[Line]]) -> None:
    """A sheet of at most 12 images, each with its lines of text at the top."""
    tiles = []
    for pixels, told in list(zip(images, lines, strict=True))[:MOST_TILES]:
        scale = TILE / max(pixels.shape[:2])
        shape = (max(1, round(pixels.shape[1] * scale)), max(1, round(pixels.shape[0] * scale)))
        tile = _squared(Image.fromarray(np.ascontiguousarray(pixels)).resize(shape, Image.Resampling.BILINEAR))
        draw = ImageDraw.Draw(tile)
        font = ImageFont.load_default(16)
        for number, (text, right) in enumerate(told):
            corner = (6, 4 + 22 * number)
            draw.rectangle(draw.textbbox(corner, text, font=font), fill="#202020")
            draw.text(corner, text, fill=_ANSWER_COLOURS[right], font=font)
        tiles.append(tile)
    _write_sheet(path, tiles)


def _write_sheet(path: Path, tiles: Sequence[Image.Image]) -> None:
    columns = min(3, len(tiles))
    rows = -(-len(tiles) // columns)
    width, height = TILE + GAP, max(tile.height for tile in tiles) + GAP
    sheet = Image.new("RGB", (columns * width - GAP, rows * height - GAP), "#202020")
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (number % columns * width, number // columns * height))
    sheet.save(path)


def drawn(
    pixels: np.ndarray,
    original: tuple[int, int],
    truth: Truth,
    found: Detections,
    labels: Sequence[str],
    threshold: float,
    side: int = TILE,
) -> Image.Image:
    """One image with its boxes, its longer side `side` pixels; boxes refer to the (width, height) `original`."""
    scale = side / max(original)
    size = (max(1, round(original[0] * scale)), max(1, round(original[1] * scale)))
    tile = Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BILINEAR)
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
        text, corner = f"{labels[int(found.labels[i])]} {found.scores[i]:.2f}", (max(0, x1) + 1, max(0, y1 - 14))
        draw.rectangle(draw.textbbox(corner, text, font=font), fill=colour)
        draw.text(corner, text, fill="white", font=font)
    return tile


def cropped(pixels: np.ndarray, original: tuple[int, int], box: Sequence[float], side: int = 200) -> Image.Image:
    """The box with about its own size of what is around it, and a frame; the longer side has `side` pixels."""
    height, width = pixels.shape[:2]
    gain = np.array([width / original[0], height / original[1]] * 2)
    x1, y1, x2, y2 = np.array(_ordered(np.asarray(box, np.float64))) * gain
    margin = max(8.0, 0.5 * max(x2 - x1, y2 - y1))
    left, top = max(0, int(x1 - margin)), max(0, int(y1 - margin))
    right, bottom = min(width, int(x2 + margin) + 1), min(height, int(y2 + margin) + 1)
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    piece = Image.fromarray(np.ascontiguousarray(pixels[top:bottom, left:right]))
    scale = side / max(piece.size)
    shown = piece.resize(
        (max(1, round(piece.width * scale)), max(1, round(piece.height * scale))), Image.Resampling.BILINEAR
    )
    frame = [(v - offset) * scale for v, offset in zip((x1, y1, x2, y2), (left, top, left, top), strict=True)]
    draw = ImageDraw.Draw(shown)
    # Dark below light: seen on any ground.
    draw.rectangle(frame, outline="black", width=4)
    draw.rectangle(frame, outline="#ffe14d", width=2)
    return shown


def _squared(image: Image.Image) -> Image.Image:
    tile = Image.new("RGB", (TILE, TILE), "#202020")
    tile.paste(image, (0, 0))
    return tile


def _ordered(box: np.ndarray) -> tuple[float, float, float, float]:
    """Pillow refuses boxes whose corners are swapped, which a hardly trained network may say."""
    x1, y1, x2, y2 = (float(v) for v in box)
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
