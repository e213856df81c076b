"""What one good small training leaves, and what can be done with it: the report's second look, and `trainyard model …` on its files."""

import hashlib
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import av
import numpy as np
import pytest
from lxml import html
from PIL import Image
from trainyard_api.report import ExitCode
from trainyard_api.run import RunSpec
from trainyard_cli.model import app
from trainyard_trainer.__main__ import run
from trainyard_trainer.secondlook import Doubt
from typer.testing import CliRunner

from tests.trainer import mistakes
from tests.trainer.runs import run_spec
from tests.trainer.vocfiles import load_uri

pytestmark = [pytest.mark.training, pytest.mark.timeout(900)]

EXAMPLE = Path(__file__).parents[2] / "examples" / "predict.py"
IMAGES, HELD_OUT = 140, 56
PLANTED = {Doubt.UNANNOTATED: 7, Doubt.NEVER_FOUND: 7, Doubt.CONTRADICTED: 6}


@dataclass(frozen=True)
class Trained:
    spec: RunSpec
    data: Path
    mistakes: dict[Doubt, set[str]]

    @property
    def version(self) -> Path:
        return local(self.spec.version_uri)

    @property
    def manifest(self) -> dict[str, Any]:
        return json.loads((self.version / "manifest.json").read_text())

    def file(self, name: str) -> Path:
        return self.version / next(file["path"] for file in self.manifest["files"] if file["name"] == name)


