"""The gradients of one batch: in as many parts as asked for or as memory needs, added up over all ranks."""

from __future__ import annotations

import torch
from torch import Tensor

from trainyard_trainer import ranks
from trainyard_trainer.batch import Batch
from trainyard_trainer.errors import GPUOutOfMemory
from trainyard_trainer.state import State
from trainyard_trainer.work import Work

MOST_HALVINGS = 3
LEAST_SHARE = 0.01
"""Of a micro-batch without objects: it still has to teach what is background."""


def gradients(work: Work, state: State, batch: Batch, may_halve: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Fills the parameters' gradients (times `state.loss_scale`). Returns the loss and its parts, of all ranks.

    Out of GPU memory: the batch goes through in twice as many parts from now on, at most three times and only where `may_halve`;
    then GPUOutOfMemory. Of several ranks none can try again by itself, for the others wait in the middle of the same pass: their
    supervisor starts all of them again (`processes`).
    """
    while True:
        try:
            loss, parts = _parts(work, state, batch, work.spec.training.gradient_accumulation * 2**state.halvings)
            break
        except torch.cuda.OutOfMemoryError as error:
            for parameter in work.task.network.parameters():
                parameter.grad = None
            halve = may_halve and state.halvings < MOST_HALVINGS
            if not halve or ranks.world() > 1:
                parts_each = 2 * work.spec.training.gradient_accumulation * 2**state.halvings
                again = halve and work.plan.batch_size // ranks.world() >= parts_each
                raise GPUOutOfMemory(
                    f"out of GPU memory with {len(batch)} images in {2**state.halvings} parts; lower batchSize or imageSize,"
                    " raise gradientAccumulation, or take a larger GPU.",
                    reason=GPUOutOfMemory.SMALLER_PARTS if again else None,
                ) from error
            torch.cuda.empty_cache()
            state.halvings += 1
            work.reporter.warn("BatchHalved", halved(state.halvings, len(batch)))
    found = [parameter.grad for parameter in work.task.network.parameters() if parameter.grad is not None]
    ranks.add_up([*found, loss, *parts.values()])
    return loss, parts


def halved(halvings: int, images: int) -> str:
    """The warning."""
    return f"out of GPU memory: a batch now goes through the network in {2**halvings} parts; its size stays {images}."


def _parts(work: Work, state: State, batch: Batch, parts: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Forward and backward of all parts. A part weighs as much as it has of the batch's objects (or images), over all ranks."""
    micro_batches = batch.split(parts) if parts > 1 else [batch]
    shares = [1.0]
    if len(micro_batches) > 1:
        weights = ranks.total([work.task.weight(micro) for micro in micro_batches])
        whole = max(1.0, sum(weights))
        shares = [max(weight, LEAST_SHARE * whole) / whole for weight in weights]
    loss_sum, part_sums = None, {}
    for micro, share in zip(micro_batches, shares, strict=True):
        moved = micro.to(work.device)
        with torch.autocast(work.device.type, work.autocast or torch.bfloat16, enabled=work.autocast is not None):
            loss = work.task.loss(moved)
        (loss.total * (share * state.loss_scale)).backward()
        value = loss.total.detach() * share
        loss_sum = value if loss_sum is None else loss_sum + value
        for name, part in loss.parts.items():
            part_sums[name] = part_sums[name] + part * share if name in part_sums else part * share
    assert loss_sum is not None
    return loss_sum, part_sums
