"""`model evaluate` for image networks: a class for each image, or any number of tags. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from trainyard_trainer.prepare import Prepared

    from trainyard_cli.evaluation import Outcome, Turn


def judged_images(
    turns: Iterable[Turn], prepared: Prepared, labels: Sequence[str], threshold: float | None, several: bool
) -> Outcome:
    """As `judged_boxes`. Images whose class is none of the labels are left out."""
    from trainyard_api.architectures import Task
    from trainyard_trainer import image_metrics, imagepage
    from trainyard_trainer.image_evaluate import ClassEvaluation, TagEvaluation

    exclusive = prepared.dataset.task is Task.CLASSIFICATION
    answers = image_metrics.answers(prepared.dataset.records, labels).astype(np.float64)
    if exclusive:
        known = answers.max(1) > 0.5
    else:
        known = np.ones(len(answers), bool)
    seen = scored = imagepage.Seen((), np.zeros((0, len(labels))), np.zeros((0, len(labels))), ())
    for turn in turns:
        members = tuple(i for i in turn.members if known[i])
        if not members:
            continue
        found = turn.judge.predictor.scores([prepared.pixels.image(i) for i in members])
        part = imagepage.Seen(members, answers[list(members)], found, (turn.side,) * len(members))
        seen += part
        scored = scored if turn.trained_on else scored + part
    if exclusive:
        evaluation = ClassEvaluation(float("nan"), scored.records, scored.answers.argmax(1), scored.found)
    else:
        chosen = threshold if threshold is not None else image_metrics.best_threshold(scored.answers, scored.found)
        evaluation = TagEvaluation(float("nan"), scored.records, scored.answers, scored.found, chosen)
    details = evaluation.details(labels)
    told = imagepage.Told(
        exclusive=exclusive, labels=labels, records=prepared.dataset.records, pixels=prepared.pixels.image,
        details={"this dataset": details}, scored=scored, looked_at=seen, threshold=evaluation.threshold,
    )  # fmt: skip
    return _outcome(details, told, evaluation.threshold)


def _outcome(details: dict, told: object, threshold: float) -> Outcome:
    from trainyard_trainer import imagepage

    from trainyard_cli.evaluation import Outcome

    assert isinstance(told, imagepage.Told)
    scored = told.scored
    if told.exclusive:
        said = np.eye(len(told.labels))[scored.found.argmax(1)] > 0.5
    else:
        said = scored.found >= threshold
    wrong = np.asarray((said & (scored.answers == 0)).any(1))
    missed = np.asarray((~said & (scored.answers > 0.5)).any(1))
    errors = [(record, bool(wrong[i]), bool(missed[i])) for i, record in enumerate(scored.records)]
    numbers = {name: value for name, value in details.items() if name not in ("images", "loss")}
    return Outcome(numbers, imagepage.sections(told), errors)
