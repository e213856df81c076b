"""Small real datasets for the tests: files in a dict, changed by a test, written as a zip or a folder, and read."""

import io
import zipfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from trainyard_api.architectures import Task
from trainyard_api.dataset import Dataset as Spec
from trainyard_trainer import voc
from trainyard_trainer.fetch import fetch, quantity
from trainyard_trainer.prepare import Prepared, prepare
from trainyard_trainer.records import Finding, Record
from trainyard_trainer.store import Storage

Files = dict[str, bytes]
WIDTH, HEIGHT = 64, 48


@lru_cache(500)
def picture(
    seed: int,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    form: str = "JPEG",
    mode: str = "RGB",
    orientation: int | None = None,
) -> bytes:
    """A picture of smooth noise; another seed gives another one."""
    small = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)
    if mode == "I;16":
        grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
        image = Image.fromarray(grey)
    elif mode == "RGBA":
        image.putalpha(128)
    elif mode != "RGB":
        image = image.convert(mode)
    return encoded(image, form, orientation)


def encoded(image: Image.Image, form: str, orientation: int | None = None, **options: Any) -> bytes:
    """The bytes of a file, with the orientation in its EXIF."""
    if orientation is not None:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def obj(label: str = "cell", box: tuple[object, object, object, object] = (10, 8, 30, 28), extra: str = "") -> str:
    """An object element; one line for each of its parts."""
    x1, y1, x2, y2 = box
    return f"""  <object>
    <name>{label}</name>
    {extra}
    <bndbox>
      <xmin>{x1}</xmin>
      <ymin>{y1}</ymin>
      <xmax>{x2}</xmax>
      <ymax>{y2}</ymax>
    </bndbox>
  </object>
"""


def xml(
    *objects: str,
    name: str = "img_00.jpg",
    size: tuple[int, int] | None = (WIDTH, HEIGHT),
    head: str = "",
    extra: str = "",
) -> bytes:
    stated = (
        "" if size is None else f"  <size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>\n"
    )
    text = f"{head}<annotation>\n  <filename>{name}</filename>\n{stated}{extra}{''.join(objects)}</annotation>\n"
    return text.encode()


def good(images: int = 12, labels: tuple[str, ...] = ("cell", "dot")) -> Files:
    """A dataset without a fault: every image has one object of each label."""
    files: Files = {}
    for index in range(images):
        stem = f"img_{index:02d}"
        objects = [obj(label, (5 * i, 4 * i, 5 * i + 20, 4 * i + 16)) for i, label in enumerate(labels)]
        files[f"Annotations/{stem}.xml"] = xml(*objects, name=f"{stem}.jpg")
        files[f"JPEGImages/{stem}.jpg"] = picture(index)
    return files


def zipped(files: Mapping[str, bytes], path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            # A fixed date: the same files give the same bytes.
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED)
    return path


def spec(uri: str, **fields: Any) -> Spec:
    return Spec.model_validate({"sources": [{"uri": uri}], **fields})


def load(
    files: Mapping[str, bytes], folder: Path, task: Task = Task.DETECTION, strict: bool = True, **fields: Any
) -> voc.Dataset:
    """The files as a zip, read."""
    return load_uri(zipped(files, folder / "data.zip").as_uri(), folder, task, strict, **fields)


def load_uri(uri: str, folder: Path, task: Task = Task.DETECTION, strict: bool = True, **fields: Any) -> voc.Dataset:
    wanted = spec(uri, **fields)
    sources, _ = fetch(
        [source.uri for source in wanted.sources], Storage(), folder, max_bytes=quantity(wanted.limits.max_bytes)
    )
    return voc.load(wanted, task, sources, strict=strict)


def prepared(
    files: Mapping[str, bytes], folder: Path, task: Task = Task.DETECTION, shared: bool = False, **fields: Any
) -> Prepared:
    """The files as a zip, read, decoded and split."""
    wanted = spec(zipped(files, folder / "data.zip").as_uri(), **fields)
    return prepare(wanted, task, Storage(), folder / "cache", image_size=(64, 64), shared=shared)


def found(dataset: voc.Dataset | Prepared, reason: str) -> list[Finding]:
    return [finding for finding in dataset.findings if finding.reason == reason]


def record(dataset: voc.Dataset, name: str = "img_00") -> Record:
    return next(record for record in dataset.records if record.name == name)
