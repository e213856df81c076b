"""Augmented images outside of a training: written as a dataset, or shown on one sheet. What is seen here is what is trained on.

Needs torch, since the same code paints the images as in a training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from trainyard_api.dataset import Resize, Split, Subset, Subsets
from trainyard_api.training import Augmentation, AugmentationPreset

from trainyard_trainer import pixels, split, voc
from trainyard_trainer.augment import Size
from trainyard_trainer.data import EvalBatches, TrainBatches
from trainyard_trainer.prepare import Prepared
from trainyard_trainer.records import Object, Progress, Side, Sides, silent
from trainyard_trainer.rewrite import encoded, new_stems
from trainyard_trainer.store_file import whole_file
from trainyard_trainer.voc_write import ZipWriter

BATCH = 8
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#42d4f4", "#f032e6", "#bfef45", "#fabed4", "#ffe119")
"""One a label, over again when there are more."""
GAP, HEAD = 6, 22
"""Pixels between the tiles of a sheet, and of a line of text."""
STRONGEST = {"verticalFlip": 100, "perspective": 20, "crop": 40, "distractor": 100, "cutmix": 100}
"""Strengths at which augmentations are shown one by one that no preset has; others are shown at 100 % of images, or as in Strong."""


@dataclass(frozen=True)
class Sample:
    """One painted image: pixels `[height, width, 3]` uint8 and its objects; `record` is the image it was made from."""

    record: int
    pixels: np.ndarray
    objects: tuple[Object, ...]


def ready(
    dataset: voc.Dataset, size: Size, cache: Path, *, every: bool = False, progress: Progress = silent
) -> Prepared:
    """The dataset with its pixels and sides: by its lists train, val and test where it has them, else as a training draws them.

    `every` puts all images on the training side. Images that cannot be decoded are left out. Raises BadData.
    """
    kept, verdict = pixels.build(dataset, max(size), cache, progress=progress)
    good = [i for i in range(len(dataset.records)) if i not in verdict.corrupt]
    findings = (*dataset.findings, *verdict.corrupt.values(), *verdict.repaired)
    left = replace(dataset, records=tuple(dataset.records[i] for i in good), findings=findings)
    sides = Sides(tuple(range(len(good)))) if every else _sides(left)
    return Prepared(left, sides, kept.keep(good), findings)


def samples(
    prepared: Prepared, augmentation: Augmentation, size: Size, count: int, *, resize: Resize, seed: int
) -> Iterator[Sample]:
    """`count` augmented images of the training side, in the order of a training: every image once, then all of them again."""
    batches = TrainBatches(prepared, size=size, batch_size=BATCH, augmentation=augmentation, seed=seed, resize=resize)
    for step in range(math.ceil(count / BATCH)):
        # So many steps are planned that none of these is among the last ones, in which nothing is augmented.
        batch = batches.batch(step, 1 << 40, 0, min(BATCH, count - step * BATCH))
        yield from _painted(batch, prepared.dataset.labels)


def originals(prepared: Prepared, size: Size, records: Sequence[int], resize: Resize) -> Iterator[Sample]:
    """Images as they are scored: brought to the size, nothing else."""
    for batch in EvalBatches(prepared, Side.TRAIN, size=size, batch_size=BATCH, resize=resize, records=records):
        yield from _painted(batch, prepared.dataset.labels)


def write(
    prepared: Prepared,
    writer: ZipWriter,
    augmentation: Augmentation,
    size: Size,
    copies: int,
    *,
    resize: Resize,
    seed: int,
    with_originals: bool,
    progress: Progress = silent,
) -> None:
    """`copies` images made from each one of the training side; with `with_originals` also all images as they are, and the sides as lists.

    Then the made ones belong to the list train, so that no image and its copy are ever on two sides.
    """
    stems = new_stems(prepared.dataset.records)
    total = copies * len(prepared.sides.train)
    lists: dict[str, list[str]] = {"train": []}
    made = [0] * len(stems)
    for number, sample in enumerate(samples(prepared, augmentation, size, total, resize=resize, seed=seed), 1):
        made[sample.record] += 1
        name = f"{stems[sample.record]}_a{made[sample.record]}"
        lists["train"].append(name)
        writer.add(name, ".jpg", encoded(Image.fromarray(sample.pixels), ".jpg", 92), size, sample.objects)
        progress(number, total)
    if not with_originals:
        return
    for side, name in ((Side.TRAIN, "train"), (Side.VALIDATION, "val"), (Side.TEST, "test")):
        for index in prepared.of(side):
            record = prepared.dataset.records[index]
            extension = PurePosixPath(record.image).suffix
            objects = record.objects if record.annotation else None
            writer.add(stems[index], extension, prepared.dataset.read(record), (record.width, record.height), objects)
            lists.setdefault(name, []).append(stems[index])
    for name, lines in lists.items():
        writer.add_list(name, lines)


def sheet(path: Path, rows: Mapping[str, Sequence[Sample]], labels: Sequence[str], tile: int = 240) -> tuple[int, int]:
    """A PNG with a row of tiles under each title, boxes in the colour of their label. Returns its width and height."""
    font = ImageFont.load_default(13)
    columns = max(len(samples) for samples in rows.values())
    width = columns * (tile + GAP) + GAP
    tall = {title: max(_fitted(sample, tile)[1] for sample in samples) for title, samples in rows.items()}
    image = Image.new("RGB", (width, HEAD + sum(height + HEAD + GAP for height in tall.values())), "#202020")
    draw = ImageDraw.Draw(image)
    _legend(draw, labels, width, font)
    top = HEAD
    for title, found in rows.items():
        draw.text((GAP, top + 3), title, fill="white", font=font)
        for column, sample in enumerate(found):
            image.paste(_tile(sample, labels, tile), (GAP + column * (tile + GAP), top + HEAD))
        top += tall[title] + HEAD + GAP
    with whole_file(path, 0) as file:
        image.save(file, "PNG")
    return image.size


def one_by_one() -> dict[str, Augmentation]:
    """Every augmentation alone, strong enough to be seen, by the name of its field and its strength."""
    strong = Augmentation(preset=AugmentationPreset.STRONG)
    found = {}
    for name, info in Augmentation.model_fields.items():
        alias = str(info.alias or name)
        if alias in ("preset", "offLastPercent"):
            continue
        of_images = "in percent of images" in str(info.description)
        value = 100 if of_images else STRONGEST.get(alias) or strong.strength(name)
        found[f"{alias}: {value}"] = Augmentation.model_validate({"preset": "None", alias: value})
    return found


def _sides(dataset: voc.Dataset) -> Sides:
    there = {name for layout in dataset.layouts for name in layout.lists}
    if "train" not in there:
        return split.draw(dataset.records, Split())
    known = {
        field: Subset(image_set=name)
        for field, name in (("train", "train"), ("validation", "val"), ("test", "test"))
        if name in there
    }
    return split.name(dataset.records, Subsets(**known), dataset.sources, dataset.layouts, lambda uri: b"")


def _painted(batch, labels: Sequence[str]) -> Iterator[Sample]:  # type: ignore[no-untyped-def]
    images = (batch.images * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).contiguous().numpy()
    for index, record in enumerate(batch.records):
        objects = tuple(
            Object(labels[int(label)], (float(box[0]), float(box[1]), float(box[2]), float(box[3])), bool(difficult))
            for box, label, difficult in zip(
                batch.boxes[index].tolist(), batch.labels[index].tolist(), batch.difficult[index].tolist(), strict=True
            )
            if label >= 0
        )
        yield Sample(record, images[index], objects)


def _fitted(sample: Sample, tile: int) -> tuple[int, int]:
    height, width = sample.pixels.shape[:2]
    scale = tile / max(width, height)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _tile(sample: Sample, labels: Sequence[str], tile: int) -> Image.Image:
    size = _fitted(sample, tile)
    image = Image.fromarray(sample.pixels).resize(size, Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(image)
    sx, sy = size[0] / sample.pixels.shape[1], size[1] / sample.pixels.shape[0]
    for item in sample.objects:
        x1, y1, x2, y2 = item.box
        corners = (x1 * sx, y1 * sy, max(x2 * sx - 1, x1 * sx), max(y2 * sy - 1, y1 * sy))
        draw.rectangle(
            corners, outline=COLOURS[labels.index(item.label) % len(COLOURS)], width=1 if item.difficult else 2
        )
    return image


def _legend(draw: ImageDraw.ImageDraw, labels: Sequence[str], width: int, font) -> None:  # type: ignore[no-untyped-def]
    x = float(GAP)
    for index, label in enumerate(labels):
        length = draw.textlength(label, font=font)
        if x + length > width - GAP:
            break
        draw.text((x, 3), label, fill=COLOURS[index % len(COLOURS)], font=font)
        x += length + 2 * GAP
