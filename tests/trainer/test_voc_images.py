"""Pictures as they are found in the wild; the numbers are those of the table of cases."""

import io
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trainyard_api.architectures import Task
from trainyard_trainer.errors import BadData, DiskFull
from trainyard_trainer.prepare import prepare
from trainyard_trainer.records import Kind, Side
from trainyard_trainer.store import Storage
from trainyard_trainer.voc_image import decode

from tests.trainer.vocfiles import HEIGHT, WIDTH, found, good, load, obj, picture, prepared, record, spec, xml, zipped

I = "JPEGImages/img_00.jpg"  # noqa: E741
A = "Annotations/img_00.xml"


@pytest.mark.parametrize("name", ["IMG_00.JPG", "img_00.jpeg", "img_00.JPG", "img_00.png"])
def test_02_extension_and_case_may_differ(tmp_path: Path, name: str):
    files = good()
    data = files.pop(I)
    files[f"JPEGImages/{name}"] = picture(0, form="PNG") if name.endswith("png") else data
    dataset = load(files, tmp_path)
    assert len(dataset.records) == 12
    assert bool(found(dataset, "NameCaseDiffers")) == name.startswith("IMG")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", [6, 8])
@pytest.mark.parametrize("turned", [True, False])
def test_10_exif_rotation_is_applied_only_when_the_annotation_matches(
    tmp_path: Path, turned: bool, orientation: int, form: str
):
    size, applied = ((HEIGHT, WIDTH), orientation) if turned else ((WIDTH, HEIGHT), 1)
    files = {**good(), I: picture(0, form=form, orientation=orientation), A: xml(obj(), size=size)}
    dataset = load(files, tmp_path)
    first = record(dataset)
    assert (first.orientation, first.width, first.height) == (applied, *size)
    assert bool(found(dataset, "RotationIgnored")) == (applied == 1)
    pixels = decode(dataset.read(first), first.orientation, 64)
    upright = np.asarray(Image.open(io.BytesIO(picture(0, form=form))))
    quarters = {1: 0, 6: -1, 8: 1}[applied]
    assert (pixels == np.rot90(upright, quarters)).all()


def test_10_boxes_tell_the_rotation_where_the_size_is_missing(tmp_path: Path):
    files = {**good(), I: picture(0, orientation=6), A: xml(obj(box=(10, 8, 30, 60)), size=None)}
    assert record(load(files, tmp_path)).orientation == 6


def test_10_a_half_turn_is_applied_with_a_warning_since_the_size_cannot_tell(tmp_path: Path):
    dataset = load({**good(), I: picture(0, orientation=3)}, tmp_path)
    assert record(dataset).orientation == 3
    assert "the size cannot tell whether the boxes were drawn so" in found(dataset, "RotationUnclear")[0].message
    turned, upright = (decode(picture(0, orientation=3), orientation, 64) for orientation in (3, 1))
    assert (turned == upright[::-1, ::-1]).all()


@pytest.mark.parametrize("value", [0, 9, 42])
def test_10_a_senseless_orientation_is_ignored(tmp_path: Path, value: int):
    files = {**good(), I: picture(0, orientation=value)}
    dataset = load(files, tmp_path)
    assert record(dataset).orientation == 1
    assert not found(dataset, "RotationIgnored")


@pytest.mark.parametrize(
    ("mode", "form"),
    [("L", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("CMYK", "JPEG"), ("I;16", "PNG"), ("1", "PNG"), ("LA", "PNG")],
)
def test_11_every_colour_mode_becomes_rgb(tmp_path: Path, mode: str, form: str):
    files = {**good(), I: picture(0, form=form, mode=mode)}
    dataset = load(files, tmp_path)
    assert found(dataset, "ColoursConverted")[0].kind is Kind.REPAIRED
    pixels = decode(dataset.read(record(dataset)), 1, 64)
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    plain = np.asarray(Image.open(io.BytesIO(picture(0, form="PNG")))).astype(float)
    if mode == "RGBA":
        plain = plain * 128 / 255 + 127
    blocks = [image.astype(float).mean(2).reshape(4, 12, 4, 16).mean((1, 3)) for image in (pixels, plain)]
    assert np.abs(blocks[0] - blocks[1]).max() < 35, "the picture is still the same one"


def test_12_a_truncated_image_is_repaired_and_counted(tmp_path: Path):
    files = good(40)
    files[I] = files[I][: len(files[I]) * 2 // 3]
    data = prepared(files, tmp_path)
    assert "img_00" in {r.name for r in data.dataset.records}
    assert found(data, "ImageTruncated")[0].kind is Kind.LOSSY


def test_12_a_corrupt_image_is_left_out_and_the_others_keep_their_pixels(tmp_path: Path):
    files = good(40)
    files["JPEGImages/img_03.jpg"] = files["JPEGImages/img_03.jpg"][:10]
    broken = bytearray(picture(5, form="PNG"))
    broken[60:90] = bytes(30)
    files["JPEGImages/img_05.jpg"] = bytes(broken)
    data = prepared(files, tmp_path, limits={"maxRepairPercent": 6})
    assert {f.file for f in found(data, "ImageCorrupt")} == {"JPEGImages/img_03.jpg", "JPEGImages/img_05.jpg"}
    assert len(data.dataset.records) == len(data.pixels) == 38
    index = next(i for i, r in enumerate(data.dataset.records) if r.name == "img_06")
    assert (data.pixels.image(index) == decode(files["JPEGImages/img_06.jpg"], 1, 80)).all()


def test_12_ten_images_with_one_broken_are_refused_by_name(tmp_path: Path):
    files = good(10)
    files[I] = files[I][:10]
    with pytest.raises(BadData, match=r"1 of 10 images \(10 %\) .* the first: JPEGImages/img_00.jpg: .*left out"):
        prepared(files, tmp_path)


def test_13_the_first_bytes_decide_not_the_extension(tmp_path: Path):
    files = {**good(), I: picture(0, form="PNG")}
    dataset = load(files, tmp_path)
    assert str(found(dataset, "ExtensionWrong")[0]) == f"{I}: is PNG, whatever its name says"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"%PDF-1.7\n", "PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "text: SVG"),
        (b"", "the file is empty"),
        (b"hello world", "begins with 68 65 6c"),
    ],
)
def test_13_what_is_no_picture_is_an_error_that_says_what_it_is(tmp_path: Path, data: bytes, what: str):
    with pytest.raises(BadData, match=rf"^JPEGImages/img_00.jpg: is no picture that can be read \({what}"):
        load({**good(), I: data}, tmp_path)


