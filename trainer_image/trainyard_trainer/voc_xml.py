"""One annotation file: bytes to raw objects, with the line of each. Nothing here knows the image.

Entities are never resolved and any DOCTYPE is refused; errors carry file and line.
"""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass

from lxml import etree  # pyright: ignore[reportAttributeAccessIssue]

from trainyard_trainer.records import Box, Finding, Kind

MAX_BYTES = 4 << 20
MAX_LABEL = 128
_POINT = re.compile(r"^([xy])(\d+)$")


@dataclass(frozen=True, slots=True)
class RawObject:
    """An object as it is written: corners in the file's own coordinates, perhaps inverted or outside. `index` is its place in the file's
    list where there are no lines (JSON)."""

    label: str
    box: Box
    difficult: bool
    truncated: bool
    occluded: bool
    line: int
    index: int | None = None

    def said(self, message: str) -> str:
        """What is told of it, with its index where it has one."""
        return message if self.index is None else f"object {self.index}: {message}"


@dataclass(frozen=True, slots=True)
class Annotation:
    """A file's content. `size` is the width and height that it claims, `filename` the image that it names, `origin` the number of the
    first pixel where the file says it (`<boxOrigin>`, which `voc_write` writes)."""

    file: str
    objects: tuple[RawObject, ...] = ()
    size: tuple[int, int] | None = None
    size_line: int = 0
    filename: str = ""
    findings: tuple[Finding, ...] = ()
    origin: int | None = None


