"""Inputs for the fuzzer: real files of every kind, and what damage and malice make of them. Input `n` of a kind is always the same."""

from __future__ import annotations

import copy
import io
import json
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from tests.trainer.vocfiles import Files, good, obj, picture, xml

NASTY = (
    *(
        "",
        " ",
        "0",
        "-1",
        "-0.0",
        "1e999",
        "nan",
        "inf",
        "-inf",
        "1,5",
        "1.5.2",
        "0x10",
        "9" * 400,
        "1e-320",
        "٣",
        "１２",
        "½",
        "\u0000",
    ),
    *(
        "../../etc/passwd",
        "/etc/passwd",
        "C:\\x",
        "&x;",
        "&#0;",
        "&#55296;",
        "<b/>",
        "]]>",
        "<!--",
        "\ud83d",
        "\u202e",
        "a" * 3000,
        "é",
        "e\u0301",
    ),
)
"""Texts that something somewhere is not ready for."""
VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**63,
    10**400,
    1.5,
    float("nan"),
    [],
    {},
    [[]],
    {"a": 1},
    *NASTY,
)

JPEGS = tuple(picture(seed, (32, 24)) for seed in range(4))
PICTURES = (
    *JPEGS[:2],
    *(picture(1, (32, 24), form=form) for form in ("PNG", "BMP", "GIF", "TIFF", "WEBP")),
    *(picture(2, (32, 24), form="PNG", mode=mode) for mode in ("L", "P", "RGBA", "I;16", "1", "LA")),
    picture(3, (32, 24), mode="CMYK"),
    picture(3, (32, 24), orientation=6),
)
FLAGS = "<difficult>1</difficult><part><name>hand</name><bndbox><xmin>1</xmin></bndbox></part>"
POLYGON = (
    "<object><name>dot</name><polygon><x1>1</x1><y1>2</y1><x2>9</x2><y2>2</y2><x3>9</x3><y3>9</y3></polygon></object>"
)
XMLS = (
    xml(obj("cell"), obj("dot", ("1,5", 2, 30, 40), FLAGS), POLYGON),
    xml(obj("cell"), head='<?xml version="1.0" encoding="utf-8"?>\n<!DOCTYPE a [<!ENTITY x "y">]>\n'),
    xml(obj("Zelle-ü"), head='<?xml version="1.0" encoding="utf-16"?>').decode().encode("utf-16"),
)
JSONS = tuple(
    json.dumps(tree).encode()
    for tree in (
        {"annotation": {"filename": "a.jpg", "size": {"width": 64, "height": 48}, "object": [{"name": "cell", "difficult": 1, "bndbox": {"xmin": 1, "ymin": "2", "xmax": 9.5, "ymax": 9}}]}},
        {"object": {"name": "dot", "polygon": [[1, 2], {"x": 3, "y": 4}, [5, 6]]}, "size": None},
    )
)  # fmt: skip
COCO = {
    "categories": [{"id": 7, "name": "cell"}, {"id": 9, "name": "ring"}],
    "images": [{"id": i, "file_name": f"img_{i:02d}.jpg"} for i in range(4)],
    "annotations": [{"image_id": i, "category_id": 7, "bbox": [1, 2, 9, 9]} for i in range(4)]
    + [{"image_id": 1, "category_id": 9, "iscrowd": 1, "segmentation": [[1, 2, 9, 2, 5, 9]]}],
}
RUN_SPEC = {
    "job": "cells", "namespace": "vision", "uid": "0123456789abcdef", "run": 0, "attempt": 1, "architecture": "yard-nano",
    "task": "Detection", "model": "cells", "version": 1, "outputURI": "s3://vision/models",
    "dataset": {
        "sources": [{"uri": "s3://vision/bccd.zip"}, {"uri": "file:///data/"}], "labels": ["cell", "dot"], "imageSize": "640x384",
        "split": {"trainPercent": 70, "validationPercent": 20, "testPercent": 10, "maxTestImages": 3, "seed": 5},
        "limits": {"maxBytes": "1.5Gi", "maxImages": 100, "maxPixels": 1000000, "maxRepairPercent": 5, "boxOrigin": "Auto"},
        "unannotated": "Skip", "withoutObjects": "Use", "resize": "Letterbox", "labelPolicy": "Union",
    },
    "training": {"epochs": 3, "batchSize": 8, "learningRate": "0.002", "earlyStopping": {"patienceEpochs": 3}, "seed": 1},
    "augmentation": {"preset": "Strong", "rotate": 20, "mosaic": 0}, "evaluation": {"scoreThresholdPercent": 25},
    "start": {"weights": "None"}, "gpus": 0,
}  # fmt: skip


