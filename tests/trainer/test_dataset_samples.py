"""`trainyard dataset augment|preview`: what is written is a dataset whose boxes lie where the objects are."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from trainyard_trainer.rewrite import LIST_NAMES
from trainyard_trainer.synth import write_zip
from trainyard_trainer.voc_image import decode

from tests.commands import dataset as run
from tests.trainer.vocfiles import Files, good, load_uri, obj, xml, zipped


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("synth") / "shapes.zip"
    write_zip(path, images=16, size=(96, 64), labels=2)
    return path


def bright(box: tuple[int, int, int, int]) -> Files:
    """Twelve black images with a white rectangle at the box."""
    import io

    files: Files = {}
    for index in range(12):
        pixels = np.zeros((48, 64, 3), np.uint8)
        pixels[box[1] : box[3], box[0] : box[2]] = 255
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "PNG", pnginfo=None)
        files[f"JPEGImages/img_{index:02d}.png"] = buffer.getvalue() + bytes([index])
        files[f"Annotations/img_{index:02d}.xml"] = xml(obj("cell", box), name=f"img_{index:02d}.png")
    return files


def test_augment_writes_images_whose_boxes_follow_the_pixels(tmp_path: Path):
    zipped(bright((12, 6, 40, 30)), tmp_path / "a.zip")
    done = run(
        *("augment", tmp_path / "a.zip", "--to", tmp_path / "b.zip", "--copies", 2, "--all", "--size", "96x64"),
        *("--preset", "None", "--set", "scale=40", "--set", "translate=20", "--set", "horizontalFlip=50", "-o", "json"),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["images"], report["created"], report["augmentedFrom"]) == (24, 24, 12)
    dataset = load_uri((tmp_path / "b.zip").as_uri(), tmp_path, withoutObjects="Use")
    boxes = set()
    for item in dataset.records:
        pixels = decode(dataset.read(item), 1, 96)
        assert pixels.shape == (64, 96, 3)
        if item.objects:
            ys, xs = np.nonzero(pixels.min(2) > 160)
            seen = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
            assert np.abs(np.subtract(item.objects[0].box, seen)).max() <= 2
            boxes.add(item.objects[0].box)
    assert len(boxes) > 20, "every image is another one"


def test_augment_is_the_same_for_the_same_seed_and_takes_the_training_side_only(tmp_path: Path, shapes: Path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        done = run("augment", shapes, "--to", tmp_path / f"{name}.zip", "--size", 64, "--seed", seed)
        assert "made from 12 images, the training side" in done.stdout, done.stderr
    first, second, third = ((tmp_path / f"{name}.zip").read_bytes() for name in "abc")
    assert first == second != third


def test_augment_with_originals_keeps_every_copy_on_the_side_of_its_image(tmp_path: Path, shapes: Path):
    done = run("split", shapes, "--to", tmp_path / "a.zip", "--train", 50, "--validation", 25, "--test", 25)
    assert done.returncode == 0, done.stderr
    done = run("augment", tmp_path / "a.zip", "--to", tmp_path / "b.zip", "--size", 64, "--with-originals")
    assert "8 of them made from 8 images, the training side" in done.stdout, done.stderr
    with zipfile.ZipFile(tmp_path / "a.zip") as old, zipfile.ZipFile(tmp_path / "b.zip") as new:
        for name in LIST_NAMES.values():
            was = set(old.read(f"ImageSets/Main/{name}.txt").decode().split())
            now = set(new.read(f"ImageSets/Main/{name}.txt").decode().split())
            assert now == (was | {f"{stem}_a1" for stem in was} if name == "train" else was)
        assert len([name for name in new.namelist() if name.startswith("JPEGImages/")]) == 24


def test_preview_is_a_sheet_with_a_box_around_each_object(tmp_path: Path):
    zipped(bright((12, 6, 40, 30)), tmp_path / "a.zip")
    done = run("preview", tmp_path / "a.zip", "--to", tmp_path / "sheet.png", "--size", "64x48", "--preset", "None")
    assert done.returncode == 0, done.stderr
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).astype(int)
    red = (np.abs(sheet - (0xE6, 0x19, 0x4B)).sum(2) < 12)[60:]
    white = (sheet.min(2) > 200)[60:]
    # Three rows of four tiles; the outline of each is where black meets white.
    assert red.sum() > 12 * 2 * (28 + 24) * 3
    ys, xs = np.nonzero(white)
    assert red[ys.min() - 3 : ys.min() + 4, xs.min() : xs.min() + 20].any()


def test_preview_shows_each_augmentation_by_itself(tmp_path: Path, shapes: Path):
    command = ("preview", shapes, "--to", tmp_path / "sheet.png", "--size", 64, "--samples", 2, "-o", "json")
    every = json.loads(run(*command, "--each").stdout)
    assert len(every["rows"]) == 22
    some = json.loads(run(*command, "--only", "mosaic", "--only", "hue").stdout)
    assert some["rows"] == ["as they are", "hue: 4", "mosaic: 100"]
    with Image.open(tmp_path / "sheet.png") as image:
        assert image.size == (some["width"], some["height"])
    assert every["height"] > 5 * some["height"]


def test_preview_of_a_job_shows_its_augmentation(tmp_path: Path, shapes: Path):
    (tmp_path / "job.yaml").write_text(
        "apiVersion: trainyard.dev/v1alpha1\nkind: TrainingJob\nmetadata: {name: a}\nspec:\n  architecture: yard-nano\n"
        "  dataset: {sources: [{uri: s3://b/c.zip}], imageSize: 64x96, resize: Stretch}\n"
        "  augmentation: {preset: Light, mosaic: 100}\n  output: {uri: s3://b/d}\n"
    )
    done = run(
        "preview", shapes, "--to", tmp_path / "a.png", "--job", tmp_path / "job.yaml", "--samples", 1, "-o", "json"
    )
    assert json.loads(done.stdout)["rows"] == ["Light at 64x96, Stretch"], done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--set", "rotate"), "--set 'rotate': write NAME=STRENGTH"),
        (("--set", "rotate=999"), "augmentation.rotate: Input should be less than or equal to 180"),
        (("--set", "spin=1"), "augmentation.spin: Extra inputs are not permitted"),
        (("--preset", "Wild"), "augmentation.preset: Input should be 'None', 'Light', 'Default' or 'Strong'"),
        (("--only", "spin"), "--only spin: there is no such augmentation; there are horizontalFlip, "),
        (("--size", "9"), "--size '9': write a side"),
    ],
)
def test_what_is_no_augmentation_is_one_sentence(tmp_path: Path, shapes: Path, arguments: tuple[str, ...], said: str):
    done = run("preview", shapes, "--to", tmp_path / "a.png", *arguments)
    assert (done.returncode, said in done.stderr, done.stderr.count("\n")) == (1, True, 1), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_images_are_made_of_fewer_than_a_training_needs(tmp_path: Path):
    zipped(good(3), tmp_path / "a.zip")
    done = run("augment", tmp_path / "a.zip", "--to", tmp_path / "b.zip", "--all", "--copies", 3, "--size", 64)
    assert "9 images" in done.stdout, done.stderr