class Problem(Exception):
    """An error in the file being parsed; caught by `parse`, which knows the file."""

    def __init__(self, reason: str, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.reason, self.line = reason, line


def parse(data: bytes, file: str) -> Annotation:
    """The annotation; what is wrong with it is among its `findings` (kind ERROR), one per object at most."""
    try:
        root = _root(data)
    except Problem as problem:
        return Annotation(file, findings=(error(problem, file),))
    objects: list[RawObject] = []
    findings: list[Finding] = []
    for element in root.iterchildren("object"):
        try:
            raw, guessed = _object(element)
        except Problem as problem:
            findings.append(error(problem, file))
            continue
        objects.append(raw)
        if guessed:
            findings.append(
                Finding(
                    Kind.LOSSY,
                    "PolygonWithoutBox",
                    "has a polygon and no bndbox; its outline was taken",
                    file,
                    raw.line,
                )
            )
    size, line = _size(root)
    origin = {"0": 0, "1": 1}.get((root.findtext("boxOrigin") or "").strip())
    name = (root.findtext("filename") or "").strip()
    return Annotation(file, tuple(objects), size, line, name, tuple(findings), origin)


def error(problem: Problem, file: str) -> Finding:
    return Finding(Kind.ERROR, problem.reason, str(problem), file, problem.line)


def clean_label(text: str | None, line: int | None) -> str:
    """Stripped and in NFC. Raises Problem for an empty one, control characters, or more than 128 characters."""
    label = unicodedata.normalize("NFC", (text or "").strip())
    if not label:
        raise Problem("LabelMissing", "an object without a <name>", line)
    plain = label.isascii() and label.isprintable()
    if not plain and any(unicodedata.category(character) in ("Cc", "Cs", "Co", "Cn") for character in label):
        raise Problem("LabelUnreadable", f"the label {label!r} has control characters", line)
    if len(label) > MAX_LABEL:
        raise Problem(
            "LabelTooLong",
            f"the label {label[:40]!r}... has {len(label)} characters, at most {MAX_LABEL} are allowed",
            line,
        )
    return label


def number(text: str | None, name: str, line: int | None) -> float:
    """A coordinate: blanks around it and a decimal comma are understood. Raises Problem when it is not finite or no number."""
    stripped = (text or "").strip()
    try:
        value = float(stripped)
    except ValueError:
        try:
            value = float(stripped.replace(",", ".", 1))
        except ValueError:
            raise Problem("CoordinateUnreadable", f"{name} is {stripped!r}, not a number", line) from None
    if not math.isfinite(value):
        raise Problem("CoordinateNotFinite", f"{name} is {stripped}, not a finite number", line)
    return value


def check_normalised(box: Box, line: int | None) -> None:
    """Raises Problem for a box whose coordinates are shares of the image."""
    if max(box) <= 1 and min(box) >= 0 and any(value != int(value) for value in box):
        raise Problem(
            "BoxNormalised",
            f"the box {tuple(round(v, 4) for v in box)} is in shares of the image (0 to 1); Pascal VOC boxes are pixels:"
            " multiply by width and height",
            line,
        )


def flag(text: str | None) -> bool:
    return text is not None and text.strip().lower() in ("1", "true", "yes", "1.0")


def outline(points: list[tuple[float, float]]) -> Box:
    """The box around a polygon's points."""
    xs, ys = [p[0] for p in points], [p[1] for p in points]
    return min(xs), min(ys), max(xs), max(ys)


def _root(data: bytes) -> etree._Element:
    if len(data) > MAX_BYTES:
        raise Problem("FileTooLarge", f"{len(data):,} bytes; an annotation has at most {MAX_BYTES:,}")
    if not data.strip(b"\0 \r\n\t"):
        raise Problem("XMLInvalid", "the file is empty")
    parser = etree.XMLParser(resolve_entities=False, no_network=True, load_dtd=False, huge_tree=False)
    try:
        root = etree.fromstring(data, parser)
    except etree.XMLSyntaxError as problem:
        line = problem.lineno or None
        if b"<!DOCTYPE" in data or b"<!ENTITY" in data:
            raise Problem("DoctypeRefused", "has a DOCTYPE or entities; remove them", _line_of(data, b"<!")) from None
        # The parser repeats the place that is said in front.
        text = re.sub(r", line \d+, column \d+$", "", " ".join(str(problem.msg or problem).split()).rstrip("."))
        raise Problem("XMLInvalid", f"is no valid XML: {text}", line) from None
    if root.getroottree().docinfo.doctype or root.getroottree().docinfo.internalDTD is not None:
        raise Problem("DoctypeRefused", "has a DOCTYPE; remove it", _line_of(data, b"<!DOCTYPE"))
    if root.tag != "annotation":
        raise Problem(
            "NotVOC", f"begins with <{root.tag}>; a Pascal VOC annotation begins with <annotation>", root.sourceline
        )
    return root


def _line_of(data: bytes, what: bytes) -> int:
    return data.count(b"\n", 0, max(data.find(what), 0)) + 1


def _object(element: etree._Element) -> tuple[RawObject, bool]:
    """The object, and whether its box was guessed from a polygon. Boxes of parts are children of <part> and not looked at."""
    line = element.sourceline
    # One pass over the children: `find` for each of them is half of the time that a dataset takes to read.
    parts = _children(element)
    bndbox = parts.get("bndbox")
    label = clean_label(_text(parts, "name"), line)
    if bndbox is not None:
        line = bndbox.sourceline
        corners = _children(bndbox)
        x1, y1, x2, y2 = (_coordinate(corners, name, line) for name in ("xmin", "ymin", "xmax", "ymax"))
        box = (x1, y1, x2, y2)
        check_normalised(box, line)
    else:
        box = outline(_polygon(parts.get("polygon"), line))
    difficult, truncated, occluded = (flag(_text(parts, name)) for name in ("difficult", "truncated", "occluded"))
    return RawObject(label, box, difficult, truncated, occluded, int(line or 0)), bndbox is None


def _children(element: etree._Element) -> dict[str, etree._Element]:
    """The first child of each name."""
    found: dict[str, etree._Element] = {}
    for child in element:
        found.setdefault(child.tag, child)
    return found


def _text(parts: dict[str, etree._Element], name: str) -> str | None:
    element = parts.get(name)
    return None if element is None else element.text


def _coordinate(corners: dict[str, etree._Element], name: str, line: int | None) -> float:
    element = corners.get(name)
    if element is None:
        raise Problem("CoordinateMissing", f"the box has no <{name}>", line)
    text = element.text
    try:
        value = float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return number(text, name, element.sourceline)
    return value if math.isfinite(value) else number(text, name, element.sourceline)


def _polygon(polygon: etree._Element | None, line: int | None) -> list[tuple[float, float]]:
    """Points written as <pt><x/><y/></pt> (LabelMe) or <x1/><y1/><x2/><y2/>..."""
    if polygon is None:
        raise Problem("BoxMissing", "an object without <bndbox>", line)
    points = [
        (number(pt.findtext("x"), "x", pt.sourceline), number(pt.findtext("y"), "y", pt.sourceline))
        for pt in polygon.iterchildren("pt")
    ]
    if not points:
        numbered: dict[str, dict[str, float]] = {}
        for child in polygon.iterchildren():
            if isinstance(child.tag, str) and (match := _POINT.match(child.tag)):
                numbered.setdefault(match[2], {})[match[1]] = number(child.text, child.tag, child.sourceline)
        points = [(p["x"], p["y"]) for p in numbered.values() if len(p) == 2]
    if len(points) < 3:
        raise Problem("BoxMissing", f"an object without <bndbox>, and its polygon has {len(points)} points", line)
    return points


def _size(root: etree._Element) -> tuple[tuple[int, int] | None, int]:
    element = root.find("size")
    if element is None:
        return None, 0
    try:
        width, height = (int(float((element.findtext(name) or "").strip())) for name in ("width", "height"))
    except (ValueError, OverflowError):
        return None, int(element.sourceline or 0)
    return ((width, height) if width > 0 and height > 0 else None), int(element.sourceline or 0)
