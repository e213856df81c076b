"""The training: one flat loop over steps. What changes over time is a function of the step (`schedule`), so that a resumed training
takes the very same steps.

At the head of each step it evaluates and saves when due, then looks whether to stop; then comes the step. Nothing in a step waits
for the device: its loss is read one step later.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from trainyard_api.report import Outcome, Phase
from trainyard_api.status import Metrics, Scores
from trainyard_api.training import EarlyStoppingMetric

from trainyard_trainer import schedule
from trainyard_trainer.batch import Batch
from trainyard_trainer.errors import GPUOutOfMemory, NothingInTime, TrainerError
from trainyard_trainer.optimizer import Average, Optimizer
from trainyard_trainer.state import Best, State, copied, pack, unpack
from trainyard_trainer.task import Evaluation
from trainyard_trainer.telling import Pace, metrics_of, progress_of
from trainyard_trainer.work import Ending, Pending, Work

STEPS_BEFORE_PLAN = 30
STEPS_NOT_MEASURED = 5
RAW_TOO_FROM = 0.75
"""Until this share of the steps only the averaged weights are evaluated: at a high learning rate they are the better ones."""
MOST_BAD_STEPS = 3
MOST_HALVINGS = 3
SMOOTHING = 0.95


@dataclass
class Loop:
    work: Work
    state: State = field(init=False)
    best: Best | None = None
    resumed_from: int | None = None

    def __post_init__(self) -> None:
        w = self.work
        training = w.spec.training
        self.state = State(steps=w.plan.steps)
        if w.autocast is torch.float16:
            self.state.loss_scale = 1024.0
        self.network = w.task.network
        self.optimizer = Optimizer(list(self.network.parameters()), training)
        self.average = Average(self.network)
        self.interval = schedule.evaluation_interval(training, w.images, w.plan.batch_size)
        self._good: dict[str, Any] | None = None
        self._saved_step = -1
        self._latest: Scores | None = None
        self._pace = Pace()

    def resume(self, packed: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.state, self.best = unpack(packed, self.network, self.average, self.optimizer)
        self.resumed_from = self._saved_step = self.state.step
        self._good = copied(packed)

    def run(self) -> Ending:
        """Trains to the end, or to whatever comes first: the stop flag, the time, early stopping, being asked to publish."""
        w, state = self.work, self.state
        self.network.train()
        before, begun = state.seconds, w.clock()
        pending: Pending | None = None
        first = state.step
        while True:
            state = self.state
            state.seconds = before + w.clock() - begun
            ending = self._ending()
            if pending is not None and (ending or self._evaluation_due() or self._save_due()):
                self._read(pending)
                pending = None
                continue
            if ending is not None and ending.outcome is None:
                return self._interrupted(ending)
            if self._evaluation_due() or (ending is not None and self._wants_last_evaluation(ending)):
                self._evaluate()
                continue
            if ending is not None:
                return ending
            if self._save_due():
                self._save()
            if state.step >= first + STEPS_NOT_MEASURED:
                self._pace.begin(state.step, w.clock())
            self._plan_time(first)
            launched = self._step()
            if pending is not None:
                self._read(pending)
            pending = launched

    # One step

    def _step(self) -> Pending:
        w, state, training = self.work, self.state, self.work.spec.training
        batch = w.batch(state.step, state.steps)
        # Dropout and sampling are functions of the step, too.
        torch.manual_seed(training.seed * 1_000_003 + state.step)
        frozen = schedule.is_frozen(training, w.plan, state.step)
        w.task.backbone.requires_grad_(not frozen)
        w.task.backbone.train(not frozen)
        rate = schedule.learning_rate(training, w.learning_rate * state.rate_factor, state.step, state.steps)
        loss, parts = self._forward_backward(batch)
        norm, fine = self.optimizer.step(rate, loss, state.loss_scale)
        self.average.update(schedule.ema_decay(training, state.step, state.steps))
        launched = Pending(state.step, batch, loss, parts, norm, fine, rate)
        state.step += 1
        return launched

    def _forward_backward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Gradients of a batch, in as many parts as asked for or as memory needs."""
        w, state = self.work, self.state
        while True:
            try:
                return self._parts(batch, w.spec.training.gradient_accumulation * 2**state.halvings)
            except torch.cuda.OutOfMemoryError as error:
                for parameter in self.network.parameters():
                    parameter.grad = None
                if state.halvings == MOST_HALVINGS or state.step >= w.plan.steps_per_epoch:
                    raise GPUOutOfMemory(
                        f"out of GPU memory with {len(batch)} images in {2**state.halvings} parts; lower batchSize or imageSize,"
                        " or take a larger GPU."
                    ) from error
                torch.cuda.empty_cache()
                state.halvings += 1
                w.reporter.warn(
                    "BatchHalved",
                    f"out of GPU memory: a batch now goes through the network in {2**state.halvings} parts; its size stays {len(batch)}.",
                )

    def _parts(self, batch: Batch, parts: int) -> tuple[Tensor, dict[str, Tensor]]:
        w = self.work
        total, sums = None, {}
        weight = max(1, w.task.weight(batch))
        micro_batches = batch.split(parts) if parts > 1 else [batch]
        for micro in micro_batches:
            share = 1.0 if len(micro_batches) == 1 else max(w.task.weight(micro), 0.01 * weight) / weight
            moved = micro.to(w.device)
            with torch.autocast(w.device.type, w.autocast or torch.bfloat16, enabled=w.autocast is not None):
                loss = w.task.loss(moved)
            (loss.total * (share * self.state.loss_scale)).backward()
            value = loss.total.detach() * share
            total = value if total is None else total + value
            for name, part in loss.parts.items():
                sums[name] = sums[name] + part * share if name in sums else part * share
        assert total is not None
        return total, sums

    def _read(self, pending: Pending) -> None:
        """Books a step: its numbers, and what follows when they are not finite."""
        w, state = self.work, self.state
        if not bool(pending.fine):
            self._bad_step(pending)
            return
        state.in_a_row = 0
        values = {"loss": float(pending.loss), **{name: float(part) for name, part in pending.parts.items()}}
        for name, value in values.items():
            state.smooth[name] = (
                SMOOTHING * state.smooth[name] + (1 - SMOOTHING) * value if name in state.smooth else value
            )
        w.reporter.record(
            "step",
            {"step": pending.step + 1, **values, "learningRate": pending.rate, "gradientNorm": float(pending.norm)},
        )
        self._tell(pending)

    def _bad_step(self, pending: Pending) -> None:
        """Skipped and counted; after three in a row back to the last checkpoint at half the learning rate, once; then an error."""
        w, state = self.work, self.state
        state.skipped += 1
        state.in_a_row += 1
        if state.loss_scale > 16:
            state.loss_scale /= 2
            state.in_a_row = 0
            return
        w.reporter.warn(
            "LossNotFinite", f"the loss was not finite in {state.skipped} steps, the last at step {pending.step + 1}."
        )
        if state.in_a_row < MOST_BAD_STEPS:
            return
        if state.rolled_back or self._good is None:
            raise TrainerError(
                f"the loss is not finite at step {pending.step + 1} ({w.file_names(pending.batch)}); lower learningRate, or look at"
                " these files.",
                reason="LossNotFinite",
            )
        seconds, skipped, factor = state.seconds, state.skipped, state.rate_factor
        self.state, self.best = unpack(copied(self._good), self.network, self.average, self.optimizer)
        self.state.seconds, self.state.skipped = seconds, skipped
        self.state.rate_factor, self.state.rolled_back = factor / 2, True
        w.reporter.warn(
            "LearningRateHalved",
            f"back to step {self.state.step} with half the learning rate: the loss was not finite.",
        )

    # What happens between steps

    def _evaluation_due(self) -> bool:
        state = self.state
        return (
            self.work.validation_images > 0
            and state.evaluated < state.step
            and state.step > 0
            and (state.step % self.interval == 0 or state.step >= state.steps)
        )

    def _wants_last_evaluation(self, ending: Ending) -> bool:
        """Before publishing: when there is no best model yet, or time enough for a look at the last one."""
        if self.work.validation_images == 0 or self.state.evaluated == self.state.step:
            return False
        return self.best is None or ending.outcome is Outcome.FINISHED_EARLY

    def _evaluate(self) -> None:
        w, state = self.work, self.state
        w.reporter.phase(Phase.EVALUATING)
        passes = [True] if w.spec.training.ema_decay != 0 else [False]
        if state.step >= RAW_TOO_FROM * state.steps and passes == [True]:
            passes = [True, False]
        shown: Evaluation | None = None
        metric = w.spec.training.select_by.value if w.spec.training.select_by else "mAP50_95"
        for averaged in passes:
            evaluation = self._score(averaged)
            if evaluation is None:
                # Asked to stop, which the head of the loop sees; the resumed training evaluates this step again.
                return
            if shown is None or evaluation.value(metric) > shown.value(metric):
                shown = evaluation
            self._keep_best(evaluation, metric, averaged)
        assert shown is not None
        state.evaluated = state.step
        state.history.append((state.step, state.smooth.get("loss", 0.0), shown.loss))
        self._latest = shown.scores(w.labels, state.step)
        told = {"step": state.step, "validationLoss": shown.loss, **shown.numbers()}
        w.reporter.record("evaluation", told)
        w.reporter.flush()
        w.reporter.line("evaluation", **told)
        self._watch_gain(shown, metric)
        w.reporter.metrics(self._metrics())
        w.reporter.phase(Phase.TRAINING)

    def _score(self, averaged: bool) -> Evaluation | None:
        if not averaged:
            return self.work.evaluate(self.work.task)
        self.average.swap()
        try:
            return self.work.evaluate(self.work.task)
        finally:
            self.average.swap()

    def _keep_best(self, evaluation: Evaluation, metric: str, averaged: bool) -> None:
        value = evaluation.value(metric)
        if self.best is not None and value <= self.best.value:
            return
        weights = copied(self.network.state_dict())
        if averaged:
            weights |= copied(self.average.state_dict())
        scores = evaluation.scores(self.work.labels, self.state.step, per_class=False).to_dict()
        self.best = Best(weights, value, self.state.step, averaged, scores, evaluation.threshold)

    def _watch_gain(self, evaluation: Evaluation, metric: str) -> None:
        """Early stopping: how long ago it got better."""
        early, state = self.work.spec.training.early_stopping, self.state
        if early is None:
            return
        wanted = early.metric.value if early.metric else metric
        value = -evaluation.loss if wanted == EarlyStoppingMetric.VALIDATION_LOSS.value else evaluation.value(wanted)
        if state.gain_value is None or value > state.gain_value + early.min_delta:
            state.gain_value, state.gain_step = value, state.step
        elif state.step - state.gain_step >= early.patience_epochs * self.work.plan.steps_per_epoch:
            state.stopped_early = True

    def _save_due(self) -> bool:
        state, every = self.state, self.work.spec.training.checkpoint_every_steps
        return (
            state.step > 0 and state.step % every == 0 and state.step != self._saved_step and state.step < state.steps
        )

    def _save(self) -> bool:
        """Writes a checkpoint, which is uploaded in the background; False when the one before is still on its way."""
        w, state = self.work, self.state
        failure = w.checkpoints.failure()
        if failure is not None:
            w.reporter.warn("CheckpointFailed", f"a checkpoint could not be uploaded: {failure}")
        self._saved_step = state.step
        packed = pack(state, self.best, self.network, self.average, self.optimizer, w.facts)
        self._good = copied(packed)
        w.reporter.flush()
        return w.checkpoints.save(packed, state.step)

    def _interrupted(self, ending: Ending) -> Ending:
        """Saves this very step and waits until it is on storage. Raises what the upload failed of."""
        w = self.work
        if self.state.step == 0:
            return ending
        w.reporter.phase(Phase.SAVING, f"saving the checkpoint of step {self.state.step}")
        w.checkpoints.wait()
        if w.checkpoints.saved is None or w.checkpoints.saved.step != self.state.step:
            self._save()
            w.checkpoints.wait()
        failure = w.checkpoints.failure()
        if failure is not None:
            raise failure
        return ending

    # When to end

    def _ending(self) -> Ending | None:
        """Whether the loop is over, and why; looked at before every step."""
        w, state = self.work, self.state
        limit = w.spec.training.max_duration_seconds
        if w.stop():
            return Ending(
                None, state.step, state.steps, self.best, f"interrupted at step {state.step} of {state.steps}"
            )
        if state.step >= state.steps:
            outcome = Outcome(state.limited_by) if state.limited_by else Outcome.COMPLETED
        elif state.stopped_early:
            outcome = Outcome.EARLY_STOPPED
        elif w.reporter.finish_asked:
            outcome = Outcome.FINISHED_EARLY
        elif limit is not None and state.seconds >= limit:
            outcome = Outcome.MAX_DURATION_REACHED
        elif w.deadline is not None and w.clock() >= w.deadline:
            outcome = Outcome.TIMEOUT_REACHED
        else:
            return None
        if state.step == 0:
            raise NothingInTime("the time was over before the first step; raise timeoutSeconds or maxDurationSeconds.")
        return Ending(outcome, state.step, state.steps, self.best)

    def _plan_time(self, first: int) -> None:
        """Once, after 30 steps: lowers `steps` to what fits, so that the schedule and the end of augmentation fit too."""
        w, state = self.work, self.state
        per_step = self._pace.seconds_per_step(state.step, w.clock())
        if state.time_planned or state.step < first + STEPS_BEFORE_PLAN or per_step is None:
            return
        state.time_planned = True
        # An evaluated image costs about a third of a trained one, and the last quarter evaluates twice.
        per_step *= 1 + 0.42 * w.validation_images / (self.interval * w.plan.batch_size)
        limit = w.spec.training.max_duration_seconds
        left = {Outcome.MAX_DURATION_REACHED: limit - state.seconds} if limit is not None else {}
        if w.deadline is not None:
            left[Outcome.TIMEOUT_REACHED] = w.deadline - w.clock()
        if not left:
            return
        cause = min(left, key=lambda outcome: left[outcome])
        fitting = schedule.fitting_steps(state.step, state.steps, left[cause], per_step)
        if fitting < state.steps:
            field_name = "maxDurationSeconds" if cause is Outcome.MAX_DURATION_REACHED else "timeoutSeconds"
            w.reporter.warn(
                "StepsLowered",
                f"at the present rate ends at step {fitting} of {state.steps} because of {field_name}; the schedule was fitted to that.",
            )
            state.steps, state.limited_by = fitting, cause.value

    # What is told

    def _metrics(self) -> Metrics:
        w, state = self.work, self.state
        rate = schedule.learning_rate(
            w.spec.training, w.learning_rate * state.rate_factor, max(0, state.step - 1), state.steps
        )
        return metrics_of(state, self._latest, self.best, rate)

    def _tell(self, pending: Pending) -> None:
        w, now = self.work, self.work.clock()
        self._pace.measure(self.state.step, now, w.plan.batch_size)
        saved = w.checkpoints.saved
        told = progress_of(self.state, pending.step + 1, w.plan, self._pace)
        w.reporter.metrics(self._metrics())
        w.reporter.progress(
            **told, checkpoint_step=saved.step if saved else self.resumed_from, resumed_from_step=self.resumed_from
        )
        if self._pace.line_due(now):
            shown = {name: round(value, 4) for name, value in self.state.smooth.items()}
            named = {"step": told["step"], "steps": told["steps"], "epoch": told["epoch"]}
            w.reporter.line(
                "step", **named, **shown, etaSeconds=told["eta_seconds"], imagesPerSecond=told["images_per_second"]
            )
