"""`trainyard dataset` as a person runs it."""

import io
import json
import re
import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from trainyard_api.architectures import Task
from trainyard_api.dataset import Source
from trainyard_api.trainingjob import TrainingJobSpec
from trainyard_trainer import remote, voc_source
from trainyard_trainer.errors import BadData
from trainyard_trainer.prepare import prepare
from trainyard_trainer.records import Side
from trainyard_trainer.store import Storage
from trainyard_trainer.store_s3 import S3
from trainyard_trainer.synth import Kind, write_zip

from tests.commands import dataset as run
from tests.trainer.conftest import Bucket
from tests.trainer.vocfiles import HEIGHT, WIDTH, good, obj, picture, xml, zipped


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("synth") / "shapes.zip"
    write_zip(path, images=20, size=(96, 64))
    return path


def test_check_prints_a_page_and_says_that_it_can_be_trained_on(shapes: Path):
    done = run("check", shapes)
    assert done.returncode == 0, done.stderr
    for words in (
        "20 images",
        "LABEL",
        "circle",
        "square",
        "triangle",
        "split: 16 training",
        "This dataset can be trained on.",
    ):
        assert words in done.stdout
    assert done.stderr == ""


def test_check_names_every_fault_with_file_and_line_and_ends_with_1(tmp_path: Path):
    files = good(20)
    files["Annotations/img_03.xml"] = xml(obj("ce\u0085ll"))
    files["Annotations/img_04.xml"] = b"<!DOCTYPE a><annotation/>"
    files["Annotations/img_05.xml"] = xml(obj(box=(40, 8, 10, 28)))
    done = run("check", zipped(files, tmp_path / "data.zip"))
    assert done.returncode == 1
    assert "Annotations/img_03.xml:4: the label" in done.stdout
    assert "Annotations/img_04.xml:1: has a DOCTYPE" in done.stdout
    assert "Annotations/img_05.xml:7: xmax 10 < xmin 40; swapped" in done.stdout
    assert done.stderr.startswith("Error: this dataset cannot be trained on: Annotations/img_03.xml:4:")
    assert done.stderr.count("\n") == 1


def test_check_says_what_looks_alike_what_to_add_and_why_which_settings(tmp_path: Path):
    files = good(40)
    for index in range(40):
        small = [obj("cell", (x, 2, x + 5, 7)) for x in range(0, 60, 6)]
        files[f"Annotations/img_{index:02d}.xml"] = xml(*small, *([obj("ring", (2, 20, 40, 40))] if index < 2 else []))
    for name, quality in (("img_05", 70), ("img_07", 60)):
        buffer = io.BytesIO()
        Image.open(io.BytesIO(files["JPEGImages/img_00.jpg"])).save(buffer, "JPEG", quality=quality)
        files[f"JPEGImages/{name}.jpg"] = buffer.getvalue()
    done = run("check", zipped(files, tmp_path / "data.zip"), "--architecture", "yard-nano")
    assert done.returncode == 0, done.stderr
    for words in (
        "Images that look alike:\n  JPEGImages/img_00.jpg, JPEGImages/img_05.jpg, JPEGImages/img_07.jpg",
        "'ring': add about 298 more objects (it has 2; 300 are a beginning), and images of other scenes (all of it is in 2 images)",
        "no image is without objects",
        "Objects by their shorter side, with images of 320 px: 12 to 32 px 100 %",
        "imageSize 320: nine of ten objects are at least 7.8 % of the image's long side: 25 pixels at 320, enough",
        "batchSize 8 on CPU, 8 on GPU: yard-nano is tuned for 8 on CPU and 32 on GPU",
        "epochs 300: 32 training images in batches of 8 are 4 steps an epoch; 300 epochs make 1,200 steps",
    ):
        assert words in done.stdout, done.stdout
    report = json.loads(run("check", tmp_path / "data.zip", "-o", "json").stdout)
    (group,) = report["nearDuplicates"]
    assert len(group["images"]) == 3
    assert report["advice"]["reasons"].keys() == {"imageSize", "batchSize", "epochs"}
    assert report["additions"][0].startswith("'ring'")


def job_file(folder: Path, dataset: dict[str, Any] | None = None, **fields: Any) -> Path:
    """A manifest whose data is on a storage that nobody asks."""
    settings = {"sources": [{"uri": "s3://vision/elsewhere.zip"}], **(dataset or {})}
    spec = {"architecture": "yard-nano", "output": {"uri": "s3://vision/models"}, "dataset": settings, **fields}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump({"kind": "TrainingJob", "metadata": {"name": "cells"}, "spec": spec}))
    return path