def annotation(number: int) -> bytes:
    """An XML annotation: bytes changed, or texts and elements."""
    chance = random.Random(number)
    data = chance.choices(XMLS, (8, 1, 1))[0]
    return _bytes_changed(data, chance) if chance.random() < 0.3 else _tree_changed(data, chance)


def json_annotation(number: int) -> bytes:
    chance = random.Random(number)
    data = chance.choice(JSONS)
    if chance.random() < 0.3:
        return _bytes_changed(data, chance)
    return _json(_leaf_changed(json.loads(data), chance))


def image(number: int) -> bytes:
    """A picture in any format: bytes changed, cut off, or a size in its header that it has not."""
    chance = random.Random(number)
    data = chance.choice(PICTURES)
    if data.startswith(b"\x89PNG") and chance.random() < 0.3:
        header = bytearray(data)
        header[16:24] = struct.pack(">2I", *(chance.choice((0, 1, 900, 2**16, 2**31 - 1, 2**32 - 1)) for _ in range(2)))
        header[29:33] = struct.pack(">I", zlib.crc32(bytes(header[12:29])))
        return bytes(header)
    return data[: chance.randrange(len(data))] if chance.random() < 0.1 else _bytes_changed(data, chance)


def archive(number: int) -> bytes:
    """A zip of a small dataset, Pascal VOC, COCO or YOLO: a damaged file in it, strange names, or bytes of the zip itself changed."""
    chance = random.Random(number)
    files = dict(chance.choice(_datasets()))
    for _ in range(chance.randrange(3)):
        name = chance.choice(sorted(files))
        makers: list[tuple[str, Callable[[int], bytes]]] = [(".xml", annotation), (".jpg", image)]
        make = next((make for end, make in makers if name.endswith(end)), None)
        data = make(chance.randrange(1 << 30)) if make else _text_changed(files[name], chance)
        files[_name_changed(name, chance) if chance.random() < 0.3 else name] = data
    if chance.random() < 0.2:
        del files[chance.choice(sorted(files))]
    packed = _zipped(files, chance)
    if chance.random() < 0.3:
        # Most damage to the compressed data says the same; the directory and the headers are where the variety is.
        start = max(packed.rfind(b"PK\1\2"), 0) if chance.random() < 0.5 else packed.find(b"PK\1\2")
        return packed[:start] + _bytes_changed(packed[start:], chance)
    return _bytes_changed(packed, chance) if chance.random() < 0.1 else packed


def run_spec(number: int) -> bytes:
    chance = random.Random(number)
    if chance.random() < 0.1:
        return _bytes_changed(json.dumps(RUN_SPEC).encode(), chance)
    tree: Any = RUN_SPEC
    for _ in range(chance.randrange(3)):
        tree = _leaf_changed(tree, chance)
    return _json(tree)


KINDS: dict[str, Callable[[int], bytes]] = {
    "annotation": annotation,
    "json": json_annotation,
    "image": image,
    "zip": archive,
    "spec": run_spec,
}


@lru_cache(1)
def _datasets() -> tuple[Files, ...]:
    voc: Files = {name: data for name, data in good(11).items() if name.endswith("xml")}
    voc = {name: data.replace(b"64", b"32").replace(b"48", b"24") for name, data in voc.items()}
    voc |= {f"JPEGImages/img_{i:02d}.jpg": picture(i, (32, 24)) for i in range(11)}
    voc |= {"ImageSets/Main/train.txt": b"img_00\n", "ImageSets/Main/dog_val.txt": b"img_01 -1\nimg_02 1\n"}
    coco: Files = {f"images/img_{i:02d}.jpg": picture(i, (32, 24)) for i in range(4)}
    yolo: Files = {"data.yaml": b"names: {0: cell, 1: ring}\n", **coco}
    yolo |= {f"labels/img_{i:02d}.txt": b"0 .5 .5 .25 .5\n1 .1 .1 .5 .1 .5 .6\n" for i in range(4)}
    return voc, voc, voc, {**coco, "instances_train.json": json.dumps(COCO).encode()}, yolo


