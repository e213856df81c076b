"""What a training says about itself while it runs: numbers for the status, how fast it is, how long it will still take."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any

from trainyard_api.status import Metrics, Scores

from trainyard_trainer.schedule import Plan
from trainyard_trainer.state import Best, State


def seconds_between_lines() -> float:
    """On stdout; the intake gets every second, `metrics.jsonl` every step."""
    return float(os.environ.get("TRAINYARD_SECONDS_BETWEEN_LINES", "10"))


def metrics_of(state: State, latest: Scores | None, best: Best | None, rate: float) -> Metrics:
    """Latest and best numbers; what is not finite is left out."""
    smooth = state.smooth
    now = {
        "loss": smooth.get("loss"),
        "box_loss": smooth.get("box"),
        "cls_loss": smooth.get("cls"),
        "dfl_loss": smooth.get("dfl"),
    }
    finite = {name: value for name, value in now.items() if value is not None and math.isfinite(value)}
    return Metrics(
        latest=(latest or Scores()).model_copy(update={**finite, "learning_rate": rate, "step": state.step}),
        best=Scores.model_validate(best.scores) if best else None,
    )


@dataclass
class Pace:
    """How fast it goes, measured from a few steps after the first: the first ones are slower."""

    since: tuple[int, float] | None = None
    images_per_second: float = 0.0
    line_at: float = -math.inf
    seconds_between_lines: float = field(default_factory=seconds_between_lines)

    def begin(self, step: int, now: float) -> None:
        """From here on it counts, unless it does already."""
        if self.since is None:
            self.since = (step, now)

    def seconds_per_step(self, step: int, now: float) -> float | None:
        """None as long as nothing was measured."""
        if self.since is None or step <= self.since[0]:
            return None
        return max(1e-6, now - self.since[1]) / (step - self.since[0])

    def measure(self, step: int, now: float, batch_size: int) -> None:
        each = self.seconds_per_step(step, now)
        if each is not None:
            self.images_per_second = batch_size / each

    def line_due(self, now: float) -> bool:
        if now - self.line_at < self.seconds_between_lines:
            return False
        self.line_at = now
        return True


def progress_of(state: State, step: int, plan: Plan, pace: Pace, seconds: float) -> dict[str, Any]:
    """The fields of a report that speak of progress. `seconds`: of training, in this attempt."""
    now = Plan(state.steps, plan.steps_per_epoch, plan.batch_size)
    speed = pace.images_per_second
    return {
        "step": step,
        "steps": state.steps,
        "percent": min(99, 100 * step // state.steps),
        "epoch": now.epoch(step - 1),
        "epochs": now.epochs,
        "steps_per_epoch": now.steps_per_epoch,
        "batch_size": now.batch_size,
        "images_per_second": round(speed, 2) or None,
        "eta_seconds": round((state.steps - step) * now.batch_size / speed) if speed else None,
        "training_seconds": round(seconds),
    }
