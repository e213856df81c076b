"""The sections of `report.html` that only a detector has: scores and curves of its boxes, its best and worst pictures, and the
annotations worth a second look. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from trainyard_trainer.charts import COLOURS, Series, line_chart
from trainyard_trainer.markup import Markup, join, table, tag
from trainyard_trainer.metrics import BoxScores, Detections, Ints, Truth, confusion_matrix, match
from trainyard_trainer.page import Section, jpeg
from trainyard_trainer.picture import cropped, drawn
from trainyard_trainer.records import Record, Side
from trainyard_trainer.secondlook import MOST_PER_IMAGE, Doubt, Look, second_looks

PICTURES = 6
LOOKS = 20
MOST_LABELS_IN_MATRIX = 40
PAIRS = 20


@dataclass(frozen=True)
class Seen:
    """What a detector said of some images: `records[i]` is the record of `truths[i]` and `found[i]`, on side `sides[i]`."""

    records: tuple[int, ...]
    truths: tuple[Truth, ...]
    found: tuple[Detections, ...]
    sides: tuple[Side, ...]

    def __add__(self, other: Seen) -> Seen:
        return Seen(
            self.records + other.records,
            self.truths + other.truths,
            self.found + other.found,
            self.sides + other.sides,
        )


@dataclass(frozen=True)
class Told:
    """What the sections are made of. `scored` are the images that the scores are of; `looked_at` those that were looked at for
    doubtful annotations, training images too. `scores` by the name of what was scored."""

    labels: Sequence[str]
    records: Sequence[Record]
    pixels: Callable[[int], np.ndarray]
    scores: Mapping[str, BoxScores]
    scored: Seen
    looked_at: Seen
    threshold: float
    score_threshold: float = 0.25
    folds: str = field(default="")
    """Says how images that were trained on were avoided, if they were."""


def sections(told: Told) -> list[Section]:
    return [_scores(told), _precision_recall(told), _confusion(told), _pictures(told), second_look_section(told)]


def _scores(told: Told) -> Section:
    sides = list(told.scores.items())
    overall = table(
        ("", "mAP50", "mAP50-95", "Precision", "Recall", "Objects"),
        [
            (name, _or_dash(b.map50), _or_dash(b.map50_95), b.precision, b.recall, int(b.objects.sum()))
            for name, b in sides
        ],
    )
    name, b = sides[-1]
    rows = [
        (label, int(b.objects[i]), *(_or_dash(v) for v in (b.average_precision[i, 0], b.average_precision[i].mean(),
                                                          b.label_precision[i], b.label_recall[i])))
        for i, label in enumerate(told.labels)
    ]  # fmt: skip
    rows.sort(key=lambda row: row[3] if isinstance(row[3], float) else math.inf)
    labels = table(("Label", "Objects", "mAP50", "mAP50-95", "Precision", "Recall"), rows)
    note = tag(
        "p",
        f"Precision and recall at IoU 0.5 and confidence {told.threshold:.2f}, that of the best F1 on validation.",
        class_="note",
    )
    return Section("scores", "Scores", join([overall, note, tag("h3", f"By label, on {name}, lowest first"), labels]))


def _precision_recall(told: Told) -> Section:
    """Precision over recall at IoU 0.5 of the labels with the most objects, and precision, recall and F1 over the confidence."""
    seen = told.scored
    matched = match(seen.truths, seen.found, len(told.labels))
    objects = _objects(seen, len(told.labels))
    curves = []
    for label in np.argsort(-objects, kind="stable")[:COLOURS]:
        of = (matched.labels == label) & ~matched.ignored[:, 0]
        if objects[label] and of.any():
            precision, recall, _ = falling_precision_recall(matched.scores[of], matched.hit[of, 0], int(objects[label]))
            highest = np.maximum.accumulate(precision[::-1])[::-1]
            curves.append(Series(told.labels[int(label)], recall.tolist(), highest.tolist()))
    counts = ~matched.ignored[:, 0]
    precision, recall, scores = falling_precision_recall(
        matched.scores[counts], matched.hit[counts, 0], max(1, int(objects.sum()))
    )
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
    by_confidence = [
        Series(name, scores[::-1].tolist(), values[::-1].tolist())
        for name, values in (("precision", precision), ("recall", recall), ("F1", f1))
    ]
    one = (0.0, 1.0)
    charts = [
        line_chart("Precision over recall, IoU 0.5", curves, "recall", y_range=one, x_range=one),
        line_chart("All labels over the confidence", by_confidence, "confidence", y_range=one, x_range=one),
    ]
    return Section("precision-recall", "Precision and recall", tag("div", charts, class_="charts"))


def falling_precision_recall(
    scores: np.ndarray, hit: np.ndarray, objects: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision and recall of the best 1, 2, 3, … and the score that each ends at."""
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(hit[order])
    return hits / np.arange(1, len(order) + 1), hits / objects, scores[order]


