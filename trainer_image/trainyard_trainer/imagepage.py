"""The sections of `report.html` that only an image network has: a class for each image, or any number of tags. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from trainyard_trainer.boxpage import LOOKS, PICTURES, confusion, falling_precision_recall
from trainyard_trainer.charts import COLOURS, Series, line_chart
from trainyard_trainer.image_metrics import Floats
from trainyard_trainer.markup import Markup, join, table, tag
from trainyard_trainer.page import Section, jpeg
from trainyard_trainer.records import Record, Side
from trainyard_trainer.secondlook import MOST_PER_IMAGE, OVERLOOKED, TRAINED_ON, Doubt, Look, ranked

SIDE = 260
SHOWN = 3
"""Labels named below a picture."""


@dataclass(frozen=True)
class Seen:
    """What a network said of some images: `answers` `[images, labels]` are 1 (has the label), 0, or -1 (does not count), `found` the
    probabilities."""

    records: tuple[int, ...]
    answers: Floats
    found: Floats
    sides: tuple[Side, ...]

    def __add__(self, other: Seen) -> Seen:
        return Seen(
            self.records + other.records,
            np.concatenate((self.answers, other.answers)),
            np.concatenate((self.found, other.found)),
            self.sides + other.sides,
        )


@dataclass(frozen=True)
class Told:
    """What the sections are made of. `details` are those of each set of images that was scored, by its name; the last is of all of
    `scored`. `exclusive`: an image has exactly one label."""

    exclusive: bool
    labels: Sequence[str]
    records: Sequence[Record]
    pixels: Callable[[int], np.ndarray]
    details: Mapping[str, Mapping[str, Any]]
    scored: Seen
    looked_at: Seen
    threshold: float


def sections(told: Told) -> list[Section]:
    return [_scores(told), _precision_recall(told), _confusion(told), _pictures(told), _second_look(told)]


def _scores(told: Told) -> Section:
    names = [name for name, value in list(told.details.values())[-1].items() if isinstance(value, float)]
    overall = table(
        ("", *names, "images"),
        [(side, *(_shown(of.get(name)) for name in names), of["images"]) for side, of in told.details.items()],
    )
    name, last = list(told.details.items())[-1]
    rows: list[dict[str, Any]] = list(last["labels"])
    rows.sort(key=lambda row: -1.0 if row.get("recall") is None else row["recall"])
    labels = table(list(rows[0]), [[_shown(value) for value in row.values()] for row in rows]) if rows else None
    return Section("scores", "Scores", join([overall, tag("h3", f"By label, on {name}, lowest recall first"), labels]))


def _precision_recall(told: Told) -> Section:
    """Each label against all others, the most frequent ones."""
    seen = told.scored
    has = (seen.answers > 0.5).sum(0)
    curves = []
    for label in np.argsort(-has, kind="stable")[:COLOURS]:
        counts = seen.answers[:, label] >= 0
        if has[label]:
            hit = seen.answers[counts, label] > 0.5
            precision, recall, _ = falling_precision_recall(seen.found[counts, label], hit, int(has[label]))
            highest = np.maximum.accumulate(precision[::-1])[::-1]
            curves.append(Series(told.labels[int(label)], recall.tolist(), highest.tolist()))
    one = (0.0, 1.0)
    chart = line_chart("Precision over recall", curves, "recall", y_range=one, x_range=one)
    return Section(
        "precision-recall", "Precision and recall", tag("div", chart, class_="charts") if chart else Markup()
    )


def _confusion(told: Told) -> Section:
    matrix = list(told.details.values())[-1].get("confusion")
    body = Markup() if matrix is None else confusion(matrix, told.labels)
    return Section("confusion", "Confusion", body)


def _pictures(told: Told) -> Section:
    """By how much of what was said is wrong: the mean distance of the probabilities from the answers."""
    seen = told.scored
    counts = seen.answers >= 0
    wrong = (np.abs(seen.found - seen.answers) * counts).sum(1) / np.maximum(counts.sum(1), 1)
    order = np.argsort(-wrong, kind="stable").tolist()
    worst = order[:PICTURES]
    parts: list[Markup] = []
    for title, chosen in (("Worst", worst), ("Best", [i for i in reversed(order) if i not in worst][:PICTURES])):
        if chosen:
            parts += [tag("h3", title), tag("div", [_picture(told, i) for i in chosen], class_="pictures")]
    return Section("pictures", "Best and worst predictions", join(parts))


def _picture(told: Told, i: int) -> Markup:
    record = told.records[told.scored.records[i]]
    has = ", ".join(told.labels[int(k)] for k in np.flatnonzero(told.scored.answers[i] > 0.5)) or "nothing"
    best = np.argsort(-told.scored.found[i], kind="stable")[: 1 if told.exclusive else SHOWN]
    said = ", ".join(f"{told.labels[int(k)]} {told.scored.found[i, k]:.2f}" for k in best)
    return jpeg(
        _shrunk(told.pixels(told.scored.records[i])), f"{record.image} ({told.scored.sides[i]}): is {has}; said {said}"
    )


def second_looks(told: Told) -> dict[Doubt, list[Look]]:
    """Classes that are contradicted; tags that are missing, and tags that are never found. Most certain first."""
    looks: list[Look] = []
    for item, side in enumerate(told.looked_at.sides):
        answers, found = told.looked_at.answers[item], told.looked_at.found[item]
        of_image = (
            _class_looks(item, answers, found) if told.exclusive else _tag_looks(item, answers, found, told.threshold)
        )
        if side is Side.TRAIN:
            of_image = [replace(look, certainty=look.certainty * TRAINED_ON, trained_on=True) for look in of_image]
        looks += of_image
    return {doubt: ranked((look for look in looks if look.doubt is doubt), LOOKS) for doubt in Doubt}


_WHOLE = (0.0, 0.0, 1.0, 1.0)


def _class_looks(item: int, answers: Floats, found: Floats) -> list[Look]:
    own, said = int(answers.argmax()), int(found.argmax())
    if own == said:
        return []
    return [Look(Doubt.CONTRADICTED, item, _WHOLE, float(found[said] - found[own]), found=said, annotated=own)]


def _tag_looks(item: int, answers: Floats, found: Floats, threshold: float) -> list[Look]:
    missing = [
        Look(Doubt.UNANNOTATED, item, _WHOLE, float(found[k]), found=int(k))
        for k in np.flatnonzero((answers == 0) & (found >= threshold))
    ]
    never = [
        Look(Doubt.NEVER_FOUND, item, _WHOLE, 1.0 - float(found[k]), annotated=int(k))
        for k in np.flatnonzero((answers > 0.5) & (found < OVERLOOKED * threshold))
    ]
    return missing + never


_QUESTIONS = {
    Doubt.UNANNOTATED: ("Found, and not annotated", "Is a tag missing here?"),
    Doubt.NEVER_FOUND: ("Annotated, and never found", "Does the image really have this tag?"),
    Doubt.CONTRADICTED: ("Label contradicted", "Is the label right?"),
}


def _second_look(told: Told) -> Section:
    looks = second_looks(told)
    wanted = [Doubt.CONTRADICTED] if told.exclusive else [Doubt.UNANNOTATED, Doubt.NEVER_FOUND]
    parts: list[Markup] = []
    for doubt in wanted:
        title, question = _QUESTIONS[doubt]
        body = (
            tag("div", [_look(told, look) for look in looks[doubt]], class_="looks")
            if looks[doubt]
            else tag("p", "None.")
        )
        parts += [tag("h3", f"{title} ({len(looks[doubt])})"), tag("p", question, class_="note"), body]
    learned = sum(side is Side.TRAIN for side in told.looked_at.sides)
    note = tag(
        "p",
        f"Where network and annotations disagree, most certain first, at most {MOST_PER_IMAGE} of an image. Looked at:"
        f" {len(told.looked_at.sides) - learned} images that it did not train on, and {learned} that it did: findings in those count"
        " half. The network may be the one that is wrong.",
        class_="note",
    )
    return Section("second-look", "Annotations worth a second look", join([note, *parts]))


def _look(told: Told, look: Look) -> Markup:
    index = told.looked_at.records[look.item]
    record = told.records[index]
    said = [
        f"annotated {told.labels[look.annotated]}" if look.annotated is not None else "",
        f"found {told.labels[look.found]} {told.looked_at.found[look.item, look.found]:.2f}"
        if look.found is not None
        else "",
    ]
    weak = " · trained on" if look.trained_on else ""
    caption = [tag("strong", ", ".join(filter(None, said))), f" · {place(record, look, told.labels)}{weak}"]
    figure = jpeg(_shrunk(told.pixels(index)), caption)
    return tag("div", figure, class_="weak") if look.trained_on else figure


def place(record: Record, look: Look, labels: Sequence[str]) -> str:
    """File and line of the object that gave the label, else the file."""
    named = None if look.annotated is None else labels[look.annotated]
    lines: Iterable[int] = (item.line for item in record.objects if item.label == named and item.line)
    line = next(iter(lines), None)
    return f"{record.annotation}:{line}" if record.annotation and line else record.annotation or record.image


def _shrunk(pixels: np.ndarray) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(pixels))
    scale = SIDE / max(image.size)
    return image.resize(
        (max(1, round(image.width * scale)), max(1, round(image.height * scale))), Image.Resampling.BILINEAR
    )


def _shown(value: Any) -> Any:
    return "–" if value is None or (isinstance(value, float) and not math.isfinite(value)) else value
