"""Annotations worth a second look: planted mistakes come first, and what is right stays off the lists."""

import numpy as np
import pytest
from trainyard_trainer.metrics import Detections, Truth
from trainyard_trainer.secondlook import MOST_PER_IMAGE, Doubt, second_looks

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
