"""What is done with each kind of input, as the trainer and the command line do it. A refusal is a sentence; everything else that is raised is a fault."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

from trainyard_api.architectures import Task
from trainyard_api.dataset import Dataset as Spec
from trainyard_api.dataset import Split
from trainyard_trainer import coco, foreign, pixels, rewrite, split, voc, voc_json, voc_xml, yolo
from trainyard_trainer.__main__ import read_spec
from trainyard_trainer.attempt import check_spec
from trainyard_trainer.augment import Strengths
from trainyard_trainer.errors import TrainerError
from trainyard_trainer.fetch import quantity
from trainyard_trainer.records import Finding, Kind
from trainyard_trainer.store import parse
from trainyard_trainer.voc_image import FORMATS, decode, decode_tolerantly, look
from trainyard_trainer.voc_source import ZipSource
from trainyard_trainer.voc_write import zip_writer

MAX_PIXELS = 1_000_000
READ = "read"


def annotation(data: bytes, folder: Path) -> str:
    return _annotation(voc_xml.parse(data, "a.xml"))


def json_annotation(data: bytes, folder: Path) -> str:
    return _annotation(voc_json.parse(data, "a.json"))


def image(data: bytes, folder: Path) -> str:
    """Its header, and its pixels where the header is good; a damaged one is decoded once more, tolerantly."""
    found = look(data, MAX_PIXELS)
    if found.facts is None:
        return str(found.problem)
    assert found.facts.format in (*FORMATS, "MPO")
    said = READ
    for attempt in (decode, decode_tolerantly):
        try:
            shown = attempt(data, found.facts.orientation, 48)
        except pixels.DECODE_ERRORS as error:
            said = f"cannot be decoded ({error})"
            continue
        assert shown.ndim == 3
        assert max(shown.shape[:2]) <= 48
        return READ
    return said


def archive(data: bytes, folder: Path) -> str:
    """A dataset from zip to sides, or another format to Pascal VOC; what can be read is also written, and reads back."""
    path = folder / "in.zip"
    path.write_bytes(data)
    task = (Task.DETECTION, Task.DETECTION, Task.TAGGING, Task.CLASSIFICATION)[len(data) % 4]
    spec = Spec.model_validate(
        {"sources": [{"uri": path.as_uri()}], "limits": {"maxPixels": MAX_PIXELS, "maxRepairPercent": 60}}
    )
    try:
        source = ZipSource(path, path.as_uri(), "x", max_bytes=1 << 20)
        other = coco.read(source) if coco.find(source) else yolo.read(source) if yolo.find(source) else None
        if other is not None:
            with zip_writer(folder / "out.zip") as writer:
                foreign.write(source, other, writer, MAX_PIXELS)
            return READ
        dataset = voc.load(spec, task, [source])
        verdict = pixels.look(dataset, 32, threads=1)
        dataset = dataset.without(verdict.corrupt, verdict.repaired)
        sides = split.draw(dataset.records, Split())
        with zip_writer(folder / "out.zip") as writer:
            rewrite.split(dataset, sides, writer)
    except TrainerError as error:
        return str(error)
    _check_boxes(dataset)
    return READ


def run_spec(data: bytes, folder: Path) -> str:
    """As `__main__` reads it, and what is done with it before the first byte of data is fetched."""
    path = folder / "run.json"
    path.write_bytes(data)
    try:
        spec = read_spec(path)
        check_spec(spec)
        for source in spec.dataset.sources:
            parse(source.uri)
        parse(spec.output_uri)
    except TrainerError as error:
        return str(error)
    assert quantity(spec.dataset.limits.max_bytes) >= 0
    assert Strengths.of(spec.augmentation)
    assert spec.run_uri
    assert spec.attempt_uri
    return READ


TARGETS: dict[str, Callable[[bytes, Path], str]] = {
    "annotation": annotation,
    "json": json_annotation,
    "image": image,
    "zip": archive,
    "spec": run_spec,
}


def _annotation(found: voc_xml.Annotation) -> str:
    for item in found.objects:
        assert all(map(math.isfinite, item.box))
        assert item.label == item.label.strip()
        assert 0 < len(item.label) <= voc_xml.MAX_LABEL
    errors: list[Finding] = [finding for finding in found.findings if finding.kind is Kind.ERROR]
    assert all(finding.file == found.file for finding in found.findings)
    return str(errors[0]) if errors else READ


def _check_boxes(dataset: voc.Dataset) -> None:
    for record in dataset.records:
        for item in record.objects:
            x1, y1, x2, y2 = item.box
            assert 0 <= x1 < x2 <= record.width, (record, item)
            assert 0 <= y1 < y2 <= record.height, (record, item)
