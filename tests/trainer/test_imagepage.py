"""The report of image networks: scores, confusion, and labels worth a second look."""

import numpy as np
import pytest
from lxml import html
from trainyard_trainer import imagepage, page
from trainyard_trainer.image_evaluate import ClassEvaluation, TagEvaluation
from trainyard_trainer.imagepage import Seen, Told, second_looks
from trainyard_trainer.records import Object, Record, Side
from trainyard_trainer.secondlook import Doubt

LABELS = ("cat", "dog", "fox")
RECORDS = [
    Record(
        f"{i}",
        f"JPEGImages/{i}.jpg",
        f"Annotations/{i}.xml",
        0,
        60,
        40,
        f"{i}",
        objects=(Object("cat", (0, 0, 9, 9), line=7),),
    )
    for i in range(4)
]
SIDES = (Side.TEST, Side.TEST, Side.VALIDATION, Side.TRAIN)


def told(evaluation: ClassEvaluation | TagEvaluation, answers: np.ndarray) -> Told:
    seen = Seen((0, 1, 2, 3), answers, evaluation.found, SIDES)
    pixels = np.full((20, 30, 3), 90, np.uint8)
    details = {"test": evaluation.details(LABELS)}
    exclusive = isinstance(evaluation, ClassEvaluation)
    return Told(exclusive, LABELS, RECORDS, lambda i: pixels, details, seen, seen, evaluation.threshold)


@pytest.fixture
def classes() -> Told:
    """All are cats; the second is said to be a dog, the last one, which was trained on, as surely."""
    found = np.array([[0.9, 0.1, 0.0], [0.1, 0.8, 0.1], [0.5, 0.2, 0.3], [0.1, 0.8, 0.1]])
    return told(ClassEvaluation(0.5, (0, 1, 2, 3), np.zeros(4, np.int64), found), np.eye(3)[np.zeros(4, np.int64)])


@pytest.fixture
def tags() -> Told:
    """The first lacks a dog, the second has a fox that is not seen, and of the third nobody says whether there is a dog."""
    answers = np.array([[1, 0, 0], [1, 0, 1], [1, -1, 0], [1, 0, 0]], np.float64)
    found = np.array([[0.9, 0.95, 0.1], [0.9, 0.1, 0.02], [0.9, 0.99, 0.1], [0.9, 0.1, 0.1]])
    return told(TagEvaluation(0.5, (0, 1, 2, 3), answers, found, 0.5), answers)


def test_a_class_that_the_network_contradicts_is_worth_a_look(classes: Told) -> None:
    looks = second_looks(classes)[Doubt.CONTRADICTED]
    assert [(look.item, look.found, look.trained_on) for look in looks] == [(1, 1, False), (3, 1, True)]
    assert [look.certainty for look in looks] == pytest.approx([0.7, 0.35])


def test_tags_that_are_missing_or_never_found_are_worth_a_look(tags: Told) -> None:
    looks = second_looks(tags)
    assert [(look.item, look.found) for look in looks[Doubt.UNANNOTATED]] == [(0, 1)], (
        "what does not count is not asked for"
    )
    assert [(look.item, look.annotated) for look in looks[Doubt.NEVER_FOUND]] == [(1, 2)]


def test_of_many_classes_the_pairs_that_are_confused_most_are_listed() -> None:
    labels = [f"class{i:02d}" for i in range(50)]
    truth = np.arange(50).repeat(2)
    said = truth.copy()
    said[[6, 7, 9]] = 40  # both images of the fourth class, and one of the fifth
    found = np.eye(50)[said]
    evaluation = ClassEvaluation(0.5, tuple(range(100)), truth, found)
    seen = Seen(tuple(range(100)), np.eye(50)[truth], found, (Side.TEST,) * 100)
    pixels = np.full((20, 30, 3), 90, np.uint8)
    details = {"test": evaluation.details(labels)}
    of = Told(True, labels, RECORDS * 25, lambda i: pixels, details, seen, seen, 0.5)
    tree = html.fromstring(page.page("a", {}, imagepage.sections(of)))
    rows = [
        [cell.text_content() for cell in row.xpath("td")] for row in tree.xpath("//section[@id='confusion']//tbody/tr")
    ]
    assert rows == [["class03", "class40", "2", "100 %"], ["class04", "class40", "1", "50 %"]]


@pytest.mark.parametrize("kind", ["classes", "tags"])
def test_the_page_says_what_was_measured(kind: str, request: pytest.FixtureRequest) -> None:
    of: Told = request.getfixturevalue(kind)
    tree = html.fromstring(page.page("a", {}, imagepage.sections(of)))
    cells = [cell.text_content() for cell in tree.xpath("//section[@id='scores']//table[1]//tr/*")]
    score = "accuracy" if of.exclusive else "mAP"
    assert f"{of.details['test'][score]:.3f}" == cells[cells.index(score) + cells.index("images") + 1]
    assert tree.xpath("//section[@id='precision-recall']//polyline")
    assert bool(tree.xpath("//table[@class='matrix']")) == of.exclusive
    captions = [one.text_content() for one in tree.xpath("//section[@id='second-look']//figcaption")]
    assert captions[0].startswith(
        "annotated cat, found dog 0.80 · Annotations/1.xml:7" if of.exclusive else "found dog 0.95"
    )
    worst = tree.xpath("//section[@id='pictures']//figcaption")[0].text_content()
    assert worst.startswith("JPEGImages/1.jpg" if of.exclusive else "JPEGImages/")
