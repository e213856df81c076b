"""Everything that changes over time, as plain functions of the step. No torch."""

import math
from dataclasses import dataclass

from trainyard_api.training import Schedule, Training

DEFAULT_WARMUP_SHARE = 0.03
TIME_CONSTANT_SHARE = 1 / 20
LONGEST_TIME_CONSTANT = 500.0
STEP_MILESTONES = (0.6, 0.85)
STEP_FACTOR = 0.1


@dataclass(frozen=True)
class Plan:
    """How long a training is: `steps` in all, `steps_per_epoch`, images per step. `steps` may be lowered once, by time."""

    steps: int
    steps_per_epoch: int
    batch_size: int

    @property
    def epochs(self) -> int:
        return -(-self.steps // self.steps_per_epoch)

    def epoch(self, step: int) -> int:
        """The epoch, counted from 1, that step `step` (counted from 0) is in."""
        return min(step // self.steps_per_epoch + 1, self.epochs)


def plan(training: Training, images: int, batch_size: int) -> Plan:
    """Epochs become steps: `ceil(epochs * images / batch)`; batches cross the ends of epochs."""
    per_epoch = max(1, -(-images // batch_size))
    if training.planned_epochs is None:
        assert training.steps is not None
        return Plan(training.steps, per_epoch, batch_size)
    return Plan(max(1, -(-training.planned_epochs * images // batch_size)), per_epoch, batch_size)


def evaluation_interval(training: Training, images: int, batch_size: int) -> int:
    """Steps between validations."""
    if training.evaluate_every_steps is not None:
        return training.evaluate_every_steps
    return max(1, round((training.evaluate_every_epochs or 1) * images / batch_size))


def warmup_steps(training: Training, steps: int) -> int:
    """3 % of all, 20 to 1000, but never more than a third: a training of 30 steps has to train, too."""
    if training.warmup_steps is not None:
        return training.warmup_steps
    return min(max(20, min(1000, round(DEFAULT_WARMUP_SHARE * steps))), max(1, steps // 3))


def learning_rate(training: Training, peak: float, step: int, steps: int) -> float:
    """Rate of step `step`, counted from 0: linear warm-up, times the schedule's fall to `finalLearningRatePercent` of the peak."""
    warmup = warmup_steps(training, steps)
    rising = min(1.0, (step + 1) / warmup) if warmup else 1.0
    end = training.final_learning_rate_percent / 100
    done = min(1.0, step / max(1, steps - 1))
    match training.schedule:
        case Schedule.COSINE:
            share = end + (1 - end) * 0.5 * (1 + math.cos(math.pi * done))
        case Schedule.LINEAR:
            share = end + (1 - end) * (1 - done)
        case Schedule.STEP:
            share = max(end, STEP_FACTOR ** sum(done >= milestone for milestone in STEP_MILESTONES))
        case Schedule.CONSTANT:
            share = 1.0
    return peak * rising * share


def ema_decay(training: Training, step: int, steps: int) -> float:
    """Decay of the averaged weights after step `step`; it rises from 0, so that the first weights are soon forgotten."""
    if training.ema_decay is not None:
        wanted = training.ema_decay
    else:
        wanted = 1 - 1 / max(1.0, min(LONGEST_TIME_CONSTANT, steps * TIME_CONSTANT_SHARE))
    return min(wanted, (step + 1) / (step + 10))


def is_frozen(training: Training, plan: Plan, step: int) -> bool:
    """Whether the backbone learns nothing in this step."""
    return step < training.freeze_epochs * plan.steps_per_epoch


def fitting_steps(step: int, steps: int, seconds_left: float, seconds_per_step: float) -> int:
    """Steps that fit into the time left, with 5 % to spare; never more than planned, never less than one more."""
    return max(step + 1, min(steps, step + int(0.95 * seconds_left / max(seconds_per_step, 1e-6))))


FIRST_LOSS_SCALE = 2.0**12
LEAST_LOSS_SCALE = 16.0
LARGEST_LOSS_SCALE = 2.0**16
FINE_STEPS = 500


def loss_scale(scale: float, fine_in_a_row: int, fine: bool) -> tuple[float, int]:
    """Scale of the next loss, so that FP16's small gradients do not vanish (Micikevicius et al., arXiv 1710.03740), and how many steps
    in a row were finite: half of it after a step that was not, twice as much after 500 that were. 1 stays 1: no FP16, no scale."""
    if scale == 1.0:
        return 1.0, 0
    if not fine:
        return max(LEAST_LOSS_SCALE, scale / 2), 0
    if fine_in_a_row + 1 < FINE_STEPS:
        return scale, fine_in_a_row + 1
    return min(LARGEST_LOSS_SCALE, scale * 2), 0
