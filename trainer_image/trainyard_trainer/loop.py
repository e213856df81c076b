"""The training: one flat loop over steps. What changes over time is a function of the step (`schedule`), so that a resumed training
takes the very same steps.

At the head of each step it evaluates and saves when due, then looks whether to stop; then comes the step. Nothing in a step waits
for the device: its loss is read one step later. Several ranks take the same way through the loop: what only one of them can know (the
time, a signal, an evaluation) they agree on at the head.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from trainyard_api.report import Outcome, Phase
from trainyard_api.status import Metrics

from trainyard_trainer import ranks, schedule
from trainyard_trainer.errors import DiskFull, NothingInTime, TrainerError
from trainyard_trainer.gradients import gradients
from trainyard_trainer.judge import Judge
from trainyard_trainer.optimizer import Average, Optimizer
from trainyard_trainer.state import Best, State, copied, pack, unpack
from trainyard_trainer.telling import Pace, metrics_of, progress_of
from trainyard_trainer.work import Ending, Pending, Work

STEPS_BEFORE_PLAN = 30
STEPS_NOT_MEASURED = 5
MOST_BAD_STEPS = 3
SMOOTHING = 0.95
OUTCOMES = tuple(Outcome)


@dataclass
class Loop:
    work: Work
    state: State = field(init=False)
    resumed_from: int | None = None

    def __post_init__(self) -> None:
        w = self.work
        training = w.spec.training
        self.state = State(steps=w.plan.steps, seconds=float(w.spec.trained_seconds))
        if w.autocast is torch.float16:
            self.state.loss_scale = schedule.FIRST_LOSS_SCALE
        self.network = w.task.network
        self.optimizer = Optimizer(list(self.network.parameters()), training)
        self.average = Average(self.network)
        self.judge = Judge(w, self.network, self.average)
        self.interval = schedule.evaluation_interval(training, w.images, w.plan.batch_size)
        self._good: dict[str, Any] | None = None
        self._saved_step = -1
        self._begun = (self.state.seconds, w.clock())
        self._pace = Pace()

    @property
    def best(self) -> Best | None:
        return self.judge.best

    @property
    def attempt_seconds(self) -> float:
        """Training time of this attempt; `state.seconds` is that of the whole run."""
        return self.state.seconds - self._begun[0]

    def resume(self, packed: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.state, self.judge.best = unpack(packed, self.network, self.average, self.optimizer)
        # What an attempt trained after its last checkpoint counts, too.
        self.state.seconds = max(self.state.seconds, float(self.work.spec.trained_seconds))
        self.resumed_from = self._saved_step = self.state.step
        self._good = copied(packed)
        self._begun = (self.state.seconds, self.work.clock())

    def run(self) -> Ending:
        """Trains to the end, or to whatever comes first: the stop flag, the time, early stopping, being asked to publish."""
        w = self.work
        self.network.train()
        if self._good is None:
            self._good = copied(self._packed())
        before, begun = self._begun = (self.state.seconds, w.clock())
        pending: Pending | None = None
        first = self.state.step
        while True:
            state = self.state
            state.seconds = before + w.clock() - begun
            self._plan_time(first)
            ending, evaluate = self._agreed(self._ending())
            if pending is not None and (ending or self._evaluation_due() or self._save_due()):
                self._read(pending)
                pending = None
                continue
            if ending is not None and ending.outcome is None:
                return self._interrupted(ending)
            if self._evaluation_due() or evaluate:
                self.judge.look(state)
                w.reporter.metrics(self._metrics())
                continue
            if ending is not None:
                self._save_last()
                return ending
            if self._save_due():
                self._save()
            if state.step >= first + STEPS_NOT_MEASURED:
                self._pace.begin(state.step, w.clock())
            launched = self._step(first)
            # A step that was begun before the training went back to a checkpoint belongs to nothing any more.
            gone_back = pending is not None and self._read(pending)
            pending = None if gone_back else launched

    # One step

    def _step(self, first: int) -> Pending:
        w, state, training = self.work, self.state, self.work.spec.training
        # Dropout and sampling are functions of the step, too.
        seed = (training.seed * 1_000_003 + state.step) * 1_009 + ranks.rank()
        torch.default_generator.manual_seed(seed)
        if w.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        batch = w.batch(state.step, state.steps)
        frozen = schedule.is_frozen(training, w.plan, state.step)
        w.task.backbone.requires_grad_(not frozen)
        w.task.backbone.train(not frozen)
        rate = schedule.learning_rate(training, w.learning_rate * state.rate_factor, state.step, state.steps)
        loss, parts = gradients(w, state, batch, may_halve=state.step - first < w.plan.steps_per_epoch)
        norm, fine = self.optimizer.step(rate, loss, state.loss_scale)
        self.average.update(schedule.ema_decay(training, state.step, state.steps))
        launched = Pending(state.step, batch, loss, parts, norm, fine, rate)
        state.step += 1
        return launched

    def _read(self, pending: Pending) -> bool:
        """Books a step: its numbers, and what follows when they are not finite. True when the training went back to a checkpoint."""
        w, state = self.work, self.state
        fine = bool(pending.fine)
        state.loss_scale, state.fine_in_a_row = schedule.loss_scale(state.loss_scale, state.fine_in_a_row, fine)
        if not fine:
            return self._bad_step(pending)
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
        return False

    def _bad_step(self, pending: Pending) -> bool:
        """Skipped and counted; after three in a row back to the last checkpoint at half the learning rate, once; then an error."""
        w, state = self.work, self.state
        state.skipped += 1
        if state.loss_scale > schedule.LEAST_LOSS_SCALE:
            # Too large a scale overflows FP16: that is how the right one is found.
            return False
        state.in_a_row += 1
        w.reporter.warn(
            "LossNotFinite", f"the loss was not finite in {state.skipped} steps, the last at step {pending.step + 1}."
        )
        if state.in_a_row < MOST_BAD_STEPS:
            return False
        if state.rolled_back:
            raise TrainerError(
                f"the loss is not finite at step {pending.step + 1} ({w.file_names(pending.batch)}); lower learningRate, or look at"
                " these files.",
                reason="LossNotFinite",
            )
        assert self._good is not None
        seconds, skipped, factor = state.seconds, state.skipped, state.rate_factor
        self.state, self.judge.best = unpack(copied(self._good), self.network, self.average, self.optimizer)
        self.state.seconds, self.state.skipped = seconds, skipped
        self.state.rate_factor, self.state.rolled_back = factor / 2, True
        w.reporter.warn(
            "LearningRateHalved",
            f"back to step {self.state.step} with half the learning rate: the loss was not finite.",
        )
        return True

    # What happens between steps

    def _evaluation_due(self) -> bool:
        state = self.state
        return (
            self.work.validation_images > 0
            and state.evaluated < state.step
            and state.step > 0
            and (state.step % self.interval == 0 or state.step >= state.steps)
        )

    def _wants_last_evaluation(self, ending: Ending | None) -> bool:
        """Before publishing: when there is no best model yet, or time enough for a look at the last one."""
        if ending is None or ending.outcome is None or self.work.validation_images == 0:
            return False
        if self.state.evaluated == self.state.step:
            return False
        return self.best is None or ending.outcome is Outcome.FINISHED_EARLY

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
        packed = self._packed()
        self._good = copied(packed)
        w.reporter.flush()
        return w.checkpoints.save(packed, state.step)

    def _save_last(self) -> None:
        """What cannot be published now is published later without a step: this is on its way while the model is scored and exported."""
        if self._saved_step == self.state.step:
            return
        self._saved_step = self.state.step
        self.work.reporter.flush()
        try:
            self.work.checkpoints.save(self._packed(), self.state.step, last=True)
        except DiskFull as error:
            self.work.reporter.warn("CheckpointFailed", str(error))

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

    def _packed(self) -> dict[str, Any]:
        return pack(self.state, self.best, self.network, self.average, self.optimizer, self.work.facts)

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

    def _agreed(self, ending: Ending | None) -> tuple[Ending | None, bool]:
        """The same for all ranks: whether and how to end, and whether to evaluate before that.

        Any rank may have been asked to stop; everything else, the planned number of steps too, is as the first rank sees it.
        """
        evaluate = self._wants_last_evaluation(ending)
        if ranks.world() == 1:
            return ending, evaluate
        state, mine = self.state, ranks.rank() == 0
        stop = ending is not None and ending.outcome is None
        code = 1 + OUTCOMES.index(ending.outcome) if ending is not None and ending.outcome is not None else 0
        told = ranks.largest([stop, mine * code, mine * evaluate, mine * state.steps])
        state.steps = int(told[3])
        if told[0]:
            message = f"interrupted at step {state.step} of {state.steps}"
            return Ending(None, state.step, state.steps, self.best, message), False
        if not told[1]:
            return None, False
        return Ending(OUTCOMES[int(told[1]) - 1], state.step, state.steps, self.best), bool(told[2])

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
        return metrics_of(state, self.judge.latest, self.best, rate)

    def _tell(self, pending: Pending) -> None:
        w, now = self.work, self.work.clock()
        self._pace.measure(self.state.step, now, w.plan.batch_size)
        saved = w.checkpoints.saved
        told = progress_of(self.state, pending.step + 1, w.plan, self._pace, self.attempt_seconds)
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
