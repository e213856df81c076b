"""Evaluations of a training: which weights are the best so far, whether it still gains, what its curves say."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from trainyard_api.report import Phase
from trainyard_api.status import Scores
from trainyard_api.training import EarlyStoppingMetric

from trainyard_trainer import curves, ranks
from trainyard_trainer.curves import Point
from trainyard_trainer.optimizer import Average
from trainyard_trainer.state import Best, State, copied
from trainyard_trainer.task import Evaluation
from trainyard_trainer.work import Work

RAW_TOO_FROM = 0.75
"""Until this share of the steps only the averaged weights are evaluated: at a high learning rate they are the better ones."""


@dataclass
class Judge:
    """Looks at the network and its average on validation. `best` are the best weights so far, `latest` the last scores."""

    work: Work
    network: nn.Module
    average: Average
    best: Best | None = None
    latest: Scores | None = None

    @property
    def metric(self) -> str:
        """What makes a model the best."""
        selected = self.work.spec.training.select_by
        return selected.value if selected else "mAP50_95"

    def look(self, state: State) -> None:
        """Evaluates the weights of `state.step`. Asked to stop meanwhile, it leaves all as it was: the resumed training looks again."""
        if ranks.rank() != 0:
            state.evaluated = state.step
            return
        w = self.work
        w.reporter.phase(Phase.EVALUATING)
        passes = [w.spec.training.ema_decay != 0]
        if state.step >= RAW_TOO_FROM * state.steps and passes == [True]:
            passes = [True, False]
        shown: Evaluation | None = None
        for averaged in passes:
            evaluation = self._score(averaged)
            if evaluation is None:
                return
            if shown is None or evaluation.value(self.metric) > shown.value(self.metric):
                shown = evaluation
            self._keep_best(evaluation, averaged, state.step)
        assert shown is not None
        state.evaluated = state.step
        state.history.append(Point(state.step, state.smooth.get("loss", 0.0), shown.loss, shown.value(self.metric)))
        self.latest = shown.scores(w.labels, state.step)
        told = {"step": state.step, "validationLoss": shown.loss, **shown.numbers()}
        w.reporter.record("evaluation", told)
        w.reporter.flush()
        w.reporter.line("evaluation", **told)
        self._watch_gain(shown, state)
        overfitting = curves.overfitting(state.history, curves.patience_steps(w.spec.training, w.plan))
        if overfitting is not None:
            w.reporter.warn("Overfitting", overfitting)
        w.reporter.phase(Phase.TRAINING)

    def warn_at_end(self, state: State) -> None:
        """What is known only when all is over; the network has its best weights."""
        w = self.work
        if self.best is None:
            return
        stagnant = curves.stagnant(state.history, self.metric)
        if stagnant is not None:
            w.reporter.warn("Stagnant", stagnant)
        value = self.best.value
        if value >= curves.low(self.metric, len(w.labels)):
            return
        own = w.evaluate_training(w.task)
        if own is None:
            return
        known = own.value(self.metric)
        if (told := curves.underfitting(self.metric, value, known, len(w.labels))) is not None:
            w.reporter.warn("Underfitting", told)
        elif (told := curves.memorised(self.metric, value, known, len(w.labels))) is not None:
            w.reporter.warn("Overfitting", told)

    def _score(self, averaged: bool) -> Evaluation | None:
        with ranks.alone():
            if not averaged:
                return self.work.evaluate(self.work.task)
            self.average.swap()
            try:
                return self.work.evaluate(self.work.task)
            finally:
                self.average.swap()

    def _keep_best(self, evaluation: Evaluation, averaged: bool, step: int) -> None:
        value = evaluation.value(self.metric)
        if self.best is not None and value <= self.best.value:
            return
        weights = copied(self.network.state_dict())
        if averaged:
            weights |= copied(self.average.state_dict())
        scores = evaluation.scores(self.work.labels, step, per_class=False).to_dict()
        self.best = Best(weights, value, step, averaged, scores, evaluation.threshold)

    def _watch_gain(self, evaluation: Evaluation, state: State) -> None:
        """Early stopping: how long ago it got better."""
        early = self.work.spec.training.early_stopping
        if early is None:
            return
        wanted = early.metric.value if early.metric else self.metric
        value = -evaluation.loss if wanted == EarlyStoppingMetric.VALIDATION_LOSS.value else evaluation.value(wanted)
        if state.gain_value is None or value > state.gain_value + early.min_delta:
            state.gain_value, state.gain_step = value, state.step
        elif state.step - state.gain_step >= early.patience_epochs * self.work.plan.steps_per_epoch:
            state.stopped_early = True
