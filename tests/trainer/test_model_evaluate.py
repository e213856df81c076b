"""`trainyard model evaluate` scores whatever has truth: it asks for nothing that only a training needs."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from lxml import html

from tests.commands import Done, trainyard
from tests.trainer.runs import dataset, publish_untrained
from tests.trainer.vocfiles import good, obj, xml, zipped

pytestmark = pytest.mark.training

Evaluate = Callable[..., Done]


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version that knows circles and squares, and never learned anything."""
    folder = tmp_path_factory.mktemp("detector")
    return Path(unquote(urlsplit(publish_untrained(folder, dataset(folder, images=12)).version_uri).path))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    files = good(12, ("cell",))
    for index in range(6):
        files[f"Annotations/img_{index:02d}.xml"] = xml(obj("dot"))
    data = zipped(files, folder / "data.zip")
    spec = publish_untrained(folder, data, architecture="mobilenet-v3-small", task="Classification")
    return Path(unquote(urlsplit(spec.version_uri).path))


@pytest.fixture
def evaluate(tmp_path: Path) -> Evaluate:
    def run(version: Path, data: Path, *options: object) -> Done:
        where = ("--dataset", data, "--to", tmp_path / "out")
        return trainyard("model", "evaluate", version, *where, *options, XDG_CACHE_HOME=str(tmp_path / "home"))

    return run


def told_by(done: Done) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def job_file(folder: Path, dataset: dict[str, Any]) -> Path:
    path = folder / "job.yaml"
    spec = {"architecture": "yard-nano", "output": {"uri": "s3://vision/models"}}
    spec["dataset"] = {"sources": [{"uri": "s3://vision/elsewhere.zip"}], **dataset}
    path.write_text(yaml.safe_dump({"kind": "TrainingJob", "metadata": {"name": "cells"}, "spec": spec}))
    return path


def three(folder: Path, **files: bytes) -> Path:
    """Three pictures with a circle and a square each."""
    return zipped({**good(3, ("circle", "square")), **files}, folder / "three.zip")


def test_three_images_are_scored_whatever_was_repaired(detector: Path, evaluate: Evaluate, tmp_path: Path) -> None:
    data = three(tmp_path, **{"Annotations/img_01.xml": xml(obj("circle", (30, 8, 10, 28)))})
    told = told_by(evaluate(detector, data, "-o", "json"))
    assert (told["images"], told["trainedOn"]) == (3, 0)
    assert {one["label"]: one["objects"] for one in told["labels"]} == {"circle": 3, "square": 2}
    with zipfile.ZipFile(tmp_path / "out/failures.zip") as failures:
        assert sum(name.startswith("JPEGImages/") for name in failures.namelist()) == told["failures"]["images"]
    page = html.fromstring((tmp_path / "out/report.html").read_text())
    found = page.xpath("//section[@id='dataset']")[0].text_content()
    assert "BoxInverted" in found
    assert "FewExamples" not in found, "a training's worries"


def test_one_image_is_enough_and_none_is_not(detector: Path, evaluate: Evaluate, tmp_path: Path) -> None:
    assert told_by(evaluate(detector, zipped(good(1), tmp_path / "one.zip"), "-o", "json"))["images"] == 1
    done = evaluate(detector, three(tmp_path, **{f"Annotations/img_0{index}.xml": xml() for index in range(3)}))
    assert (done.returncode, "no image has an object" in done.stderr) == (1, True)


def test_images_of_a_single_class_are_scored(classifier: Path, evaluate: Evaluate, tmp_path: Path) -> None:
    told = told_by(evaluate(classifier, zipped(good(3, ("cell",)), tmp_path / "cells.zip"), "-o", "json"))
    assert told["images"] + told["trainedOn"] == 3
    assert 0 <= told["accuracy"] <= 1


def test_an_image_set_is_scored_alone(detector: Path, evaluate: Evaluate, tmp_path: Path) -> None:
    data = three(tmp_path, **{"ImageSets/Main/val.txt": b"img_02\nimg_00\n"})
    told = told_by(evaluate(detector, data, "--image-set", "val", "-o", "json"))
    assert (told["images"], told["imageSet"]) == (2, "val")
    done = evaluate(detector, data, "--image-set", "test")
    assert done.stderr == "Error: the images to score: there is no ImageSets/Main/test.txt; there are val.\n"


def test_the_job_says_how_the_data_is_read(detector: Path, evaluate: Evaluate, tmp_path: Path) -> None:
    files = good(4, ("circle",))
    files["Annotations/img_01.xml"] = xml(obj("circle", (30, 8, 10, 28)))
    files["Annotations/img_02.xml"] = xml()
    del files["Annotations/img_03.xml"]
    data = zipped(files, tmp_path / "data.zip")
    for settings, images in (
        ({}, 3),
        ({"unannotated": "Background"}, 4),
        ({"withoutObjects": "Skip", "labels": ["nothing", "of", "these"]}, 2),
    ):
        told = told_by(evaluate(detector, data, "--job", job_file(tmp_path, settings), "-o", "json"))
        assert told["images"] == images, settings
    done = evaluate(detector, data, "--job", job_file(tmp_path, {"limits": {"maxRepairPercent": 5}}))
    assert (done.returncode, "dataset.limits.maxRepairPercent (5)" in done.stderr) == (1, True)
