"""The loop in this process: resumed, limited by time, stopped early, and with losses that are not finite."""

import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from trainyard_api.architectures import Task
from trainyard_api.report import Outcome
from trainyard_api.status import Scores
from trainyard_trainer import ranks
from trainyard_trainer.assemble import build_loop
from trainyard_trainer.attempt import Attempt
from trainyard_trainer.batch import Batch
from trainyard_trainer.checkpoint import newest
from trainyard_trainer.errors import GPUOutOfMemory, TrainerError
from trainyard_trainer.gradients import gradients
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
        self.loop.work = self.loop.judge.work = replace(self.loop.work, **changes)


def everything(loop: Loop) -> dict[str, torch.Tensor]:
    state = {f"network.{name}": tensor for name, tensor in loop.network.state_dict().items()}
    state |= {f"average.{name}": tensor for name, tensor in loop.average.state_dict().items()}
    assert loop.best is not None
    return state | {f"best.{name}": tensor for name, tensor in loop.best.weights.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, data: Path, prepared: Prepared) -> Run:
    """A training that nobody stopped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        run = Run(tmp_path_factory.mktemp("whole"), data, prepared)
        assert run.loop.run().outcome is Outcome.COMPLETED
    return run


@pytest.mark.parametrize("stop_at", [1, 5, 8, 11])
def test_a_resumed_training_is_the_same_bit_for_bit(
    stop_at: int, tmp_path: Path, data: Path, prepared: Prepared, whole: Run
) -> None:
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


def test_the_first_step_is_as_long_as_the_learning_rate_says(tmp_path: Path, data: Path, prepared: Prepared) -> None:
    """AdamW's first step moves every weight by the rate, whatever the gradient."""
    moved = {}
    for rate in (1e-3, 4e-3):
        training = {
            "steps": 1,
            "batchSize": 2,
            "learningRate": rate,
            "warmupSteps": 0,
            "weightDecay": 0,
            "schedule": "Constant",
        }
        run = Run(tmp_path / str(rate), data, prepared, training=training | {"evaluateEverySteps": 100})
        before = [p.detach().clone() for p in run.loop.network.parameters()]
        run.loop._step(0)
        after = run.loop.network.parameters()
        moved[rate] = max(float((b.detach() - a).abs().max()) for a, b in zip(before, after, strict=True))
    assert moved == pytest.approx({1e-3: 1e-3, 4e-3: 4e-3}, rel=0.01)


