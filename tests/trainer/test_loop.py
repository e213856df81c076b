"""The loop in this process: resumed, limited by time, stopped early, and with losses that are not finite."""

import io
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from trainyard_api.architectures import Task
from trainyard_api.report import Outcome
from trainyard_trainer.assemble import build_loop
from trainyard_trainer.attempt import Attempt
from trainyard_trainer.checkpoint import newest
from trainyard_trainer.errors import TrainerError
from trainyard_trainer.loop import Loop
from trainyard_trainer.prepare import Prepared, prepare
from trainyard_trainer.report import Reporter
from trainyard_trainer.store import Storage

from tests.trainer.runs import dataset, run_spec

pytestmark = pytest.mark.training


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def prepared(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    spec = run_spec(data.parent, data)
    return prepare(spec.dataset, Task.DETECTION, Storage(), tmp_path_factory.mktemp("cache"), image_size=(64, 64))


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


class Run:
    """A loop with a stop flag that is set when a step is reached, and everything that was told."""

    def __init__(
        self, folder: Path, data: Path, prepared: Prepared, stop_at: int | None = None, **changes: Any
    ) -> None:
        self.out = io.StringIO()
        self.stopped = False
        spec = run_spec(folder, data, **changes)
        folder.mkdir(parents=True, exist_ok=True)
        self.reporter = Reporter(spec, folder / f"metrics-{spec.attempt}.jsonl", out=self.out)
        self.attempt = Attempt(spec, self.reporter, folder, self.stop, time.monotonic())
        self.loop: Loop = build_loop(self.attempt, Storage(), (64, 64), None, prepared)
        self.stop_at = stop_at

    def stop(self) -> bool:
        return self.stop_at is not None and self.loop.state.step >= self.stop_at

    def events(self, event: str) -> list[dict[str, Any]]:
        return [line for line in map(json.loads, self.out.getvalue().splitlines()) if line["event"] == event]

    def reasons(self) -> list[str]:
        return [line["reason"] for line in self.events("warning")]

    def change(self, **changes: Any) -> None:
        self.loop.work = replace(self.loop.work, **changes)


def everything(loop: Loop) -> dict[str, torch.Tensor]:
    state = {f"network.{name}": tensor for name, tensor in loop.network.state_dict().items()}
    state |= {f"average.{name}": tensor for name, tensor in loop.average.state_dict().items()}
    assert loop.best is not None
    return state | {f"best.{name}": tensor for name, tensor in loop.best.weights.items()}


@pytest.mark.parametrize("stop_at", [1, 5, 8, 11])
def test_a_resumed_training_is_the_same_bit_for_bit(
    stop_at: int, tmp_path: Path, data: Path, prepared: Prepared
) -> None:
    whole = Run(tmp_path / "whole", data, prepared)
    assert whole.loop.run().outcome is Outcome.COMPLETED
    first = Run(tmp_path / "parts", data, prepared, stop_at=stop_at)
    ending = first.loop.run()
    assert (ending.outcome, ending.step) == (None, stop_at)
    folder = first.attempt.spec.attempt_uri
    saved = newest(Storage(), [folder])
    assert saved is not None
    assert saved.step == stop_at
    second = Run(tmp_path / "parts", data, prepared, attempt=2, resumeFrom=[folder])
    assert second.loop.run().outcome is Outcome.COMPLETED
    expected, found = everything(whole.loop), everything(second.loop)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []
    assert second.loop.best is not None
    assert whole.loop.best is not None
    assert second.loop.best.step == whole.loop.best.step


def test_steps_are_lowered_once_to_what_fits(tmp_path: Path, data: Path, prepared: Prepared) -> None:
    training = {"steps": 5000, "batchSize": 2, "evaluateEverySteps": 10_000, "maxDurationSeconds": 100}
    run = Run(tmp_path, data, prepared, training=training)
    now = [0.0]
    make = run.loop.work.batch

    def slow(step: int, steps: int) -> Any:
        now[0] += 2.0
        return make(step, steps)

    run.change(clock=lambda: now[0], batch=slow, deadline=None)
    ending = run.loop.run()
    assert ending.outcome is Outcome.MAX_DURATION_REACHED
    assert 40 <= ending.steps <= 50
    assert ending.step == ending.steps
    assert run.reasons().count("StepsLowered") == 1
    assert ending.best is not None


def test_a_deadline_ends_with_what_there_is(tmp_path: Path, data: Path, prepared: Prepared) -> None:
    training = {"steps": 5000, "batchSize": 2, "evaluateEverySteps": 10_000}
    run = Run(tmp_path, data, prepared, training=training)
    now = [0.0]
    make = run.loop.work.batch

    def slow(step: int, steps: int) -> Any:
        now[0] += 5.0
        return make(step, steps)

    run.change(clock=lambda: now[0], batch=slow, deadline=40.0)
    ending = run.loop.run()
    assert (ending.outcome, ending.step) == (Outcome.TIMEOUT_REACHED, 8)
    assert ending.best is not None


def test_being_asked_to_publish_ends_it(tmp_path: Path, data: Path, prepared: Prepared) -> None:
    run = Run(tmp_path, data, prepared)
    make = run.loop.work.batch

    def asked(step: int, steps: int) -> Any:
        if step == 3:
            run.reporter._finish.set()
        return make(step, steps)

    run.change(batch=asked)
    ending = run.loop.run()
    assert (ending.outcome, ending.step) == (Outcome.FINISHED_EARLY, 4)
    assert ending.best is not None


def test_early_stopping_after_epochs_without_a_gain(tmp_path: Path, data: Path, prepared: Prepared) -> None:
    training = {"steps": 100, "batchSize": 16, "evaluateEverySteps": 2, "learningRate": 1e-7,
                "earlyStopping": {"metric": "mAP50", "patienceEpochs": 2, "minDelta": 0.5}}  # fmt: skip
    ending = Run(tmp_path, data, prepared, training=training).loop.run()
    assert ending.outcome is Outcome.EARLY_STOPPED
    assert ending.step <= 10


def poisoned(make: Callable[[int, int], Any], steps: set[int] | None) -> Callable[[int, int], Any]:
    """Batches whose pictures are not finite at these steps (None: from step 4 on)."""

    def batch(step: int, planned: int) -> Any:
        found = make(step, planned)
        bad = step >= 4 if steps is None else step in steps
        if bad:
            if steps is not None:
                steps.discard(step)
            return replace(found, images=found.images * float("nan"))
        return found

    return batch


def test_a_loss_that_is_not_finite_is_skipped_and_counted(tmp_path: Path, data: Path, prepared: Prepared) -> None:
    run = Run(tmp_path, data, prepared)
    run.change(batch=poisoned(run.loop.work.batch, {4}))
    assert run.loop.run().outcome is Outcome.COMPLETED
    assert run.loop.state.skipped == 1
    assert "LossNotFinite" in run.reasons()
    assert all(torch.isfinite(tensor).all() for tensor in everything(run.loop).values())


def test_three_in_a_row_go_back_to_the_checkpoint_with_half_the_rate(
    tmp_path: Path, data: Path, prepared: Prepared
) -> None:
    run = Run(tmp_path, data, prepared)
    run.change(batch=poisoned(run.loop.work.batch, {5, 6, 7}))
    assert run.loop.run().outcome is Outcome.COMPLETED
    assert run.loop.state.rate_factor == 0.5
    assert "LearningRateHalved" in run.reasons()
    assert all(torch.isfinite(tensor).all() for tensor in everything(run.loop).values())


def test_when_that_does_not_help_the_files_are_named(tmp_path: Path, data: Path, prepared: Prepared) -> None:
    run = Run(tmp_path, data, prepared)
    run.change(batch=poisoned(run.loop.work.batch, None))
    with pytest.raises(TrainerError, match=r"not finite.*JPEGImages/"):
        run.loop.run()


def test_a_frozen_backbone_does_not_move(tmp_path: Path, data: Path, prepared: Prepared) -> None:
    training = {"steps": 4, "batchSize": 4, "freezeEpochs": 5, "evaluateEverySteps": 100}
    run = Run(tmp_path, data, prepared, training=training)
    before = {name: tensor.clone() for name, tensor in run.loop.network.state_dict().items()}
    run.loop.run()
    moved = {name for name, tensor in run.loop.network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert not [name for name in moved if name.startswith("backbone.")]


def test_accumulated_parts_make_one_step(tmp_path: Path, data: Path, prepared: Prepared) -> None:
    training = {"steps": 3, "batchSize": 4, "gradientAccumulation": 2, "optimizer": "SGD", "learningRate": 0.01,
                "multiScalePercent": 30, "labelSmoothing": 0.1, "classWeights": {"balanced": True}}  # fmt: skip
    run = Run(tmp_path, data, prepared, training=training)
    assert run.loop.run().step == 3