def _bytes_changed(data: bytes, chance: random.Random) -> bytes:
    for _ in range(chance.randint(1, 4)):
        at, kind = chance.randrange(len(data) + 1), chance.random()
        if kind < 0.4:
            data = data[:at] + chance.randbytes(chance.randint(1, 4)) + data[at + chance.randint(1, 4) :]
        elif kind < 0.6:
            data = data[:at] + data[at + chance.randint(1, 64) :]
        elif kind < 0.8:
            data = data[:at] + chance.randbytes(chance.randint(1, 16)) + data[at:]
        else:
            other = chance.randrange(len(data) + 1)
            data = data[:at] + data[other : other + 40] + data[at:]
    return data


def _tree_changed(data: bytes, chance: random.Random) -> bytes:
    """Elements taken out, repeated, nested, or given another text."""
    encoding = "utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    text = data.decode(encoding)
    for _ in range(chance.randint(1, 3)):
        spans = [match.span() for match in re.finditer(r"<(\w+)>[^<]*</\1>|<\w+>|</\w+>", text)]
        whole = [span for span in spans if "</" in text[slice(*span)][1:]]
        # Whole elements mostly: a single tag less is the same broken XML wherever it is.
        spans = whole if whole and chance.random() < 0.8 else spans
        start, end = chance.choice(spans)
        piece, kind = text[start:end], chance.random()
        if kind < 0.5 and "</" in piece and not piece.startswith("</"):
            piece = re.sub(r">[^<]*<", lambda _: f">{chance.choice(NASTY)}<", piece, count=1)
        elif kind < 0.7:
            piece = piece * chance.choice((2, 50))
        elif kind < 0.85:
            piece = ""
        else:
            tag = chance.choice(("object", "bndbox", "name", "size", "polygon", "filename", "boxOrigin"))
            piece = f"<{tag}>{piece}" + (f"</{tag}>" if chance.random() < 0.8 else "")
        text = text[:start] + piece + text[end:]
    return text.encode(encoding, "surrogatepass")


def _leaf_changed(tree: Any, chance: random.Random) -> Any:
    """A copy in which one place, however deep, has another value, is gone, or has a field that nobody knows."""
    tree = copy.deepcopy(tree)
    here = tree
    while True:
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        if not keys:
            return tree
        key = chance.choice(keys)
        if isinstance(here[key], dict | list) and here[key] and chance.random() < 0.8:
            here = here[key]
            continue
        if chance.random() < 0.2 and isinstance(here, dict):
            del here[key]
            if chance.random() < 0.3:
                here[chance.choice(("unknown", "", "uri", "object", "\u0000"))] = chance.choice(VALUES)
        else:
            here[key] = chance.choice(VALUES)
        return tree


def _json(tree: Any) -> bytes:
    return json.dumps(tree, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _text_changed(data: bytes, chance: random.Random) -> bytes:
    if chance.random() < 0.5:
        return _bytes_changed(data, chance)
    words = data.split(b" ")
    words[chance.randrange(len(words))] = chance.choice(NASTY).encode("utf-8", "surrogatepass")
    return b" ".join(words)


def _name_changed(name: str, chance: random.Random) -> str:
    folder, _, last = name.rpartition("/")
    strange = (
        *(
            f"../{name}",
            f"/{name}",
            f"{folder}/../../{last}",
            f"C:\\{last}",
            name.upper(),
            f"x/{name}",
            f"{folder}/._{last}",
            f"{name}/",
        ),
        *(
            last,
            f"{folder}/{last}.txt",
            f"{folder}/\u0001{last}",
            f"{folder}/{'a' * 300}.xml",
            f"{folder}\\{last}",
            f"{folder}//{last}",
        ),
    )
    return chance.choice(strange)


def _zipped(files: Files, chance: random.Random) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as packed:
        for name, data in files.items():
            info = zipfile.ZipInfo(name)
            if chance.random() < 0.002:
                info.external_attr = 0o120777 << 16
            method = (
                chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))
                if chance.random() < 0.98
                else zipfile.ZIP_LZMA
            )
            packed.writestr(info, data, method, 1)
    return buffer.getvalue()
