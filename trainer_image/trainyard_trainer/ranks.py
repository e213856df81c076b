"""What the processes of one training have to agree on. One process alone: everything here gives back what it got.

The gradients of all ranks are added up, not averaged. So a loss divides its rank's sum by what *all* ranks' sums add up to
(`over_ranks`): the parts of a batch then make the same step as the whole batch in one process.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional

from trainyard_trainer.errors import BadData, Interrupted, RankLost
from trainyard_trainer.exchange import Exchange, through_memory
from trainyard_trainer.place import Place
from trainyard_trainer.records import StopFlag

MEETING_SECONDS = 900.0
"""For all ranks to come: nodes pull images and fetch data at their own pace."""
SILENCE = timedelta(hours=2)
"""A rank that is gone closes its connection, which is noticed at once; this is for one that hangs."""
POLL_SECONDS = 0.2

_alone = False
_exchange: Exchange | None = None
"""Among the ranks of one node on CPUs; else gloo and NCCL do it."""


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if not _alone and dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number; 0 reports, saves and publishes."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


@contextmanager
def alone() -> Iterator[None]:
    """What follows is done by this rank only, so that nothing is shared: an evaluation, for example."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def over_ranks(value: Tensor) -> Tensor:
    """The sum of all ranks' values, without a gradient; every rank of the training has to call it as often as the others."""
    if world() == 1:
        return value
    total = value.detach().clone(memory_format=torch.contiguous_format)
    _all_reduce(total)
    return total


def add_up(tensors: Sequence[Tensor]) -> None:
    """Makes each tensor the sum of all ranks', in place, by one exchange."""
    if world() == 1:
        return
    flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
    _all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.view(tensor.shape))


@torch.no_grad()
def same_everywhere(tensors: Sequence[Tensor]) -> None:
    """Every rank gets the first one's values, in place."""
    if world() == 1:
        return
    # By kind of number, in one exchange each: a network has hundreds of tensors.
    for kind in sorted({tensor.dtype for tensor in tensors}, key=str):
        mine = [tensor for tensor in tensors if tensor.dtype == kind]
        flat = torch.cat([tensor.reshape(-1) for tensor in mine])
        try:
            dist.broadcast(flat, 0)
        except RuntimeError as error:
            raise _lost(error) from error
        for tensor, part in zip(mine, flat.split([tensor.numel() for tensor in mine]), strict=True):
            tensor.copy_(part.view(tensor.shape))


def largest(values: Sequence[float]) -> list[float]:
    """The largest of all ranks' values, one by one; on the CPU, whatever the device."""
    return _on_cpu(values, dist.ReduceOp.MAX)


def total(values: Sequence[float]) -> list[float]:
    """The sums of all ranks' values, one by one; on the CPU, whatever the device."""
    return _on_cpu(values, dist.ReduceOp.SUM)


def _on_cpu(values: Sequence[float], operation: Any) -> list[float]:
    if world() == 1:
        return list(values)
    shared = torch.tensor(values, dtype=torch.float64)
    _all_reduce(shared, operation)
    return shared.tolist()


def _all_reduce(tensor: Tensor, operation: Any = dist.ReduceOp.SUM) -> None:
    if _exchange is not None:
        _exchange.all_reduce(tensor, operation)
        return
    try:
        dist.all_reduce(tensor, operation)
    except RuntimeError as error:
        raise _lost(error) from error


def _rows(values: Tensor) -> Tensor:
    """All ranks' vectors, one a row; to be read before the exchange after the next."""
    if _exchange is not None:
        return _exchange.rows(values)
    rows = values.new_zeros(world(), len(values))
    rows[rank()] = values
    _all_reduce(rows)
    return rows


def _lost(error: Exception) -> RankLost:
    return RankLost(f"another process of this training is gone ({str(error).splitlines()[0][:200]}).")


def join(place: Place, device: torch.device, digest: str, stop: StopFlag, waiting: Callable[[str], None]) -> None:
    """Waits until all ranks are there and connects them. `digest` is that of the data, which has to be the same everywhere.

    Raises Interrupted when asked to stop meanwhile, RankLost when the others do not come, BadData when their data differs.
    """
    if place.world == 1 or dist.is_initialized():
        return
    until = time.monotonic() + MEETING_SECONDS

    def wait_for(done: Callable[[], bool], what: str) -> None:
        while not done():
            if stop():
                raise Interrupted("asked to stop while waiting for the other processes; there is no checkpoint yet.")
            if time.monotonic() > until:
                raise RankLost(f"waited {MEETING_SECONDS:.0f} s for {what}; look at the other pods of this attempt.")
            waiting(what)
            time.sleep(POLL_SECONDS)

    if not place.leads:
        wait_for(lambda: _answers(place.host, place.port), f"the first process at {place.host}:{place.port}")
    try:
        _connect(place, device, digest, wait_for)
    except RuntimeError as error:
        raise _lost(error) from error