def odd(folder: Path) -> Path:
    """20 images: two inverted boxes, one without annotation, one without object, the sides as lists; boxes begin at 1."""
    files = good(20)
    for index, objects in ((3, [obj(box=(40, 8, 10, 28))]), (4, [obj(box=(40, 8, 1, 28))]), (5, [])):
        files[f"Annotations/img_{index:02d}.xml"] = xml(*objects)
    for index in (0, 1, *range(6, 20)):
        files[f"Annotations/img_{index:02d}.xml"] = xml(obj(), obj("dot", (1, 1, 20, 20)))
    del files["Annotations/img_02.xml"]
    for name, members in (("train", range(6, 20)), ("val", range(2))):
        files[f"ImageSets/Main/{name}.txt"] = "\n".join(f"img_{index:02d}" for index in members).encode()
    return zipped(files, folder / "data.zip")


@pytest.mark.parametrize(
    ("settings", "problem", "told"),
    [
        ({}, "maxRepairPercent (5)", {"images": 19}),
        ({"limits": {"maxRepairPercent": 30}}, "", {"images": 19, "split": {"train": 15, "validation": 2, "test": 2}}),
        ({"limits": {"maxRepairPercent": 30}, "unannotated": "Background"}, "", {"images": 20}),
        ({"limits": {"maxRepairPercent": 30}, "withoutObjects": "Skip"}, "", {"images": 18}),
        ({"limits": {"maxRepairPercent": 30, "maxImages": 15}}, "dataset.limits.maxImages (15)", {}),
        ({"limits": {"maxRepairPercent": 30}, "labels": ["cell"]}, "'dot' is not in dataset.labels", {}),
        (
            {"limits": {"maxRepairPercent": 30}, "split": {"trainPercent": 50, "validationPercent": 50, "testPercent": 0}},
            "",
            {"split": {"train": 9, "validation": 10, "test": 0}},
        ),
        (
            {
                "limits": {"maxRepairPercent": 30},
                "subsets": {"train": {"imageSet": "train"}, "validation": {"imageSet": "val"}},
            },
            "",
            {"split": {"train": 14, "validation": 2, "test": 0}},
        ),
    ],
)  # fmt: skip
def test_check_finds_what_a_training_of_the_job_would_find(
    tmp_path: Path, settings: dict[str, Any], problem: str, told: dict[str, Any]
):
    data = odd(tmp_path)
    done = run("check", data, "--job", job_file(tmp_path, settings), "-o", "json")
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    assert problem in (report["problem"] or "")
    assert (done.returncode, report["ok"]) == ((1, False) if problem else (0, True))
    assert {key: report[key] for key in told} == told
    spec = TrainingJobSpec.model_validate(yaml.safe_load((tmp_path / "job.yaml").read_text())["spec"])
    here = spec.dataset.model_copy(update={"sources": (Source(uri=data.as_uri()),)})
    with pytest.raises(BadData, match=re.escape(report["problem"])) if problem else nullcontext():
        trained = prepare(here, Task.DETECTION, Storage(), tmp_path / "cache", image_size=(64, 64))
        assert report["split"] == {side.value: len(trained.of(side)) for side in Side}
        assert report["images"] == len(trained.dataset.records)


def test_check_takes_box_origin_and_label_policy_of_the_job(tmp_path: Path):
    data = odd(tmp_path)
    assert "counted from 1" in run("check", data, "--job", job_file(tmp_path)).stdout
    zero = job_file(tmp_path, {"limits": {"boxOrigin": 0}})
    assert "counted from 1" not in run("check", data, "--job", zero).stdout
    other = zipped(good(12, ("cell",)), tmp_path / "other.zip")
    identical = job_file(tmp_path, {"labelPolicy": "Identical", "limits": {"maxRepairPercent": 30}})
    done = run("check", data, other, "--job", identical)
    assert (done.returncode, "dataset.labelPolicy is Identical" in done.stderr) == (1, True)


def test_check_takes_the_sources_the_task_and_the_architecture_of_the_job(shapes: Path, tmp_path: Path):
    job = job_file(tmp_path, {"sources": [{"uri": shapes.as_uri()}]}, architecture="resnet18", task="Tagging")
    done = run("check", "--job", job)
    assert (done.returncode, "To begin with (resnet18)" in done.stdout) == (0, True), done.stderr
    assert "To begin with (resnet50)" in run("check", "--job", job, "--architecture", "resnet50").stdout
    own = job_file(tmp_path, {"sources": [{"uri": shapes.as_uri()}]}, architecture="private/mine", task="Detection")
    assert "To begin with (yard-nano)" in run("check", "--job", own).stdout


