"""A loop, ready to run, out of a spec and its data: device, network, first weights or checkpoint, batches."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import nn
from trainyard_api.architectures import ARCHITECTURES
from trainyard_api.report import Phase
from trainyard_api.run import RunSpec

from trainyard_trainer import checkpoint, device_paint, ranks, schedule
from trainyard_trainer import device as devices
from trainyard_trainer.batch import Batch
from trainyard_trainer.data import Ahead, EvalBatches, TrainBatches
from trainyard_trainer.device import OnDevice
from trainyard_trainer.errors import BadSpec, NothingInTime
from trainyard_trainer.gradients import halved
from trainyard_trainer.loop import Loop
from trainyard_trainer.place import Place
from trainyard_trainer.prepare import Prepared
from trainyard_trainer.records import Side
from trainyard_trainer.report import Reporter
from trainyard_trainer.start import load_start
from trainyard_trainer.store import Storage
from trainyard_trainer.task import Evaluation, Task, build_task
from trainyard_trainer.versions import Parent
from trainyard_trainer.work import Work

if TYPE_CHECKING:
    from trainyard_trainer.attempt import Attempt

Size = tuple[int, int]
MOST_AHEAD = 4
"""Batches that are made while a GPU trains: one CPU prepares about 300 images of 320 px a second, a GPU takes more."""
TRAINING_IMAGES = 64
"""Images of the training side that tell, at the end, what the model makes of what it has seen."""


def build_loop(attempt: Attempt, output: Storage, size: Size, parent: Parent | None, prepared: Prepared) -> Loop:
    """The loop of an attempt, at the step of the checkpoint that it goes on from. Raises a TrainerError that says what to do."""
    spec, reporter, place, dataset = attempt.spec, attempt.reporter, attempt.place, prepared.dataset
    threads = devices.limit_threads(place.local_world)
    device = devices.choose_device(spec, place.local_rank)
    batch_size = _batch_size(spec, device, place)
    waited = partial(reporter.phase, Phase.CACHING)
    ranks.join(place, device, dataset.digest, attempt.stop, lambda what: waited(f"waits for {what}"))
    autocast = devices.autocast_type(spec, device)
    if device.type == "cpu" and autocast is torch.bfloat16 and not devices.cpu_has_bf16():
        reporter.warn(
            "PrecisionSlow", "this CPU computes BF16 several times slower than FP32; set training.precision to Auto."
        )
    torch.manual_seed(spec.training.seed)
    task = build_task(spec, dataset.labels, dataset.records, size)
    saved = checkpoint.newest(output, spec.resume_from) if spec.resume_from else None
    if saved is None:
        if spec.finish:
            raise NothingInTime("asked to publish, but no attempt of this run has a checkpoint; let it train first.")
        if place.leads:
            load_start(spec, parent, task, dataset.labels, output, attempt.folder, reporter)
    task.network.to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue] its hints lack it
    if saved is None:
        ranks.same_everywhere(list(task.network.state_dict().values()))
    ranks.together(task.network)
    _compile(spec, task, device, reporter)
    work = _work(attempt, output, size, prepared, task, device, autocast, batch_size)
    loop = Loop(work)
    reporter.line(
        "training", architecture=spec.architecture, device=str(device), threads=threads,
        precision="FP32" if autocast is None else str(autocast).removeprefix("torch."), images=work.images,
        validationImages=work.validation_images, batchSize=work.plan.batch_size, steps=work.plan.steps,
        stepsPerEpoch=work.plan.steps_per_epoch, processes=place.world if place.world > 1 else None,
    )  # fmt: skip
    if saved is not None:
        packed = checkpoint.load(output, saved, attempt.folder, work.facts["spec"], work.facts["data"])
        changed = checkpoint.differences(packed["environment"], work.facts["environment"])
        if changed:
            reporter.warn("EnvironmentDiffers", changed)
        loop.resume(packed)
        reporter.line("resumed", step=saved.step, checkpoint=saved.uri)
    if place.halvings > loop.state.halvings:
        loop.state.halvings = place.halvings
        reporter.warn("BatchHalved", halved(place.halvings, batch_size))
    return loop


def _work(
    attempt: Attempt,
    output: Storage,
    size: Size,
    prepared: Prepared,
    task: Task,
    device: torch.device,
    autocast: torch.dtype | None,
    batch_size: int,
) -> Work:
    spec, training = attempt.spec, attempt.spec.training
    architecture = ARCHITECTURES[spec.architecture]
    records, labels, resize = prepared.dataset.records, prepared.dataset.labels, spec.dataset.resize
    images = len(prepared.of(Side.TRAIN))
    # CPUs prepare fewer pictures than a GPU trains on.
    moved = device.type == "cuda" and device_paint.fits(prepared.pixels, torch.cuda.mem_get_info(device)[0])
    painted_on = device if moved else None
    train = TrainBatches(
        prepared, size=size, batch_size=batch_size, seed=training.seed, augmentation=spec.augmentation, resize=resize,
        multi_scale=training.multi_scale_percent / 100, device=painted_on,
    )  # fmt: skip
    validation = EvalBatches(prepared, Side.VALIDATION, size=size, batch_size=8, resize=resize)

    def validate(current: Task) -> Evaluation | None:
        return current.score(validation, records, labels, device=device, autocast=autocast, stop=attempt.stop)

    def validate_training(current: Task) -> Evaluation | None:
        some = prepared.of(Side.TRAIN)[:: max(1, images // TRAINING_IMAGES)][:TRAINING_IMAGES]
        batches = EvalBatches(prepared, Side.TRAIN, size=size, batch_size=8, resize=resize, records=some)
        return current.score(batches, records, labels, device=device, autocast=autocast, stop=attempt.stop)

    start, stop = attempt.place.slice_of(batch_size)

    def batch(step: int, steps: int) -> Batch:
        return train.batch(step, steps, start, stop)

    return Work(
        spec=spec,
        plan=schedule.plan(training, images, batch_size),
        images=images,
        validation_images=validation.images,
        labels=labels,
        file_names=lambda batch: ", ".join(records[i].image for i in batch.records),
        # On a CPU the next batch would only take time from this step.
        batch=Ahead(OnDevice(batch, device), min(MOST_AHEAD, max(1, torch.get_num_threads() - 1))).batch
        if device.type == "cuda"
        else batch,
        evaluate=validate,
        evaluate_training=validate_training,
        task=task,
        learning_rate=training.learning_rate or architecture.learning_rate,
        device=device,
        autocast=autocast,
        reporter=attempt.reporter,
        checkpoints=checkpoint.Checkpoints(
            output if attempt.place.leads else None, spec.attempt_uri, attempt.folder / "checkpoints"
        ),
        facts={
            "spec": checkpoint.spec_digest(spec),
            "data": prepared.dataset.digest,
            "environment": checkpoint.environment(device, attempt.place.world, painted_on),
            "labels": list(labels),
            "architecture": spec.architecture,
        },
        stop=attempt.stop,
        deadline=attempt.deadline,
    )


def _batch_size(spec: RunSpec, device: torch.device, place: Place) -> int:
    """Images per step over all processes. Raises BadSpec when some of them would have none."""
    wanted = ARCHITECTURES[spec.architecture].batch_size(1 if device.type == "cuda" else 0)
    batch_size = spec.training.batch_size or wanted
    parts = spec.training.gradient_accumulation
    if batch_size < place.world * (parts if place.world > 1 else 1):
        raise BadSpec(
            f"training.batchSize {batch_size} is too small for {place.world} processes with {parts} parts each (one process per GPU and"
            f" node); set it to {place.world * parts} or more."
        )
    return batch_size


def _compile(spec: RunSpec, task: Task, device: torch.device, reporter: Reporter) -> None:
    """`training.compile`: the network only, in place, so that the names of its tensors stay."""
    if not spec.training.compile:
        return
    if device.type != "cuda":
        reporter.warn(
            "NotCompiled", "training.compile has no effect without a GPU: on CPUs compiling takes longer than it saves."
        )
        return
    task.network.compile(dynamic=False)


def uncompiled(network: nn.Module) -> nn.Module:
    """The network as it was before it was compiled, for the export."""
    network._compiled_call_impl = None
    return network
