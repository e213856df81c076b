"""From the corners that a file states to boxes that can be trained on: origin, inversion, zero area, the image's border, rotation."""

from __future__ import annotations

from collections.abc import Iterable

from trainyard_api.dataset import BoxOrigin

from trainyard_trainer.records import Box, Finding, Kind, Object
from trainyard_trainer.voc_image import ImageFacts
from trainyard_trainer.voc_xml import Annotation, RawObject

LEAST_LEFT = 0.2
"""A box of which less than this share lies inside the image is dropped."""
ROUNDING = 1.0
"""Pixels by which a box may stick out without anything being lost."""


def origin(annotations: Iterable[Annotation], asked: BoxOrigin) -> tuple[int, Finding | None]:
    """Number of the first pixel, 0 or 1, for a whole source: what a file says, else a 0 anywhere tells, else a box that begins at 1.

    In a dataset that counts from 1, boxes at the left or upper border begin at 1; in one that counts from 0 they begin at 0.
    """
    if asked is not BoxOrigin.AUTO:
        return int(asked.value), None
    ones = 0
    annotations = list(annotations)
    if (stated := next((a.origin for a in annotations if a.origin is not None), None)) is not None:
        return stated, None
    for annotation in annotations:
        for raw in annotation.objects:
            low = min(raw.box)
            if low < 0.5:
                return 0, None
            ones += low == 1
    if not ones:
        return 0, None
    message = f"no box begins at 0 and {ones} begin at 1: coordinates are taken as counted from 1; dataset.limits.boxOrigin says otherwise"
    return 1, Finding(Kind.WARNING, "BoxOriginOne", message)


def place(
    annotation: Annotation, facts: ImageFacts, first_pixel: int, withhold: bool = False
) -> tuple[tuple[Object, ...], int, list[Finding]]:
    """Objects of one image, the EXIF orientation to apply, and what was repaired.

    `withhold` leaves the orientation alone (nothing was annotated on the picture, so that it cannot matter).
    """
    findings: list[Finding] = []
    orientation = 1 if withhold else _orientation(annotation, facts, findings)
    width, height = (facts.height, facts.width) if orientation >= 5 else (facts.width, facts.height)
    if annotation.size is None:
        findings.append(
            Finding(
                Kind.WARNING,
                "SizeMissing",
                "has no usable <size>; the image's own is taken",
                annotation.file,
                annotation.size_line or None,
            )
        )
    elif annotation.size != (width, height):
        message = f"<size> says {annotation.size[0]}x{annotation.size[1]}, the image has {width}x{height}; the image is trusted"
        findings.append(Finding(Kind.WARNING, "SizeWrong", message, annotation.file, annotation.size_line or None))
    objects = []
    for raw in annotation.objects:
        box, found = _repair(raw, annotation.file, width, height, first_pixel)
        findings.extend(found)
        if box is not None:
            objects.append(Object(raw.label, box, raw.difficult, raw.truncated, raw.occluded, raw.line))
    return tuple(objects), orientation, findings


def _orientation(annotation: Annotation, facts: ImageFacts, findings: list[Finding]) -> int:
    """The EXIF orientation when the annotation was made on the rotated picture, else 1."""
    if facts.orientation == 1:
        return 1
    upright, rotated = (facts.width, facts.height), (facts.height, facts.width)
    if not facts.rotates:
        rotated = upright
    stated = annotation.size
    if stated is None and annotation.objects and facts.rotates:
        # Boxes that fit one way only tell as well as a size does.
        x, y = max(raw.box[2] for raw in annotation.objects), max(raw.box[3] for raw in annotation.objects)
        fits = [size for size in (upright, rotated) if x <= size[0] + ROUNDING and y <= size[1] + ROUNDING]
        stated = fits[0] if len(fits) == 1 else None
    if stated == rotated:
        if rotated == upright:
            message = (
                f"EXIF orientation {facts.orientation} is applied; the size cannot tell whether the boxes were drawn so"
            )
            findings.append(Finding(Kind.WARNING, "RotationUnclear", message, annotation.file))
        return facts.orientation
    message = f"EXIF orientation {facts.orientation} is not applied: the annotation does not match the rotated picture"
    findings.append(Finding(Kind.WARNING, "RotationIgnored", message, annotation.file))
    return 1


def _repair(raw: RawObject, file: str, width: int, height: int, first_pixel: int) -> tuple[Box | None, list[Finding]]:
    findings: list[Finding] = []

    def lossy(reason: str, message: str) -> None:
        findings.append(Finding(Kind.LOSSY, reason, raw.said(message), file, raw.line or None))

    x1, y1, x2, y2 = raw.box
    if x2 < x1:
        lossy("BoxInverted", f"xmax {x2:g} < xmin {x1:g}; swapped")
        x1, x2 = x2, x1
    if y2 < y1:
        lossy("BoxInverted", f"ymax {y2:g} < ymin {y1:g}; swapped")
        y1, y2 = y2, y1
    if x2 == x1 or y2 == y1:
        lossy("BoxEmpty", f"the box of {raw.label!r} has no area; dropped")
        return None, findings
    x1, y1 = x1 - first_pixel, y1 - first_pixel
    clipped = (max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height)))
    if clipped == (x1, y1, x2, y2):
        return clipped, findings
    area = max(clipped[2] - clipped[0], 0) * max(clipped[3] - clipped[1], 0)
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1] or area < LEAST_LEFT * (x2 - x1) * (y2 - y1):
        lossy("BoxOutside", f"the box of {raw.label!r} lies outside the image ({width}x{height}); dropped")
        return None, findings
    outside = max(-x1, -y1, x2 - width, y2 - height)
    message = f"the box of {raw.label!r} leaves the image ({width}x{height}) by {outside:g} pixels; clipped"
    kind = Kind.REPAIRED if outside <= ROUNDING else Kind.LOSSY
    findings.append(Finding(kind, "BoxClipped", raw.said(message), file, raw.line or None))
    return clipped, findings