@pytest.mark.parametrize(
    ("settings", "fields", "said"),
    [
        ({"labelpolicy": "Union"}, {}, "spec.dataset.labelpolicy"),
        ({"split": {"testPercent": 30}}, {}, "must sum to 100"),
        ({}, {"architecture": "yard-nono"}, "did you mean yard-nano?"),
    ],
)
def test_check_refuses_the_job_that_a_training_would_refuse(
    shapes: Path, tmp_path: Path, settings: dict[str, Any], fields: dict[str, Any], said: str
):
    done = run("check", shapes, "--job", job_file(tmp_path, settings, **fields))
    assert (done.returncode, said in done.stderr, done.stderr.count("\n")) == (1, True, 1), done.stderr


def test_check_without_source_and_job_says_what_is_missing():
    done = run("check")
    assert (done.returncode, done.stderr) == (
        1,
        "Error: name a SOURCE, or with --job the manifest of a job that has some.\n",
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "To begin with (yard-nano)"),
        (("--task", "Tagging"), "To begin with (mobilenet-v3-small)"),
        (("--architecture", "resnet18"), "has the labels"),
        (("--task", "Tagging", "--architecture", "yard-nano"), "yard-nano cannot do Tagging; set --task to Detection."),
    ],
)
def test_the_advised_architecture_can_do_the_task(shapes: Path, options: tuple[str, ...], said: str):
    done = run("check", shapes, *options)
    assert said in done.stdout + done.stderr


@pytest.mark.parametrize(("side", "size"), [(32, 320), (24, 416), (15, 640), (4, 1024)])
def test_the_advised_size_gives_small_objects_twelve_pixels(tmp_path: Path, side: int, size: int):
    files = good(12)
    for index in range(12):
        files[f"JPEGImages/img_{index:02d}.jpg"] = picture(index, (768, 576))
        files[f"Annotations/img_{index:02d}.xml"] = xml(
            *[obj(box=(x, 9, x + side, 9 + side)) for x in (0, 99)], size=(768, 576)
        )
    advice = json.loads(run("check", zipped(files, tmp_path / "data.zip"), "-o", "json").stdout)["advice"]
    assert advice["imageSize"] == size
    assert ("cut the images into tiles" in advice["reasons"]["imageSize"]) == (side == 4)
    assert advice["batchSize"] <= 8 * (320 / size) ** 2 + 1


def test_check_as_json_is_for_programs(shapes: Path):
    report = json.loads(run("check", shapes, "-o", "json").stdout)
    assert report["ok"] is True
    assert report["images"] == 20
    assert [entry["label"] for entry in report["labels"]] == ["circle", "square", "triangle"]
    assert report["split"] == {"train": 16, "validation": 2, "test": 2}
    assert report["advice"]["imageSize"] >= 320


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: None, "there is no such file or folder"),
        (lambda path: path.write_text("hello"), "is no zip file but text beginning with 'hello'"),
    ],
)
def test_check_of_something_else_ends_with_one_sentence(tmp_path: Path, make, said: str):
    make(tmp_path / "data.zip")
    done = run("check", tmp_path / "data.zip")
    assert (done.returncode, said in done.stderr, done.stderr.count("\n")) == (1, True, 1)


def test_synth_gives_the_same_bytes_for_the_same_seed(tmp_path: Path):
    assert run("synth", tmp_path / "a.zip", "--images", 12, "--size", "64x48", "--seed", 5).returncode == 0
    write_zip(tmp_path / "b.zip", images=12, size=(64, 48), seed=5)
    write_zip(tmp_path / "c.zip", images=12, size=(64, 48), seed=6)
    first, second, third = ((tmp_path / f"{name}.zip").read_bytes() for name in "abc")
    assert first == second != third


def test_synth_of_characters_is_a_dataset(tmp_path: Path):
    options = ("--images", 12, "--size", "96x64", "--labels", 5)
    done = run("synth", tmp_path / "a.zip", *options, "--kind", "characters", "-o", "json")
    assert done.returncode == 0, done.stderr
    names = write_zip(tmp_path / "b.zip", images=12, size=(96, 64), labels=5, kind=Kind.CHARACTERS)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    assert json.loads(done.stdout)["labels"] == list(names)
    report = json.loads(run("stats", tmp_path / "a.zip", "-o", "json").stdout)
    assert [entry["label"] for entry in report["labels"]] == sorted(names)
    done = run("synth", tmp_path / "c.zip", "--kind", "letters")
    assert (done.returncode, "write shapes or characters" in done.stderr) == (1, True)


