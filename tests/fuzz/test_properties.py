"""Damaged files end in a sentence, never in a traceback: a dataset is read, or refused with BadData."""

import contextlib
import io
import json
import zipfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trainyard_api.architectures import Task
from trainyard_api.dataset import Dataset as Spec
from trainyard_trainer import pixels, voc, voc_json, voc_source, voc_xml
from trainyard_trainer.errors import BadData
from trainyard_trainer.records import Kind
from trainyard_trainer.voc_image import decode, facts
from trainyard_trainer.voc_source import RangedFile, ZipSource, open_directory
from trainyard_trainer.voc_xml import Problem

from tests.trainer.vocfiles import good, obj, picture, xml

GOOD_XML = xml(obj("cell"), obj("dot", ("1,5", 2, 30, 40)))
QUICK = settings(max_examples=50, deadline=None)

edits = st.lists(
    st.tuples(st.floats(0, 1), st.binary(min_size=0, max_size=6), st.integers(0, 12)), min_size=1, max_size=4
)


def edited(data: bytes, changes: list[tuple[float, bytes, int]]) -> bytes:
    """The data with some bytes replaced, inserted, or cut out."""
    for place, new, length in changes:
        at = int(place * len(data))
        data = data[:at] + new + data[at + length :]
    return data


@QUICK
@given(edits)
def test_an_edited_annotation_is_read_or_has_an_error_with_a_sentence(changes: list[tuple[float, bytes, int]]):
    annotation = voc_xml.parse(edited(GOOD_XML, changes), "a.xml")
    assert len(annotation.objects) <= 2
    for finding in annotation.findings:
        assert finding.kind in (Kind.ERROR, Kind.LOSSY)
        assert str(finding).startswith("a.xml:")
    for item in annotation.objects:
        assert all(abs(side) < 1e300 for side in item.box)


@QUICK
@given(st.binary(max_size=200))
def test_any_bytes_as_annotation_are_an_error_or_empty(data: bytes):
    for parse in (voc_xml.parse, voc_json.parse):
        annotation = parse(data, "a.xml")
        assert not annotation.objects


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["object", "name", "bndbox", "size", "xmin", "polygon", "width", "annotation"]), inner
        )
    ),
    max_leaves=6,
)


@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.sampled_from(["object", "size", "annotation", "filename"]), json_values))
def test_any_json_is_read_or_an_error(tree: dict[str, object]):
    annotation = voc_json.parse(json.dumps(tree).encode(), "a.json")
    assert all(finding.file == "a.json" for finding in annotation.findings)


PICTURES = [picture(1), picture(1, form="PNG"), picture(1, form="BMP"), picture(1, form="GIF"), picture(1, form="TIFF")]
PICTURES += [picture(1, form="WEBP"), picture(1, orientation=6)]


@QUICK
@given(st.sampled_from(PICTURES), edits)
def test_an_edited_picture_is_decoded_or_named_as_broken(data: bytes, changes: list[tuple[float, bytes, int]]):
    broken = edited(data, changes)
    # Whatever else is raised fails the test.
    with contextlib.suppress(Problem, *pixels.DECODE_ERRORS):
        said = facts(broken, 1_000_000)
        shown = decode(broken, said.orientation, 64)
        assert shown.ndim == 3
        assert max(shown.shape[:2]) <= 64


@pytest.fixture(scope="module")
def whole() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in good(11).items():
            archive.writestr(name, data)
    return buffer.getvalue()


@settings(max_examples=40, deadline=None)
@given(changes=edits)
def test_an_edited_zip_is_read_or_refused(whole: bytes, tmp_path_factory: pytest.TempPathFactory, changes):
    path = tmp_path_factory.getbasetemp() / "fuzzed.zip"
    path.write_bytes(edited(whole, changes))
    spec = Spec.model_validate({"sources": [{"uri": path.as_uri()}]})
    said = ""
    try:
        source = ZipSource(path, path.as_uri(), "x", max_bytes=1 << 20)
        dataset = voc.load(spec, Task.DETECTION, [source])
        _, verdict = pixels.build(dataset, 64, None, threads=1)
        dataset.without(verdict.corrupt, verdict.repaired)
    except BadData as error:
        said = str(error)
    assert not said or len(said) > 20


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=3000), st.lists(st.tuples(st.integers(0, 3100), st.integers(-1, 500)), max_size=8))
def test_a_ranged_file_reads_as_the_file_itself(data: bytes, reads: list[tuple[int, int]]):
    before, voc_source.TAIL = voc_source.TAIL, 100
    try:
        ranged, plain = RangedFile(len(data), lambda start, length: data[start : start + length]), io.BytesIO(data)
        for at, size in reads:
            assert ranged.seek(at) == plain.seek(at)
            assert ranged.read(size) == plain.read(size)
    finally:
        voc_source.TAIL = before


def test_the_directory_of_a_remote_zip_takes_one_read_of_its_tail(whole: bytes):
    reads: list[tuple[int, int]] = []

    def read(start: int, length: int) -> bytes:
        reads.append((start, length))
        return whole[start : start + length]

    assert len(open_directory(RangedFile(len(whole), read), "s3://b/x.zip", max_bytes=1 << 30).infolist()) == 22
    assert reads == [(0, len(whole))]


def test_ten_thousand_objects_are_read(tmp_path: Path):
    data = xml(*(obj("cell", (x, 2, x + 9, 20)) for x in range(50)))
    picture_bytes = [picture(i) for i in range(200)]
    buffer = tmp_path / "many.zip"
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(200):
            archive.writestr(f"Annotations/{i}.xml", data)
            archive.writestr(f"JPEGImages/{i}.jpg", picture_bytes[i])
    spec = Spec.model_validate({"sources": [{"uri": buffer.as_uri()}]})
    source = ZipSource(buffer, buffer.as_uri(), "x", max_bytes=1 << 30)
    dataset = voc.load(spec, Task.DETECTION, [source])
    assert sum(len(record.objects) for record in dataset.records) == 10_000
