"""When a training is said to overfit, to underfit or to stand still."""

from collections.abc import Callable

import pytest
from trainyard_api.training import Training
from trainyard_trainer.curves import Point, low, memorised, overfitting, patience_steps, stagnant, underfitting
from trainyard_trainer.schedule import Plan

Curve = Callable[[int], float]


def points(validation: Curve, training: Curve = lambda i: 10 - i, value: Curve = lambda i: i / 20) -> list[Point]:
    """Ten evaluations, a hundred steps apart."""
    return [Point(100 * (i + 1), training(i), validation(i), value(i)) for i in range(10)]


def falls_then_rises(i: int) -> float:
    return 5 - i if i < 4 else 2 + 0.3 * (i - 3)


def test_a_rising_validation_loss_under_a_falling_training_loss_is_overfitting() -> None:
    told = overfitting(points(falls_then_rises), patience=500)
    assert told is not None
    assert "from 2 at step 400 to 3.8" in told
    assert "from 7 to 1" in told


@pytest.mark.parametrize(
    ("what", "curve"),
    [
        ("still falling", points(lambda i: 5 - 0.1 * i)),
        ("flat", points(lambda i: 2.0 + (i == 0))),
        ("the training loss rises too", points(falls_then_rises, training=lambda i: 1 + i)),
        ("risen once, then level", points(lambda i: 1.0 if i == 1 else 1.02)),
        ("falling again", points(lambda i: [5, 2, 6, 6, 6, 6, 5, 4, 3, 2.2][i])),
        ("too few evaluations", points(falls_then_rises)[:4]),
    ],
)
def test_other_curves_are_not(what: str, curve: list[Point]) -> None:
    assert overfitting(curve, patience=300) is None, what


def test_it_has_to_last_for_the_patience() -> None:
    assert overfitting(points(falls_then_rises), patience=600) is not None
    assert overfitting(points(falls_then_rises), patience=601) is None


def test_the_patience_is_early_stopping_s_or_twenty_epochs_or_a_fifth() -> None:
    stopping = Training.model_validate({"earlyStopping": {"patienceEpochs": 3}})
    assert patience_steps(stopping, Plan(1000, 10, 8)) == 30
    assert patience_steps(Training(), Plan(10_000, 10, 8)) == 200
    assert patience_steps(Training(), Plan(500, 10, 8)) == 100


def test_no_gain_in_the_second_half_is_standing_still() -> None:
    told = stagnant(points(lambda i: 1.0, value=lambda i: min(i, 3) / 10), "mAP50_95")
    assert told is not None
    assert "mAP50_95 got no better after step 400 of 1000" in told
    assert stagnant(points(lambda i: 1.0, value=lambda i: min(i, 3) / 10 + 0.00001 * i), "mAP50_95") is not None
    assert stagnant(points(lambda i: 1.0, value=lambda i: min(i, 6) / 10), "mAP50_95") is None


def test_low_on_both_sides_is_underfitting_and_low_on_one_is_not() -> None:
    told = underfitting("mAP50_95", 0.08, 0.1, 3)
    assert told is not None
    assert "mAP50_95 0.10 on images that it trained on, 0.08 on validation" in told
    assert underfitting("mAP50_95", 0.08, 0.7, 3) is None
    assert underfitting("mAP50_95", 0.4, 0.45, 3) is None


def test_high_on_its_own_images_and_low_on_others_is_said() -> None:
    told = memorised("mAP50_95", 0.12, 0.8, 3)
    assert told is not None
    assert "(mAP50_95 0.80)" in told
    assert memorised("mAP50_95", 0.12, 0.15, 3) is None
    assert memorised("mAP50_95", 0.5, 0.9, 3) is None


def test_an_accuracy_is_low_near_chance() -> None:
    assert low("accuracy", 2) == pytest.approx(0.625)
    assert low("accuracy", 100) == pytest.approx(0.2575)
    assert low("mAP50", 3) == 0.4
