"""Batches for the loop. `TrainBatches.batch(step, steps)` is a pure function: the same seed and step give the same tensors, resumed or not.

Order: sample k is `permutation(seed, k // n)[k % n]`, so that batches cross the ends of epochs and a batch may be larger than the data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import torch
from trainyard_api.architectures import Task
from trainyard_api.dataset import Resize
from trainyard_api.training import Augmentation

from trainyard_trainer import augment
from trainyard_trainer.augment import Canvas, Draw, Size, Strengths
from trainyard_trainer.batch import Batch
from trainyard_trainer.device_paint import DevicePictures
from trainyard_trainer.image_metrics import answers
from trainyard_trainer.paint import colours, paint, place_boxes
from trainyard_trainer.prepare import Prepared
from trainyard_trainer.records import Record, Side

STRIDE = 32
"""Sizes of the input are multiples of this."""

Truth = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Boxes `[n, 4]` in pixels of the original, label indices, difficult flags."""


class TrainBatches:
    """Augmented batches of the training side.

    `multi_scale` is the share by which the input's size varies from step to step. `start` and `stop` of `batch` are for one rank's
    slice of the global batch: every rank gets the same images as one process would. With `device` the pictures are moved there and
    images are painted there; they differ from those of the CPU by what another way to resize makes.
    """

    def __init__(
        self,
        prepared: Prepared,
        *,
        size: Size,
        batch_size: int,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        resize: Resize = Resize.LETTERBOX,
        multi_scale: float = 0.0,
        device: torch.device | None = None,
    ) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self._augmentation = augmentation or Augmentation()
        self._strengths = _strengths(self._augmentation, prepared.dataset.task)
        self._resize, self._multi_scale = resize, multi_scale
        self._members = prepared.of(Side.TRAIN)
        self._images = _Images(prepared, device)

    def __len__(self) -> int:
        """Images of the training side; an epoch."""
        return len(self._members)

    def records(self, step: int) -> tuple[int, ...]:
        """Records (anchors, with mosaic) of a step's batch, without painting them."""
        first = step * self.batch_size
        return tuple(
            self._members[augment.sample(self.seed, k, len(self))] for k in range(first, first + self.batch_size)
        )

    def batch(self, step: int, steps: int, start: int = 0, stop: int | None = None) -> Batch:
        """The batch of step `step` (from 0) of `steps` planned ones; with `start` and `stop` a part of it.

        In the last `offLastPercent` of the steps nothing is augmented.
        """
        plain = step >= round(steps * (1 - self._augmentation.off_last_percent / 100))
        draw = Draw(
            self._images.sizes, self._members, self.size_of(step), self._resize, self._strengths, self._images.boxes_of
        )
        canvases = []
        for offset, record in list(enumerate(self.records(step)))[start:stop]:
            number = step * self.batch_size + offset
            canvases.append(
                augment.plain(record, draw) if plain else augment.augmented(record, draw, self.seed, number)
            )
        return self._images.batch(canvases, draw.size)

    def size_of(self, step: int) -> Size:
        """Width and height of a step's input."""
        if not self._multi_scale:
            return self.size
        random = np.random.Generator(np.random.Philox(key=[self.seed ^ 0x51CE, step]))
        factor = 1 + random.uniform(-self._multi_scale, self._multi_scale)
        width, height = (max(STRIDE, STRIDE * round(side * factor / STRIDE)) for side in self.size)
        return width, height


