"""Annotations worth a second look: planted mistakes come first, and what is right stays off the lists."""

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from lxml import html
from trainyard_api.report import ExitCode
from trainyard_trainer.__main__ import run
from trainyard_trainer.metrics import Detections, Truth
from trainyard_trainer.secondlook import MOST_PER_IMAGE, Doubt, second_looks

from tests.trainer import mistakes
from tests.trainer.runs import run_spec

BOX = [10.0, 10.0, 30.0, 30.0]
FAR = [60.0, 60.0, 80.0, 80.0]


def truth(*objects: tuple[list[float], int], difficult: bool = False) -> Truth:
    boxes = np.array([box for box, _ in objects], np.float64).reshape(-1, 4)
    return Truth(boxes, np.array([label for _, label in objects], np.int64), np.full(len(objects), difficult))


def found(*detections: tuple[list[float], int, float]) -> Detections:
    boxes = np.array([box for box, _, _ in detections], np.float64).reshape(-1, 4)
    labels = np.array([label for _, label, _ in detections], np.int64)
    return Detections(boxes, np.array([score for _, _, score in detections], np.float64), labels)


@pytest.mark.parametrize(
    ("annotated", "said", "expected"),
    [
        (truth((BOX, 0)), found((BOX, 0, 0.9)), {}),
        (truth((BOX, 0)), found((BOX, 0, 0.9), (FAR, 0, 0.8)), {Doubt.UNANNOTATED: 0.8}),
        (truth((BOX, 0)), found((BOX, 0, 0.9), (FAR, 0, 0.4)), {}),
        (truth((BOX, 0)), found((BOX, 0, 0.9), (FAR, 0, 0.8), (FAR, 1, 0.7)), {Doubt.UNANNOTATED: 0.8}),
        (truth((BOX, 0)), found((FAR, 0, 0.1)), {Doubt.NEVER_FOUND: 1.0}),
        (truth((BOX, 0)), found((BOX, 0, 0.1)), {Doubt.NEVER_FOUND: 0.9}),
        (truth((BOX, 0)), found((BOX, 0, 0.4)), {}),
        (truth((BOX, 0)), found((BOX, 1, 0.9), (BOX, 0, 0.2)), {Doubt.CONTRADICTED: 0.7}),
        (truth((BOX, 0)), found((BOX, 1, 0.7), (BOX, 0, 0.8)), {}),
        (truth((BOX, 0)), found((BOX, 0, 0.9), ([12.0, 12.0, 20.0, 20.0], 1, 0.9)), {}),
        (truth((BOX, 0), difficult=True), found(), {}),
        (truth((BOX, 0), difficult=True), found((BOX, 1, 0.9)), {}),
        (truth(), found(), {}),
    ],
    ids=[
        "agreed", "not annotated", "not confident", "one place, two labels", "never found", "hardly found", "found a little",
        "contradicted", "its own label is surer", "a part of an object", "difficult, not found", "difficult, another label", "empty",
    ],
)  # fmt: skip
def test_what_is_doubted(annotated: Truth, said: Detections, expected: dict[Doubt, float]) -> None:
    looks = second_looks([annotated], [said], 0.5)
    assert {doubt: one.certainty for doubt, (one, *_) in ((d, of) for d, of in looks.items() if of)} == pytest.approx(
        expected
    )


def test_of_one_image_at_most_three_are_listed_and_the_most_certain_come_first() -> None:
    many = found(*(([20.0 * i, 0.0, 20.0 * i + 10, 10.0], 0, 0.6 + 0.05 * i) for i in range(6)))
    one = found((BOX, 0, 0.7))
    looks = second_looks([truth(), truth()], [many, one], 0.5)[Doubt.UNANNOTATED]
    assert [round(look.certainty, 2) for look in looks] == [0.85, 0.8, 0.75, 0.7]
    assert sum(look.item == 0 for look in looks) == MOST_PER_IMAGE


def test_in_images_that_were_trained_on_a_finding_counts_half() -> None:
    said = [found((BOX, 0, 0.9)), found((BOX, 0, 0.6))]
    looks = second_looks([truth(), truth()], said, 0.5, trained_on=[True, False])[Doubt.UNANNOTATED]
    assert [(look.item, look.trained_on, look.certainty) for look in looks] == [(1, False, 0.6), (0, True, 0.45)]


@pytest.mark.training
@pytest.mark.timeout(900)
def test_a_training_finds_the_mistakes_that_were_planted_in_its_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 mistakes in images that are not trained on, in a set whose annotations are known to be complete otherwise."""
    monkeypatch.setenv("TRAINYARD_ONNX", "0")
    images, held_out = 140, 56
    data = tmp_path / "planted.zip"
    planted = {Doubt.UNANNOTATED: 7, Doubt.NEVER_FOUND: 7, Doubt.CONTRADICTED: 6}
    where = mistakes.write(data, images, planted, held_out)
    for name, members in (("train", range(held_out, images)), ("validation", range(held_out))):
        (tmp_path / f"{name}.txt").write_text("\n".join(mistakes.stem(i) for i in members))
    subsets = {name: {"listURI": (tmp_path / f"{name}.txt").as_uri()} for name in ("train", "validation")}
    spec = run_spec(
        tmp_path, data,
        dataset={"sources": [{"uri": data.as_uri()}], "subsets": subsets, "imageSize": 96},
        training={"steps": 150, "batchSize": 8, "evaluateEverySteps": 150}, augmentation={"preset": "Light"},
    )  # fmt: skip
    assert run(spec, lambda: False).exit_code == ExitCode.DONE
    page = Path(unquote(urlsplit(spec.run_uri).path)) / "report.html"
    lists = html.fromstring(page.read_text()).xpath("//section[@id='second-look']//div[@class='looks']")
    hits = 0
    for doubt, listed in zip(Doubt, lists, strict=True):
        first = [caption.text_content() for caption in listed.xpath(".//figcaption")[:10]]
        named = [re.findall(r"Annotations/(picture\d+)\.xml", caption)[0] for caption in first]
        hits += len(where[doubt] & set(named))
    assert hits >= 15
