"""`trainyard dataset merge|resize|split|convert`: what they write is a dataset again, and says the same."""

import io
import json
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image
from trainyard_api.architectures import Task
from trainyard_cli.evaluation import Judge, in_turns
from trainyard_trainer.prepare import prepare
from trainyard_trainer.records import Record, Side
from trainyard_trainer.split import known_from_json
from trainyard_trainer.store import Storage
from trainyard_trainer.voc import Dataset
from trainyard_trainer.voc_image import decode

from tests.commands import dataset as run
from tests.trainer.conftest import Bucket
from tests.trainer.vocfiles import HEIGHT, WIDTH, Files, found, good, load_uri, obj, picture, record, spec, xml, zipped

BOX = (12, 6, 40, 30)
UNTRUE = ("BoxOriginOne", "BoxClipped", "BoxOutside", "BoxInverted", "SizeWrong", "SizeMissing", "FilenameWrong")
"""What nobody should find in a dataset that was written here."""


def square(form: str = "PNG", orientation: int | None = None) -> bytes:
    """A white rectangle at BOX of the picture as it is shown, on black."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = 255
    image, exif = Image.fromarray(pixels), Image.Exif()
    if orientation == 6:
        # Shown after a turn to the right: stored turned to the left.
        image = image.transpose(Image.Transpose.ROTATE_90)
        exif[0x0112] = 6
    buffer = io.BytesIO()
    image.save(buffer, form, exif=exif)
    return buffer.getvalue()


def squares(orientation: int | None = None, **more: bytes) -> Files:
    files = good(12, ("cell",))
    for index in range(12):
        files[f"Annotations/img_{index:02d}.xml"] = xml(obj("cell", BOX))
        del files[f"JPEGImages/img_{index:02d}.jpg"]
        files[f"JPEGImages/img_{index:02d}.png"] = square(orientation=orientation)
    return {**files, **more}


def white(dataset: Dataset, item: Record) -> tuple[int, int, int, int]:
    """The box around what is white in the picture."""
    pixels = decode(dataset.read(item), item.orientation, max(item.width, item.height))
    assert pixels.shape[:2] == (item.height, item.width)
    ys, xs = np.nonzero(pixels.min(2) > 140)
    return int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1


def read(path: Path, tmp_path: Path, **fields: object) -> Dataset:
    dataset = load_uri(path.as_uri(), tmp_path, **fields)  # pyright: ignore[reportArgumentType]
    assert not [f for f in dataset.findings if f.reason in UNTRUE]
    return dataset


def test_merge_joins_sources_and_keeps_images_boxes_flags_and_lists(tmp_path: Path):
    flags = "<difficult>1</difficult><truncated>1</truncated><occluded>1</occluded>"
    first = {
        **good(12),
        "ImageSets/Main/train.txt": b"img_00\nimg_01.jpg\n",
        "ImageSets/Main/dog_train.txt": b"img_03 -1\n",
    }
    first["Annotations/img_00.xml"] = xml(obj("cell &amp; dot", (10.25, 8, 30, 28.5), flags))
    second = {f"other/{name.replace('img_1', 'more_1')}": data for name, data in good(12, ("ring",)).items()}
    second["other/ImageSets/Main/train.txt"] = b"img_05\nmore_10\n"
    second["other/JPEGImages/bare.jpg"] = picture(70)
    zipped(first, tmp_path / "a.zip")
    zipped(second, tmp_path / "b.zip")
    done = run("merge", tmp_path / "a.zip", tmp_path / "b.zip", "--to", tmp_path / "c.zip", "-o", "json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["images"], report["objects"], report["findings"]) == (25, 35, 0)
    merged = read(tmp_path / "c.zip", tmp_path)
    assert merged.labels == ("cell", "cell & dot", "dot", "ring")
    names = {item.name for item in merged.records}
    assert {"0_img_00", "1_img_00", "img_10", "more_10"} <= names
    (kept,) = record(merged, "0_img_00").objects
    assert (kept.box, kept.difficult, kept.truncated, kept.occluded) == ((10.25, 8, 30, 28.5), True, True, True)
    assert merged.read(record(merged, "1_img_05")) == picture(5)
    with zipfile.ZipFile(tmp_path / "c.zip") as archive:
        assert archive.read("ImageSets/Main/train.txt") == b"0_img_00\n0_img_01\n1_img_05\nmore_10\n"
        assert archive.read("ImageSets/Main/dog_train.txt") == b"0_img_03 -1\n"
        assert "JPEGImages/bare.jpg" in archive.namelist()
        assert "Annotations/bare.xml" not in archive.namelist()


def test_boxes_come_back_as_they_were_though_none_begins_at_0(tmp_path: Path):
    """Boxes from 1 on would be taken for ones that are counted from 1, did the file not say otherwise."""
    files = {name: xml(obj(box=(1, 1, 20, 20))) if name.endswith("xml") else data for name, data in good().items()}
    zipped(files, tmp_path / "a.zip")
    before = load_uri((tmp_path / "a.zip").as_uri(), tmp_path)
    assert record(before).objects[0].box == (0, 0, 20, 20)
    shifted = {name: data.replace(b">1<", b">2<") for name, data in files.items()}
    for name, data, box in (("b", files, (0, 0, 20, 20)), ("c", shifted, (2, 2, 20, 20))):
        zipped(data, tmp_path / f"{name}.zip")
        assert run("merge", tmp_path / f"{name}.zip", "--to", tmp_path / "out.zip").returncode == 0
        assert record(read(tmp_path / "out.zip", tmp_path)).objects[0].box == box


def test_sources_that_count_from_0_and_from_1_are_each_read_their_own_way(tmp_path: Path):
    ones = {name: xml(obj(box=(1, 1, 20, 20))) if name.endswith("xml") else data for name, data in good().items()}
    zipped(ones, tmp_path / "ones.zip")
    zipped(good(), tmp_path / "noughts.zip")
    assert run("merge", tmp_path / "ones.zip", tmp_path / "noughts.zip", "--to", tmp_path / "c.zip").returncode == 0
    merged = read(tmp_path / "c.zip", tmp_path)
    assert record(merged, "0_img_00").objects[0].box == (0, 0, 20, 20)


@pytest.mark.parametrize(
    ("kind", "size", "expected", "shown"),
    [
        ("Letterbox", "128", (128, 128), (24, 28, 80, 76)),
        ("Stretch", "32x96", (32, 96), (6, 12, 20, 60)),
        ("CenterCrop", "24", (24, 24), (2, 3, 16, 15)),
        ("Shrink", "32", (32, 24), (6, 3, 20, 15)),
        ("Shrink", "500", (WIDTH, HEIGHT), BOX),
    ],
)
@pytest.mark.parametrize("orientation", [None, 6])
def test_resize_moves_boxes_with_their_pixels(tmp_path: Path, kind: str, size: str, expected, shown, orientation):
    zipped(squares(orientation), tmp_path / "a.zip")
    done = run("resize", tmp_path / "a.zip", "--to", tmp_path / "b.zip", "--size", size, "--kind", kind)
    assert done.returncode == 0, done.stderr
    dataset = read(tmp_path / "b.zip", tmp_path)
    first = record(dataset)
    assert (first.width, first.height) == expected
    assert np.abs(np.subtract(first.objects[0].box, shown)).max() <= 0.01
    assert np.abs(np.subtract(white(dataset, first), shown)).max() <= 1


def test_resize_says_what_was_cut_away(tmp_path: Path):
    files = {**squares(), "Annotations/img_00.xml": xml(obj("cell", (0, 0, 6, 48)))}
    zipped(files, tmp_path / "a.zip")
    done = run("resize", tmp_path / "a.zip", "--to", tmp_path / "b.zip", "--size", "48", "--kind", "CenterCrop")
    assert "1 objects were cut away" in done.stdout
    assert record(read(tmp_path / "b.zip", tmp_path)).objects == ()


def test_split_writes_the_sides_that_a_training_would_draw(tmp_path: Path):
    zipped({**good(40), "ImageSets/Main/train.txt": b"img_00\n"}, tmp_path / "a.zip")
    done = run("split", tmp_path / "a.zip", "--to", tmp_path / "b.zip", "--seed", 3, "--max-test-images", 2)
    assert done.returncode == 0, done.stderr
    assert "(34 train, 4 val, 2 test)" in done.stdout
    assert (
        "dataset.subsets: {train: {imageSet: train}, validation: {imageSet: val}, test: {imageSet: test}}"
        in done.stdout
    )
    with zipfile.ZipFile(tmp_path / "b.zip") as archive:
        lists = {name: archive.read(f"ImageSets/Main/{name}.txt").decode().split() for name in ("train", "val", "test")}
    assert sorted(name for names in lists.values() for name in names) == [f"img_{i:02d}" for i in range(40)]
    assert [len(names) for names in lists.values()] == [34, 4, 2]
    again = run("split", tmp_path / "a.zip", "--to", tmp_path / "c.zip", "--seed", 3, "--max-test-images", 2)
    assert again.returncode == 0
    assert (tmp_path / "b.zip").read_bytes() == (tmp_path / "c.zip").read_bytes()
    assert "sum up to 90" in run("split", tmp_path / "a.zip", "--to", tmp_path / "d.zip", "--test", 0).stderr


def test_two_halves_look_at_every_image_with_the_version_that_did_not_train_on_it(tmp_path: Path):
    zipped(good(40), tmp_path / "a.zip")
    asked = ("--train", 50, "--validation", 50, "--test", 0)
    done = run("split", tmp_path / "a.zip", "--to", tmp_path / "halves.zip", *asked)
    assert "dataset.subsets: {train: {imageSet: train}, validation: {imageSet: val}}" in done.stdout
    halves = []
    for train, validation in (("train", "val"), ("val", "train")):
        subsets = {"train": {"imageSet": train}, "validation": {"imageSet": validation}}
        wanted = spec((tmp_path / "halves.zip").as_uri(), subsets=subsets)
        halves.append(prepare(wanted, Task.DETECTION, Storage(), tmp_path / "cache", image_size=(64, 64)))
    nobody = cast(Any, None)
    judges = [Judge(nobody, known_from_json(half.to_json())) for half in halves]
    turns = list(in_turns(judges, halves[0], quiet=True))
    assert not any(turn.trained_on for turn in turns)
    for judge, other in zip(judges, reversed(halves), strict=True):
        members = [index for turn in turns if turn.judge is judge for index in turn.members]
        assert sorted(members) == list(other.of(Side.TRAIN))
        assert len(members) == 20


def coco(images: int = 12) -> dict[str, list[dict[str, object]]]:
    """An image has one crowd and one polygon; one annotation is of an unknown category."""
    return {
        "categories": [{"id": 7, "name": "cell"}, {"id": 9, "name": " ring"}],
        "images": [{"id": 100 + i, "file_name": f"img_{i:02d}.jpg", "width": 1, "height": 1} for i in range(images)],
        "annotations": [{"image_id": 100 + i, "category_id": 7, "bbox": [10, 8, 20, 20]} for i in range(images)]
        + [
            {"image_id": 100, "category_id": 9, "bbox": [1, 2, 3.5, 4], "iscrowd": 1},
            {"image_id": 101, "category_id": 9, "segmentation": [[30, 5, 50, 5, 40, 25.5]]},
            {"image_id": 101, "category_id": 8, "bbox": [1, 2, 3, 4]},
            {"image_id": 102, "category_id": 7, "bbox": [1, 2, 0, 4]},
        ],
    }


def test_convert_turns_coco_into_pascal_voc(tmp_path: Path):
    whole, rest = coco(), coco()
    rest["annotations"] = []
    rest["images"] = [{"id": 1, "file_name": "img_50.jpg"}, {"id": 2, "file_name": "gone.jpg"}]
    files: Files = {f"train2017/img_{i:02d}.jpg": picture(i) for i in range(12)}
    files["val2017/img_50.jpg"] = picture(50)
    files["annotations/instances_train2017.json"] = json.dumps(whole).encode()
    files["annotations/instances_val2017.json"] = json.dumps(rest).encode()
    zipped(files, tmp_path / "coco.zip")
    said = run("check", tmp_path / "coco.zip").stderr
    assert "is a COCO dataset (annotations/instances_train2017.json)" in said
    assert f"trainyard dataset convert {(tmp_path / 'coco.zip').as_uri()} --to voc.zip" in said
    done = run("convert", (tmp_path / "coco.zip").as_uri(), "--to", tmp_path / "voc.zip", "-o", "json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["format"], report["images"], report["objects"]) == ("COCO", 13, 14)
    assert report["examples"] == [
        "annotations/instances_train2017.json: annotation 14: there is no category 8; left out",
        "annotations/instances_val2017.json: names 'gone.jpg' (image 1), and there is no such picture; left out",
        "annotations/instances_train2017.json: the box of 'cell' has no area; dropped",
    ]
    dataset = read(
        tmp_path / "voc.zip", tmp_path, subsets={"train": {"imageSet": "train"}, "validation": {"imageSet": "val"}}
    )
    assert [(o.label, o.box, o.difficult) for o in record(dataset).objects] == [
        ("cell", (10, 8, 30, 28), False),
        ("ring", (1, 2, 4.5, 6), True),
    ]
    assert record(dataset, "img_01").objects[1].box == (30, 5, 50, 25.5)
    assert record(dataset, "img_50").objects == ()
    with zipfile.ZipFile(tmp_path / "voc.zip") as archive:
        assert archive.read("ImageSets/Main/val.txt") == b"img_50\n"


def yolo(names: bytes = b"names:\n  0: cell\n  1: ring\n") -> Files:
    files: Files = {"data.yaml": names}
    for i in range(12):
        side = "train" if i < 10 else "valid"
        files[f"{side}/images/a.{i:02d}.jpg"] = picture(i)
        files[f"{side}/labels/a.{i:02d}.txt"] = b"0 0.5 0.5 0.25 0.5\n"
    return files


@pytest.mark.parametrize("names", [b"names:\n  0: cell\n  1: ring\n", b"nc: 2\nnames: [cell, ring]\n", None])
def test_convert_turns_yolo_into_pascal_voc(tmp_path: Path, names: bytes | None):
    files = yolo(names or b"")
    if names is None:
        del files["data.yaml"]
        files["classes.txt"] = b"cell\r\nring\r\n"
    files["train/labels/a.00.txt"] = (
        b"1 .5 .5 .25 .5\n0 0.1 0.1 0.5 0.1 0.5 0.6\n\n7 .5 .5 .1 .1\n0 .5 .5 .1\n0 .5 nan .1 .1\n"
    )
    del files["valid/labels/a.11.txt"]
    files["train/images/turned.jpg"] = picture(60, (HEIGHT, WIDTH), orientation=6)
    files["train/labels/turned.txt"] = b"0 0.25 0.5 0.5 1\n"
    files["train/labels/gone.txt"] = b"0 .5 .5 .1 .1\n"
    zipped(files, tmp_path / "yolo.zip")
    assert "is a YOLO dataset" in run("check", tmp_path / "yolo.zip").stderr
    done = run("convert", tmp_path / "yolo.zip", "--to", tmp_path / "voc.zip", "-o", "json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["format"], report["labels"], report["images"], report["objects"]) == (
        "YOLO",
        ["cell", "ring"],
        13,
        13,
    )
    assert report["examples"] == [
        "train/labels/a.00.txt:4: class 7 has no name; there are 2; left out",
        "train/labels/a.00.txt:5: 3 numbers after the class; a box has 4, a polygon 6 or more; left out",
        "train/labels/a.00.txt:6: number 2 is nan, not a finite number; left out",
        "train/labels/gone.txt: there is no image of this name; skipped",
    ]
    dataset = read(tmp_path / "voc.zip", tmp_path, unannotated="Background")
    boxes = [(o.label, o.box) for o in record(dataset, "a.00").objects]
    assert boxes == [("ring", (24, 12, 40, 36)), ("cell", (6.4, 4.8, 32, 28.8))]
    turned = record(dataset, "turned")
    assert (turned.width, turned.height, turned.orientation) == (WIDTH, HEIGHT, 6)
    assert turned.objects[0].box == (0, 0, WIDTH / 2, HEIGHT)
    with zipfile.ZipFile(tmp_path / "voc.zip") as archive:
        assert archive.read("ImageSets/Main/val.txt") == b"a.10\na.11\n"
        assert "Annotations/a.11.xml" not in archive.namelist()


def test_csv_is_recognised_and_named_in_the_error(tmp_path: Path):
    zipped({"labels.csv": b"filename,xmin,ymin,xmax,ymax\n", "images/1.jpg": picture(1)}, tmp_path / "csv.zip")
    for command in (("check", tmp_path / "csv.zip"), ("merge", tmp_path / "csv.zip", "--to", tmp_path / "out.zip")):
        done = run(*command)
        assert done.returncode == 1
        assert (
            "is annotated in a CSV file (labels.csv, which begins with 'filename,xmin,ymin,xmax,ymax')" in done.stderr
        )
    assert not (tmp_path / "out.zip").exists()


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (good(2), "is neither COCO"),
        ({"data.yaml": b"names: [a]", "images/1.jpg": picture(1)}, "no picture has a text file of its name"),
        ({"a.json": b'{"images": 1, "annotations": [], "categories": []}'}, "a.json: images is no list"),
        ({"a.json": b'{"images": [], "annotations": [], "categories": [1]}'}, "categories need an id and a name each"),
        ({"a.json": b'{"images": [], "annotations": [], "categories": []}'}, "has no image that can be read"),
    ],
)
def test_convert_of_what_cannot_be_converted_ends_with_one_sentence(tmp_path: Path, files: Files, said: str):
    zipped(files, tmp_path / "a.zip")
    done = run("convert", tmp_path / "a.zip", "--to", tmp_path / "b.zip")
    assert (done.returncode, said in done.stderr, done.stderr.count("\n")) == (1, True, 1), done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("resize", "a.zip", "--to", "b.zip", "--size", "12x"), "--size '12x': write a side"),
        (("merge", "a.zip", "--to", "."), "is a folder; name the file to write"),
        (("merge", "a.zip", "--to", "s3://bucket/folder/"), "ends in /; name the object"),
        (("merge", "none.zip", "--to", "b.zip"), "none.zip: there is no such file or folder"),
        (("merge", "a.zip", "--to", "b.zip", "--max-bytes", "1Ki"), "more than dataset.limits.maxBytes (1,024)"),
        (("merge", "broken.zip", "--to", "b.zip"), "Annotations/img_00.xml:4: the label"),
    ],
)
def test_tools_fail_with_one_sentence_and_leave_nothing(tmp_path: Path, monkeypatch, arguments, said: str):
    monkeypatch.chdir(tmp_path)
    zipped(good(), tmp_path / "a.zip")
    zipped({**good(), "Annotations/img_00.xml": xml(obj("ce\u0085ll"))}, tmp_path / "broken.zip")
    done = run(*arguments)
    assert (done.returncode, said in done.stderr, done.stderr.count("\n")) == (1, True, 1), done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "broken.zip"]


def test_tools_read_from_and_write_to_s3(bucket: Bucket, tmp_path: Path):
    zipped(good(), tmp_path / "a.zip")
    uri = bucket.put("a.zip", (tmp_path / "a.zip").read_bytes())
    done = run("merge", uri, tmp_path / "a.zip", "--to", f"{bucket.uri}/c.zip", **bucket.environment)
    assert done.returncode == 0, done.stderr
    bucket.client.download_file(bucket.name, "c.zip", str(tmp_path / "c.zip"))
    assert len(read(tmp_path / "c.zip", tmp_path).records) == 24
    assert not found(read(tmp_path / "c.zip", tmp_path), "LabelsDifferBetweenSources")


def test_an_interrupted_tool_leaves_nothing_half_written(tmp_path: Path):
    arguments = ["synth", str(tmp_path / "out" / "a.zip"), "--images", "100000", "--size", "48x48"]
    process = subprocess.Popen(
        [sys.executable, "-m", "trainyard_cli.main", "dataset", *arguments], stderr=subprocess.PIPE
    )
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("out/.a.zip.*.part")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert b"Traceback" not in said
    assert list((tmp_path / "out").iterdir()) == []
