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

from trainyard_trainer.augment import Canvas, Colour, Size
from trainyard_trainer.paint import LEAST_BLUR, LEAST_JPEG, PAD, blur_radius, jpeg_quality, noise_bank
from trainyard_trainer.pixels import PixelCache

SHARE = 0.25
"""Of the device's free memory that the pictures may take."""
LEVELS = 4
PIXELS_AT_ONCE = 1 << 22
"""Each takes about a hundred bytes while it is painted."""
UNTOUCHED = Colour(np.eye(3))
LUMINANCE = """
    16 11 10 16  24  40  51  61   12 12 14 19  26  58  60  55   14 13 16 24  40  57  69  56   14 17 22 29  51  87  80  62
    18 22 37 56  68 109 103  77   24 35 55 64  81 104 113  92   49 64 78 87 103 121 120 101   72 92 95 98 112 100 103  99"""
CHROMINANCE = """
    17 18 24 47 99 99 99 99   18 21 26 66 99 99 99 99   24 26 56 99 99 99 99 99   47 66 99 99 99 99 99 99
    99 99 99 99 99 99 99 99   99 99 99 99 99 99 99 99   99 99 99 99 99 99 99 99   99 99 99 99 99 99 99 99"""
"""ITU-T T.81, tables K.1 and K.2."""
QUANTISATION = [np.array(table.split(), float).reshape(8, 8) for table in (LUMINANCE, CHROMINANCE)]


def fits(kept: PixelCache, free: int) -> bool:
    """Whether pictures in all their sizes may lie on a device that has `free` bytes."""
    return 3 * int(_all_sizes(kept).prod(2).sum()) <= SHARE * free


