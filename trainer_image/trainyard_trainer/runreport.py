"""`report.html` of a training: gathers what its sections need. The sections themselves know nothing of a training (`page`, `boxpage`)."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from trainyard_api.run import RunSpec
from trainyard_api.status import Warning_

from trainyard_trainer import boxpage, imagepage, page
from trainyard_trainer.evaluate import BoxEvaluation
from trainyard_trainer.history import Line
from trainyard_trainer.image_evaluate import ClassEvaluation, TagEvaluation
from trainyard_trainer.markup import Markup, join, table, tag
from trainyard_trainer.page import Section
from trainyard_trainer.prepare import Prepared
from trainyard_trainer.records import Side
from trainyard_trainer.task import Evaluation


def report_html(
    manifest: Mapping[str, Any],
    spec: RunSpec,
    prepared: Prepared,
    evaluations: Mapping[Side, Evaluation],
    lines: Sequence[Line],
    warnings: Sequence[Warning_],
    environment: Mapping[str, object],
) -> str:
    """The page. `evaluations` are those of the published model; that of the training side serves the second look only."""
    scored = {side: evaluations[side] for side in (Side.VALIDATION, Side.TEST) if side in evaluations}
    told = json.loads(prepared.to_json())
    facts = {
        "Version": manifest["name"], "Name": manifest.get("versionName"), "Architecture": spec.architecture, "Task": spec.task.value,
        "Job": f"{spec.namespace}/{spec.job}, run {spec.run}, attempt {spec.attempt}", "Continues": manifest.get("parentVersion"),
        "End": f"{manifest['outcome']}: {manifest['message']}", "Best step": manifest["bestStep"],
        "Training time": f"{manifest['trainingSeconds'] / 60:.1f} min", "Images": told["images"], "Made": manifest["created"],
        "Description": manifest.get("description"),
    }  # fmt: skip
    boxes = {side: one for side, one in evaluations.items() if isinstance(one, BoxEvaluation)}
    images = {side: one for side, one in evaluations.items() if isinstance(one, ClassEvaluation | TagEvaluation)}
    if boxes:
        results = boxpage.sections(_told(spec, prepared, boxes))
    elif images:
        results = imagepage.sections(_image_told(prepared, images))
    else:
        results = _details(scored, prepared.dataset.labels)
    return page.page(
        f"{manifest['name']}: {spec.architecture}",
        facts,
        [
            *results[:1],
            page.warnings([(warning.reason, warning.message) for warning in warnings]),
            page.curves(lines),
            *results[1:],
            page.dataset(told, _shares(prepared)),
            page.configuration(spec.model_copy(update={"intake": None}).to_dict()),
            page.environment(environment),
        ],
    )


def environment_facts(device: torch.device, trainer: str) -> dict[str, object]:
    """What the training ran on."""
    return {
        "Trainer": trainer,
        "torch": str(torch.__version__),
        "Python": platform.python_version(),
        "Device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "CPUs": os.cpu_count(),
        "Machine": f"{platform.system()} {platform.release()}, {platform.machine()}",
    }  # fmt: skip


def _told(spec: RunSpec, prepared: Prepared, boxes: Mapping[Side, BoxEvaluation]) -> boxpage.Told:
    names = {Side.VALIDATION: "validation", Side.TEST: "test"}
    scores = {name: boxes[side].boxes for side, name in names.items() if side in boxes}
    both = [boxes[side] for side in names if side in boxes]
    if len(both) == 2:
        scores["validation and test"] = both[0].joined(both[1]).boxes
    held_out = [_seen(boxes[side], side) for side in names if side in boxes]
    nothing = boxpage.Seen((), (), (), ())
    scored = sum(held_out, nothing)
    looked_at = scored + _seen(boxes[Side.TRAIN], Side.TRAIN) if Side.TRAIN in boxes else scored
    if not scores:
        scores = {"training": boxes[Side.TRAIN].boxes}
        scored = looked_at
    return boxpage.Told(
        labels=prepared.dataset.labels,
        records=prepared.dataset.records,
        pixels=prepared.pixels.image,
        scores=scores,
        scored=scored,
        looked_at=looked_at,
        threshold=both[0].threshold if both else boxes[Side.TRAIN].threshold,
        score_threshold=spec.evaluation.score_threshold_percent / 100,
    )


def _seen(evaluation: BoxEvaluation, side: Side) -> boxpage.Seen:
    return boxpage.Seen(evaluation.records, evaluation.truths, evaluation.found, (side,) * len(evaluation.records))


def _image_told(prepared: Prepared, evaluations: Mapping[Side, ClassEvaluation | TagEvaluation]) -> imagepage.Told:
    labels = prepared.dataset.labels
    names = {Side.VALIDATION: "validation", Side.TEST: "test"}
    held_out = [side for side in names if side in evaluations] or [Side.TRAIN]
    details = {names.get(side, "training"): evaluations[side].details(labels) for side in held_out}
    first = evaluations[held_out[0]]
    if len(held_out) == 2:
        other: Any = evaluations[held_out[1]]
        details["validation and test"] = first.joined(other).details(labels)
    seen = {side: _image_seen(one, side) for side, one in evaluations.items()}
    scored = seen[held_out[0]] if len(held_out) == 1 else seen[held_out[0]] + seen[held_out[1]]
    return imagepage.Told(
        exclusive=isinstance(first, ClassEvaluation),
        labels=labels,
        records=prepared.dataset.records,
        pixels=prepared.pixels.image,
        details=details,
        scored=scored,
        looked_at=scored + seen[Side.TRAIN] if Side.TRAIN in seen and Side.TRAIN not in held_out else scored,
        threshold=first.threshold,
    )


def _image_seen(evaluation: ClassEvaluation | TagEvaluation, side: Side) -> imagepage.Seen:
    if isinstance(evaluation, ClassEvaluation):
        answers = np.eye(evaluation.found.shape[1])[evaluation.truth]
    else:
        answers = evaluation.answers
    return imagepage.Seen(evaluation.records, answers, evaluation.found, (side,) * len(evaluation.records))


def _details(scored: Mapping[Side, Evaluation], labels: Sequence[str]) -> list[Section]:
    """Of a task that nobody wrote sections for: the numbers of every side, every label, the confusion matrix where there is one."""
    parts: list[Markup] = []
    for side, evaluation in scored.items():
        told = evaluation.details(labels)
        numbers = [(name, value) for name, value in told.items() if isinstance(value, int | float)]
        parts += [tag("h3", side.value.capitalize()), table(("", ""), numbers)]
        rows = [entry for entry in told.get("labels", []) if isinstance(entry, dict)]
        if rows:
            parts.append(table(list(rows[0]), [["–" if v is None else v for v in row.values()] for row in rows]))
        if told.get("confusion"):
            parts.append(boxpage.confusion(told["confusion"], labels))
    return [Section("scores", "Scores", join(parts))]


def _shares(prepared: Prepared) -> list[tuple[float, float]]:
    return [
        ((item.box[2] - item.box[0]) / record.width, (item.box[3] - item.box[1]) / record.height)
        for record in prepared.dataset.records
        for item in record.objects
    ]
