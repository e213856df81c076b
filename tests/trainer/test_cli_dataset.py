"""`trainyard dataset` as a person runs it."""

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trainyard_trainer import remote, voc_source
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
    names = write_zip(tmp_path / "a.zip", images=12, size=(96, 64), labels=5, kind=Kind.CHARACTERS)
    report = json.loads(run("stats", tmp_path / "a.zip", "-o", "json").stdout)
    assert [entry["label"] for entry in report["labels"]] == sorted(names)


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
