"""What changes over time is a plain function of the step."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trainyard_api.training import Schedule, Training
from trainyard_trainer import schedule
from trainyard_trainer.schedule import Plan, fitting_steps, learning_rate


def test_epochs_become_steps_that_cross_their_ends() -> None:
    assert schedule.plan(Training(epochs=12), images=292, batch_size=8) == Plan(438, 37, 8)
    assert schedule.plan(Training(epochs=3), images=8, batch_size=16) == Plan(2, 1, 16)
    assert schedule.plan(Training(steps=7), images=100, batch_size=10) == Plan(7, 10, 10)


def test_the_rate_rises_then_falls_to_its_end() -> None:
    training = Training(steps=1000)
    rates = [learning_rate(training, 2e-3, step, 1000) for step in range(1000)]
    assert rates[0] < 2e-4
    assert max(rates) == pytest.approx(2e-3, rel=0.01)
    assert rates[-1] == pytest.approx(2e-5)
    assert rates.index(max(rates)) == pytest.approx(schedule.warmup_steps(training, 1000), abs=2)


@settings(deadline=None)
@given(
    kind=st.sampled_from(list(Schedule)),
    steps=st.integers(1, 3000),
    warmup=st.none() | st.integers(0, 500),
    end=st.floats(0, 100),
)
def test_the_rate_is_never_above_its_peak_nor_below_zero(
    kind: Schedule, steps: int, warmup: int | None, end: float
) -> None:
    training = Training(steps=steps, schedule=kind, warmup_steps=warmup, final_learning_rate_percent=end)
    for step in {0, steps // 2, steps - 1}:
        assert 0 <= learning_rate(training, 0.01, step, steps) <= 0.01 * (1 + 1e-9)


def test_a_constant_rate_stays_and_steps_fall_twice() -> None:
    constant = Training(schedule=Schedule.CONSTANT, warmup_steps=0)
    assert {learning_rate(constant, 1.0, step, 100) for step in range(100)} == {1.0}
    falling = Training(schedule=Schedule.STEP, warmup_steps=0)
    assert sorted({round(learning_rate(falling, 1.0, step, 100), 6) for step in range(100)}) == [0.01, 0.1, 1.0]


def test_the_average_forgets_the_first_weights_and_then_follows_its_time_constant() -> None:
    training = Training()
    assert schedule.ema_decay(training, 0, 10_000) <= 0.1
    assert schedule.ema_decay(training, 9000, 10_000) == pytest.approx(1 - 1 / 500)
    assert schedule.ema_decay(training, 900, 1000) == pytest.approx(1 - 1 / 50)
    assert schedule.ema_decay(Training(ema_decay=0.9), 900, 1000) == 0.9


def test_freezing_is_for_whole_epochs() -> None:
    plan, training = Plan(100, 10, 8), Training(freeze_epochs=2)
    assert [schedule.is_frozen(training, plan, step) for step in (0, 19, 20)] == [True, True, False]


@settings(deadline=None)
@given(step=st.integers(0, 100), more=st.integers(1, 10_000), left=st.floats(-10, 1e6), each=st.floats(0, 100))
def test_planned_steps_fit_and_never_grow(step: int, more: int, left: float, each: float) -> None:
    fitting = fitting_steps(step, step + more, left, each)
    assert step + 1 <= fitting <= step + more
    if fitting > step + 1:
        assert (fitting - step) * each <= left


def test_a_step_of_two_seconds_and_a_minute_left() -> None:
    assert fitting_steps(30, 1000, 60, 2.0) == 30 + 28


def test_linear_and_cosine_are_half_way_in_the_middle() -> None:
    for kind in (Schedule.LINEAR, Schedule.COSINE):
        training = Training(schedule=kind, warmup_steps=0, final_learning_rate_percent=0)
        assert learning_rate(training, 1.0, 50, 101) == pytest.approx(0.5)
        assert learning_rate(training, 1.0, 100, 101) == 0
    quarter = Training(schedule=Schedule.LINEAR, warmup_steps=0, final_learning_rate_percent=20)
    assert learning_rate(quarter, 1.0, 25, 101) == pytest.approx(0.8)


def test_the_warm_up_rises_by_equal_parts() -> None:
    training = Training(schedule=Schedule.CONSTANT, warmup_steps=4)
    rates = [learning_rate(training, 1.0, step, 100) for step in range(6)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])
    assert [schedule.warmup_steps(Training(), steps) for steps in (30, 200, 10_000, 1_000_000)] == [10, 20, 300, 1000]


def test_validation_is_every_so_many_epochs_or_steps() -> None:
    assert schedule.evaluation_interval(Training(), images=100, batch_size=8) == 12
    assert schedule.evaluation_interval(Training(evaluate_every_epochs=3), images=100, batch_size=8) == 38
    assert schedule.evaluation_interval(Training(evaluate_every_steps=7), images=100, batch_size=8) == 7
    assert schedule.evaluation_interval(Training(), images=4, batch_size=8) == 1


def test_the_loss_scale_of_fp16_halves_after_a_bad_step_and_doubles_after_many_fine_ones() -> None:
    assert schedule.loss_scale(1.0, 0, False) == (1.0, 0), "without FP16 there is none"
    assert schedule.loss_scale(4096.0, 7, False) == (2048.0, 0)
    assert schedule.loss_scale(schedule.LEAST_LOSS_SCALE, 0, False) == (schedule.LEAST_LOSS_SCALE, 0)
    scale, fine = 4096.0, 0
    for _ in range(schedule.FINE_STEPS):
        scale, fine = schedule.loss_scale(scale, fine, True)
    assert (scale, fine) == (8192.0, 0)
    assert schedule.loss_scale(schedule.LARGEST_LOSS_SCALE, schedule.FINE_STEPS, True)[0] == schedule.LARGEST_LOSS_SCALE
