"""From canvases to pixels and boxes. Pictures are uint8 until the colours: resizing uint8 has fast kernels, and memory is what costs.

A tile that is only scaled, moved and mirrored is resized with antialiasing (0.4 ms at 320 px); a turned one is sampled bilinearly after
it was scaled down. The matrix that was really applied, rounded to whole pixels, moves the boxes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from trainyard_trainer.augment import Canvas, Colour, Rect, Size, Tile, project

PAD = 114
"""Value of what no picture covers, in the range of a byte."""
LEAST_VISIBLE = 0.2
"""A box of which less than this share of its area can be seen is dropped."""
LEAST_SIDE = 2.0
"""Pixels; smaller boxes are dropped."""

LEAST_BLUR, LEAST_JPEG = 0.2, 5
"""Less is not to be seen."""

Pixels = Callable[[int], np.ndarray]
"""Pixels `[height, width, 3]` of a record, perhaps smaller than the original."""


def paint(canvas: Canvas, pixels: Pixels, sizes: Sequence[Size], out: np.ndarray) -> list[np.ndarray]:
    """Paints the tiles onto `out` `[height, width, 3]` uint8. Returns the matrix that was applied to each tile's original."""
    if not _covers(canvas.tiles[0], sizes, out):
        out[:] = PAD
    applied = []
    for tile in canvas.tiles:
        kept = pixels(tile.record)
        width, height = sizes[tile.record]
        # From kept pixels to those of the original: a diagonal matrix, so that multiplying its columns will do.
        scale = np.array([width / kept.shape[1], height / kept.shape[0], 1.0])
        matrix = tile.matrix * scale
        if tile.opaque:
            x1, y1, x2, y2 = (int(side) for side in tile.window)
            out[y1:y2, x1:x2] = PAD
        draw = _resize if _is_upright(matrix) else _warp
        applied.append(draw(tile, matrix, kept, scale, out) / scale)
    for x1, y1, x2, y2 in canvas.erased:
        out[int(y1) : int(y2), int(x1) : int(x2)] = PAD
    return applied


