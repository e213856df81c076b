"""Which files of a source are what: finds `Annotations` and `JPEGImages`, pairs each image with its annotation, reads the lists.

Everything here works on names alone, except that a file is looked into to say which other format it is.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from trainyard_trainer.errors import BadData
from trainyard_trainer.records import Finding, Kind
from trainyard_trainer.voc_image import EXTENSIONS
from trainyard_trainer.voc_json import is_coco
from trainyard_trainer.voc_source import Source

ANNOTATION_EXTENSIONS = frozenset({".xml", ".json"})
LAYOUT = "a dataset is a folder with Annotations/*.xml and JPEGImages/*.jpg (zip these two folders: zip -r data.zip Annotations JPEGImages)"
_IMAGE_FOLDERS = ("jpegimages", "images", "pngimages")


@dataclass(frozen=True, slots=True)
class Pair:
    """An image and its annotation; one of the two may be missing. `stem` names both."""

    stem: str
    image: str | None
    annotation: str | None


@dataclass(frozen=True)
class Layout:
    """`root` ends in `/` or is empty; `lists` maps the name of a list under ImageSets/Main to its member."""

    root: str
    pairs: tuple[Pair, ...]
    lists: Mapping[str, str] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()


def find(source: Source) -> Layout:
    """Raises BadData when there is no such dataset, or more than one, and says what was found instead."""
    names = [member.name for member in source.members()]
    root = _root(source, names)
    annotations: list[str] = []
    images: list[str] = []
    lists: dict[str, str] = {}
    for name in names:
        if not name.startswith(root):
            continue
        path = PurePosixPath(name[len(root) :])
        top, extension = path.parts[0].lower(), path.suffix.lower()
        if top == "annotations" and extension in ANNOTATION_EXTENSIONS:
            annotations.append(name)
        elif top in _IMAGE_FOLDERS and len(path.parts) > 1:
            images.append(name)
        elif len(path.parts) == 3 and path.parts[:2] == ("ImageSets", "Main") and extension == ".txt":
            lists[path.stem] = name
    if not images:
        raise BadData(f"{source.uri} has annotations but no images: {LAYOUT}.")
    pairs, findings = _pairs(source.uri, annotations, images)
    return Layout(root, pairs, lists, tuple(findings))


def list_names(data: bytes) -> list[str]:
    """The first word of every line of a list of images, blank lines and comments aside."""
    lines = data.decode("utf-8-sig", "replace").splitlines()
    return [line.split()[0] for line in lines if line.strip() and not line.lstrip().startswith("#")]


def tagging_answers(data: bytes) -> dict[str, int] | None:
    """A tagging list (`name 1`, `name -1`, `name 0` a line) as a map, or None when it is a plain list of names."""
    answers: dict[str, int] = {}
    for line in data.decode("utf-8-sig", "replace").splitlines():
        words = line.split()
        if not words:
            continue
        if len(words) != 2 or words[1] not in ("1", "0", "-1", "+1"):
            return None
        answers[words[0]] = int(words[1])
    return answers or None


def _root(source: Source, names: Iterable[str]) -> str:
    """The folder around `Annotations`."""
    names = list(names)
    roots: Counter[str] = Counter()
    for name in names:
        parts = name.split("/")
        for depth, part in enumerate(parts[:-1]):
            if part.lower() == "annotations" and PurePosixPath(parts[-1]).suffix.lower() in ANNOTATION_EXTENSIONS:
                roots["/".join(parts[:depth]) + "/" if depth else ""] += 1
                break
    _refuse_other_formats(source, names, bool(roots))
    if not roots:
        raise BadData(f"{source.uri} has no Annotations folder: {LAYOUT}. Found: {_summary(names)}.")
    if len(roots) > 1:
        found = ", ".join(f"{root or '(top)'}Annotations ({count} files)" for root, count in sorted(roots.items())[:5])
        raise BadData(
            f"{source.uri} holds {len(roots)} datasets: {found}. Zip each one by itself, from inside its folder, and name them"
            " as several dataset.sources."
        )
    return next(iter(roots))


def _refuse_other_formats(source: Source, names: list[str], has_annotations: bool) -> None:
    lowered = [name.lower() for name in names]
    for name in names:
        if not name.lower().endswith(".json"):
            continue
        few = sum(other.endswith(".json") for other in lowered) <= 20
        if (few or "instances" in name.lower()) and is_coco(source.read(name)):
            raise BadData(
                f"{source.uri} is a COCO dataset ({name}); convert it: trainyard dataset convert {source.uri} --to voc.zip."
            )
    if has_annotations:
        return
    has_names = any(name.endswith((".yaml", ".yml", "classes.txt", "obj.names")) for name in lowered)
    texts = sum(name.endswith(".txt") and "/labels/" in f"/{name}" for name in lowered)
    if texts and (has_names or texts > 1):
        raise BadData(
            f"{source.uri} is a YOLO dataset ({texts} files in labels/); convert it:"
            f" trainyard dataset convert {source.uri} --to voc.zip."
        )
    for name in names:
        if name.lower().endswith((".csv", ".tsv")):
            first = source.read(name)[:200].decode("utf-8-sig", "replace").splitlines()[:1]
            raise BadData(
                f"{source.uri} is annotated in a CSV file ({name}, which begins with {' '.join(first)[:100]!r}). CSV is not read:"
                f" export as Pascal VOC, or as COCO or YOLO, which trainyard dataset convert turns into Pascal VOC. {LAYOUT}."
            )


def _summary(names: list[str]) -> str:
    """What is there instead: how many files of which kind in which folder."""
    if not names:
        return "nothing"
    kinds = Counter(
        (str(PurePosixPath(name).parent), PurePosixPath(name).suffix.lower() or "no extension") for name in names
    )
    shown = [
        f"{count} x {kind} in {'the top folder' if folder == '.' else folder}"
        for (folder, kind), count in kinds.most_common(4)
    ]
    return ", ".join(shown) + (", ..." if len(kinds) > 4 else "")


def _pairs(uri: str, annotations: list[str], images: list[str]) -> tuple[tuple[Pair, ...], list[Finding]]:
    """Pairs by stem: exactly, then without regard to case. What stays alone is a pair with one side missing."""
    by_stem = _unique_stems(uri, annotations, "annotation")
    findings: list[Finding] = []
    pictures = _unique_stems(uri, [name for name in images if _may_be_image(name, by_stem)], "image")
    folded = defaultdict(list)
    for stem in by_stem:
        if stem not in pictures:
            folded[stem.casefold()].append(stem)
    pairs = []
    for stem, image in pictures.items():
        annotation = by_stem.pop(stem, None)
        if annotation is None and len(candidates := folded.get(stem.casefold(), ())) == 1 and candidates[0] in by_stem:
            annotation = by_stem.pop(candidates[0])
            findings.append(
                Finding(Kind.REPAIRED, "NameCaseDiffers", f"belongs to {image}, whose name differs in case", annotation)
            )
        pairs.append(Pair(stem, image, annotation))
    pairs.extend(Pair(stem, None, annotation) for stem, annotation in by_stem.items())
    return tuple(sorted(pairs, key=lambda pair: pair.stem)), findings


def _may_be_image(name: str, annotations: Mapping[str, str]) -> bool:
    """By its extension; whatever has an annotation is taken for one too, and its first bytes decide."""
    path = PurePosixPath(name)
    return path.suffix.lower() in EXTENSIONS or path.stem in annotations


def _unique_stems(uri: str, names: list[str], what: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in names:
        stem = PurePosixPath(name).stem
        if stem in found:
            raise BadData(f"{uri} has two {what}s named {stem!r}: {found[stem]} and {name}; rename or remove one.")
        found[stem] = name
    return found
