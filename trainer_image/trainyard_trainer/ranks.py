"""What the processes of one training have to agree on. One process alone: everything here gives back what it got.

The gradients of all ranks are added up, not averaged. So a loss divides its rank's sum by what *all* ranks' sums add up to
(`over_ranks`): the parts of a batch then make the same step as the whole batch in one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor
from torch import distributed as dist

_alone = False


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
    total = value.detach().clone()
    dist.all_reduce(total)
    return total
