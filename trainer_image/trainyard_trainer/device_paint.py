"""Painting where the training is: what `paint` does, for a whole batch at once, from pictures that lie in the device's memory.

All is drawn on the CPU; the device gets some numbers for each tile and is never waited for. Pictures are kept in several sizes, each
half of the one before: a pixel is one bilinear sample of the size that is nearest to what is wanted, so nothing aliases.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trainyard_trainer.augment import Canvas, Colour, Size, Tile, project
from trainyard_trainer.paint import PAD, noise_bank
from trainyard_trainer.pixels import PixelCache

SHARE = 0.25
"""Of the device's free memory that the pictures may take."""
LEVELS = 4
LEAST_BLUR, LEAST_JPEG = 0.2, 5
UNTOUCHED = Colour(np.eye(3))
LUMINANCE = """
    16 11 10 16  24  40  51  61   12 12 14 19  26  58  60  55   14 13 16 24  40  57  69  56   14 17 22 29  51  87  80  62
    18 22 37 56  68 109 103  77   24 35 55 64  81 104 113  92   49 64 78 87 103 121 120 101   72 92 95 98 112 100 103  99"""
CHROMINANCE = """
    17 18 24 47 99 99 99 99   18 21 26 66 99 99 99 99   24 26 56 99 99 99 99 99   47 66 99 99 99 99 99 99
    99 99 99 99 99 99 99 99   99 99 99 99 99 99 99 99   99 99 99 99 99 99 99 99   99 99 99 99 99 99 99 99"""
"""ITU-T T.81, tables K.1 and K.2."""


def fits(kept: PixelCache, free: int) -> bool:
    """Whether pictures in all their sizes may lie on a device that has `free` bytes."""
    return sum(w * h for of_one in _all_sizes(kept) for w, h in of_one) * 3 <= SHARE * free


