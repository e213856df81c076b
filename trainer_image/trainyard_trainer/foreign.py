"""Datasets of other formats, to be written as Pascal VOC: what `coco` and `yolo` read, and how it becomes a zip. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from trainyard_trainer import voc_boxes, voc_image
from trainyard_trainer.errors import BadData
from trainyard_trainer.records import Finding, Kind, Progress, silent
from trainyard_trainer.voc_image import EXTENSIONS
from trainyard_trainer.voc_source import Source
from trainyard_trainer.voc_write import ZipWriter
from trainyard_trainer.voc_xml import Annotation, Problem, RawObject

MAX_PIXELS = 1_000_000_000
LISTS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
"""What the sides are called in folders and file names, and the list that they become."""


@dataclass(frozen=True)
class ForeignImage:
    """An image with its objects: boxes in pixels, or in shares of the image where `shares` is set. `side` names a list, or is empty.

    `place` is the file (and line) that the objects are from; `objects=None`: nobody looked at it.
    """

    image: str
    objects: tuple[RawObject, ...] | None
    place: str
    side: str = ""
    shares: bool = False


@dataclass(frozen=True)
class Foreign:
    format: str
    images: tuple[ForeignImage, ...]
    labels: tuple[str, ...]
    findings: tuple[Finding, ...] = field(default=())


def write(
    source: Source, data: Foreign, writer: ZipWriter, max_pixels: int = MAX_PIXELS, progress: Progress = silent
) -> list[Finding]:
    """All images that can be read, with their annotations and lists. Returns what was repaired or left out, with file and line."""
    findings: list[Finding] = list(data.findings)
    stems = _stems([image.image for image in data.images], [image.side for image in data.images])
    lists: dict[str, list[str]] = {}
    for index, (image, stem) in enumerate(zip(data.images, stems, strict=True)):
        progress(index + 1, len(data.images))
        picture = source.read(image.image)
        try:
            facts = voc_image.facts(picture, max_pixels)
        except Problem as problem:
            findings.append(Finding(Kind.LOSSY, problem.reason, f"{problem}; left out", image.image))
            continue
        # Boxes of other formats are those of the picture as it is shown, so that its EXIF rotation holds.
        size = (facts.height, facts.width) if facts.rotates else (facts.width, facts.height)
        objects = None
        if image.objects is not None:
            raw = _in_pixels(image.objects, size) if image.shares else image.objects
            objects, _, found = voc_boxes.place(Annotation(image.place, raw, size), facts, 0)
            findings.extend(f for f in found if f.kind is not Kind.WARNING)
        writer.add(stem, PurePosixPath(image.image).suffix.lower(), picture, size, objects)
        if image.side:
            lists.setdefault(image.side, []).append(stem)
    for name, lines in sorted(lists.items()):
        writer.add_list(name, lines)
    if not writer.images:
        first = f"; the first: {findings[0]}" if findings else ""
        raise BadData(f"{source.uri} has no image that can be read{first}.")
    return findings


def pictures(source: Source) -> dict[str, str]:
    """Every way in which a file may name a picture (its end after any `/`), in lower case, to its member; the longest names win."""
    found: dict[str, str] = {}
    names = [m.name for m in source.members() if PurePosixPath(m.name).suffix.lower() in EXTENSIONS]
    ambiguous = set[str]()
    for name in names:
        parts = name.lower().split("/")
        for start in range(len(parts)):
            end = "/".join(parts[start:])
            if found.setdefault(end, name) != name:
                ambiguous.add(end)
    return {end: name for end, name in found.items() if end not in ambiguous}


def side_of(path: str) -> str:
    """The list that a path speaks of (`train/images/a.jpg`, `instances_val2017.json`), or nothing."""
    for part in reversed(path.lower().replace("-", "_").split("/")):
        for word in (part, *part.rsplit(".", 1)[0].split("_")):
            if (name := LISTS.get(word.rstrip("0123456789"))) is not None:
                return name
    return ""


def _in_pixels(objects: Sequence[RawObject], size: tuple[int, int]) -> tuple[RawObject, ...]:
    width, height = size
    return tuple(
        RawObject(
            o.label,
            (o.box[0] * width, o.box[1] * height, o.box[2] * width, o.box[3] * height),
            o.difficult,
            o.truncated,
            o.occluded,
            o.line,
        )
        for o in objects
    )


def _stems(names: Sequence[str], sides: Sequence[str]) -> list[str]:
    """File names without extension; where several are equal, the side or the folder before it tells them apart."""
    own = [PurePosixPath(name).stem for name in names]
    count: Mapping[str, int] = _count(own)
    used = set[str]()
    stems = []
    for name, stem, side in zip(names, own, sides, strict=True):
        unique = stem
        if count[stem.casefold()] > 1:
            unique = f"{side or PurePosixPath(name).parent.name or 'top'}_{stem}"
        while unique.casefold() in used:
            unique += "_"
        used.add(unique.casefold())
        stems.append(unique)
    return stems


def _count(names: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in names:
        found[name.casefold()] = found.get(name.casefold(), 0) + 1
    return found
