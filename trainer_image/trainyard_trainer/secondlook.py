"""Annotations worth a second look: where a detector and the annotations of a dataset disagree, most certain first. No torch.

Three kinds: a box that the model finds with high confidence and nobody annotated, an annotated box that it never finds, and a
label that it contradicts. What is left of them is a list for a person: the model may be the one who is wrong. Findings in images that
the model was trained on are weaker, because it learned the mistakes there as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from trainyard_trainer.metrics import Detections, Floats, Truth, box_iou
from trainyard_trainer.records import Box

TOUCHES = 0.3
"""IoU from which a box and an annotation may be about the same thing."""
SAME = 0.5
"""IoU from which they are."""
MOST_PER_IMAGE = 3
TRAINED_ON = 0.5
"""What a finding counts in an image that the model was trained on."""
OVERLOOKED = 0.5
"""Share of the model's threshold below which an annotated box counts as never found."""


class Doubt(StrEnum):
    UNANNOTATED = "Unannotated"
    NEVER_FOUND = "NeverFound"
    CONTRADICTED = "Contradicted"


@dataclass(frozen=True)
class Look:
    """One annotation, or the lack of one, that a person should look at.

    `item` is the position of the image among those that were looked at; `object` that of the annotated object in it, None where there
    is none; `found` is the label that the model says, `annotated` the one that is written; `certainty` is from 0 to 1.
    """

    doubt: Doubt
    item: int
    box: Box
    certainty: float
    object: int | None = None
    found: int | None = None
    annotated: int | None = None
    trained_on: bool = False


def second_looks(
    truths: Sequence[Truth],
    found: Sequence[Detections],
    threshold: float,
    trained_on: Sequence[bool] | None = None,
    most: int = 20,
) -> dict[Doubt, list[Look]]:
    """For each kind at most `most` findings, most certain first, at most 3 of an image. `threshold`: confidence of the best F1."""
    looks: list[Look] = []
    for item, (truth, detections) in enumerate(zip(truths, found, strict=True)):
        of_image = _looks(item, truth, detections, threshold)
        if trained_on is not None and trained_on[item]:
            of_image = [replace(look, certainty=look.certainty * TRAINED_ON, trained_on=True) for look in of_image]
        looks += of_image
    return {doubt: ranked((look for look in looks if look.doubt is doubt), most) for doubt in Doubt}


def ranked(looks: Iterable[Look], most: int) -> list[Look]:
    """The most certain ones; of equal ones the larger box first, because small ones are missed more easily."""
    taken: Counter[int] = Counter()
    chosen: list[Look] = []
    for look in sorted(looks, key=lambda look: (-round(look.certainty, 3), -_area(look.box))):
        if taken[look.item] < MOST_PER_IMAGE:
            taken[look.item] += 1
            chosen.append(look)
    return chosen[:most]


def _looks(item: int, truth: Truth, found: Detections, threshold: float) -> list[Look]:
    overlaps = box_iou(found.boxes, truth.boxes)
    return [
        *_unannotated(item, truth, found, overlaps, threshold),
        *_about_objects(item, truth, found, overlaps, threshold),
    ]


def _unannotated(item: int, truth: Truth, found: Detections, overlaps: Floats, threshold: float) -> list[Look]:
    """Confident boxes that touch no annotation, difficult ones included; one for each place, whatever labels were said there."""
    free = overlaps.max(1, initial=0.0) < TOUCHES
    looks: list[Look] = []
    kept: list[int] = []
    for d in np.argsort(-found.scores, kind="stable"):
        if not free[d] or found.scores[d] < threshold or _inside(found.boxes[d], truth.boxes):
            continue
        if kept and box_iou(found.boxes[[d]], found.boxes[kept]).max() >= TOUCHES:
            continue
        kept.append(int(d))
        looks.append(
            Look(Doubt.UNANNOTATED, item, _box(found.boxes[d]), float(found.scores[d]), found=int(found.labels[d]))
        )
    return looks


def _about_objects(item: int, truth: Truth, found: Detections, overlaps: Floats, threshold: float) -> list[Look]:
    looks = []
    for g in range(len(truth.boxes)):
        if truth.difficult[g]:
            continue
        own = int(truth.labels[g])
        here = np.where(overlaps[:, g] >= SAME, found.scores, 0.0)
        right = float(here[found.labels == own].max(initial=0.0))
        others = np.where(found.labels != own, here, 0.0)
        wrong = float(others.max(initial=0.0))
        near = float(np.where(overlaps[:, g] >= TOUCHES, found.scores, 0.0).max(initial=0.0))
        box = _box(truth.boxes[g])
        if wrong >= threshold and wrong > right:
            said = int(found.labels[int(others.argmax())])
            looks.append(Look(Doubt.CONTRADICTED, item, box, wrong - right, g, found=said, annotated=own))
        elif near < OVERLOOKED * threshold:
            looks.append(Look(Doubt.NEVER_FOUND, item, box, 1.0 - near, g, annotated=own))
    return looks


def _inside(box: Floats, annotated: Floats) -> bool:
    """Whether most of a box lies in one annotation: a part of an object that is annotated as a whole."""
    if not len(annotated):
        return False
    width = np.minimum(box[2], annotated[:, 2]) - np.maximum(box[0], annotated[:, 0])
    height = np.minimum(box[3], annotated[:, 3]) - np.maximum(box[1], annotated[:, 1])
    shared = np.clip(width, 0, None) * np.clip(height, 0, None)
    return bool(shared.max() >= 0.8 * max(_area(_box(box)), 1e-9))


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _box(values: Floats) -> Box:
    x1, y1, x2, y2 = (float(value) for value in values)
    return x1, y1, x2, y2
