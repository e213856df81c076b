"""One attempt from its RunSpec to its Result: data while torch is imported, then the loop, then a version.

Imports of torch happen inside the functions: fetching and checking the data needs none, and begins at once.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainyard_api.architectures import ARCHITECTURES, Task
from trainyard_api.execution import OnTimeout
from trainyard_api.report import ExitCode, Outcome, Phase, Result
from trainyard_api.run import RunSpec

from trainyard_trainer import lean_torch, sharing
from trainyard_trainer.errors import BadSpec, Interrupted, TrainerError
from trainyard_trainer.place import ALONE, Place, on_cpus
from trainyard_trainer.prepare import Prepared, prepare
from trainyard_trainer.records import StopFlag
from trainyard_trainer.report import Reporter
from trainyard_trainer.store import Storage
from trainyard_trainer.versions import Parent, parent_of, publish_copy, published_before

if TYPE_CHECKING:
    from trainyard_trainer.loop import Loop
    from trainyard_trainer.work import Ending

LEAST_TO_PUBLISH = 30.0
"""Seconds that publishing needs; a shorter drain makes the training end earlier."""
SPIN_COUNT = "3000"
"""How often a thread looks whether another one is done before it sleeps, a tenth of a millisecond: OpenMP's own 300,000 make a step
several times slower on cores that others use too, none at all (a sleep for every operation) half as slow again on idle ones."""


@dataclass(frozen=True)
class Attempt:
    """What an attempt works with. `started` is the process's start on `time.monotonic`'s scale."""

    spec: RunSpec
    reporter: Reporter
    folder: Path
    stop: StopFlag
    started: float
    place: Place = ALONE

    @property
    def deadline(self) -> float | None:
        """When training ends so that a version can still be published; None where running into the time was asked for."""
        if self.spec.on_timeout is OnTimeout.FAIL:
            return None
        return (
            self.started
            + self.spec.timeout_seconds
            - max(self.spec.drain_seconds, min(LEAST_TO_PUBLISH, self.spec.timeout_seconds / 2))
        )

    @property
    def ends_at(self) -> float:
        return self.started + self.spec.timeout_seconds


def run_attempt(attempt: Attempt) -> Result:
    """The result of an attempt that ended well. Raises a TrainerError for every other end."""
    spec, reporter = attempt.spec, attempt.reporter
    size = check_spec(spec)
    output = Storage.open(spec.secrets_path, "output")
    imported = _imported_meanwhile(spec)
    before, parent, prepared = _before_torch(attempt, output, size)
    if before is not None:
        return before
    assert prepared is not None
    imported.result()
    reporter.dataset(prepared.summary())
    for warning in prepared.warnings():
        reporter.warn(warning.reason, warning.message)
    return _train_and_publish(attempt, output, size, parent, prepared)


def check_spec(spec: RunSpec) -> tuple[int, int]:
    """Width and height of the input. Raises BadSpec for what this trainer cannot do."""
    architecture = ARCHITECTURES.get(spec.architecture)
    if architecture is None:
        raise BadSpec(
            f"this image does not have the architecture {spec.architecture!r}; it has {', '.join(ARCHITECTURES)}."
        )
    if spec.task not in architecture.tasks:
        raise BadSpec(f"{spec.architecture} cannot do {spec.task.value}; set task to {architecture.task.value}.")
    wanted = spec.dataset.image_size or architecture.image_size
    size = input_size(wanted) if spec.task is Task.DETECTION else input_size(wanted, step=1, least=32)
    if min(size) < architecture.least_size and spec.task is Task.DETECTION:
        raise BadSpec(
            f"dataset.imageSize {wanted!r} is too small for {spec.architecture}; write at least {architecture.least_size}."
        )
    return size


def input_size(wanted: int | str, step: int = 32, least: int = 64) -> tuple[int, int]:
    """`320` or `640x384` to (width, height). Raises BadSpec when it is neither, or no multiple of `step`."""
    try:
        sides = [int(side) for side in str(wanted).lower().split("x")]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or any(side < least or side > 4096 or side % step for side in sides):
        raise BadSpec(
            f"dataset.imageSize {wanted!r} cannot be used; write a multiple of {step} from {least} to 4096, or WIDTHxHEIGHT of them."
        )
    return sides[0], sides[-1]


def _before_torch(
    attempt: Attempt, output: Storage, size: tuple[int, int]
) -> tuple[Result | None, Parent | None, Prepared | None]:
    """What an earlier attempt published already, else the data."""
    spec, reporter, place = attempt.spec, attempt.reporter, attempt.place
    if not place.leads_node:
        assert place.folder is not None
        return None, None, sharing.take(place.folder, attempt.stop)
    reporter.phase(Phase.FETCHING)
    before = published_before(spec, output)
    if before is not None:
        if place.leads:
            publish_copy(spec, output, reporter)
        return before, None, None
    if place.leads and not output.honours_if_absent(spec.run_uri):
        reporter.warn(
            "StorageIgnoresConditions", "the output storage ignores If-None-Match: two attempts could both publish."
        )
    parent = parent_of(spec, output)
    prepared = prepare(
        spec.dataset,
        spec.task,
        Storage.open(spec.secrets_path, "dataset", stop=attempt.stop),
        Path(spec.cache_path),
        image_size=size,
        known_labels=parent.labels if parent else (),
        known_sides=parent.sides if parent else None,
        shared=place.local_world > 1,
        stop=attempt.stop,
        progress=lambda phase, done, total: reporter.phase(
            phase, _amount(phase, done, total), 100 * done // max(1, total)
        ),
    )
    if place.local_world > 1 and place.folder is not None:
        sharing.hand_out(prepared, place.folder)
    return None, parent, prepared


def _amount(phase: Phase, done: int, total: int) -> str:
    if phase is Phase.FETCHING:
        return f"downloading {100 * done // max(1, total)} % of {total / 1e6:.1f} MB"
    return f"{done} of {total} images"


def _imported_meanwhile(spec: RunSpec) -> Future[None]:
    """Done when torch is there. In a thread that nobody waits for where the attempt ends before: data may be refused at once."""
    imported: Future[None] = Future()

    def work() -> None:
        try:
            imported.set_result(import_torch(spec.architecture, spec.gpus))
        except BaseException as error:
            imported.set_exception(error)

    threading.Thread(target=work, name="torch", daemon=True).start()
    return imported


def import_torch(architecture: str, gpus: int) -> None:
    """What the first step needs: while the data is fetched, or before there is work."""
    # OpenMP reads it when torch is loaded.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    # Nothing of a module is garbage: looking for it, now and in every step, costs a tenth of the start.
    gc.disable()
    try:
        if on_cpus(gpus):
            lean_torch.import_torch()
        import trainyard_trainer.assemble  # noqa: F401

        import_module(f"trainyard_trainer.{ARCHITECTURES[architecture].module}")
        gc.freeze()
    finally:
        gc.enable()


def _train_and_publish(
    attempt: Attempt, output: Storage, size: tuple[int, int], parent: Parent | None, prepared: Prepared
) -> Result:
    from trainyard_trainer import ranks
    from trainyard_trainer.assemble import build_loop, uncompiled
    from trainyard_trainer.publish import Model, Publishing, publish

    spec, reporter = attempt.spec, attempt.reporter
    loop = build_loop(attempt, output, size, parent, prepared)
    reporter.phase(Phase.TRAINING)
    ending = _finish_only(loop) if spec.finish else loop.run()
    if ending.outcome is None:
        saved = loop.work.checkpoints.saved
        reporter.progress(
            step=ending.step, steps=ending.steps, checkpoint_step=saved.step if saved else loop.resumed_from,
            training_seconds=round(loop.attempt_seconds),
        )  # fmt: skip
        at = f"a checkpoint of step {saved.step} is saved" if saved else "there is no checkpoint yet"
        raise Interrupted(f"{ending.message}; {at}.")
    if not attempt.place.leads:
        return Result(exit_code=ExitCode.DONE, reason=ending.outcome.value, message="the first process publishes.")
    ranks.leave()
    uncompiled(loop.network)
    if ending.best is not None:
        loop.network.load_state_dict(ending.best.weights)
    elif spec.training.ema_decay != 0:
        loop.average.swap()
    loop.judge.warn_at_end(loop.state)
    model = Model(
        loop.work.task,
        ending.best.step if ending.best else ending.step,
        ending.step,
        ending.steps,
        ending.outcome,
        _sentence(ending),
    )
    return publish(
        model,
        Publishing(
            spec, prepared, size, output, reporter, attempt.folder / "version", loop.work.device, attempt.ends_at,
            round(loop.state.seconds), loop.resumed_from, loop.work.checkpoints, round(loop.attempt_seconds),
        ),
    )  # fmt: skip


def _finish_only(loop: Loop) -> Ending:
    """Nothing is trained: what the checkpoint has is published."""
    from trainyard_trainer.work import Ending

    return Ending(Outcome.FINISHED_EARLY, loop.state.step, loop.state.steps, loop.best)


def _sentence(ending: Ending) -> str:
    at = f"step {ending.step} of {ending.steps}"
    return {
        Outcome.COMPLETED: f"trained all {ending.steps} steps.",
        Outcome.EARLY_STOPPED: f"stopped at {at}: the metric got no better.",
        Outcome.MAX_DURATION_REACHED: f"maxDurationSeconds was reached at {at}; the best model so far is published.",
        Outcome.TIMEOUT_REACHED: f"timeoutSeconds was reached at {at}; the best model so far is published.",
        Outcome.FINISHED_EARLY: f"asked to publish at {at}; the best model so far is published.",
    }[ending.outcome or Outcome.COMPLETED]


def failed(error: TrainerError, known: Mapping[str, Any]) -> Result:
    """The result of an attempt that did not end well; `known` are the last report's fields."""
    return Result(
        exit_code=error.exit_code,
        reason=error.reason,
        message=str(error),
        version=getattr(error, "highest", None),
        step=known.get("step"),
        steps=known.get("steps"),
        checkpoint_step=known.get("checkpoint_step"),
        resumed_from_step=known.get("resumed_from_step"),
        training_seconds=known.get("training_seconds") or 0,
    )
