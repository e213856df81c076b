"""New datasets from old ones: several as one, at another size, with the sides written down. No torch.

All take a dataset that was read (so its repairs are made) and write through `voc_write`. What this system does not learn from (parts,
polygons, poses) is not carried over.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from enum import StrEnum
from itertools import islice
from pathlib import PurePosixPath
from typing import TypeVar

import numpy as np
from PIL import Image
from trainyard_api.dataset import Resize

from trainyard_trainer import voc
from trainyard_trainer.augment import fit
from trainyard_trainer.errors import BadData
from trainyard_trainer.records import Object, Progress, Record, Side, Sides, silent
from trainyard_trainer.voc_image import decode
from trainyard_trainer.voc_layout import list_names, tagging_answers
from trainyard_trainer.voc_write import ZipWriter

T = TypeVar("T")
A = TypeVar("A")

PAD = 114
LEAST_VISIBLE = 0.2
"""A box of which less than this share stays in the picture is dropped, as in training."""
LIST_NAMES = {Side.TRAIN: "train", Side.VALIDATION: "val", Side.TEST: "test"}
LOSSLESS = frozenset({".png", ".bmp", ".tif", ".tiff", ".gif"})


class Kind(StrEnum):
    """The kinds of a training's `dataset.resize`, and `Shrink`: the long side at most the size, nothing added, cut or enlarged."""

    LETTERBOX = "Letterbox"
    STRETCH = "Stretch"
    CENTER_CROP = "CenterCrop"
    SHRINK = "Shrink"


def merge(dataset: voc.Dataset, writer: ZipWriter, progress: Progress = silent) -> None:
    """All images as they are, byte for byte, with their annotations; lists of the same name are joined."""
    stems = new_stems(dataset.records)
    for index, record in enumerate(dataset.records):
        extension = PurePosixPath(record.image).suffix
        writer.add(stems[index], extension, dataset.read(record), (record.width, record.height), _annotated(record))
        progress(index + 1, len(dataset.records))
    for name, lines in lists(dataset, stems).items():
        writer.add_list(name, lines)


def split(dataset: voc.Dataset, sides: Sides, writer: ZipWriter, progress: Progress = silent) -> None:
    """As `merge`, with the sides as the lists train, val and test; the data's own lists of these names are replaced."""
    stems = new_stems(dataset.records)
    for index, record in enumerate(dataset.records):
        extension = PurePosixPath(record.image).suffix
        writer.add(stems[index], extension, dataset.read(record), (record.width, record.height), _annotated(record))
        progress(index + 1, len(dataset.records))
    kept = {
        name: lines for name, lines in lists(dataset, stems).items() if name not in (*LIST_NAMES.values(), "trainval")
    }
    drawn = {LIST_NAMES[side]: [stems[i] for i in sides.of(side)] for side in Side if sides.of(side)}
    for name, lines in (kept | drawn).items():
        writer.add_list(name, lines)


def resize(
    dataset: voc.Dataset,
    size: tuple[int, int],
    kind: Kind,
    writer: ZipWriter,
    *,
    quality: int = 92,
    threads: int = 2,
    progress: Progress = silent,
) -> int:
    """Every picture and its boxes at another size. Returns how many boxes were cut away (`CenterCrop`).

    `size` is width and height in pixels. Lossless pictures stay lossless (PNG). Raises BadData for one that cannot be decoded.
    """
    stems = new_stems(dataset.records)
    lost = 0

    def made(index: int) -> tuple[bytes, str, tuple[int, int], tuple[Object, ...]]:
        record = dataset.records[index]
        image = _picture(dataset, record)
        matrix, target = placement((record.width, record.height), size, kind)
        extension = ".png" if PurePosixPath(record.image).suffix.lower() in LOSSLESS else ".jpg"
        shown = placed(image, matrix, target)
        return encoded(shown, extension, quality), extension, target, moved(record.objects, matrix, target)

    for index, (data, extension, target, objects) in enumerate(in_order(made, range(len(dataset.records)), threads)):
        record = dataset.records[index]
        lost += len(record.objects) - len(objects)
        writer.add(stems[index], extension, data, target, objects if record.annotation else None)
        progress(index + 1, len(dataset.records))
    for name, lines in lists(dataset, stems).items():
        writer.add_list(name, lines)
    return lost


def placement(original: tuple[int, int], size: tuple[int, int], kind: Kind) -> tuple[np.ndarray, tuple[int, int]]:
    """The 3x3 matrix from pixels of the original to pixels of the result, and the result's width and height."""
    if kind is not Kind.SHRINK:
        return fit(original, size, Resize(kind.value)), size
    scale = min(1.0, size[0] / original[0], size[1] / original[1])
    target = max(1, round(original[0] * scale)), max(1, round(original[1] * scale))
    return np.diag([target[0] / original[0], target[1] / original[1], 1.0]), target


