"""A generated dataset whose annotations are known to be complete, with mistakes planted in it, for the second look at annotations."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from trainyard_trainer.records import Box, Object
from trainyard_trainer.secondlook import Doubt
from trainyard_trainer.synth import Kind, Picture, draw, label_names
from trainyard_trainer.voc_write import zip_writer

SIZE = (128, 96)
LABELS = 3


def write(path: Path, images: int, planted: dict[Doubt, int], among: int, seed: int = 0) -> dict[Doubt, set[str]]:
    """Writes the zip and returns where the mistakes are, as stems. Mistakes are in the first `among` images, one in each that has one.

    An annotation taken away, a box around nothing, a wrong label.
    """
    names = label_names(Kind.SHAPES, LABELS)
    pictures = [draw(np.random.default_rng([seed, i]), names, Kind.SHAPES, SIZE, (2, 4)) for i in range(images)]
    random = np.random.default_rng(seed)
    order = iter(random.permutation(among).tolist())
    where: dict[Doubt, set[str]] = {doubt: set() for doubt in planted}
    for doubt, count in planted.items():
        while len(where[doubt]) < count:
            index = next(order)
            objects = _with_mistake(random, pictures[index], doubt, names)
            if objects is not None:
                pictures[index] = Picture(pictures[index].image, objects)
                where[doubt].add(stem(index))
    with zip_writer(path) as writer:
        for index, picture in enumerate(pictures):
            data = io.BytesIO()
            picture.image.save(data, "JPEG", quality=92)
            writer.add(stem(index), ".jpg", data.getvalue(), picture.image.size, picture.objects)
    return where


def stem(index: int) -> str:
    return f"picture{index:03d}"


def _with_mistake(
    random: np.random.Generator, picture: Picture, doubt: Doubt, names: Sequence[str]
) -> tuple[Object, ...] | None:
    objects = list(picture.objects)
    chosen = int(random.integers(len(objects)))
    match doubt:
        case Doubt.UNANNOTATED:
            if len(objects) < 2:
                return None
            del objects[chosen]
        case Doubt.CONTRADICTED:
            others = [name for name in names if name != objects[chosen].label]
            objects[chosen] = replace(objects[chosen], label=others[int(random.integers(len(others)))])
        case Doubt.NEVER_FOUND:
            box = _free(random, [item.box for item in objects])
            if box is None:
                return None
            objects.append(Object(names[int(random.integers(len(names)))], box))
    return tuple(objects)


def _free(random: np.random.Generator, taken: Sequence[Box]) -> Box | None:
    """A box on bare ground."""
    for _ in range(50):
        side = int(random.integers(18, 30))
        x, y = int(random.integers(2, SIZE[0] - side - 2)), int(random.integers(2, SIZE[1] - side - 2))
        box = (x, y, x + side, y + side)
        if all(box[0] > t[2] or box[2] < t[0] or box[1] > t[3] or box[3] < t[1] for t in taken):
            return box
    return None
