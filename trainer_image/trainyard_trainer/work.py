"""What the loop works on, how it ends, and what a step leaves behind: plain data."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from trainyard_api.report import Outcome
from trainyard_api.run import RunSpec

from trainyard_trainer import schedule
from trainyard_trainer.batch import Batch
from trainyard_trainer.checkpoint import Checkpoints
from trainyard_trainer.records import StopFlag
from trainyard_trainer.report import Reporter
from trainyard_trainer.state import Best
from trainyard_trainer.task import Evaluation, Task


@dataclass(frozen=True)
class Work:
    """What the loop works on and with. `batch(step, steps)` is a pure function; `evaluate(task)` scores the validation side, or
    gives None when asked to stop; `evaluate_training(task)` scores some images of the training side. `deadline` is on `clock`'s scale: after it, no step is begun (None: there is none)."""

    spec: RunSpec
    plan: schedule.Plan
    images: int
    validation_images: int
    labels: tuple[str, ...]
    file_names: Callable[[Batch], str]
    batch: Callable[[int, int], Batch]
    evaluate: Callable[[Task], Evaluation | None]
    evaluate_training: Callable[[Task], Evaluation | None]
    task: Task
    learning_rate: float
    device: torch.device
    autocast: torch.dtype | None
    reporter: Reporter
    checkpoints: Checkpoints
    facts: dict[str, Any]
    stop: StopFlag
    deadline: float | None
    clock: Callable[[], float] = time.monotonic


@dataclass(frozen=True)
class Ending:
    """How the loop ended. `outcome` None: interrupted, `saved` says whether a checkpoint of this step is on storage."""

    outcome: Outcome | None
    step: int
    steps: int
    best: Best | None
    message: str = ""


@dataclass
class Pending:
    """What a step left on the device, read when the next one is under way."""

    step: int
    batch: Batch
    loss: Tensor
    parts: dict[str, Tensor]
    norm: Tensor
    fine: Tensor
    rate: float