def _connect(
    place: Place, device: torch.device, digest: str, wait_for: Callable[[Callable[[], bool], str], None]
) -> None:
    store = dist.TCPStore(  # pyright: ignore[reportPrivateImportUsage]
        place.host, place.port, place.world, place.leads, SILENCE, wait_for_workers=False
    )
    if place.leads:
        store.set("data", digest)
    store.add("here", 1)
    wait_for(lambda: store.add("here", 0) >= place.world, "the other processes")
    first = store.get("data").decode()
    if first != digest:
        raise BadData(
            f"process {place.rank + 1} of {place.world} has other data than the first ({digest[:12]}, {first[:12]}): the dataset was"
            " changed while it was fetched; start the attempt again.",
            reason="DatasetChanged",
        )
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend, store=store, rank=place.rank, world_size=place.world, timeout=SILENCE,
        device_id=device if device.type == "cuda" else None,
    )  # fmt: skip
    global _exchange
    if device.type == "cpu" and place.local_world == place.world:
        _exchange = through_memory(place, SILENCE)


def leave() -> None:
    """Ends the connections; nothing is waited for."""
    global _exchange
    _exchange = None
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _answers(host: str, port: int) -> bool:
    """Whether somebody listens there; a name that does not resolve yet is no answer."""
    try:
        socket.create_connection((host, port), timeout=2.0).close()
    except OSError:
        return False
    return True


def together(network: nn.Module) -> nn.Module:
    """The network with batch normalisation over all ranks' images; the names of its tensors stay. Alone: as it is."""
    if world() > 1:
        for module in network.modules():
            if type(module) is nn.BatchNorm2d:
                # The same buffers, another forward pass: exports and checkpoints see no difference.
                module.__class__ = RankBatchNorm
    return network


class RankBatchNorm(nn.BatchNorm2d):
    """Batch normalisation with the statistics of the global batch: torch's own for this (SyncBatchNorm) refuses CPUs."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world() == 1 or self.running_mean is None or self.running_var is None:
            return super().forward(input)
        assert self.momentum is not None
        out, mean, variance, count = _Normalise.apply(input, self.weight, self.bias, self.eps)
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1).clamp(min=1)), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        return out


class _Normalise(torch.autograd.Function):
    """Forward: mean and variance of all ranks' pixels, merged from each rank's own (Chan et al. 1979). Backward: torch's kernel gives
    this rank's sums; the gradient of the input, made of those of all ranks, takes less time than the kernel's own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, ...]:
        channels = x.shape[1]
        # Given statistics in float32, the kernel answers in float32 for bf16 inputs too.
        blank = torch.zeros(2, channels, device=x.device)
        own_mean, own_variance = torch.batch_norm_update_stats(x, blank[0], blank[1], 0.0)
        own_count = x.numel() // channels
        rows = _rows(torch.cat((own_mean, own_variance, blank.new_full((1,), own_count))))
        means, variances, counts = rows.split((channels, channels, 1), 1)
        count = counts.sum()
        shares = counts / count
        mean = (means * shares).sum(0)
        variance = ((means - mean).square_().add_(variances).mul_(shares)).sum(0)
        out = functional.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt(), count)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance, count)
        return out, mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, scale, count = ctx.saved_tensors
        dy = gradients[0]
        _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            dy, x, weight, None, None, mean, scale, True, ctx.eps, [False, True, True]
        )
        over_all = over_ranks(torch.cat((of_weight, of_bias))).div_(count)
        # dx = weight * scale * (dy - mean(dy) - (x - mean) * scale * mean(dy * xhat)), the means over all ranks.
        of_dy = weight * scale
        along, offset = over_all.mul_(of_dy.repeat(2)).neg_().chunk(2)
        along = along * scale
        offset = offset - along * mean
        if x.dtype == torch.float32:
            dx = torch.addcmul(_spread(offset), x, _spread(along)).addcmul_(dy, _spread(of_dy))
        else:
            dx = _affine(x, along, offset).add_(_affine(dy, of_dy, torch.zeros_like(of_dy)))
        return dx, of_weight, of_bias, None


def _spread(of_channels: Tensor) -> Tensor:
    return of_channels.view(1, -1, 1, 1)


def _affine(x: Tensor, factor: Tensor, offset: Tensor) -> Tensor:
    """`x * factor + offset` for each channel, with factors in float32 also for a bf16 `x`."""
    return functional.batch_norm(x, torch.zeros_like(factor), torch.ones_like(factor), factor, offset, False, 0.0, 0.0)
