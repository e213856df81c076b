"""COCO's JSON (`images`, `annotations`, `categories`), read into `foreign`. No torch. Format: https://cocodataset.org/#format-data"""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any

from trainyard_trainer.errors import BadData
from trainyard_trainer.foreign import Foreign, ForeignImage, pictures, side_of
from trainyard_trainer.records import Box, Finding, Kind
from trainyard_trainer.voc_json import is_coco
from trainyard_trainer.voc_source import Source
from trainyard_trainer.voc_xml import Problem, RawObject, clean_label, number, outline

MAX_BYTES = 1 << 30


def find(source: Source) -> list[str]:
    """Members that are COCO files."""
    return [m.name for m in source.members() if m.name.lower().endswith(".json") and _is(source, m.name, m.size)]


def read(source: Source) -> Foreign:
    """All COCO files of the source together: usually one a side. Raises BadData for what cannot be understood, with file and entry."""
    names = find(source)
    if not names:
        raise BadData(f"{source.uri} has no COCO file: a JSON object with images, annotations and categories.")
    by_end = pictures(source)
    images: dict[str, ForeignImage] = {}
    findings: list[Finding] = []
    labels: dict[str, None] = {}
    for name in names:
        own, found, known = _file(name, json.loads(source.read(name)), by_end)
        findings.extend(found)
        labels |= dict.fromkeys(known)
        for image in own:
            if (before := images.get(image.image)) is not None and before.objects and image.objects:
                images[image.image] = ForeignImage(
                    image.image, before.objects + image.objects, image.place, before.side or image.side
                )
            elif before is None or image.objects:
                images[image.image] = image
    return Foreign("COCO", tuple(images[key] for key in sorted(images)), tuple(labels), tuple(findings))


def _is(source: Source, name: str, size: int) -> bool:
    # Files for key points or captions have the same three fields; a file without any box is found out later.
    return size <= MAX_BYTES and is_coco(source.read(name))


def _file(
    name: str, tree: dict[str, Any], by_end: dict[str, str]
) -> tuple[list[ForeignImage], list[Finding], list[str]]:
    findings: list[Finding] = []
    categories = _categories(name, tree.get("categories"))
    objects: dict[Any, list[RawObject]] = {}
    for index, item in enumerate(_list(name, tree, "annotations")):
        try:
            objects.setdefault(item["image_id"], []).append(_object(item, categories))
        except Problem as problem:
            findings.append(Finding(Kind.LOSSY, problem.reason, f"annotation {index}: {problem}; left out", name))
        except (KeyError, TypeError) as error:
            message = f"annotation {index} has no {error}; left out"
            findings.append(Finding(Kind.LOSSY, "AnnotationUnreadable", message, name))
    side = side_of(PurePosixPath(name).name)
    images = []
    for index, item in enumerate(_list(name, tree, "images")):
        if not (
            isinstance(item, dict) and isinstance(item.get("id"), int | str) and isinstance(item.get("file_name"), str)
        ):
            findings.append(
                Finding(Kind.LOSSY, "AnnotationUnreadable", f"image {index} has no id or file_name; left out", name)
            )
            continue
        member = _member(item["file_name"], by_end)
        if member is None:
            message = f"names {item['file_name']!r} (image {index}), and there is no such picture; left out"
            findings.append(Finding(Kind.LOSSY, "ImageMissing", message, name))
            continue
        own = tuple(objects.get(item["id"], ()))
        images.append(ForeignImage(member, own, name, side or side_of(str(PurePosixPath(member).parent))))
    return images, findings, list(categories.values())


def _list(name: str, tree: dict[str, Any], key: str) -> list[Any]:
    found = tree.get(key)
    if not isinstance(found, list):
        raise BadData(f"{name}: {key} is no list; this is no COCO file that can be converted.")
    return found


def _categories(name: str, found: Any) -> dict[Any, str]:
    try:
        return {item["id"]: clean_label(item["name"], None) for item in found}
    except (KeyError, TypeError, AttributeError) as error:
        raise BadData(f"{name}: categories need an id and a name each ({error!r}).") from error
    except Problem as problem:
        raise BadData(f"{name}: categories: {problem}.") from problem


def _object(item: dict[str, Any], categories: dict[Any, str]) -> RawObject:
    """A box is x, y, width, height, counted from 0; crowds become difficult ones, which count neither for nor against."""
    label = categories.get(item["category_id"])
    if label is None:
        raise Problem("LabelMissing", f"there is no category {item['category_id']!r}")
    return RawObject(label, _box(item), bool(item.get("iscrowd")), False, False, 0)


def _box(item: dict[str, Any]) -> Box:
    box = item.get("bbox")
    if isinstance(box, list) and len(box) == 4:
        x, y, w, h = (number(str(value), "bbox", None) for value in box)
        return x, y, x + w, y + h
    parts = item.get("segmentation")
    if isinstance(parts, list) and parts and all(isinstance(part, list) and len(part) >= 6 for part in parts):
        values = [[number(str(value), "segmentation", None) for value in part] for part in parts]
        return outline([(x, y) for part in values for x, y in zip(part[::2], part[1::2], strict=False)])
    raise Problem("BoxMissing", "there is no bbox of four numbers and no polygon")


def _member(file_name: str, by_end: dict[str, str]) -> str | None:
    path = file_name.replace("\\", "/").lower()
    return by_end.get(path) or by_end.get(path.rsplit("/", 1)[-1])