def local(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """150 steps on 84 images; 20 mistakes in the 56 that it is not trained on, in a set whose annotations are complete otherwise."""
    folder = tmp_path_factory.mktemp("trained")
    data = folder / "planted.zip"
    where = mistakes.write(data, IMAGES, PLANTED, HELD_OUT)
    for name, members in (("train", range(HELD_OUT, IMAGES)), ("validation", range(HELD_OUT))):
        (folder / f"{name}.txt").write_text("\n".join(mistakes.stem(i) for i in members))
    subsets = {name: {"listURI": (folder / f"{name}.txt").as_uri()} for name in ("train", "validation")}
    spec = run_spec(
        folder, data,
        dataset={"sources": [{"uri": data.as_uri()}], "subsets": subsets, "imageSize": 96},
        training={"steps": 150, "batchSize": 8, "evaluateEverySteps": 150}, augmentation={"preset": "Light"},
        publishURI=(folder / "live").as_uri(),
    )  # fmt: skip
    assert run(spec, lambda: False).exit_code == ExitCode.DONE
    return Trained(spec, data, where)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., str]:
    """Runs `trainyard model` and returns what it printed."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run_it(*arguments: object) -> str:
        done = CliRunner().invoke(app, [str(one) for one in arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    return run_it


def test_the_report_finds_the_mistakes_that_were_planted(trained: Trained) -> None:
    page = local(trained.spec.run_uri) / "report.html"
    lists = html.fromstring(page.read_text()).xpath("//section[@id='second-look']//div[@class='looks']")
    hits = 0
    for doubt, listed in zip(Doubt, lists, strict=True):
        first = [caption.text_content() for caption in listed.xpath(".//figcaption")[:10]]
        hits += len(trained.mistakes[doubt] & {re.findall(r"Annotations/(picture\d+)\.xml", one)[0] for one in first})
    assert hits >= 15


def test_the_onnx_file_scores_what_the_trainer_scored(
    trained: Trained, model: Callable[..., str], tmp_path: Path
) -> None:
    told = json.loads(
        model("evaluate", trained.version, "--dataset", trained.data, "--to", tmp_path / "out", "-o", "json")
    )
    measured = json.loads(trained.file("metrics.json").read_text())["validation"]
    assert (told["images"], told["trainedOn"]) == (HELD_OUT, IMAGES - HELD_OUT)
    for score in ("mAP50", "mAP50_95", "precision", "recall"):
        assert told[score] == pytest.approx(measured[score], abs=0.02)
    assert [one["objects"] for one in told["labels"]] == [one["objects"] for one in measured["labels"]]
    page = html.fromstring((tmp_path / "out/report.html").read_text())
    assert page.xpath("//section[@id='second-look']//img")
    with zipfile.ZipFile(tmp_path / "out/failures.zip") as failures:
        missed = failures.read("ImageSets/Main/missed.txt").decode().split()
        pictures = {Path(name).stem for name in failures.namelist() if name.startswith("JPEGImages/")}
    assert (len(missed), len(pictures)) == (told["failures"]["missed"], told["failures"]["images"])
    assert trained.mistakes[Doubt.NEVER_FOUND] <= set(missed) <= pictures


def test_of_two_versions_the_one_speaks_that_did_not_train_on_an_image(
    trained: Trained, model: Callable[..., str], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    model("download", trained.version, other)
    manifest = json.loads((other / "manifest.json").read_text())
    sides = json.loads((other / "dataset.json").read_text())
    sides["sides"]["train"], sides["sides"]["validation"] = sides["sides"]["validation"], sides["sides"]["train"]
    (other / "dataset.json").write_text(json.dumps(sides))
    for entry in manifest["files"]:
        if entry["name"] == "dataset.json":
            data = (other / "dataset.json").read_bytes()
            entry |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (other / "manifest.json").write_text(json.dumps({**manifest, "name": "other-half"}))
    told = json.loads(
        model("evaluate", trained.version, other, "--dataset", trained.data, "--to", tmp_path / "out", "-o", "json")
    )
    assert (told["images"], told["trainedOn"], told["versions"]) == (IMAGES, 0, ["shapes-v1", "other-half"])


def test_pictures_folders_and_videos_are_drawn_and_annotated(
    trained: Trained, model: Callable[..., str], tmp_path: Path
) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    with zipfile.ZipFile(trained.data) as archive:
        frames = [Image.open(archive.open(f"JPEGImages/picture{i:03d}.jpg")).convert("RGB") for i in range(60, 64)]
    frames[0].save(pictures / "one.png")
    write_video(tmp_path / "film.mp4", frames)
    told = json.loads(
        model(
            "predict", pictures, tmp_path / "film.mp4", "-v", trained.version, "-v", trained.version,
            "--to", tmp_path / "drawn", "--voc", tmp_path / "review.zip", "--score", 40, "-o", "json",
        )
    )  # fmt: skip
    assert [(Path(one["file"]).name, one.get("frame")) for one in told[::2]] == [
        ("one.png", None), ("film.mp4", 0), ("film.mp4", 1), ("film.mp4", 2), ("film.mp4", 3),
    ]  # fmt: skip
    assert told[0]["found"]
    assert told[0]["found"] == told[1]["found"], "the same version twice says the same"
    width, height = Image.open(tmp_path / "drawn/one.jpg").size
    assert (width, height > mistakes.SIZE[1]) == (2 * mistakes.SIZE[0], True)
    with av.open(str(tmp_path / "drawn/film.mp4")) as film:
        assert len([frame.width for frame in film.decode(video=0)]) == 4
    dataset = load_uri((tmp_path / "review.zip").as_uri(), tmp_path, strict=False)
    records = {record.name: record for record in dataset.records}
    assert sorted(records) == ["film-000000", "film-000001", "film-000002", "film-000003", "one"]
    annotated = {(item.label, *np.round(item.box)) for item in records["one"].objects}
    assert annotated == {(one["label"], *np.round(one["box"])) for one in told[0]["found"]}


def test_the_example_without_trainyard_finds_the_same(
    trained: Trained, model: Callable[..., str], tmp_path: Path
) -> None:
    folder, picture = tmp_path / "version", tmp_path / "picture.jpg"
    model("download", trained.version, folder)
    with zipfile.ZipFile(trained.data) as archive:
        picture.write_bytes(archive.read("JPEGImages/picture070.jpg"))
    done = subprocess.run(
        [sys.executable, EXAMPLE, folder, picture], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    (told,) = json.loads(model("predict", picture, "-v", folder, "--to", tmp_path / "drawn", "-o", "json"))
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(rows) == len(told["found"]) > 0
    for row, one in zip(rows, told["found"], strict=True):
        assert (row[1], float(row[2])) == (one["label"], pytest.approx(one["score"], abs=0.01))
        assert np.clip([float(side) for side in row[3:]], 0, 128) == pytest.approx(one["box"], abs=1.0)


def test_what_is_neither_picture_nor_video_is_said(trained: Trained, model: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("nothing to see")
    with pytest.raises(Exception, match="has no picture"):
        model("predict", tmp_path / "notes.txt", "-v", trained.version)
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing more")
    with pytest.raises(Exception, match=r"broken\.jpg is no picture that can be read"):
        model("predict", tmp_path / "broken.jpg", "-v", trained.version, "--to", tmp_path / "drawn")


def test_versions_are_compared_published_and_shown_without_a_cluster(
    trained: Trained, model: Callable[..., str], tmp_path: Path
) -> None:
    live = local(trained.spec.publish_uri or "")
    assert json.loads((live / "manifest.json").read_text())["name"] == "shapes-v1", (
        "publishURI has a version of its own"
    )
    assert "published" in model("publish", live, tmp_path / "elsewhere")
    shown = model("show", tmp_path / "elsewhere")
    assert "opset: 20" in shown
    rows = {line.split("  ")[0]: line.split()[-2:] for line in model("compare", trained.version, live).splitlines()}
    mean = f"{trained.manifest['validation']['mAP50']:.3f}"
    assert rows["validation mAP50"] == [mean, mean]
    assert {"circle mAP50_95", "square mAP50_95", "parameters", "input"} <= rows.keys()


def write_video(path: Path, frames: list[Image.Image]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
