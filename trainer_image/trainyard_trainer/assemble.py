"""A loop, ready to run, out of a spec and its data: device, network, first weights or checkpoint, batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from trainyard_api.architectures import ARCHITECTURES

from trainyard_trainer import checkpoint, schedule
from trainyard_trainer import device as devices
from trainyard_trainer.batch import Batch
from trainyard_trainer.data import Ahead, EvalBatches, TrainBatches
from trainyard_trainer.errors import NothingInTime
from trainyard_trainer.loop import Loop
from trainyard_trainer.prepare import Prepared
from trainyard_trainer.records import Side
from trainyard_trainer.start import Parent, load_start
from trainyard_trainer.store import Storage
from trainyard_trainer.task import Evaluation, Task, build_task
from trainyard_trainer.work import Work

if TYPE_CHECKING:
    from trainyard_trainer.attempt import Attempt

Size = tuple[int, int]


def build_loop(attempt: Attempt, output: Storage, size: Size, parent: Parent | None, prepared: Prepared) -> Loop:
    """The loop of an attempt, at the step of the checkpoint that it goes on from. Raises a TrainerError that says what to do."""
    spec, reporter = attempt.spec, attempt.reporter
    threads = devices.limit_threads()
    device = devices.choose_device(spec)
    autocast = devices.autocast_type(spec, device)
    torch.manual_seed(spec.training.seed)
    dataset = prepared.dataset
    task = build_task(spec, dataset.labels, dataset.records, size)
    saved = checkpoint.newest(output, spec.resume_from) if spec.resume_from else None
    if saved is None:
        if spec.finish:
            raise NothingInTime("asked to publish, but no attempt of this run has a checkpoint; let it train first.")
        load_start(spec, parent, task, dataset.labels, output, attempt.folder, reporter)
    task.network.to(device)
    work = _work(attempt, output, size, prepared, task, device, autocast)
    loop = Loop(work)
    reporter.line(
        "training", architecture=spec.architecture, device=str(device), threads=threads,
        precision="FP32" if autocast is None else str(autocast).removeprefix("torch."), images=work.images,
        validationImages=work.validation_images, batchSize=work.plan.batch_size, steps=work.plan.steps,
        stepsPerEpoch=work.plan.steps_per_epoch,
    )  # fmt: skip
    if saved is not None:
        packed = checkpoint.load(output, saved, attempt.folder, work.facts["spec"], work.facts["data"])
        changed = checkpoint.differences(packed["environment"], work.facts["environment"])
        if changed:
            reporter.warn("EnvironmentDiffers", changed)
        loop.resume(packed)
        reporter.line("resumed", step=saved.step, checkpoint=saved.uri)
    return loop


def _work(
    attempt: Attempt,
    output: Storage,
    size: Size,
    prepared: Prepared,
    task: Task,
    device: torch.device,
    autocast: torch.dtype | None,
) -> Work:
    spec, training = attempt.spec, attempt.spec.training
    architecture = ARCHITECTURES[spec.architecture]
    records, labels, resize = prepared.dataset.records, prepared.dataset.labels, spec.dataset.resize
    batch_size = training.batch_size or architecture.batch_size(1 if device.type == "cuda" else 0)
    images = len(prepared.of(Side.TRAIN))
    train = TrainBatches(
        prepared, size=size, batch_size=batch_size, seed=training.seed, augmentation=spec.augmentation, resize=resize,
        multi_scale=training.multi_scale_percent / 100,
    )  # fmt: skip
    validation = EvalBatches(prepared, Side.VALIDATION, size=size, batch_size=8, resize=resize)

    def validate(current: Task) -> Evaluation | None:
        return current.score(validation, records, labels, device=device, autocast=autocast, stop=attempt.stop)

    return Work(
        spec=spec,
        plan=schedule.plan(training, images, batch_size),
        images=images,
        validation_images=validation.images,
        labels=labels,
        file_names=lambda batch: ", ".join(records[i].image for i in batch.records),
        # On a CPU the next batch would only take time from this step.
        batch=Ahead(_pinned(train.batch)).batch if device.type == "cuda" else train.batch,
        evaluate=validate,
        task=task,
        learning_rate=training.learning_rate or architecture.learning_rate,
        device=device,
        autocast=autocast,
        reporter=attempt.reporter,
        checkpoints=checkpoint.Checkpoints(output, spec.attempt_uri, attempt.folder / "checkpoints"),
        facts={
            "spec": checkpoint.spec_digest(spec),
            "data": prepared.dataset.digest,
            "environment": checkpoint.environment(device),
        },
        stop=attempt.stop,
        deadline=attempt.deadline,
    )


def _pinned(make: Callable[[int, int], Batch]) -> Callable[[int, int], Batch]:
    """Batches in pinned memory, so that copies to the GPU need not wait."""

    def pinned(step: int, steps: int) -> Batch:
        batch = make(step, steps)
        return replace(
            batch,
            images=batch.images.pin_memory(),
            boxes=batch.boxes.pin_memory(),
            labels=batch.labels.pin_memory(),
            difficult=batch.difficult.pin_memory(),
            targets=None if batch.targets is None else batch.targets.pin_memory(),
        )

    return pinned
