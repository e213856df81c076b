"""`report.html`: one file that needs nothing else, neither network nor script, light or dark as the reader likes it. No torch.

A page is sections; who has something to say of a training makes one. `boxpage` makes those of a detector.
"""

from __future__ import annotations

import base64
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from trainyard_trainer.charts import Series, bar_chart, line_chart
from trainyard_trainer.history import Line
from trainyard_trainer.markup import Markup, join, table, tag
from trainyard_trainer.pagestyle import STYLE

CURVES_APART = ("learningRate", "gradientNorm")
SCORES_BELOW_ONE = ("mAP50", "mAP50_95", "mAP", "accuracy", "precision", "recall", "microF1", "macroF1")


@dataclass(frozen=True)
class Section:
    """A part of the page; `anchor` is its name in links."""

    anchor: str
    title: str
    body: Markup


def page(title: str, facts: Mapping[str, object], sections: Sequence[Section]) -> str:
    """The document. Empty sections are left out; facts that are None too."""
    shown = [section for section in sections if section.body]
    known = [(name, value) for name, value in facts.items() if value not in (None, "")]
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", http_equiv="Content-Security-Policy", content="default-src 'none'; img-src data:; style-src 'unsafe-inline'"),
        tag("title", title),
        tag("style", Markup(STYLE)),
    )  # fmt: skip
    body = tag(
        "body",
        tag(
            "header",
            tag("h1", title),
            tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in known]),
        ),
        tag("nav", [tag("a", section.title, href=f"#{section.anchor}") for section in shown]),
        tag("main", [tag("section", tag("h2", s.title), s.body, id=s.anchor) for s in shown]),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


def curves(lines: Sequence[Line]) -> Section:
    """Loss and its parts, learning rate, gradient norm, and the scores of the evaluations, over the steps."""
    steps = [line for line in lines if line["kind"] == "step"]
    evaluations = [line for line in lines if line["kind"] == "evaluation"]
    parts = [name for name in _numbers(steps) if name != "loss" and name not in CURVES_APART]
    charts = [line_chart("Training loss", [_series(steps, "loss")], "step")]
    if len(parts) > 1:
        charts.append(line_chart("Parts of the loss", [_series(steps, name) for name in parts], "step"))
    scores = [name for name in _numbers(evaluations) if name in SCORES_BELOW_ONE]
    charts.append(
        line_chart("Scores on validation", [_series(evaluations, name) for name in scores], "step", y_range=(0.0, 1.0))
    )
    charts.append(line_chart("Validation loss", [_series(evaluations, "validationLoss")], "step"))
    charts += [line_chart(name, [_series(steps, key)], "step") for key, name in _APART.items()]
    return Section("curves", "Curves", tag("div", charts, class_="charts") if any(charts) else Markup())


_APART = {"learningRate": "Learning rate", "gradientNorm": "Norm of the gradient"}


def warnings(told: Sequence[tuple[str, str]]) -> Section:
    """Reason and sentence of each."""
    body = tag("ul", [tag("li", tag("strong", reason), ": ", message) for reason, message in told])
    return Section("warnings", "Warnings", body if told else Markup())


def dataset(told: Mapping[str, Any], sizes: Sequence[tuple[float, float]] = ()) -> Section:
    """What `dataset.json` says: counts, labels, what was found. `sizes`: width and height of boxes as shares of their image."""
    sides = {name: told.get(f"{name}Images", 0) for name in ("train", "validation", "test")}
    counts = table(
        ("Images", "Objects", "To train", "Validation", "Test"),
        [(told["images"], told["objects"], *sides.values())],
    )
    labels = told.get("labels", [])
    bars = bar_chart("Objects by label", [(entry["label"], entry["objects"]) for entry in labels[:40]])
    rows = [
        (group["kind"], group["reason"], group["count"], _example(group["examples"]))
        for group in told.get("findings", [])
    ]
    found = table(("Kind", "What", "How often", "First"), rows) if rows else tag("p", "Nothing was found amiss.")
    body = join([counts, tag("div", bars, _box_sizes(sizes), class_="charts"), tag("h3", "What was found"), found])
    return Section("dataset", "Dataset", body)


def configuration(spec: Mapping[str, Any]) -> Section:
    text = json.dumps(spec, ensure_ascii=False, indent=2)
    return Section("configuration", "Configuration", tag("details", tag("summary", "spec.json"), tag("pre", text)))


def environment(facts: Mapping[str, object]) -> Section:
    return Section("environment", "Environment", table(("", ""), facts.items()) if facts else Markup())


def jpeg(image: Image.Image, caption: object, quality: int = 80) -> Markup:
    """A figure with the picture inside the page."""
    data = io.BytesIO()
    image.convert("RGB").save(data, "JPEG", quality=quality)
    source = "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
    picture = tag("img", src=source, width=image.width, height=image.height, alt="")
    return tag("figure", picture, tag("figcaption", caption))


def _numbers(lines: Sequence[Line]) -> list[str]:
    """Names of all numbers, in the order in which they appear."""
    names: dict[str, None] = {}
    for line in lines:
        names |= dict.fromkeys(key for key in line if key not in ("kind", "step", "time"))
    return list(names)


def _series(lines: Sequence[Line], name: str) -> Series:
    told = [(line["step"], float(line[name])) for line in lines if line.get(name) is not None]
    return Series(name, [step for step, _ in told], [value for _, value in told])


def _example(examples: Sequence[Mapping[str, Any]]) -> str:
    if not examples:
        return ""
    first = examples[0]
    place = f"{first['file']}:{first['line']}: " if first.get("line") else f"{first['file']}: " if first["file"] else ""
    return place + first["message"]


def _box_sizes(sizes: Sequence[tuple[float, float]]) -> Markup:
    """How many boxes have which side, as a share of the image's."""
    if not sizes:
        return Markup()
    bounds = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
    counts: Counter[float] = Counter()
    for width, height in sizes:
        side = (max(width, 0) * max(height, 0)) ** 0.5
        counts[next((bound for bound in bounds if side <= bound), bounds[-1])] += 1
    bars = [(f"up to {100 * bound:g} %", counts[bound]) for bound in bounds]
    return bar_chart("Objects by size (side of the box as a share of the image's)", bars)