class DevicePictures:
    """The pictures of a cache in the memory of a device. `sizes` are width and height of the originals."""

    def __init__(self, kept: PixelCache, sizes: Sequence[Size], device: torch.device) -> None:
        self._device, self._originals = device, np.array(sizes, float)
        self._sizes = _all_sizes(kept)
        lengths = self._sizes.prod(2)
        self._starts = (np.cumsum(lengths) - lengths.ravel()).reshape(lengths.shape)
        self._pixels = torch.empty(int(lengths.sum()), 3, dtype=torch.uint8, device=device)
        for index in range(len(kept)):
            picture = torch.from_numpy(kept.image(index).copy()).to(device).permute(2, 0, 1)[None].float()
            for level, (width, height) in enumerate(self._sizes[index].tolist()):
                if level:
                    picture = F.interpolate(picture, size=(height, width), mode="area")
                start = int(self._starts[index, level])
                self._pixels[start : start + width * height] = picture[0].flatten(1).T.round().to(torch.uint8)
        self._noise = noise_bank().to(device)
        self._cosine = torch.from_numpy(_cosine_transform()).to(device)

    def paint(self, canvases: Sequence[Canvas], size: Size) -> Tensor:
        """`[batch, 3, height, width]` float on the device, 0 to 1, channels last in memory; `size` is width and height."""
        some = max(1, PIXELS_AT_ONCE // (size[0] * size[1]))
        return torch.cat(
            [self._painted(canvases[start : start + some], size) for start in range(0, len(canvases), some)]
        )

    def _painted(self, canvases: Sequence[Canvas], size: Size) -> Tensor:
        images = self._tiles(canvases, size)
        mixed = [(row, one.blend, one.keep) for row, one in enumerate(canvases) if one.blend is not None]
        if mixed:
            numbers, blends, shares = zip(*mixed, strict=True)
            others = self._tiles(blends, size)
            rows = self._moved(np.array(numbers))
            keep = self._moved(np.array(shares, np.float32))[:, None, None, None]
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

        def within(x1: Tensor, y1: Tensor, x2: Tensor, y2: Tensor) -> Tensor:
            return (x > x1) & (x < x2) & (y > y1) & (y < y2)

        for place, numbers in zip(*map(self._moved, self._numbers(canvases)), strict=True):
            start, stride = place[..., None, None].unbind(1)
            m = numbers[:, :9, None, None].unbind(1)
            left, top, right, bottom, *window, opaque = numbers[:, 9:, None, None].unbind(1)
            depth = m[6] * x + (m[7] * y + m[8])
            u, v = (m[0] * x + (m[1] * y + m[2])) / depth, (m[3] * x + (m[4] * y + m[5])) / depth
            seen = within(*window)
            inside = seen & (u >= left) & (u <= right) & (v >= top) & (v <= bottom)
            u = torch.minimum(torch.maximum(u - 0.5, left), right - 1).nan_to_num()
            v = torch.minimum(torch.maximum(v - 0.5, top), bottom - 1).nan_to_num()
            u0, v0 = u.floor(), v.floor()
            u1, v1 = torch.minimum(u0 + 1, right - 1), torch.minimum(v0 + 1, bottom - 1)

            def at(column: Tensor, row: Tensor, start: Tensor = start, stride: Tensor = stride) -> Tensor:
                return self._pixels[start + row.long() * stride + column.long()].float()

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

    def _numbers(self, canvases: Sequence[Canvas]) -> tuple[np.ndarray, np.ndarray]:
        """Of tile n of each canvas: where its picture starts and the length of its rows, `[n, batch, 2]`; and `[n, batch, 18]`: the
        matrix from the canvas to the picture, what may be taken of it, the window, opaque. Where there is none: one pixel, to be seen nowhere."""
        most = max(len(canvas.tiles) for canvas in canvases)
        places, numbers = np.zeros((most, len(canvases), 2), np.int64), np.zeros((most, len(canvases), 18), np.float32)
        numbers[..., [8, 11, 12]] = 1
        there = [(number, row) for row, canvas in enumerate(canvases) for number in range(len(canvas.tiles))]
        at = tuple(zip(*there, strict=True))
        tiles = [tile for canvas in canvases for tile in canvas.tiles]
        records = [tile.record for tile in tiles]
        inverse = np.linalg.inv(np.stack([tile.matrix for tile in tiles]))
        windows = np.trunc(np.array([tile.window for tile in tiles], float))
        originals = self._originals[records]
        # How far the neighbours of the window's middle lie apart in the picture tells which of its sizes will do.
        middle = (windows[:, None, :2] + windows[:, None, 2:]) / 2 + np.array([[0, 0], [1, 0], [0, 1]])
        seen = np.concatenate([middle, np.ones((len(tiles), 3, 1))], 2) @ inverse.transpose(0, 2, 1)
        seen = seen[..., :2] / seen[..., 2:] * (self._sizes[records, 0] / originals)[:, None]
        step = np.linalg.norm(seen[:, 1:] - seen[:, :1], axis=2).max(1)
        level = np.clip(np.round(np.log2(np.maximum(step, 1.0))), 0, LEVELS - 1).astype(int)
        sizes = self._sizes[records, level]
        scale = sizes / originals
        source = np.array(
            [tile.source or (0, 0, *size) for tile, size in zip(tiles, originals, strict=True)]
        ) * np.tile(scale, 2)
        first = np.clip(np.round(source[:, :2]), 0, sizes - 1)
        last = np.clip(np.round(source[:, 2:]), first + 1, sizes)
        matrix = inverse * np.concatenate([scale, np.ones((len(tiles), 1))], 1)[:, :, None]
        opaque = np.array([[tile.opaque] for tile in tiles], float)
        places[at] = np.stack([self._starts[records, level], sizes[:, 0]], 1)
        numbers[at] = np.concatenate([matrix.reshape(-1, 9), first, last, windows, opaque], 1)
        return places, numbers

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
        radius = max(map(blur_radius, sigmas))
        x = np.arange(-radius, radius + 1)
        kernels = np.zeros((len(sigmas), len(x)), np.float32)
        for kernel, sigma in zip(kernels, sigmas, strict=True):
            reach = blur_radius(sigma) if sigma >= LEAST_BLUR else 0
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
        fine, coarse = (_scaled(table, strengths) for table in QUANTISATION)
        light = self._quantised(luminance[:, None] - 128, fine)[:, 0] + 128
        cb, cr = F.interpolate(self._quantised(chroma, coarse), scale_factor=2.0).unbind(1)
        back = torch.stack([light + 1.403 * cr, light - 0.344 * cb - 0.714 * cr, light + 1.773 * cb], -1)
        lossy = self._moved(np.array([strength >= LEAST_JPEG for strength in strengths]))[:, None, None, None]
        return torch.where(lossy, back[:, :height, :width].clamp(0, 255), images)

    def _quantised(self, planes: Tensor, tables: np.ndarray) -> Tensor:
        """Planes `[batch, n, height, width]` by blocks of 8x8 through the cosine transform, rounded to multiples of `[batch, 8, 8]`."""
        cosine, step = self._cosine, self._moved(tables)[:, None, None, None]
        batch, count, height, width = planes.shape
        blocks = planes.reshape(batch, count, height // 8, 8, width // 8, 8).transpose(3, 4)
        rounded = ((cosine @ blocks @ cosine.T) / step).round() * step
        return (cosine.T @ rounded @ cosine).transpose(3, 4).reshape(planes.shape)


def _cosine_transform() -> np.ndarray:
    """The discrete cosine transform of eight values, `[8, 8]`."""
    k = np.arange(8)
    basis = np.cos((2 * k[None] + 1) * k[:, None] * np.pi / 16) * np.where(k[:, None], 0.5, np.sqrt(1 / 8))
    return basis.astype(np.float32)


def _scaled(table: np.ndarray, strengths: Sequence[int]) -> np.ndarray:
    """Quantisation `[batch, 8, 8]` by quality, as libjpeg scales it."""
    quality = np.array([jpeg_quality(strength) for strength in strengths])
    scale = np.where(quality < 50, 5000 / quality, 200 - 2 * quality)[:, None, None]
    return np.clip((table * scale + 50) // 100, 1, 255).astype(np.float32)


def _all_sizes(kept: PixelCache) -> np.ndarray:
    """Width and height of each picture as it is kept, halved, halved again, …: `[pictures, LEVELS, 2]` int64."""
    sizes = np.array(kept.sizes, np.int64).reshape(-1, 1, 2)
    return np.maximum(sizes >> np.arange(LEVELS)[:, None], 1)