@pytest.mark.parametrize(("unannotated", "count"), [("Skip", 11), ("Background", 12)])
def test_14_an_image_without_annotation_is_skipped_or_background(tmp_path: Path, unannotated: str, count: int):
    files = good()
    del files[A]
    dataset = load(files, tmp_path, unannotated=unannotated)
    assert len(dataset.records) == count
    assert found(dataset, "AnnotationMissing")[0].file == I


def test_15_an_annotation_without_image_is_skipped(tmp_path: Path):
    files = good(40)
    del files[I]
    dataset = load(files, tmp_path)
    assert (found(dataset, "ImageMissing")[0].file, found(dataset, "ImageMissing")[0].kind) == (A, Kind.LOSSY)
    assert len(dataset.records) == 39


@pytest.mark.parametrize("second", ["JPEGImages/img_00.png", "JPEGImages/more/img_00.jpg"])
def test_17_the_same_stem_twice_is_an_error_naming_both(tmp_path: Path, second: str):
    with pytest.raises(BadData, match=f"two images named 'img_00': {I} and {second}"):
        load({**good(), second: picture(99, form="PNG")}, tmp_path)


def test_18_identical_images_are_never_on_two_sides(tmp_path: Path):
    files = good(30)
    for index in range(1, 12):
        files[f"JPEGImages/img_{index:02d}.jpg"] = files[I]
    data = prepared(files, tmp_path, split={"trainPercent": 50, "validationPercent": 25, "testPercent": 25})
    sides = [
        side for side in Side for i in data.of(side) if data.dataset.records[i].digest == record(data.dataset).digest
    ]
    assert len(sides) == 12
    assert len(set(sides)) == 1


def test_18_pictures_that_look_alike_are_a_warning(tmp_path: Path):
    files = good(20)
    again = Image.open(io.BytesIO(files[I]))
    buffer = io.BytesIO()
    again.save(buffer, "JPEG", quality=70)
    files["JPEGImages/img_01.jpg"] = buffer.getvalue()
    (finding,) = found(prepared(files, tmp_path), "NearDuplicates")
    assert finding.message.startswith("1 pair of images that look alike")
    assert "JPEGImages/img_00.jpg and JPEGImages/img_01.jpg" in finding.message
    assert not found(prepared(good(20), tmp_path), "NearDuplicates")


def test_31_a_picture_of_too_many_pixels_is_refused_by_its_header(tmp_path: Path):
    huge = picture(0, (8, 8), form="PNG")
    # Width and height of the header alone: 60000 x 60000 pixels would take 10 GB to decode.
    fake = bytearray(huge)
    fake[16:24] = (60000).to_bytes(4, "big") * 2
    fake[29:33] = zlib.crc32(bytes(fake[12:29])).to_bytes(4, "big")
    with pytest.raises(
        BadData, match=r"60000x60000 are 3,600,000,000 pixels, more than dataset.limits.maxPixels \(64,000,000\)"
    ):
        load({**good(), I: bytes(fake)}, tmp_path)


def test_31_a_large_jpeg_is_decoded_at_reduced_scale():
    """6,000 x 4,000 pixels take 72 MB; an eighth of both sides takes 1."""
    import tracemalloc

    large = picture(3, (6000, 4000))
    image = Image.open(io.BytesIO(large))
    image.draft("RGB", (320, 213))
    assert image.size == (750, 500)
    tracemalloc.start()
    pixels = decode(large, 1, 320)
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()
    assert pixels.shape == (213, 320, 3)


def test_38_a_disk_that_cannot_be_written_is_said_with_path_and_bytes(tmp_path: Path):
    path = zipped(good(), tmp_path / "data.zip")
    with pytest.raises(DiskFull, match=r"/proc/none cannot hold the decoded pictures .*: 110,592 bytes are needed"):
        prepare(spec(path.as_uri()), Task.DETECTION, Storage(), Path("/proc/none"), image_size=(64, 64), memory=1)