def placed(image: Image.Image, matrix: np.ndarray, target: tuple[int, int]) -> Image.Image:
    """The picture moved by a matrix that only scales and shifts, on grey where it does not reach; with antialiasing."""
    if image.size == target and np.allclose(matrix, np.eye(3)):
        return image
    # Corners in the result, in whole pixels; what lies outside of it is cut from the source, so that nothing is resized in vain.
    x1, y1 = round(float(matrix[0, 2])), round(float(matrix[1, 2]))
    x2 = round(float(matrix[0, 0] * image.width + matrix[0, 2]))
    y2 = round(float(matrix[1, 1] * image.height + matrix[1, 2]))
    left, top, right, bottom = max(x1, 0), max(y1, 0), min(max(x2, x1 + 1), target[0]), min(max(y2, y1 + 1), target[1])
    across, down = image.width / max(x2 - x1, 1), image.height / max(y2 - y1, 1)
    source = ((left - x1) * across, (top - y1) * down, (right - x1) * across, (bottom - y1) * down)
    source = (source[0], source[1], min(source[2], image.width), min(source[3], image.height))
    piece = image.resize((right - left, bottom - top), Image.Resampling.BICUBIC, box=source, reducing_gap=3.0)
    if piece.size == target:
        return piece
    result = Image.new("RGB", target, (PAD, PAD, PAD))
    result.paste(piece, (left, top))
    return result


def moved(objects: Sequence[Object], matrix: np.ndarray, target: tuple[int, int]) -> tuple[Object, ...]:
    """The objects where they are after a matrix that only scales and shifts; those of which too little is left are dropped."""
    found = []
    sx, sy, dx, dy = (float(matrix[at]) for at in ((0, 0), (1, 1), (0, 2), (1, 2)))
    for item in objects:
        x1, y1, x2, y2 = item.box[0] * sx + dx, item.box[1] * sy + dy, item.box[2] * sx + dx, item.box[3] * sy + dy
        box = (max(x1, 0.0), max(y1, 0.0), min(x2, float(target[0])), min(y2, float(target[1])))
        area = max(box[2] - box[0], 0) * max(box[3] - box[1], 0)
        if area >= LEAST_VISIBLE * (x2 - x1) * (y2 - y1) and area > 0:
            cut = area < 0.999 * (x2 - x1) * (y2 - y1)
            found.append(replace(item, box=box, truncated=item.truncated or cut))
    return tuple(found)


def encoded(image: Image.Image, extension: str, quality: int) -> bytes:
    buffer = io.BytesIO()
    if extension == ".png":
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def new_stems(records: Sequence[Record]) -> list[str]:
    """A name for each record: its own, with its source's number before it where two sources have the same."""
    own = [PurePosixPath(record.image).stem for record in records]
    taken: dict[str, set[int]] = {}
    for record, stem in zip(records, own, strict=True):
        taken.setdefault(stem.casefold(), set()).add(record.source)
    used = set[str]()
    stems = []
    for record, stem in zip(records, own, strict=True):
        name = f"{record.source}_{stem}" if len(taken[stem.casefold()]) > 1 else stem
        while name.casefold() in used:
            name = f"{name}_"
        used.add(name.casefold())
        stems.append(name)
    return stems


def lists(dataset: voc.Dataset, stems: Sequence[str]) -> dict[str, list[str]]:
    """The lines of all lists under ImageSets/Main, by list, with the new names; names of images that are not there are left out."""
    renamed: dict[tuple[int, str], str] = {}
    for record, stem in zip(dataset.records, stems, strict=True):
        path = PurePosixPath(record.image)
        renamed[record.source, path.stem] = renamed[record.source, path.name] = stem
    found: dict[str, list[str]] = {}
    for index, layout in enumerate(dataset.layouts):
        for name, member in sorted(layout.lists.items()):
            data = dataset.sources[index].read(member)
            answers = tagging_answers(data)
            lines = found.setdefault(name, [])
            if answers is None:
                lines += [renamed[index, old] for old in list_names(data) if (index, old) in renamed]
            else:
                lines += [f"{renamed[index, old]} {value}" for old, value in answers.items() if (index, old) in renamed]
    return found


def in_order(action: Callable[[A], T], arguments: Iterable[A], threads: int) -> Iterator[T]:
    """Results in the order of the arguments, with at most `2 * threads` under way, so that memory stays bounded."""
    rest = iter(arguments)
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[T]] = deque(pool.submit(action, a) for a in islice(rest, 2 * threads))
        try:
            while pending:
                yield pending.popleft().result()
                pending.extend(pool.submit(action, a) for a in islice(rest, 1))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _annotated(record: Record) -> tuple[Object, ...] | None:
    return record.objects if record.annotation else None


def _picture(dataset: voc.Dataset, record: Record) -> Image.Image:
    try:
        return Image.fromarray(decode(dataset.read(record), record.orientation, max(record.width, record.height)))
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        place = dataset.sources[record.source].uri
        raise BadData(f"{record.image} in {place} cannot be decoded ({error}); repair or remove it.") from error
