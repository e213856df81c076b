"""What the curves of a training say about it: overfitting, underfitting, standing still. Pure functions, no torch.

Each gives the sentence of a warning, or None.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from trainyard_api.training import SelectBy, Training

from trainyard_trainer.schedule import Plan

LEAST_POINTS = 5
"""Evaluations below which a curve says nothing."""
DEFAULT_PATIENCE_EPOCHS = 20
PATIENCE_SHARE = 0.2
RISE = 1.05
"""The validation loss counts as risen from here on, as a multiple of its lowest value."""
GAIN = 0.001
LOW = {SelectBy.MAP50_95.value: 0.2, SelectBy.MAP50.value: 0.4, SelectBy.MAP.value: 0.4}
LOW_ABOVE_CHANCE = 0.25
"""Of accuracy: the share of the way from chance to perfect."""


class Point(NamedTuple):
    """One evaluation: `value` is the metric of `selectBy`, higher is better."""

    step: int
    training_loss: float
    validation_loss: float
    value: float


def patience_steps(training: Training, plan: Plan) -> int:
    """How long the validation loss has to rise: `earlyStopping.patienceEpochs`, else 20 epochs or a fifth of a shorter training."""
    early = training.early_stopping
    if early is not None:
        return early.patience_epochs * plan.steps_per_epoch
    return max(1, min(DEFAULT_PATIENCE_EPOCHS * plan.steps_per_epoch, round(PATIENCE_SHARE * plan.steps)))


def overfitting(points: Sequence[Point], patience: int) -> str | None:
    """The validation loss has been rising for `patience` steps while the training loss fell."""
    if len(points) < LEAST_POINTS:
        return None
    lowest = min(range(len(points)), key=lambda i: points[i].validation_loss)
    last, since = points[-1], points[lowest:]
    if last.step - points[lowest].step < patience or len(since) < 3:
        return None
    half = len(since) // 2
    rising = _mean(since[half:]) > _mean(since[:half])
    risen = last.validation_loss > RISE * points[lowest].validation_loss
    if not (rising and risen and last.training_loss < points[lowest].training_loss):
        return None
    return (
        f"the validation loss has risen from {points[lowest].validation_loss:.3g} at step {points[lowest].step} to"
        f" {last.validation_loss:.3g} while the training loss fell from {points[lowest].training_loss:.3g} to"
        f" {last.training_loss:.3g}; more images, stronger augmentation or fewer epochs help."
    )


def stagnant(points: Sequence[Point], metric: str) -> str | None:
    """Nothing was gained in the second half of what was trained."""
    if len(points) < LEAST_POINTS:
        return None
    best = points[0]
    for point in points[1:]:
        if point.value > best.value + GAIN:
            best = point
    last = points[-1]
    if best.step > last.step / 2:
        return None
    return (
        f"{metric} got no better after step {best.step} of {last.step}; fewer epochs would do, or a lower learningRate."
    )


def underfitting(metric: str, validation: float, training: float, labels: int) -> str | None:
    """Both scores are low at the end: `validation` and `training` are of the best weights on images of these sides."""
    limit = low(metric, labels)
    if validation >= limit or training >= limit:
        return None
    return (
        f"the model has learnt little: {metric} {training:.2f} on images that it trained on, {validation:.2f} on validation; train"
        " longer, check the labels, or take a larger imageSize or architecture."
    )


def memorised(metric: str, validation: float, training: float, labels: int) -> str | None:
    """Low on validation, far better on what it trained on."""
    if validation >= low(metric, labels) or training < max(low(metric, labels), 2 * validation):
        return None
    return (
        f"the model knows the images that it trained on ({metric} {training:.2f}) and not others ({validation:.2f} on validation);"
        " more images or stronger augmentation help."
    )


def low(metric: str, labels: int) -> float:
    """Below this a score is a low one."""
    if metric in LOW:
        return LOW[metric]
    chance = 1 / max(2, labels)
    return chance + LOW_ABOVE_CHANCE * (1 - chance)


def _mean(points: Sequence[Point]) -> float:
    return sum(point.validation_loss for point in points) / len(points)
