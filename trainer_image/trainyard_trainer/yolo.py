"""YOLO's text files (`class x y width height` in shares of the image, one object a line), read into `foreign`. No torch.

Class names come from the `names` of a YAML file, or from `classes.txt` or `obj.names`. A line with more numbers is a polygon.
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import yaml

from trainyard_trainer.errors import BadData
from trainyard_trainer.foreign import Foreign, ForeignImage, side_of
from trainyard_trainer.records import Box, Finding, Kind
from trainyard_trainer.voc_image import EXTENSIONS
from trainyard_trainer.voc_source import Source
from trainyard_trainer.voc_xml import Problem, RawObject, clean_label, number, outline

NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels")
MAX_BYTES = 4 << 20


def find(source: Source) -> list[str]:
    """Members that say what the classes are called."""
    members = [m.name for m in source.members() if m.size <= MAX_BYTES]
    yamls = [name for name in members if PurePosixPath(name).suffix.lower() in (".yaml", ".yml")]
    texts = [name for name in members if PurePosixPath(name).name.lower() in NAME_FILES]
    return [name for name in yamls if _names_of_yaml(source.read(name))] + texts


def read(source: Source) -> Foreign:
    """All images that lie beside labels, in `images` beside `labels`, or in the same folder. Raises BadData where names are missing."""
    known = find(source)
    if not known:
        raise BadData(
            f"{source.uri} does not say what its classes are called: add data.yaml with names, or classes.txt with one name a line."
        )
    labels = _labels(source, known[0])
    texts = {
        m.name: m.size
        for m in source.members()
        if m.name.lower().endswith(".txt") and PurePosixPath(m.name).name.lower() not in NAME_FILES
    }
    images: list[ForeignImage] = []
    findings: list[Finding] = []
    used = set[str]()
    for member in source.members():
        if PurePosixPath(member.name).suffix.lower() not in EXTENSIONS:
            continue
        text = next((name for name in _label_files(member.name) if name in texts), None)
        objects = None
        if text is not None:
            used.add(text)
            objects, found = _objects(source.read(text) if texts[text] <= MAX_BYTES else b"", text, labels)
            findings.extend(found)
        side = side_of(str(PurePosixPath(member.name).parent))
        images.append(ForeignImage(member.name, objects, text or "", side, shares=True))
    if not used:
        raise BadData(
            f"{source.uri}: no picture has a text file of its name in labels/ or beside it; a YOLO dataset has images/a.jpg and"
            " labels/a.txt."
        )
    for name in sorted(texts.keys() - used):
        # Lists of images and read-me files are text, too; only what lies in labels/ is one of a missing picture.
        if "labels" in PurePosixPath(name.lower()).parts:
            findings.append(Finding(Kind.LOSSY, "ImageMissing", "there is no image of this name; skipped", name))
    return Foreign("YOLO", tuple(sorted(images, key=lambda image: image.image)), labels, tuple(findings))


def _label_files(image: str) -> list[str]:
    """Where the labels of an image may lie, as written."""
    path = PurePosixPath(image)
    parts, found = path.parts, [str(path.with_suffix(".txt"))]
    for at in reversed(range(len(parts) - 1)):
        if parts[at].lower() in ("images", "jpegimages"):
            found.insert(0, str(PurePosixPath(*parts[:at], "labels", *parts[at + 1 :]).with_suffix(".txt")))
    return found


def _labels(source: Source, name: str) -> tuple[str, ...]:
    data = source.read(name)
    names = _names_of_yaml(data) if PurePosixPath(name).suffix.lower() in (".yaml", ".yml") else _lines(data)
    try:
        return tuple(clean_label(str(label), None) for label in names)
    except Problem as problem:
        raise BadData(f"{name}: {problem}; correct the names of the classes.") from problem


def _names_of_yaml(data: bytes) -> list[str]:
    """`names` as a list or a map from numbers; empty when there is none."""
    try:
        tree: Any = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError):
        return []
    names = tree.get("names") if isinstance(tree, dict) else None
    if isinstance(names, dict) and all(isinstance(key, int) and 0 <= key < 100_000 for key in names):
        names = [names.get(key, f"class {key}") for key in range(max(names, default=-1) + 1)]
    # Nothing nested is turned into text: aliases can make that grow without end.
    if not isinstance(names, list) or not all(isinstance(name, str | int | float) for name in names):
        return []
    return [str(name) for name in names]


def _lines(data: bytes) -> list[str]:
    return [line.strip() for line in data.decode("utf-8-sig", "replace").splitlines() if line.strip()]


def _objects(data: bytes, name: str, labels: tuple[str, ...]) -> tuple[tuple[RawObject, ...], list[Finding]]:
    objects: list[RawObject] = []
    findings: list[Finding] = []
    for line, text in enumerate(data.decode("utf-8-sig", "replace").splitlines(), 1):
        words = text.split()
        if not words:
            continue
        try:
            index = number(words[0], "the class", line)
            if index != int(index) or not 0 <= index < len(labels):
                raise Problem("LabelMissing", f"class {words[0]} has no name; there are {len(labels)}", line)
            box = _box([number(word, f"number {i}", line) for i, word in enumerate(words[1:], 1)], line)
            objects.append(RawObject(labels[int(index)], box, False, False, False, line))
        except Problem as problem:
            findings.append(Finding(Kind.LOSSY, problem.reason, f"{problem}; left out", name, line))
    return tuple(objects), findings


def _box(values: list[float], line: int) -> Box:
    if len(values) in (4, 5):
        x, y, w, h = values[:4]
        return x - w / 2, y - h / 2, x + w / 2, y + h / 2
    if len(values) >= 6 and len(values) % 2 == 0:
        return outline(list(zip(values[::2], values[1::2], strict=True)))
    raise Problem("CoordinateMissing", f"{len(values)} numbers after the class; a box has 4, a polygon 6 or more", line)