def place_boxes(
    canvas: Canvas, applied: Sequence[np.ndarray], boxes: Callable[[int], tuple[np.ndarray, np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes `[n, 4]`, labels and difficult flags of what can be seen; `boxes(record)` gives those of the original."""
    found = []
    for index, (tile, matrix) in enumerate(zip(canvas.tiles, applied, strict=True)):
        if not tile.boxes:
            continue
        own, labels, difficult = boxes(tile.record)
        if not len(own):
            continue
        moved = move_boxes(own, matrix)
        x1, y1, x2, y2 = tile.window
        seen = np.clip(moved, (x1, y1, x1, y1), (x2, y2, x2, y2))
        visible = _area(seen)
        for cover in (*(later.window for later in canvas.tiles[index + 1 :]), *canvas.erased):
            # The quadrants of a mosaic only touch.
            if cover[0] < x2 and x1 < cover[2] and cover[1] < y2 and y1 < cover[3]:
                visible = visible - _overlap(seen, cover)
        sides = np.minimum(seen[:, 2] - seen[:, 0], seen[:, 3] - seen[:, 1])
        keep = (visible >= LEAST_VISIBLE * np.maximum(_area(moved), 1e-9)) & (sides >= LEAST_SIDE)
        found.append((seen[keep], labels[keep], difficult[keep]))
    if not found:
        return np.zeros((0, 4)), np.zeros(0, np.int64), np.zeros(0, bool)
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))  # type: ignore[return-value]


def move_boxes(boxes: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """The upright boxes `[n, 4]` around boxes moved by a 3x3 matrix."""
    if _is_upright(matrix):
        gain, shift = matrix[[0, 1, 0, 1], [0, 1, 0, 1]], matrix[[0, 1, 0, 1], 2]
        moved = boxes * gain + shift
        return np.concatenate([np.minimum(moved[:, :2], moved[:, 2:]), np.maximum(moved[:, :2], moved[:, 2:])], 1)
    corners = boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].reshape(-1, 2)
    moved = project(matrix, corners).reshape(-1, 4, 2)
    return np.concatenate([moved.min(1), moved.max(1)], 1)


def colours(images: np.ndarray, canvases: Sequence[Canvas]) -> Tensor:
    """`images` `[batch, height, width, 3]` uint8 to float `[batch, 3, height, width]`, 0 to 1, channels last in memory.

    Lossy things (JPEG, gamma) are done on bytes, before; blur and noise after.
    """
    batch, height, width, _ = images.shape
    for index, canvas in enumerate(canvases):
        if canvas.colour is not None:
            _on_bytes(images[index], canvas.colour)
    flat = torch.from_numpy(images).view(batch, -1)
    result = torch.empty(flat.shape)
    whole = torch.empty(flat.shape[1])
    # Image by image, so that one stays in the cache of the CPU.
    for image, canvas, pixels, target in zip(images, canvases, flat, result, strict=True):
        if canvas.colour is None:
            target.copy_(pixels).mul_(1 / 255)
        else:
            _times(whole.copy_(pixels), *_affine(image, canvas.colour), target)
    result = result.view(batch, height, width, 3).permute(0, 3, 1, 2)
    for index, canvas in enumerate(canvases):
        if canvas.colour is not None:
            _on_floats(result[index], canvas.colour, canvas.noise_offset)
    return result


def _affine(image: np.ndarray, colour: Colour) -> tuple[np.ndarray, np.ndarray]:
    """Matrix `[3, 3]` and shift `[3]` from bytes to colours from 0 to 1; contrast pulls from the image's own mean."""
    mean = image[::16, ::16].reshape(-1, 3).mean(0) / 255
    grey = float((colour.matrix @ mean).mean())
    return colour.contrast * colour.matrix / 255, np.full(3, (1 - colour.contrast) * grey)


def _times(flat: Tensor, matrix: np.ndarray, shift: np.ndarray, out: Tensor) -> None:
    """Every pixel of `flat` `[pixels * 3]` times the matrix, plus the shift, held between 0 and 1.

    Four pixels at once, as one row of 12, use the vector units seven times better than rows of 3.
    """
    group = 4 if len(flat) % 12 == 0 else 1
    block = np.zeros((group, 3, group, 3), np.float32)
    for i in range(group):
        block[i, :, i] = matrix.T
    rows = flat.view(-1, 3 * group)
    shifts = torch.from_numpy(np.tile(shift, group).astype(np.float32))
    torch.addmm(shifts, rows, torch.from_numpy(block.reshape(3 * group, -1)), out=out.view(rows.shape))
    out.clamp_(0, 1)


def _on_bytes(image: np.ndarray, colour: Colour) -> None:
    if colour.gamma != 1.0:
        table = np.round(255 * (np.arange(256) / 255) ** colour.gamma).astype(np.uint8)
        np.take(table, image, out=image)
    if colour.jpeg >= LEAST_JPEG:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "JPEG", quality=jpeg_quality(colour.jpeg))
        image[:] = np.asarray(Image.open(buffer))


def _on_floats(image: Tensor, colour: Colour, offset: int) -> None:
    """Blur and noise of one image `[3, height, width]`, in place."""
    if colour.blur >= LEAST_BLUR:
        radius = blur_radius(colour.blur)
        x = torch.arange(-radius, radius + 1, dtype=torch.float32)
        kernel = torch.exp(-(x**2) / (2 * colour.blur**2))
        kernel = (kernel / kernel.sum()).repeat(3, 1)
        padded = F.pad(image[None], (radius, radius, radius, radius), mode="replicate")
        across = F.conv2d(padded, kernel[:, None, None, :], groups=3)
        image.copy_(F.conv2d(across, kernel[:, None, :, None], groups=3)[0])
    if colour.noise > 0:
        bank = noise_bank()
        start = offset % (len(bank) - image.numel()) if len(bank) > image.numel() else 0
        drawn = bank[start : start + image.numel()]
        if len(drawn) < image.numel():
            drawn = drawn.repeat(-(-image.numel() // len(drawn)))[: image.numel()]
        image.add_(drawn.view_as(image), alpha=colour.noise).clamp_(0, 1)


def jpeg_quality(strength: int) -> int:
    return max(5, 100 - strength)


def blur_radius(sigma: float) -> int:
    """Pixels on each side of the kernel's middle."""
    return max(1, round(2.5 * sigma))


@lru_cache(1)
def noise_bank() -> Tensor:
    """Standard normal numbers, drawn once: a draw for every image would cost more than all else."""
    return torch.randn(1 << 21, generator=torch.Generator().manual_seed(0))


def _covers(tile: Tile, sizes: Sequence[Size], out: np.ndarray) -> bool:
    """Whether the first tile alone fills the canvas for sure, so that it needs no background."""
    height, width = out.shape[:2]
    if tile.source is not None or tile.window != (0, 0, width, height):
        return False
    m, (w, h) = tile.matrix, sizes[tile.record]
    if m[0, 1] or m[1, 0] or m[2, :2].any():
        return False
    x1, x2 = sorted((m[0, 2], m[0, 0] * w + m[0, 2]))
    y1, y2 = sorted((m[1, 2], m[1, 1] * h + m[1, 2]))
    return x1 < -2 and y1 < -2 and x2 > width + 2 and y2 > height + 2


def _is_upright(matrix: np.ndarray) -> bool:
    """Whether the matrix only scales, mirrors and moves."""
    (_, b, _), (c, _, _), (g, h, _) = matrix.tolist()
    return abs(b) < 1e-9 and abs(c) < 1e-9 and g == 0 and h == 0


def _view(pixels: np.ndarray) -> Tensor:
    """`[height, width, 3]` as `[1, 3, height, width]`, channels last. The stride of the batch matters, though there is one image only:
    torch reads from it that the result shall be channels last too, and what is not would be copied byte by byte."""
    tensor = torch.from_numpy(pixels)
    height, width, _ = pixels.shape
    row = tensor.stride(0)
    return tensor.as_strided((1, 3, height, width), (row * height, 1, row, 3))


def _source_rect(tile: Tile, kept: np.ndarray, scale: np.ndarray) -> tuple[int, int, int, int]:
    """The part of the kept picture that may be taken, in whole pixels."""
    height, width = kept.shape[:2]
    if tile.source is None:
        return 0, 0, width, height
    x1, y1, x2, y2 = np.array(tile.source) / np.tile(scale[:2], 2)
    return (
        max(0, round(x1)),
        max(0, round(y1)),
        min(width, max(round(x1) + 1, round(x2))),
        min(height, max(round(y1) + 1, round(y2))),
    )


def _resize(tile: Tile, matrix: np.ndarray, kept: np.ndarray, scale: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Scale, move, mirror. Only what will be seen is resized. Returns the matrix, from kept pixels, that was really applied."""
    rect = _source_rect(tile, kept, scale)
    x = _axis(matrix[0, 0], matrix[0, 2], rect[0], rect[2], tile.window[0], tile.window[2])
    y = _axis(matrix[1, 1], matrix[1, 2], rect[1], rect[3], tile.window[1], tile.window[3])
    if x is None or y is None:
        return matrix
    (sx1, sx2, dx, width, ax, bx), (sy1, sy2, dy, height, ay, by) = x, y
    piece = _view(kept[sy1:sy2, sx1:sx2])
    if piece.shape[2:] != (height, width):
        piece = F.interpolate(piece, size=(height, width), mode="bilinear", antialias=True)
    # A mirrored view of numpy would be copied byte by byte; torch mirrors whole rows at once.
    mirrored = [dim for dim, gain in ((3, matrix[0, 0]), (2, matrix[1, 1])) if gain < 0]
    if mirrored:
        piece = piece.flip(mirrored)
    pixels = piece[0].permute(1, 2, 0).numpy()
    x1, y1, x2, y2 = (int(side) for side in tile.window)
    left, top = max(dx, x1), max(dy, y1)
    right, bottom = min(dx + width, x2), min(dy + height, y2)
    if right > left and bottom > top:
        out[top:bottom, left:right] = pixels[top - dy : bottom - dy, left - dx : right - dx]
    return np.array([[ax, 0, bx], [0, ay, by], [0, 0, 1.0]])


def _axis(
    scale: float, shift: float, low: int, high: int, window_low: float, window_high: float
) -> tuple[int, int, int, int, float, float] | None:
    """One axis in whole pixels: source from and to, first target pixel, target length, and the scale and shift that result.

    None when nothing of it falls into the window.
    """
    a, b = sorted(((window_low - shift) / scale, (window_high - shift) / scale))
    # Two pixels more than is seen, so that antialiasing has what it needs at the border.
    first, last = max(low, int(np.floor(a)) - 2), min(high, int(np.ceil(b)) + 2)
    if last <= first:
        return None
    start, end = sorted((scale * first + shift, scale * last + shift))
    target = round(start)
    length = max(1, round(end) - target)
    true = length / (last - first)
    if scale < 0:
        return first, last, target, length, -true, target + true * last
    return first, last, target, length, true, target - true * first


def _warp(tile: Tile, matrix: np.ndarray, kept: np.ndarray, scale: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Any projection, by bilinear sampling; pictures that get much smaller are resized first, against aliasing."""
    sx1, sy1, sx2, sy2 = _source_rect(tile, kept, scale)
    piece = _view(kept[sy1:sy2, sx1:sx2])
    inner = matrix @ np.array([[1, 0, sx1], [0, 1, sy1], [0, 0, 1.0]])
    gain = float(np.sqrt(abs(np.linalg.det(inner[:2, :2]))) / abs(inner[2, 2]))
    if gain < 0.7:
        height, width = (max(2, round(side * gain)) for side in piece.shape[2:])
        inner = inner @ np.diag([piece.shape[3] / width, piece.shape[2] / height, 1.0])
        piece = F.interpolate(piece, size=(height, width), mode="bilinear", antialias=True)
    x1, y1, x2, y2 = (int(side) for side in tile.window)
    if x2 <= x1 or y2 <= y1:
        return matrix
    grid, inside = _grid(np.linalg.inv(inner), (x1, y1, x2, y2), piece.shape[3], piece.shape[2])
    drawn = F.grid_sample(piece.float(), grid, mode="bilinear", padding_mode="border", align_corners=False)
    pixels = drawn[0].round_().to(torch.uint8).permute(1, 2, 0).numpy()
    target = out[y1:y2, x1:x2]
    np.copyto(target, pixels, where=inside.numpy()[:, :, None])
    return matrix


def _grid(inverse: np.ndarray, window: tuple[int, int, int, int], width: int, height: int) -> tuple[Tensor, Tensor]:
    """Where each pixel of the window comes from, `[1, h, w, 2]` in the units of `grid_sample`, and whether that is inside `[h, w]`."""
    x1, y1, x2, y2 = window
    m = torch.from_numpy(np.diag([2 / width, 2 / height, 1.0]) @ inverse).float()
    x = torch.arange(x1, x2, dtype=torch.float32)[None, :] + 0.5
    y = torch.arange(y1, y2, dtype=torch.float32)[:, None] + 0.5
    u, v = m[0, 0] * x + (m[0, 1] * y + m[0, 2]), m[1, 0] * x + (m[1, 1] * y + m[1, 2])
    if m[2, 0] != 0 or m[2, 1] != 0:
        w = m[2, 0] * x + (m[2, 1] * y + m[2, 2])
        u, v = u / w, v / w
    grid = torch.stack([u, v], -1).sub_(1)
    return grid[None], (grid.abs() <= 1).all(-1)


def _area(boxes: np.ndarray) -> np.ndarray:
    return np.maximum(boxes[:, 2] - boxes[:, 0], 0) * np.maximum(boxes[:, 3] - boxes[:, 1], 0)


def _overlap(boxes: np.ndarray, rect: Rect) -> np.ndarray:
    width = np.minimum(boxes[:, 2], rect[2]) - np.maximum(boxes[:, 0], rect[0])
    height = np.minimum(boxes[:, 3], rect[3]) - np.maximum(boxes[:, 1], rect[1])
    return np.maximum(width, 0) * np.maximum(height, 0)
