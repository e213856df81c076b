"""Annotations in JSON with the shape of Pascal VOC, and the recognition of formats that are something else."""

from __future__ import annotations

import json
from typing import Any

from trainyard_trainer.records import Finding, Kind
from trainyard_trainer.voc_xml import (
    MAX_BYTES,
    Annotation,
    Problem,
    RawObject,
    check_normalised,
    clean_label,
    error,
    flag,
    number,
    outline,
)


def parse(data: bytes, file: str) -> Annotation:
    """As `voc_xml.parse`, for `{"annotation": {"size": {...}, "object": [{"name": ..., "bndbox": {...}}]}}`."""
    try:
        tree = _tree(data)
    except Problem as problem:
        return Annotation(file, findings=(error(problem, file),))
    objects: list[RawObject] = []
    findings: list[Finding] = []
    for index, item in enumerate(_items(tree)):
        try:
            raw, guessed = _object(item, index)
        except Problem as problem:
            findings.append(error(Problem(problem.reason, f"object {index}: {problem}"), file))
            continue
        objects.append(raw)
        if guessed:
            message = raw.said("has a polygon and no bndbox; its outline was taken")
            findings.append(Finding(Kind.LOSSY, "PolygonWithoutBox", message, file))
    return Annotation(file, tuple(objects), _size(tree), 0, str(tree.get("filename") or ""), tuple(findings))


def is_coco(data: bytes) -> bool:
    """Whether this is a COCO file: one JSON object for all images."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(tree, dict) and {"images", "annotations"} <= tree.keys()


def _tree(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_BYTES:
        raise Problem("FileTooLarge", f"{len(data):,} bytes; an annotation has at most {MAX_BYTES:,}")
    try:
        tree = json.loads(data)
    except json.JSONDecodeError as problem:
        raise Problem("JSONInvalid", f"is no valid JSON: {problem.msg}", problem.lineno) from None
    except (UnicodeDecodeError, RecursionError) as problem:
        raise Problem("JSONInvalid", f"is no valid JSON: {problem}") from None
    if isinstance(tree, dict) and isinstance(tree.get("annotation"), dict):
        tree = tree["annotation"]
    if not isinstance(tree, dict) or not ({"object", "objects", "size"} & tree.keys()):
        raise Problem("NotVOC", "is JSON without the fields of a Pascal VOC annotation (object, size)")
    return tree


def _items(tree: dict[str, Any]) -> list[Any]:
    found = tree.get("object", tree.get("objects")) or []
    return found if isinstance(found, list) else [found]


def _object(item: Any, index: int) -> tuple[RawObject, bool]:
    if not isinstance(item, dict):
        raise Problem("JSONInvalid", "is no JSON object")
    name = item.get("name")
    label = clean_label(name if isinstance(name, str) else None, None)
    box = item.get("bndbox")
    if isinstance(box, dict):
        x1, y1, x2, y2 = (number(_text(box.get(key)), key, None) for key in ("xmin", "ymin", "xmax", "ymax"))
        corners = (x1, y1, x2, y2)
        check_normalised(corners, None)
    else:
        corners = outline(_polygon(item.get("polygon")))
    flags = (flag(_text(item.get(key))) for key in ("difficult", "truncated", "occluded"))
    return RawObject(label, corners, *flags, line=0, index=index), not isinstance(box, dict)


def _polygon(points: Any) -> list[tuple[float, float]]:
    try:
        found = [
            (number(_text(p["x"]), "x", None), number(_text(p["y"]), "y", None))
            if isinstance(p, dict)
            else (number(_text(p[0]), "x", None), number(_text(p[1]), "y", None))
            for p in points or ()
        ]
    except (KeyError, IndexError, TypeError):
        found = []
    if len(found) < 3:
        raise Problem("BoxMissing", "has no bndbox")
    return found


def _text(value: Any) -> str:
    """Numbers as text; `number` understands both. Booleans are flags."""
    return "" if value is None else str(value)


def _size(tree: dict[str, Any]) -> tuple[int, int] | None:
    size = tree.get("size")
    try:
        width, height = int(float(size["width"])), int(float(size["height"]))  # type: ignore[index]
    except (TypeError, KeyError, ValueError, OverflowError):
        return None
    return (width, height) if width > 0 and height > 0 else None