def test_upload_and_check_on_s3(shapes: Path, bucket: Bucket, tmp_path: Path):
    environment = bucket.environment
    told = json.loads(run("upload", shapes, f"{bucket.uri}/b.zip", "-o", "json", **environment).stdout)
    assert told == {"target": f"{bucket.uri}/b.zip", "bytes": shapes.stat().st_size}
    done = run("upload", shapes, f"{bucket.uri}/data.zip", **environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{bucket.uri}/data.zip: {shapes.stat().st_size:,} bytes\n"
    folder = tmp_path / "shapes"
    with zipfile.ZipFile(shapes) as archive:
        archive.extractall(folder)
    assert run("upload", folder, f"{bucket.uri}/files/", **environment).stdout == f"{bucket.uri}/files/: 40 files\n"
    for uri in (f"{bucket.uri}/data.zip", f"{bucket.uri}/files/"):
        done = run("stats", uri, "-o", "json", **environment)
        assert json.loads(done.stdout)["images"] == 20
    done = run("upload", shapes, "s3://no-such-bucket-xyz/data.zip", **environment)
    assert done.returncode == 1
    assert "there is no bucket 'no-such-bucket-xyz'" in done.stderr


def big(folder: Path, **changes: bytes) -> tuple[Path, int]:
    """A zip of 12 PNGs of noise of about 100 KB each, and the bytes of all that is no picture."""
    noise = np.random.default_rng(0)
    files = good(12)
    for index in range(12):
        del files[f"JPEGImages/img_{index:02d}.jpg"]
        buffer = io.BytesIO()
        Image.fromarray(noise.integers(0, 256, (HEIGHT * 4, WIDTH * 3, 3), dtype=np.uint8)).save(buffer, "PNG")
        files[f"JPEGImages/img_{index:02d}.png"] = buffer.getvalue()
    files |= changes
    texts = sum(len(data) for name, data in files.items() if not name.endswith("png"))
    return zipped(files, folder / "data.zip"), texts


@pytest.mark.parametrize("kind", ["zip", "prefix"])
def test_check_on_s3_fetches_no_pictures_where_it_can(bucket: Bucket, tmp_path: Path, monkeypatch, kind: str):
    path, texts = big(tmp_path)
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist() if kind == "prefix" else ():
            bucket.put(f"d/{name}", archive.read(name))
    uri = f"{bucket.uri}/d/" if kind == "prefix" else bucket.put("data.zip", path.read_bytes())
    fetched: list[int] = []
    read = S3.read
    monkeypatch.setattr(remote, "HEAD", 1024)
    monkeypatch.setattr(remote, "GAP", 4096)
    monkeypatch.setattr(voc_source, "TAIL", 8192)

    def counting(self: S3, *arguments: object) -> bytes:
        fetched.append(len(data := read(self, *arguments)))  # type: ignore[arg-type]
        return data

    monkeypatch.setattr(S3, "read", counting)
    quick = json.loads(run("check", uri, "--no-pictures", "-o", "json", **bucket.environment).stdout)
    assert sum(fetched) < texts + 12 * 2048 + 20_000 < path.stat().st_size / 5
    monkeypatch.undo()
    whole = json.loads(run("check", uri, "--pictures", "-o", "json", **bucket.environment).stdout)
    local = json.loads(run("check", path, "-o", "json").stdout)
    assert (quick.pop("picturesDecoded"), whole.pop("picturesDecoded")) == (False, True)
    for key in ("images", "objects", "labels", "imageSizes", "split", "boxSizes", "advice", "additions"):
        assert quick[key] == whole[key] == local[key], key
    page = run("check", uri, "--no-pictures", **bucket.environment).stdout
    assert "Of the pictures only the first bytes were read." in page


def test_check_on_s3_says_the_same_of_damage_as_a_training(bucket: Bucket, tmp_path: Path):
    broken = {"JPEGImages/img_03.png": b"hello", "Annotations/img_04.xml": xml(obj("ce\u0085ll"))}
    path, _ = big(tmp_path, **broken)
    uri = bucket.put("data.zip", path.read_bytes())
    quick = run("check", uri, "--no-pictures", **bucket.environment)
    local = run("check", path)
    assert quick.returncode == local.returncode == 1
    assert quick.stderr == local.stderr
    assert "Annotations/img_04.xml:4: the label" in quick.stderr
    assert "JPEGImages/img_03.png: is no picture that can be read (begins with 68 65 6c 6c 6f)" in quick.stderr
    # A byte of a member that was changed on its way is found by its checksum.
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        at = archive.getinfo("Annotations/img_00.xml").header_offset + 30 + len("Annotations/img_00.xml") + 20
    data[at] ^= 0xFF
    done = run("check", bucket.put("bad.zip", bytes(data)), "--no-pictures", **bucket.environment)
    assert "Annotations/img_00.xml in " in done.stderr
    assert done.stderr.count("\n") == 1