def test_a_frozen_backbone_does_not_move(tmp_path: Path, data: Path, prepared: Prepared) -> None:
    training = {"steps": 4, "batchSize": 4, "freezeEpochs": 5, "evaluateEverySteps": 100}
    run = Run(tmp_path, data, prepared, training=training)
    before = {name: tensor.clone() for name, tensor in run.loop.network.state_dict().items()}
    run.loop.run()
    moved = {name for name, tensor in run.loop.network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved
    assert not [name for name in moved if name.startswith("backbone.")]


def sizes_seen(run: Run) -> list[int]:
    """Images of every pass through the network, from now on."""
    seen: list[int] = []
    run.loop.network.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    return seen


def test_a_batch_goes_through_in_parts_and_makes_one_step_of_their_weighted_gradients(
    tmp_path: Path, data: Path, prepared: Prepared
) -> None:
    training = {"steps": 1, "batchSize": 5, "gradientAccumulation": 2, "evaluateEverySteps": 100}
    run = Run(tmp_path, data, prepared, training=training)
    work, state, seen = run.loop.work, run.loop.state, sizes_seen(run)
    batch = work.batch(0, 1)
    run.loop.network.eval()
    loss, _ = gradients(work, state, batch, may_halve=True)
    assert seen == [2, 3]
    found = [p.grad.clone() for p in run.loop.network.parameters() if p.grad is not None]
    run.loop.network.zero_grad()
    parts = batch.split(2)
    whole = sum(sum(part.counts) for part in parts)
    expected = sum(work.task.loss(part).total * (sum(part.counts) / whole) for part in parts)
    assert isinstance(expected, torch.Tensor)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    for mine, parameter in zip(found, run.loop.network.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad, rtol=1e-3, atol=1e-5)


def out_of_memory(run: Run, most: int) -> None:
    """A GPU that holds `most` images."""
    work = run.loop.work
    fits = work.task.loss

    def loss(batch: Batch) -> Any:
        if len(batch) > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return fits(batch)

    work.task.loss = loss  # type: ignore[method-assign]


def test_out_of_gpu_memory_the_batch_goes_through_in_halves_and_keeps_its_size(
    tmp_path: Path, data: Path, prepared: Prepared
) -> None:
    run = Run(tmp_path, data, prepared, training={"steps": 2, "batchSize": 8, "evaluateEverySteps": 100})
    seen = sizes_seen(run)
    out_of_memory(run, most=2)
    assert run.loop.run().outcome is Outcome.COMPLETED
    assert run.loop.state.halvings == 2
    assert seen[:8] == [2] * 8
    assert run.loop.work.plan.batch_size == 8
    (told,) = {line["message"] for line in run.events("warning") if "4 parts" in line["message"]}
    assert "its size stays 8" in told


@pytest.mark.parametrize(
    ("batch_size", "halvings", "after", "reason"),
    [
        (8, 0, 0, GPUOutOfMemory.SMALLER_PARTS),
        (8, 1, 0, GPUOutOfMemory.SMALLER_PARTS),
        (8, 3, 0, "OutOfMemory"),
        (8, 0, 6, "OutOfMemory"),
        (2, 0, 0, "OutOfMemory"),
    ],
)
def test_several_processes_are_asked_to_begin_again_with_smaller_parts(
    batch_size: int, halvings: int, after: int, reason: str, tmp_path: Path, data: Path, prepared: Prepared,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """The one that has no memory never meets the others in that pass: the number of them is all it takes."""
    run = Run(tmp_path, data, prepared, training={"steps": 40, "batchSize": batch_size})
    out_of_memory(run, most=0)
    run.loop.state.halvings, run.loop.state.step = halvings, after
    monkeypatch.setattr(ranks, "world", lambda: 2)
    monkeypatch.setattr(ranks, "total", list)
    batch = run.loop.work.batch(after, 40)
    with pytest.raises(GPUOutOfMemory) as lacking:
        gradients(run.loop.work, run.loop.state, batch, may_halve=after < run.loop.work.plan.steps_per_epoch)
    assert lacking.value.reason == reason


@pytest.mark.parametrize(("most", "after"), [(0, 0), (4, 12)])
def test_it_is_halved_three_times_at_most_and_in_the_first_epoch_only(
    most: int, after: int, tmp_path: Path, data: Path, prepared: Prepared
) -> None:
    training = {"steps": 40, "batchSize": 8, "evaluateEverySteps": 100}
    run = Run(tmp_path, data, prepared, training=training)
    make = run.loop.work.batch

    def batch(step: int, steps: int) -> Batch:
        if step == after:
            out_of_memory(run, most)
        return make(step, steps)

    run.change(batch=batch)
    with pytest.raises(GPUOutOfMemory, match="lower batchSize or imageSize"):
        run.loop.run()
    assert run.loop.state.halvings == (3 if after == 0 else 0)


@dataclass(frozen=True)
class Scored:
    """An evaluation with numbers of our own."""

    values: dict[str, float]
    loss: float = 1.0
    threshold: float = 0.5

    def value(self, metric: str) -> float:
        return self.values[metric]

    def scores(self, labels: Any, step: int, *, per_class: bool = True) -> Scores:
        return Scores(step=step)

    def numbers(self) -> dict[str, float]:
        return self.values


def judged(run: Run, values: list[dict[str, float]], losses: list[float] | None = None, every: int = 2) -> None:
    """Evaluations with these values, `every` so many steps, until it is to stop early; the training loss falls."""
    state = run.loop.state
    for number, value in enumerate(values):
        scored = Scored(value, losses[number] if losses else 1.0)
        run.change(evaluate=lambda _, scored=scored: scored)
        state.step, state.smooth["loss"] = every * (number + 1), 10.0 - number
        run.loop.judge.look(state)
        if state.stopped_early:
            return


@pytest.mark.parametrize(("select", "step"), [("mAP50", 2), ("mAP50_95", 4), (None, 4)])
def test_the_best_model_is_that_of_the_selected_metric(
    select: str | None, step: int, tmp_path: Path, data: Path, prepared: Prepared
) -> None:
    training = {"steps": 8, "batchSize": 2, "evaluateEverySteps": 2, "emaDecay": 0, "selectBy": select}
    run = Run(tmp_path, data, prepared, training=training)
    judged(run, [{"mAP50": 0.9, "mAP50_95": 0.4}, {"mAP50": 0.8, "mAP50_95": 0.5}, {"mAP50": 0.1, "mAP50_95": 0.1}])
    assert run.loop.best is not None
    assert (run.loop.best.step, run.loop.best.averaged) == (step, False)


def test_without_an_average_the_weights_themselves_are_the_best(tmp_path: Path, data: Path, prepared: Prepared) -> None:
    for decay, averaged in ((0, False), (0.9, True)):
        training = {"steps": 4, "batchSize": 2, "evaluateEverySteps": 2, "emaDecay": decay}
        run = Run(tmp_path / str(decay), data, prepared, training=training)
        judged(run, [{"mAP50": 0.5, "mAP50_95": 0.5}] * 2)
        assert run.loop.best is not None
        assert (run.loop.best.step, run.loop.best.averaged) == (2, averaged)


@pytest.mark.parametrize(
    ("early", "stops"),
    [
        ({"metric": "mAP50", "patienceEpochs": 1, "minDelta": 0.01}, 8),
        ({"metric": "mAP50", "patienceEpochs": 2, "minDelta": 0.01}, 12),
        ({"metric": "mAP50", "patienceEpochs": 1, "minDelta": 0.0001}, None),
        ({"metric": "validationLoss", "patienceEpochs": 1, "minDelta": 0.1}, 12),
    ],
)
def test_early_stopping_looks_at_its_metric_with_patience_and_least_gain(
    early: dict[str, Any], stops: int | None, tmp_path: Path, data: Path, prepared: Prepared
) -> None:
    """An epoch is 4 steps. mAP50 gains 0.1 once and 0.001 each time after; the loss falls by 1 twice, then by 0.01."""
    training = {"steps": 20, "batchSize": 8, "evaluateEverySteps": 4, "emaDecay": 0, "earlyStopping": early}
    run = Run(tmp_path, data, prepared, training=training)
    assert run.loop.work.plan.steps_per_epoch == 4
    values = [{"mAP50": 0.3 + 0.001 * n, "mAP50_95": 0.1} for n in range(6)]
    judged(run, values, [5.0, 4.0, 3.99, 3.98, 3.97, 3.96], every=4)
    assert (run.loop.state.step if run.loop.state.stopped_early else None) == stops


def test_overfitting_is_said_while_it_happens_and_the_rest_at_the_end(
    tmp_path: Path, data: Path, prepared: Prepared
) -> None:
    training = {"steps": 20, "batchSize": 2, "evaluateEverySteps": 2, "emaDecay": 0}
    run = Run(tmp_path, data, prepared, training=training)
    values = [{"mAP50": 0.1, "mAP50_95": 0.05}] * 10
    judged(run, values, [3, 2, 2.2, 2.4, 2.6, 2.8, 3.0, 3.2, 3.4, 3.6])
    assert "Overfitting" in run.reasons()
    run.change(evaluate_training=lambda _: Scored({"mAP50": 0.9, "mAP50_95": 0.9}))
    run.loop.judge.warn_at_end(run.loop.state)
    told = {line["reason"]: line["message"] for line in run.events("warning")}
    assert "no better after step 2 of 20" in told["Stagnant"]
    assert "knows the images that it trained on (mAP50_95 0.90)" in told["Overfitting"]
    run.change(evaluate_training=lambda _: Scored({"mAP50": 0.1, "mAP50_95": 0.1}))
    run.loop.judge.warn_at_end(run.loop.state)
    assert "Underfitting" in run.reasons()


def test_the_time_of_earlier_attempts_counts_and_is_not_told_twice(
    tmp_path: Path, data: Path, prepared: Prepared
) -> None:
    training = {"steps": 50, "batchSize": 2, "evaluateEverySteps": 100, "maxDurationSeconds": 100}
    run = Run(tmp_path, data, prepared, training=training, trainedSeconds=90)
    now = [0.0]
    make = run.loop.work.batch

    def slow(step: int, steps: int) -> Any:
        now[0] += 2.0
        return make(step, steps)

    run.change(clock=lambda: now[0], batch=slow, deadline=None)
    ending = run.loop.run()
    assert (ending.outcome, ending.step) == (Outcome.MAX_DURATION_REACHED, 5)
    assert run.loop.state.seconds == pytest.approx(100)
    assert run.loop.attempt_seconds == pytest.approx(10)


def test_without_a_checkpoint_it_goes_back_to_the_first_step(tmp_path: Path, data: Path, prepared: Prepared) -> None:
    training = {"steps": 6, "batchSize": 2, "evaluateEverySteps": 100, "checkpointEverySteps": 100}
    run = Run(tmp_path, data, prepared, training=training)
    run.change(batch=poisoned(run.loop.work.batch, {1, 2, 3}))
    assert run.loop.run().outcome is Outcome.COMPLETED
    assert run.loop.state.rate_factor == 0.5
    assert "back to step 0" in next(x["message"] for x in run.events("warning") if x["reason"] == "LearningRateHalved")
    lines = map(json.loads, (tmp_path / "metrics-1.jsonl").read_text().splitlines())
    steps = [line["step"] for line in lines if line["kind"] == "step"]
    assert steps == [1, 1, 2, 3, 4, 5, 6], "the step that was under way is not booked"


def test_the_seed_decides_over_first_weights_and_random_parts_of_the_network(
    tmp_path: Path, data: Path, prepared: Prepared
) -> None:
    def first(seed: int, folder: str) -> torch.Tensor:
        run = Run(tmp_path / folder, data, prepared, training={"steps": 2, "batchSize": 2, "seed": seed})
        run.loop._step(0)
        return torch.cat([torch.rand(4), run.loop.network.state_dict()["backbone.stem.0.weight"].flatten()[:4]])

    assert torch.equal(first(1, "a"), first(1, "b"))
    assert (first(1, "c") != first(2, "d")).all()


def test_bf16_and_fp32_take_different_steps(tmp_path: Path, data: Path, prepared: Prepared) -> None:
    losses = {}
    for precision in ("FP32", "BF16"):
        training = {"steps": 1, "batchSize": 2, "precision": precision}
        run = Run(tmp_path / precision, data, prepared, training=training)
        losses[precision] = float(gradients(run.loop.work, run.loop.state, run.loop.work.batch(0, 1), True)[0])
        assert all(
            p.dtype == p.grad.dtype == torch.float32 for p in run.loop.network.parameters() if p.grad is not None
        )
    assert losses["BF16"] != losses["FP32"]
    assert losses["BF16"] == pytest.approx(losses["FP32"], rel=0.05)