def _confusion(told: Told) -> Section:
    matrix = confusion_matrix(told.scored.truths, told.scored.found, len(told.labels), told.threshold)
    return Section("confusion", "Confusion", confusion(matrix.tolist(), told.labels))


def confusion(matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> Markup:
    """The matrix as a table; of more than 40 labels, which no page holds, the pairs that are confused most."""
    return confusion_table(matrix, labels) if len(labels) <= MOST_LABELS_IN_MATRIX else confused_pairs(matrix, labels)


def confused_pairs(matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> Markup:
    """The labels that are most often taken for another one, at most 20 pairs."""
    counts = np.array(matrix, np.int64)
    wrong = counts[: len(labels), : len(labels)].copy()
    np.fill_diagonal(wrong, 0)
    pairs = [divmod(int(flat), len(labels)) for flat in np.argsort(-wrong, axis=None, kind="stable")[:PAIRS]]
    rows = [
        (labels[i], labels[j], int(wrong[i, j]), f"{100 * wrong[i, j] / counts[i].sum():.0f} %")
        for i, j in pairs
        if wrong[i, j]
    ]
    if not rows:
        return tag("p", f"None of the {len(labels)} labels was taken for another.")
    note = tag(
        "p",
        f"The pairs of the {len(labels)} labels that are confused most, {PAIRS} at most, with their share of all that is annotated so."
        " metrics.json has the whole matrix.",
        class_="note",
    )
    return join([table(("Annotated", "Found", "How often", "Share"), rows), note])


def confusion_table(matrix: Sequence[Sequence[int]], labels: Sequence[str]) -> Markup:
    """Rows are the true labels, columns the predicted ones; a matrix that is larger by one has background last."""
    names = [*labels, "nothing"][: len(matrix)]
    head = tag("tr", tag("th", "true \\ found"), [tag("th", name) for name in names])
    rows = []
    for i, counts in enumerate(matrix):
        cells = [_cell(value, sum(counts), i == j == len(labels)) for j, value in enumerate(counts)]
        rows.append(tag("tr", tag("th", names[i], class_="true"), cells))
    note = tag(
        "p",
        "Rows are what is annotated, columns what was found; the stronger, the larger the share of the row.",
        class_="note",
    )
    return join([tag("div", tag("table", head, rows, class_="matrix"), class_="scroll"), note])


def _cell(value: int, total: int, empty: bool) -> Markup:
    share = value / max(1, total)
    style = f"background:rgba(var(--heat),{0.75 * share:.2f})"
    return tag("td", None if empty else value, style=style, title=f"{100 * share:.0f} %")


def _pictures(told: Told) -> Section:
    """The images with the most and the fewest errors. White: annotated. In colour: found."""
    order = sorted(range(len(told.scored.records)), key=lambda i: _quality(told, i))
    if not order:
        return Section("pictures", "Predictions", Markup())
    worst = order[:PICTURES]
    best = [i for i in reversed(order) if i not in worst][:PICTURES]
    parts: list[Markup] = []
    for title, chosen in (("Worst", worst), ("Best", best)):
        if chosen:
            parts += [tag("h3", title), tag("div", [_picture(told, i) for i in chosen], class_="pictures")]
    note = tag("p", "White: annotated. In colour: found, with its confidence.", class_="note")
    return Section("pictures", "Best and worst predictions", join([note, *parts]))


def _picture(told: Told, i: int) -> Markup:
    record = told.records[told.scored.records[i]]
    image = drawn(
        told.pixels(told.scored.records[i]), (record.width, record.height), told.scored.truths[i], told.scored.found[i],
        told.labels, max(told.score_threshold, min(told.threshold, 0.5)),
    )  # fmt: skip
    hits, wrong, missed = errors(told.scored.truths[i], told.scored.found[i], told.threshold)
    return jpeg(image, f"{record.image} ({told.scored.sides[i]}): {hits} found, {missed} missed, {wrong} wrong")


def _quality(told: Told, i: int) -> tuple[float, int]:
    """F1 of an image, then how much there was to find (to be right about more is better, to be wrong about more is worse)."""
    hits, wrong, missed = errors(told.scored.truths[i], told.scored.found[i], told.threshold)
    if hits + wrong + missed == 0:
        return 1.0, 0
    f1 = 2 * hits / (2 * hits + wrong + missed)
    return f1, hits - wrong - missed


def errors(truth: Truth, found: Detections, threshold: float) -> tuple[int, int, int]:
    """Objects found with the right label at IoU 0.5, detections that are wrong, objects missed; difficult ones do not count."""
    matched = match([truth], [found], int(max(truth.labels.max(initial=0), found.labels.max(initial=0))) + 1)
    said = (matched.scores >= threshold) & ~matched.ignored[:, 0]
    hits = int((said & matched.hit[:, 0]).sum())
    return hits, int(said.sum()) - hits, int((~truth.difficult).sum()) - hits


_QUESTIONS = {
    Doubt.UNANNOTATED: ("Found, and nobody annotated it", "Is an annotation missing here?"),
    Doubt.NEVER_FOUND: ("Annotated, and never found", "Is there such an object, and is the box where it is?"),
    Doubt.CONTRADICTED: ("Label contradicted", "Is the label right?"),
}


def second_look_section(told: Told) -> Section:
    """Three ranked lists of cropped pictures with file and line."""
    seen = told.looked_at
    trained_on = [side is Side.TRAIN for side in seen.sides]
    looks = second_looks(seen.truths, seen.found, told.threshold, trained_on, LOOKS)
    parts: list[Markup] = []
    for doubt, (title, question) in _QUESTIONS.items():
        of = looks[doubt]
        body = tag("div", [_look(told, look) for look in of], class_="looks") if of else tag("p", "None.")
        parts += [tag("h3", f"{title} ({len(of)})"), tag("p", question, class_="note"), body]
    unseen = sum(not flag for flag in trained_on)
    how = told.folds or (
        f"{unseen} images that the model did not train on, and {len(trained_on) - unseen} that it did: findings in those count half,"
        " for it learned what is written there."
    )
    note = tag(
        "p", f"Where model and annotations disagree, most certain first, at most {MOST_PER_IMAGE} of an image. Looked at: {how}"
        " The model may be the one who is wrong.", class_="note",
    )  # fmt: skip
    return Section("second-look", "Annotations worth a second look", join([note, *parts]) if seen.records else Markup())


def _look(told: Told, look: Look) -> Markup:
    record = told.records[told.looked_at.records[look.item]]
    image: Image.Image = cropped(
        told.pixels(told.looked_at.records[look.item]), (record.width, record.height), look.box
    )
    annotated = None if look.annotated is None else told.labels[look.annotated]
    found = None if look.found is None else told.labels[look.found]
    match look.doubt:
        case Doubt.UNANNOTATED:
            said = f"{found} {look.certainty:.2f}"
        case Doubt.NEVER_FOUND:
            said = f"annotated {annotated}"
        case Doubt.CONTRADICTED:
            said = f"annotated {annotated}, found {found} ({look.certainty:+.2f})"
    weak = " · trained on" if look.trained_on else ""
    figure = jpeg(image, [tag("strong", said), f" · {place(record, look, told.labels)}{weak}"])
    return tag("div", figure, class_="weak") if look.trained_on else figure


def place(record: Record, look: Look, labels: Sequence[str]) -> str:
    """File and line of the annotation, else the file and the box."""
    if look.object is not None and record.annotation:
        asked_for = [item for item in record.objects if item.label in labels]
        if line := asked_for[look.object].line:
            return f"{record.annotation}:{line}"
    edges = (record.width, record.height, record.width, record.height)
    x1, y1, x2, y2 = (round(min(max(v, 0), edge)) for v, edge in zip(look.box, edges, strict=True))
    return f"{record.annotation or record.image}, box {x1},{y1} to {x2},{y2}"


def _objects(seen: Seen, labels: int) -> Ints:
    counts = np.zeros(labels, np.int64)
    for truth in seen.truths:
        counts += np.bincount(truth.labels[~truth.difficult], minlength=labels)
    return counts


def _or_dash(value: float | None) -> float | str:
    return "–" if value is None or not math.isfinite(value) else float(value)