class DevicePictures:
    """The pictures of a cache in the memory of a device. `sizes` are width and height of the originals."""

    def __init__(self, kept: PixelCache, sizes: Sequence[Size], device: torch.device) -> None:
        self._device, self._originals = device, sizes
        self._sizes = _all_sizes(kept)
        lengths = np.array([[w * h * 3 for w, h in of_one] for of_one in self._sizes], np.int64).reshape(-1, LEVELS)
        self._starts = (np.cumsum(lengths) - lengths.ravel()).reshape(lengths.shape)
        self._pixels = torch.empty(int(lengths.sum()), dtype=torch.uint8, device=device)
        for index in range(len(kept)):
            picture = torch.from_numpy(kept.image(index).copy()).to(device).permute(2, 0, 1)[None].float()
            for level, (width, height) in enumerate(self._sizes[index]):
                if level:
                    picture = F.interpolate(picture, size=(height, width), mode="area")
                start = int(self._starts[index, level])
                flat = picture[0].permute(1, 2, 0).reshape(-1).round().to(torch.uint8)
                self._pixels[start : start + len(flat)] = flat
        self._noise = noise_bank().to(device)

    def paint(self, canvases: Sequence[Canvas], size: Size) -> Tensor:
        """`[batch, 3, height, width]` float on the device, 0 to 1, channels last in memory; `size` is width and height."""
        images = self._tiles(canvases, size)
        mixed = [(row, canvas) for row, canvas in enumerate(canvases) if canvas.blend is not None]
        if mixed:
            others = self._tiles([canvas.blend for _, canvas in mixed if canvas.blend is not None], size)
            rows = self._moved(np.array([row for row, _ in mixed]))
            keep = self._moved(np.array([canvas.keep for _, canvas in mixed], np.float32))[:, None, None, None]
            images = images.index_copy(0, rows, torch.lerp(others, images.index_select(0, rows), keep))
        return self._colours(images, [canvas.colour or UNTOUCHED for canvas in canvases], canvases)

    def _moved(self, numbers: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(numbers)
        return (tensor.pin_memory() if self._device.type == "cuda" else tensor).to(self._device, non_blocking=True)

    def _tiles(self, canvases: Sequence[Canvas], size: Size) -> Tensor:
        """`[batch, height, width, 3]`, 0 to 255."""
        width, height = size
        images = torch.full((len(canvases), height, width, 3), float(PAD), device=self._device)
        x = torch.arange(width, device=self._device) + 0.5
        y = (torch.arange(height, device=self._device) + 0.5)[:, None]
        channels = torch.arange(3, device=self._device)

        def within(x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor) -> Tensor:
            return (x > x1) & (x < x2) & (y > y1) & (y < y2)

        for number in range(max(len(canvas.tiles) for canvas in canvases)):
            told = [self._numbers(canvas.tiles[number]) if number < len(canvas.tiles) else None for canvas in canvases]
            # Of a canvas that has no such tile the window is empty.
            start, stride = (
                self._moved(np.array([of[part] if of else 1 for of in told], np.int64))[:, None, None]
                for part in (0, 1)
            )
            numbers = self._moved(np.array([of[2] if of else np.zeros(18) for of in told], np.float32))
            m = numbers[:, :9, None, None].unbind(1)
            left, top, right, bottom, *window, opaque = numbers[:, 9:, None, None].unbind(1)
            depth = m[6] * x + (m[7] * y + m[8])
            u, v = (m[0] * x + (m[1] * y + m[2])) / depth, (m[3] * x + (m[4] * y + m[5])) / depth
            seen = within(*window)
            inside = seen & (u >= left) & (u <= right) & (v >= top) & (v <= bottom)
            u = torch.minimum(torch.maximum(u - 0.5, left), right - 1).nan_to_num()
            v = torch.minimum(torch.maximum(v - 0.5, top), bottom - 1).nan_to_num()
            u0, v0 = u.floor(), v.floor()
            u1, v1 = torch.minimum(u0 + 1, right - 1).clamp_min(0), torch.minimum(v0 + 1, bottom - 1).clamp_min(0)

            def at(column: Tensor, row: Tensor, start: Tensor = start, stride: Tensor = stride) -> Tensor:
                place = start + (row.clamp_min(0).long() * stride + column.clamp_min(0).long()) * 3
                return self._pixels[place[..., None] + channels].float()

            across, down = (u - u0)[..., None], (v - v0)[..., None]
            drawn = torch.lerp(
                torch.lerp(at(u0, v0), at(u1, v0), across), torch.lerp(at(u0, v1), at(u1, v1), across), down
            )
            images = torch.where((seen & (opaque > 0))[..., None], float(PAD), images)
            images = torch.where(inside[..., None], drawn, images)
        for number in range(max(len(canvas.erased) for canvas in canvases)):
            gone = [canvas.erased[number] if number < len(canvas.erased) else (0,) * 4 for canvas in canvases]
            rects = self._moved(np.array(gone, np.float32).astype(np.int64))[:, :, None, None].unbind(1)
            images = torch.where(within(*rects)[..., None], float(PAD), images)
        return images

    def _numbers(self, tile: Tile) -> tuple[int, int, list[float]]:
        """Where the picture starts, the length of its rows, and the matrix from the canvas to it, what may be taken, the window, opaque."""
        inverse = np.linalg.inv(tile.matrix)
        x1, y1, x2, y2 = (float(int(side)) for side in tile.window)
        original = np.array(self._originals[tile.record], float)
        level, of_levels = 0, self._sizes[tile.record]
        if x2 > x1 and y2 > y1:
            x, y = (x1 + x2) / 2, (y1 + y2) / 2
            here, right, below = project(inverse, np.array([[x, y], [x + 1, y], [x, y + 1]])) * (
                of_levels[0] / original
            )
            step = max(np.hypot(*(right - here)), np.hypot(*(below - here)))
            level = int(np.clip(np.round(np.log2(max(step, 1e-6))), 0, LEVELS - 1))
        scale = np.array([*(of_levels[level] / original), 1.0])
        width, height = of_levels[level]
        source = (0.0, 0.0, width, height)
        if tile.source is not None:
            sx1, sy1, sx2, sy2 = np.array(tile.source) * np.tile(scale[:2], 2)
            source = (
                min(max(0, round(sx1)), width - 1),
                min(max(0, round(sy1)), height - 1),
                max(min(width, round(sx2)), 1),
                max(min(height, round(sy2)), 1),
            )
        matrix = (inverse * scale[:, None]).ravel()
        start = int(self._starts[tile.record, level])
        return start, width, [*matrix, *source, x1, y1, x2, y2, float(tile.opaque)]

    def _colours(self, images: Tensor, colours: Sequence[Colour], canvases: Sequence[Canvas]) -> Tensor:
        """As `paint.colours`, from `[batch, height, width, 3]`."""

        def numbers(values: Sequence[float]) -> Tensor:
            return self._moved(np.array(values, np.float32))[:, None, None, None]

        if any(colour.gamma != 1.0 for colour in colours):
            images = 255 * (images / 255) ** numbers([colour.gamma for colour in colours])
        if any(colour.jpeg >= LEAST_JPEG for colour in colours):
            images = self._through_jpeg(images, [colour.jpeg for colour in colours])
        matrices = self._moved(np.array([colour.matrix for colour in colours], np.float32))
        contrast = numbers([colour.contrast for colour in colours])[:, 0]
        mean = images[:, ::16, ::16].mean((1, 2), keepdim=True)[:, 0] / 255
        grey = (mean @ matrices.transpose(1, 2)).mean(-1, keepdim=True)
        flat = images.flatten(1, 2) @ (contrast * matrices / 255).transpose(1, 2)
        images = (flat + (1 - contrast) * grey).clamp_(0, 1).view_as(images).permute(0, 3, 1, 2)
        if any(colour.blur >= LEAST_BLUR for colour in colours):
            images = self._blurred(images, [colour.blur for colour in colours])
        if any(colour.noise > 0 for colour in colours):
            span = max(1, len(self._noise) - images[0].numel())
            offsets = self._moved(np.array([canvas.noise_offset % span for canvas in canvases], np.int64))
            places = (offsets[:, None] + torch.arange(images[0].numel(), device=self._device)) % len(self._noise)
            drawn = self._noise[places].view(images.shape)
            images = (images + drawn * numbers([colour.noise for colour in colours])).clamp_(0, 1)
        return images.contiguous(memory_format=torch.channels_last)

    def _blurred(self, images: Tensor, sigmas: Sequence[float]) -> Tensor:
        radius = max(max(1, round(2.5 * sigma)) for sigma in sigmas)
        x = np.arange(-radius, radius + 1)
        kernels = np.zeros((len(sigmas), len(x)), np.float32)
        for kernel, sigma in zip(kernels, sigmas, strict=True):
            reach = max(1, round(2.5 * sigma)) if sigma >= LEAST_BLUR else 0
            kernel[:] = (abs(x) <= reach) * np.exp(-(x**2) / (2 * max(sigma, LEAST_BLUR) ** 2))
        kernels /= kernels.sum(1, keepdims=True)
        weight = self._moved(np.repeat(kernels, 3, 0))
        batch, _, height, width = images.shape
        padded = F.pad(images.contiguous(), (radius,) * 4, mode="replicate").view(1, batch * 3, height + 2 * radius, -1)
        across = F.conv2d(padded, weight[:, None, None, :], groups=batch * 3)
        return F.conv2d(across, weight[:, None, :, None], groups=batch * 3).view(batch, 3, height, width)

    def _through_jpeg(self, images: Tensor, strengths: Sequence[int]) -> Tensor:
        """What JPEG of quality `100 - strength` leaves: 4:2:0, cosine transform and quantisation; entropy coding loses nothing."""
        _, height, width, _ = images.shape
        planes = F.pad(images.permute(0, 3, 1, 2).contiguous(), (0, -width % 16, 0, -height % 16), mode="replicate")
        red, green, blue = planes.unbind(1)
        luminance = 0.299 * red + 0.587 * green + 0.114 * blue
        chroma = F.avg_pool2d(torch.stack([0.564 * (blue - luminance), 0.713 * (red - luminance)], 1), 2)
        coarse = [_tables(LUMINANCE, strengths), _tables(CHROMINANCE, strengths)]
        light = self._quantised(luminance[:, None] - 128, coarse[0])[:, 0] + 128
        cb, cr = F.interpolate(self._quantised(chroma, coarse[1]), scale_factor=2.0).unbind(1)
        back = torch.stack([light + 1.403 * cr, light - 0.344 * cb - 0.714 * cr, light + 1.773 * cb], -1)
        lossy = self._moved(np.array([strength >= LEAST_JPEG for strength in strengths]))[:, None, None, None]
        return torch.where(lossy, back[:, :height, :width].clamp(0, 255), images)

    def _quantised(self, planes: Tensor, tables: np.ndarray) -> Tensor:
        """Planes `[batch, n, height, width]` by blocks of 8x8 through the cosine transform, rounded to multiples of `[batch, 8, 8]`."""
        k = np.arange(8)
        basis = np.cos((2 * k[None] + 1) * k[:, None] * np.pi / 16) * np.where(k[:, None], 0.5, np.sqrt(1 / 8))
        cosine, step = self._moved(basis.astype(np.float32)), self._moved(tables)[:, None, None, None]
        batch, count, height, width = planes.shape
        blocks = planes.reshape(batch, count, height // 8, 8, width // 8, 8).transpose(3, 4)
        rounded = ((cosine @ blocks @ cosine.T) / step).round() * step
        return (cosine.T @ rounded @ cosine).transpose(3, 4).reshape(planes.shape)


def _tables(base: str, strengths: Sequence[int]) -> np.ndarray:
    """Quantisation `[batch, 8, 8]` by quality, as libjpeg scales it."""
    quality = np.array([min(100, max(5, 100 - strength)) for strength in strengths])
    scale = np.where(quality < 50, 5000 / quality, 200 - 2 * quality)[:, None, None]
    return np.clip((np.array(base.split(), float).reshape(8, 8) * scale + 50) // 100, 1, 255).astype(np.float32)


def _all_sizes(kept: PixelCache) -> list[list[Size]]:
    """Width and height of each picture, as it is kept and halved, halved again, …"""
    return [[(max(1, w >> level), max(1, h >> level)) for level in range(LEVELS)] for w, h in kept.sizes]
