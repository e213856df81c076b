"""Pascal VOC zips, written: one annotation as XML, and a zip that appears whole or not at all. No torch.

Boxes are written as they are counted here, from 0, and every file says so in `<boxOrigin>`: without it a reader guesses, and a set in which
no box begins at 0 would come back shifted by a pixel. Other programs ignore the element.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from xml.sax.saxutils import escape

from trainyard_trainer.records import Object
from trainyard_trainer.store_file import whole_file

DATE = (2020, 1, 1, 0, 0, 0)


class ZipWriter:
    """Members of a dataset, added one after the other. The same calls give the same bytes."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self._archive = archive
        self.images = self.objects = 0

    def add(
        self,
        stem: str,
        extension: str,
        image: bytes,
        size: tuple[int, int],
        objects: Sequence[Object] | None,
    ) -> None:
        """An image with its annotation; `objects=None` writes none. `extension` begins with a point, `size` is width and height."""
        self._write(f"JPEGImages/{stem}{extension}", image)
        self.images += 1
        if objects is not None:
            self._write(f"Annotations/{stem}.xml", annotation(f"{stem}{extension}", size, objects).encode())
            self.objects += len(objects)

    def add_list(self, name: str, lines: Iterable[str]) -> None:
        """A list below `ImageSets/Main`."""
        self._write(f"ImageSets/Main/{name}.txt", "".join(f"{line}\n" for line in lines).encode())

    def _write(self, name: str, data: bytes) -> None:
        info = zipfile.ZipInfo(name, DATE)
        # Pictures are compressed already.
        info.compress_type = zipfile.ZIP_STORED if name.startswith("JPEGImages/") else zipfile.ZIP_DEFLATED
        self._archive.writestr(info, data)


@contextmanager
def zip_writer(path: Path, expected: int = 0) -> Iterator[ZipWriter]:
    """The zip gets its name when the block ends well, else nothing is left. `expected` bytes are taken first. Raises DiskFull."""
    with whole_file(path, expected) as file:
        with zipfile.ZipFile(file, "w") as archive:
            yield ZipWriter(archive)
        file.truncate()


def annotation(filename: str, size: tuple[int, int], objects: Sequence[Object]) -> str:
    """A Pascal VOC annotation. Whole pixels are written as integers, others with two decimals."""
    lines = [
        "<annotation>",
        "  <folder>JPEGImages</folder>",
        f"  <filename>{escape(filename)}</filename>",
        f"  <size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>",
        "  <segmented>0</segmented>",
        "  <boxOrigin>0</boxOrigin>",
    ]
    for item in objects:
        lines += [
            "  <object>",
            f"    <name>{escape(item.label)}</name>",
            f"    <truncated>{item.truncated:d}</truncated>",
            *(["    <occluded>1</occluded>"] if item.occluded else []),
            f"    <difficult>{item.difficult:d}</difficult>",
            "    <bndbox>",
            *(
                f"      <{name}>{_number(value)}</{name}>"
                for name, value in zip(("xmin", "ymin", "xmax", "ymax"), item.box, strict=True)
            ),
            "    </bndbox>",
            "  </object>",
        ]
    return "\n".join([*lines, "</annotation>", ""])


def _number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
