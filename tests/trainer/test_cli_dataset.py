"""`trainyard dataset` as a person runs it."""

import json
import zipfile
from pathlib import Path

import pytest
from trainyard_trainer.synth import Kind, write_zip

from tests.trainer.commands import run
from tests.trainer.conftest import Bucket
from tests.trainer.vocfiles import good, obj, xml, zipped


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
