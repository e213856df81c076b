"""Tensors of the ranks of one node, on CPUs, exchanged through memory: gloo takes milliseconds where two busy cores meet in microseconds.

Each rank has a slot of its own, twice. An exchange: write into it, tell every other rank (a semaphore for each pair), wait for every
other rank, read all slots. The next one takes the other slots, and no rank is two ahead of one that still reads: one meeting is enough.
POSIX semaphores order memory on every CPU, wake who sleeps, and can be tried without sleeping.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import time
from datetime import timedelta
from itertools import chain

import torch
from torch import Tensor
from torch import distributed as dist

from trainyard_trainer.errors import RankLost
from trainyard_trainer.place import Place

SLOT_BYTES = 1 << 20
"""What is larger goes in several exchanges."""
SEMAPHORE_BYTES = 64
"""A cache line for each; a `sem_t` takes 32 bytes."""
SPIN_SECONDS = 0.01
"""Before a rank that waits sleeps it looks again and again, with its CPU offered to others in between."""
LOOK_SECONDS = 0.2
"""Between two looks at whether the rank that is waited for is alive."""


class Exchange:
    """One rank's end. All ranks have to call the same methods in the same order. Raises RankLost when one is gone, or silent."""

    def __init__(self, rank: int, world: int, silence: timedelta, path: str | None = None) -> None:
        """The memory at `path`, or new one. Raises OSError or AttributeError on a system that lacks what it takes."""
        self._rank, self._others = rank, [other for other in range(world) if other != rank]
        self._world, self._silence = world, silence.total_seconds()
        self._alive: dict[int, select.poll] = {}
        libc = ctypes.CDLL(None, use_errno=True)
        # Without letting go of the interpreter's lock: it does not sleep.
        self._try = ctypes.PyDLL(None).sem_trywait
        self._wait, self._post, make = libc.sem_clockwait, libc.sem_post, libc.sem_init
        head = -(-world * world * SEMAPHORE_BYTES // mmap.PAGESIZE) * mmap.PAGESIZE
        self._descriptor = os.memfd_create("exchange", os.MFD_CLOEXEC) if path is None else os.open(path, os.O_RDWR)
        if path is None:
            os.ftruncate(self._descriptor, head + 2 * world * SLOT_BYTES)
        memory = mmap.mmap(self._descriptor, head + 2 * world * SLOT_BYTES)
        start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self._semaphores = [
            [ctypes.c_void_p(start + (teller * world + told) * SEMAPHORE_BYTES) for told in range(world)]
            for teller in range(world)
        ]
        for semaphore in chain.from_iterable(self._semaphores if path is None else ()):
            if make(semaphore, 1, 0) != 0:
                raise OSError(ctypes.get_errno(), "sem_init")
        self._slots = torch.frombuffer(memory, dtype=torch.uint8, offset=head).view(2, world, SLOT_BYTES)
        self._turn = 0

    @property
    def path(self) -> str:
        """Where the other processes of this node find the memory, as long as this one lives."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def meet(self, processes: list[int]) -> None:
        """Which processes the ranks are, so that one that ends is noticed."""
        for other in self._others:
            self._alive[other] = select.poll()
            try:
                self._alive[other].register(os.pidfd_open(processes[other]), select.POLLIN)
            except ProcessLookupError as error:
                raise _gone(other) from error

    def rows(self, values: Tensor) -> Tensor:
        """All ranks' `values` (a vector of at most SLOT_BYTES) in the order of ranks; overwritten by the exchange after the next."""
        self._turn = 1 - self._turn
        slots = self._slots[self._turn].view(values.dtype)[:, : values.numel()]
        slots[self._rank].copy_(values)
        for other in self._others:
            self._post(self._semaphores[self._rank][other])
        for other in self._others:
            self._wait_for(other)
        return slots

    def all_reduce(self, tensor: Tensor, operation: dist.ReduceOp.RedOpType) -> None:
        """In place, the sum or the largest; added up in the order of ranks, so that all of them get the same bits."""
        combine = torch.maximum if operation == dist.ReduceOp.MAX else torch.add
        for part in tensor.view(-1).split(SLOT_BYTES // tensor.element_size()):
            first, second, *more = self.rows(part)
            combine(first, second, out=part)
            for row in more:
                combine(part, row, out=part)

    def _wait_for(self, other: int) -> None:
        semaphore = self._semaphores[other][self._rank]
        if self._try(semaphore) == 0:
            return
        now = time.monotonic()
        spin, end = now + SPIN_SECONDS, now + self._silence
        while time.monotonic() < spin:
            os.sched_yield()
            if self._try(semaphore) == 0:
                return
        while self._sleep(semaphore) != 0:
            gone = bool(self._alive[other].poll(0))
            # What it still said before it ended counts.
            if gone and self._try(semaphore) == 0:
                return
            if gone or time.monotonic() > end:
                raise _gone(other)

    def _sleep(self, semaphore: ctypes.c_void_p) -> int:
        until = time.monotonic() + LOOK_SECONDS
        seconds = int(until)
        moment = (ctypes.c_long * 2)(seconds, int((until - seconds) * 1e9))
        return self._wait(semaphore, time.CLOCK_MONOTONIC, moment)


def through_memory(place: Place, silence: timedelta) -> Exchange | None:
    """The exchange among the ranks of this node, which are connected already; None where not every one of them can take part."""
    path, made = [""], None
    if place.leads:
        made = _opened(place, silence, None)
        path = [made.path if made else ""]
    dist.broadcast_object_list(path, 0)
    if path[0] and made is None:
        made = _opened(place, silence, path[0])
    processes: list[int] = [0] * place.world
    dist.all_gather_object(processes, os.getpid() if made else 0)
    if made is None or not all(processes):
        return None
    made.meet(processes)
    return made


def _opened(place: Place, silence: timedelta, path: str | None) -> Exchange | None:
    try:
        # Whether the kernel lets a process be watched.
        os.close(os.pidfd_open(os.getpid()))
        return Exchange(place.rank, place.world, silence, path)
    except (OSError, AttributeError):
        return None


def _gone(rank: int) -> RankLost:
    return RankLost(f"another process of this training is gone (rank {rank}).")