class EvalBatches:
    """A side in order, not augmented, with the way back to the original pixels. The last batch may be smaller."""

    def __init__(
        self,
        prepared: Prepared,
        side: Side,
        *,
        size: Size,
        batch_size: int,
        resize: Resize = Resize.LETTERBOX,
        records: Sequence[int] | None = None,
    ) -> None:
        self._members = prepared.of(side) if records is None else tuple(records)
        self._batch_size = batch_size
        self._images = _Images(prepared)
        self._draw = Draw(self._images.sizes, self._members, size, resize, Strengths())

    def __len__(self) -> int:
        """Batches."""
        return -(-len(self._members) // self._batch_size)

    @property
    def images(self) -> int:
        return len(self._members)

    def batch(self, index: int) -> Batch:
        members = self._members[index * self._batch_size : (index + 1) * self._batch_size]
        return self._images.batch([augment.plain(record, self._draw) for record in members], self._draw.size, True)

    def __iter__(self) -> Iterator[Batch]:
        return (self.batch(index) for index in range(len(self)))


class Ahead:
    """Makes the next batches in threads of their own, one each, while the loop trains on this one. The tensors are the same as without."""

    def __init__(self, make: Callable[[int, int], Batch], threads: int = 1) -> None:
        self._make, self._threads = make, threads
        self._pool = ThreadPoolExecutor(
            threads, thread_name_prefix="batches", initializer=torch.set_num_threads, initargs=(1,)
        )
        self._under_way: dict[tuple[int, int], Future[Batch]] = {}

    def batch(self, step: int, steps: int) -> Batch:
        """The batch of a step, and a start on those after it."""
        mine = self._under_way.pop((step, steps), None)
        following = [(number, steps) for number in range(step + 1, min(step + 1 + self._threads, steps))]
        # The training went back to a checkpoint, or has fewer steps now.
        for other in self._under_way.keys() - set(following):
            self._under_way.pop(other).cancel()
        for other in following:
            if other not in self._under_way:
                self._under_way[other] = self._pool.submit(self._make, *other)
        return self._make(step, steps) if mine is None else mine.result()

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def truth(record: Record, labels: Sequence[str]) -> Truth:
    """The objects of a record as arrays."""
    index = {label: i for i, label in enumerate(labels)}
    boxes = np.array([item.box for item in record.objects], np.float64).reshape(-1, 4)
    return (
        boxes,
        np.array([index[item.label] for item in record.objects], np.int64),
        np.array([item.difficult for item in record.objects], bool),
    )


def mixed_targets(canvases: Sequence[Canvas], answers: np.ndarray) -> np.ndarray:
    """Targets of images of a batch, `[batch, labels]`: each picture's answers by its share of the canvas."""
    targets = np.zeros((len(canvases), answers.shape[1]), np.float32)
    for row, canvas in zip(targets, canvases, strict=True):
        shares = canvas_shares(canvas)
        of = answers[[record for record, _ in shares]]
        row[:] = np.array([share for _, share in shares], np.float32) @ of.clip(0)
        row[(of < 0).any(0)] = -1.0
    return targets


def canvas_shares(canvas: Canvas) -> list[tuple[int, float]]:
    """The pictures on a canvas with the share of its area that each has; patches without objects belong to nobody."""
    tiles = [tile for tile in canvas.tiles if tile.boxes]
    areas = []
    for index, tile in enumerate(tiles):
        x1, y1, x2, y2 = tile.window
        covered = 0.0
        for later in (other.window for other in tiles[index + 1 :] if other.opaque):
            width = min(x2, later[2]) - max(x1, later[0])
            height = min(y2, later[3]) - max(y1, later[1])
            covered += max(0.0, width) * max(0.0, height)
        areas.append((x2 - x1) * (y2 - y1) - covered)
    whole = sum(areas)
    shares = [(tile.record, area / whole) for tile, area in zip(tiles, areas, strict=True)]
    if canvas.blend is None:
        return shares
    blended = [(record, share * (1 - canvas.keep)) for record, share in canvas_shares(canvas.blend)]
    return [(record, share * canvas.keep) for record, share in shares] + blended


def _strengths(augmentation: Augmentation, task: Task) -> Strengths:
    """The presets' mosaic is for detectors: it needs many more steps than image networks get here. Asked for, it is done."""
    strengths = Strengths.of(augmentation)
    if task is not Task.DETECTION and augmentation.mosaic is None:
        return replace(strengths, mosaic=0.0)
    return strengths


class _Images:
    """Pictures and objects of all records, ready to be painted."""

    def __init__(self, prepared: Prepared, device: torch.device | None = None) -> None:
        self._pixels = prepared.pixels
        dataset = prepared.dataset
        self._truth = [truth(record, dataset.labels) for record in dataset.records]
        self._answers = None if dataset.task is Task.DETECTION else answers(dataset.records, dataset.labels)
        self.sizes = [(record.width, record.height) for record in prepared.dataset.records]
        self._on_device = None if device is None else DevicePictures(self._pixels, self.sizes, device)

    def boxes_of(self, record: int) -> np.ndarray:
        return self._truth[record][0]

    def batch(self, canvases: Sequence[Canvas], size: Size, placed: bool = False) -> Batch:
        found: list[Truth] = []
        placements = []
        if self._on_device is not None:
            images = self._on_device.paint(canvases, size)
            found = [self._objects(canvas) for canvas in canvases]
        else:
            width, height = size
            painted = np.empty((len(canvases), height, width, 3), np.uint8)
            for canvas, image in zip(canvases, painted, strict=True):
                applied = paint(canvas, self._pixels.image, self.sizes, image)
                objects = place_boxes(canvas, applied, self._truth.__getitem__)
                if canvas.blend is not None:
                    objects = self._mix(canvas, image, objects)
                found.append(objects)
                matrix = applied[0]
                placements.append([matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]])
            images = colours(painted, canvases)
        boxes, labels, difficult = _padded(found)
        return Batch(
            images=images,
            boxes=boxes,
            labels=labels,
            difficult=difficult,
            counts=tuple(int((~flags).sum()) for _, _, flags in found),
            records=tuple(canvas.record for canvas in canvases),
            placements=torch.tensor(placements, dtype=torch.float64) if placed else None,
            targets=None if self._answers is None else torch.from_numpy(mixed_targets(canvases, self._answers)),
        )

    def _mix(self, canvas: Canvas, image: np.ndarray, objects: Truth) -> Truth:
        """Blends the second canvas into `image`; both keep their objects."""
        assert canvas.blend is not None
        other = np.empty_like(image)
        applied = paint(canvas.blend, self._pixels.image, self.sizes, other)
        theirs = place_boxes(canvas.blend, applied, self._truth.__getitem__)
        mixed = image.astype(np.float32)
        mixed *= canvas.keep
        mixed += (1 - canvas.keep) * other
        image[:] = mixed
        return _both(objects, theirs)

    def _objects(self, canvas: Canvas) -> Truth:
        """What can be seen of a canvas whose matrices are applied as they are."""
        objects = place_boxes(canvas, [tile.matrix for tile in canvas.tiles], self._truth.__getitem__)
        return objects if canvas.blend is None else _both(objects, self._objects(canvas.blend))


def _both(one: Truth, other: Truth) -> Truth:
    return tuple(np.concatenate(parts) for parts in zip(one, other, strict=True))  # type: ignore[return-value]


def _padded(found: Sequence[Truth]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Objects of all images as dense tensors; what is not there has label -1."""
    most = max(1, *(len(labels) for _, labels, _ in found))
    boxes = np.zeros((len(found), most, 4), np.float32)
    labels = np.full((len(found), most), -1, np.int64)
    difficult = np.zeros((len(found), most), bool)
    for index, (own, names, flags) in enumerate(found):
        boxes[index, : len(own)], labels[index, : len(own)], difficult[index, : len(own)] = own, names, flags
    return torch.from_numpy(boxes), torch.from_numpy(labels), torch.from_numpy(difficult)
