"""What to do with a dataset before it is trained on: input size, batch, epochs, each with its reason, and what to annotate next. No torch."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import quantiles

from trainyard_api.architectures import Architecture, Task

from trainyard_trainer.records import Record, Side, Sides
from trainyard_trainer.voc_warnings import FEW_OBJECTS, IMBALANCE, label_counts

LEAST_OBJECT = 12
"""Pixels of the network's input that a small object should have."""
SIZES = (320, 416, 512, 640, 800, 1024)
STEPS = 3000
"""Optimizer steps in which a detector from scratch gets near to what it will reach on a few hundred images."""
FEWEST_EPOCHS, MOST_EPOCHS = 20, 300
FEWEST_STEPS = 4
"""An epoch should have this many steps."""
FEW_IMAGES = 20
"""Images that a label should be in."""
BINS = (LEAST_OBJECT, 32, 96)


@dataclass(frozen=True)
class Advice:
    """Settings to begin with; `reasons` are sentences in the same order."""

    image_size: int
    batch_size: int
    batch_size_gpu: int
    epochs: int
    reasons: tuple[str, str, str]


def advise(records: Sequence[Record], sides: Sides | None, architecture: Architecture) -> Advice:
    """Settings to begin with on this data. Steps are what is learnt from, so that epochs follow from images and batch."""
    images = max(1, len(sides.train) if sides else len(records))
    size, why_size = _size(records, architecture)
    shrink = (architecture.image_size / size) ** 2
    batch, gpu = (_batch(whole, shrink, images) for whole in (architecture.batch_cpu, architecture.batch_gpu))
    per_epoch = -(-images // batch)
    epochs = min(MOST_EPOCHS, max(FEWEST_EPOCHS, math.ceil(STEPS / per_epoch)))
    why_batch = f"{architecture.name} is tuned for {architecture.batch_cpu} on CPU and {architecture.batch_gpu} on GPU"
    if batch < architecture.batch_cpu:
        cause = (
            f"at {size} px an image takes {1 / shrink:.1f} times the memory" if shrink < 1 else f"of {images} images"
        )
        why_batch += f"; less {cause}"
    why_epochs = f"{images} training images in batches of {batch} are {per_epoch} steps an epoch; {epochs} epochs make {epochs * per_epoch:,} steps"
    bound = {MOST_EPOCHS: " (more seldom help)", FEWEST_EPOCHS: " (fewer seldom do)"}.get(
        epochs, f" (about {STEPS:,} do)"
    )
    return Advice(size, batch, gpu, epochs, (why_size, why_batch, why_epochs + bound))


def additions(records: Sequence[Record], labels: Sequence[str], task: Task, sides: Sides | None) -> list[str]:
    """What to add where the data is thin, the label that lacks most first; one sentence each."""
    counts = label_counts(records, task)
    images: Counter[str] = Counter(label for record in records for label in record.labels)
    shown = {label for i in (sides.validation if sides else ()) for label in records[i].labels}
    most = max(counts.values(), default=0)
    what = "objects" if task is Task.DETECTION else "images"
    found: list[tuple[int, str]] = []
    for label in labels:
        count = counts[label]
        wanted = max(FEW_OBJECTS, math.ceil(most / IMBALANCE))
        parts = []
        if count < wanted:
            why = f"{FEW_OBJECTS} are a beginning" if wanted == FEW_OBJECTS else f"the most frequent label has {most:,}"
            parts.append(f"about {wanted - count:,} more {what} (it has {count:,}; {why})")
        if task is Task.DETECTION and count and images[label] < FEW_IMAGES:
            few = "one image" if images[label] == 1 else f"{images[label]} images"
            parts.append(f"images of other scenes (all of it is in {few})")
        if sides and sides.validation and label not in shown and images[label]:
            parts.append("images enough that validation gets one (none has it now)")
        if parts:
            found.append((wanted - count, f"{label!r}: add {', and '.join(parts)}"))
    sentences = [sentence for _, sentence in sorted(found, key=lambda item: -item[0])]
    if task is Task.DETECTION and records and all(record.objects for record in records):
        sentences.append(
            "no image is without objects: add some ordinary ones without any (with an empty annotation) where false alarms matter"
        )
    return sentences


def box_bins(records: Sequence[Record], size: int) -> list[tuple[str, int]]:
    """How many objects have which shorter side, in pixels of the input at which the image's long side is `size`."""
    counts = Counter(
        sum(_short(item.box, record, size) >= edge for edge in BINS) for record in records for item in record.objects
    )
    names = [f"under {BINS[0]} px", *(f"{a} to {b} px" for a, b in pairwise(BINS)), f"{BINS[-1]} px and more"]
    return [(name, counts[number]) for number, name in enumerate(names)]


@dataclass(frozen=True)
class Alike:
    """Images that look alike, by name; `apart` when they are on different sides."""

    names: tuple[str, ...]
    apart: bool


def alike(records: Sequence[Record], sides: Sides | None, pairs: Sequence[tuple[int, int]]) -> list[Alike]:
    """Pairs joined to groups, those on different sides first."""
    parent: dict[int, int] = {}

    def top(index: int) -> int:
        while parent.setdefault(index, index) != index:
            parent[index] = index = parent[parent[index]]
        return index

    for first, second in pairs:
        parent[top(first)] = top(second)
    groups: dict[int, list[int]] = defaultdict(list)
    for index in sorted(parent):
        groups[top(index)].append(index)
    side_of = {index: side for side in Side for index in sides.of(side)} if sides else {}
    found = [
        Alike(tuple(records[i].image for i in group), len({side_of.get(i) for i in group}) > 1)
        for group in groups.values()
    ]
    return sorted(found, key=lambda group: (not group.apart, group.names))


def _size(records: Sequence[Record], architecture: Architecture) -> tuple[int, str]:
    """The least size at which nine of ten objects have `LEAST_OBJECT` pixels, at least the architecture's."""
    default = architecture.image_size
    shares = [_short(item.box, record, 1) for record in records for item in record.objects]
    if len(shares) < 2 or architecture.task is not Task.DETECTION:
        return default, f"what {architecture.name} is made for"
    small = max(quantiles(shares, n=10)[0], 1e-6)
    wanted = LEAST_OBJECT / small
    size = max(default, next((size for size in SIZES if size >= wanted), SIZES[-1]))
    text = f"nine of ten objects are at least {100 * small:.1f} % of the image's long side: {small * size:.0f} pixels at {size}"
    if small * size < LEAST_OBJECT:
        return size, f"{text}, fewer than the {LEAST_OBJECT} that a detector needs: cut the images into tiles"
    return size, text if size > default else f"{text}, enough"


def _batch(whole: int, shrink: float, images: int) -> int:
    """The architecture's batch, less where images are larger (memory) or too few for `FEWEST_STEPS` steps an epoch."""
    return max(1, min(math.floor(whole * min(shrink, 1)) or 1, max(2, images // FEWEST_STEPS)))


def _short(box: tuple[float, float, float, float], record: Record, size: float) -> float:
    """The shorter side of a box where the image's longer one is `size`."""
    return min(box[2] - box[0], box[3] - box[1]) * size / max(record.width, record.height)
