"""The report: one file that needs nothing else, whatever the data's names are, and says what was measured."""

import re
from dataclasses import replace

import numpy as np
import pytest
from lxml import etree, html
from trainyard_trainer import boxpage, page
from trainyard_trainer.charts import Series, line_chart, thinned, ticks
from trainyard_trainer.markup import tag
from trainyard_trainer.metrics import Detections, Truth, box_scores
from trainyard_trainer.records import Object, Record, Side
from trainyard_trainer.secondlook import Doubt, Look

EVIL = "<script>alert('x')</script>\" onload=\"&amp;"


@pytest.fixture(scope="module")
def told() -> boxpage.Told:
    """Four images of two labels, one of them named by somebody who means harm; the last image is all wrong."""
    labels = ("cell", EVIL)
    boxes = np.array([[5, 5, 25, 25], [40, 40, 60, 62]], np.float64)
    truth = Truth(boxes, np.array([0, 1]), np.zeros(2, bool))
    right = Detections(boxes + 0.5, np.array([0.9, 0.8]), np.array([0, 1]))
    wrong = Detections(np.array([[70.0, 5.0, 90.0, 20.0]]), np.array([0.95]), np.array([1]))
    objects = tuple(Object(labels[i], tuple(map(float, box)), line=10 + i) for i, box in enumerate(boxes))  # type: ignore[arg-type]
    records = [
        Record(f"{i}", f"{EVIL}{i}.jpg", f"Annotations/{i}.xml", 0, 100, 80, f"{i}", objects=objects) for i in range(4)
    ]
    seen = boxpage.Seen(
        (0, 1, 2, 3), (truth,) * 4, (right, right, right, wrong), (Side.TEST, Side.TEST, Side.VALIDATION, Side.TRAIN)
    )
    pixels = np.full((40, 50, 3), 90, np.uint8)
    scores = box_scores(seen.truths, seen.found, 2)
    return boxpage.Told(labels, records, lambda i: pixels, {"test": scores}, seen, seen, scores.threshold)


@pytest.fixture(scope="module")
def document(told: boxpage.Told) -> str:
    lines = [
        {
            "kind": "step",
            "step": i,
            "time": 0.0,
            "loss": 3 / i,
            "box": 1 / i,
            "cls": 2 / i,
            "learningRate": 1e-3,
            "gradientNorm": 1.0,
        }
        for i in range(1, 1000)
    ]
    lines += [{"kind": "evaluation", "step": i, "mAP50": i / 1000, "validationLoss": 1.0} for i in (250, 500, 750)]
    data = {
        "images": 4, "objects": 8, "labels": [{"label": EVIL, "objects": 4}],
        "findings": [{"kind": "Warning", "reason": EVIL, "count": 1, "examples": [{"file": EVIL, "line": 3, "message": EVIL}]}],
    }  # fmt: skip
    return page.page(
        EVIL,
        {"Job": EVIL, "Nothing": None},
        [
            *boxpage.sections(told),
            page.warnings([(EVIL, EVIL)]),
            page.curves(lines),
            page.dataset(data, [(0.1, 0.2)]),
            page.configuration({"description": EVIL}),
            page.environment({"torch": EVIL}),
        ],
    )


def test_names_in_the_data_never_become_markup(document: str) -> None:
    tree = html.fromstring(document)
    assert not tree.xpath("//script | //@onload")
    assert EVIL in tree.xpath("//h1")[0].text_content()
    assert document.count("<script") == 0


def test_the_page_is_well_formed_and_asks_for_nothing_outside_itself(document: str) -> None:
    etree.fromstring(document.removeprefix("<!DOCTYPE html>\n"))
    for address in re.findall(r'(?:src|href|url)\s*[=(]\s*"?([^")\s>]+)', document):
        assert address.startswith(("data:image/jpeg;base64,", "#")), address[:80]
    assert "prefers-color-scheme:dark" in document


def test_every_link_of_the_page_leads_to_a_section(document: str) -> None:
    tree = html.fromstring(document)
    targets = {link.removeprefix("#") for link in tree.xpath("//nav/a/@href")}
    assert targets == set(tree.xpath("//section/@id"))
    assert {"scores", "curves", "precision-recall", "confusion", "pictures", "second-look", "dataset"} <= targets


def test_scores_and_confusion_are_those_that_were_measured(document: str, told: boxpage.Told) -> None:
    tree = html.fromstring(document)
    first = [cell.text_content() for cell in tree.xpath("//section[@id='scores']//table[1]/tbody/tr[1]/td")]
    scores = told.scores["test"]
    assert first[:3] == ["test", f"{scores.map50:.3f}", f"{scores.map50_95:.3f}"]
    rows = [[cell.text_content() for cell in row.xpath("td")] for row in tree.xpath("//table[@class='matrix']//tr[td]")]
    assert rows == [["3", "0", "1"], ["0", "3", "1"], ["0", "1", ""]]


def many(count: int, wrong: int) -> boxpage.Told:
    """One object of each of many labels; each of the first `wrong` is found as the label after it, the very first one twice more."""
    labels = tuple(f"label{i:02d}" for i in range(count))
    said = [i + 1 if i < wrong else i for i in range(count)] + [1, 1] * (wrong > 0)
    boxes = np.array([[30.0 * i, 5, 30 * i + 20, 25] for i in range(len(said))])
    truth = Truth(boxes, np.array([*range(count), *[0, 0] * (wrong > 0)]), np.zeros(len(said), bool))
    found = Detections(boxes, np.full(len(said), 0.9), np.array(said))
    seen = boxpage.Seen((0,), (truth,), (found,), (Side.TEST,))
    scores = box_scores(seen.truths, seen.found, count)
    record = Record("0", "JPEGImages/0.jpg", None, 0, 30 * len(said), 40, "0")
    pixels = np.full((40, 50, 3), 90, np.uint8)
    return boxpage.Told(labels, [record], lambda i: pixels, {"test": scores}, seen, seen, 0.5)


def confusion_of(sections: list[page.Section]) -> html.HtmlElement:
    return html.fromstring(page.page("a", {}, sections)).xpath("//section[@id='confusion']")[0]


def test_of_many_labels_the_pairs_that_are_confused_most_are_listed() -> None:
    section = confusion_of(boxpage.sections(many(41, wrong=30)))
    rows = [[cell.text_content() for cell in row.xpath("td")] for row in section.xpath(".//tbody/tr")]
    assert rows[:2] == [["label00", "label01", "3", "100 %"], ["label01", "label02", "1", "100 %"]]
    assert len(rows) == boxpage.PAIRS
    assert "41 labels" in section.text_content()
    right = confusion_of(boxpage.sections(many(41, wrong=0)))
    assert "None of the 41 labels was taken for another." in right.text_content()
    assert confusion_of(boxpage.sections(many(40, wrong=30))).xpath(".//table[@class='matrix']")


def test_the_worst_picture_is_the_one_with_the_errors(document: str) -> None:
    captions = html.fromstring(document).xpath("//section[@id='pictures']//figcaption")
    assert "(train): 0 found, 2 missed, 1 wrong" in captions[0].text_content()


def test_second_looks_name_file_and_line_and_say_where_the_model_learned_it(document: str) -> None:
    looks = [
        caption.text_content()
        for caption in html.fromstring(document).xpath("//section[@id='second-look']//figcaption")
    ]
    assert len(looks) == 3
    assert "box 70,5 to 90,20" in looks[0]
    assert any("annotated cell · Annotations/3.xml:10 · trained on" in look for look in looks[1:])


def test_where_an_annotation_has_no_lines_the_box_is_named() -> None:
    item = Object("cell", (5, 5, 25, 25))
    record = Record("0", "JPEGImages/0.jpg", "Annotations/0.json", 0, 100, 80, "0", objects=(item,))
    look = Look(Doubt.NEVER_FOUND, 0, (5, 5, 25, 25), 0.9, object=0, annotated=0)
    assert boxpage.place(record, look, ("cell",)) == "Annotations/0.json, box 5,5 to 25,25"
    outside = replace(look, box=(-4.0, 5.0, record.width + 9.0, 25.0))
    assert boxpage.place(record, outside, ("cell",)) == f"Annotations/0.json, box 0,5 to {record.width},25"


def test_a_curve_of_many_steps_is_drawn_by_its_means() -> None:
    drawn = thinned(Series("loss", list(range(1, 1001)), [float(i % 2) for i in range(1000)]), 100)
    assert len(drawn.xs) == 100
    assert drawn.xs[-1] == 1000
    assert set(drawn.ys) == {0.5}


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.0, 1.0, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), (3, 47, [10, 20, 30, 40]), (0.0, 2e-3, [0, 5e-4, 1e-3, 1.5e-3, 2e-3])],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_a_curve_of_one_value_or_none_is_no_error() -> None:
    assert "circle" in line_chart("constant", [Series("a", [1.0], [5.0])], "step")
    assert line_chart("nothing", [Series("a", [1.0], [float("nan")])], "step") == ""


def test_text_is_escaped_and_markup_is_not() -> None:
    assert tag("p", "<b>", tag("b", "&")) == "<p>&lt;b&gt;<b>&amp;</b></p>"
    assert tag("a", href='x" onclick="y') == '<a href="x&quot; onclick=&quot;y"></a>'
