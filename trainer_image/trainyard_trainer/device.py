"""Which device, how many threads, which precision: looked up once, said once."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from trainyard_api.architectures import ARCHITECTURES
from trainyard_api.run import RunSpec, StandbySpec
from trainyard_api.training import Precision

from trainyard_trainer.batch import Batch
from trainyard_trainer.errors import BadSpec, GPUMissing
from trainyard_trainer.place import ALLOW_CPU


def choose_device(spec: RunSpec | StandbySpec, local_rank: int = 0) -> torch.device:
    """The GPU when one was asked for, else the CPU. Raises GPUMissing rather than training silently on a CPU."""
    if spec.gpus == 0:
        return torch.device("cpu")
    if torch.cuda.is_available():
        torch.backends.cudnn.benchmark = True
        torch.set_float32_matmul_precision("high")
        if local_rank >= torch.cuda.device_count():
            raise GPUMissing(
                f"{spec.gpus} GPUs were asked for and {torch.cuda.device_count()} are visible on {_node()}; check the node's device plugin,"
                " or set resources.gpus to what there is."
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
        return device
    if os.environ.get(ALLOW_CPU) == "1":
        return torch.device("cpu")
    raise GPUMissing(
        f"a GPU was asked for and none is visible on {_node()} ({_driver()}); check the node's driver and device plugin, or set"
        " resources.gpus to 0 to train on CPUs."
    )


def _node() -> str:
    return os.environ.get("NODE_NAME") or os.uname().nodename


class OnDevice:
    """Batches on a GPU: pinned buffers in turn and a stream of their own for the copies, so that neither waits for the training.

    `make(step, steps)` gives the batch on the CPU, or with its images painted on the GPU, on that stream. Called from the threads that
    make batches ahead.
    """

    def __init__(self, make: Callable[[int, int], Batch], device: torch.device) -> None:
        self._make, self._device = make, device
        self._stream = torch.cuda.Stream(device)
        # Pictures from which batches are painted may still be on their way there.
        self._stream.wait_stream(torch.cuda.current_stream(device))
        self._lock = threading.Lock()
        self._kept: list[tuple[Batch, torch.cuda.Event]] = []

    def __call__(self, step: int, steps: int) -> Batch:
        with torch.cuda.stream(self._stream):
            pinned = self._make(step, steps).pinned()
            moved = pinned.to(self._device)
            copied = torch.cuda.Event()
            copied.record()
        # The pinned memory of a copy under way must not be used again: the buffer before the last is free once its copy is done.
        with self._lock:
            self._kept.append((pinned, copied))
            before = self._kept.pop(0)[1] if len(self._kept) > 2 else None
        if before is not None:
            before.synchronize()
        return moved.after(copied)


def limit_threads(processes: int = 1) -> int:
    """Threads for torch: OMP_NUM_THREADS, else this process's part of what the cgroup grants or of the CPUs that it may use."""
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        threads = int(os.environ["OMP_NUM_THREADS"])
    else:
        threads = min(len(os.sched_getaffinity(0)), cgroup_cpus()) // processes
    torch.set_num_threads(max(1, threads))
    return torch.get_num_threads()


def cgroup_cpus(path: str = "/sys/fs/cgroup/cpu.max") -> int:
    """Whole CPUs of the cgroup's quota, rounded up; a large number when there is none."""
    try:
        quota, period = Path(path).read_text(encoding="utf-8").split()
        return max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        return 1 << 16


def autocast_type(spec: RunSpec, device: torch.device) -> torch.dtype | None:
    """The type that the network computes in; None: FP32.

    `Auto` on a CPU is BF16 only where the hardware has it (without, it is several times slower) and the architecture gains by it.
    """
    wanted = spec.training.precision
    if wanted is Precision.FP16 and device.type == "cpu":
        raise BadSpec("precision FP16 needs a GPU; set training.precision to Auto.")
    if wanted is Precision.AUTO:
        known = ARCHITECTURES.get(spec.architecture)
        if device.type == "cuda":
            wanted = Precision.BF16 if torch.cuda.is_bf16_supported(including_emulation=False) else Precision.FP32
        else:
            wanted = Precision.BF16 if known is not None and known.bf16_on_cpu and cpu_has_bf16() else Precision.FP32
    return {Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}.get(wanted)


def cpu_has_bf16(cpuinfo: str = "/proc/cpuinfo") -> bool:
    """Whether the CPU multiplies bf16 in hardware (AVX512-BF16 or AMX)."""
    try:
        flags = next(
            line for line in Path(cpuinfo).read_text(encoding="utf-8").splitlines() if line.startswith("flags")
        )
    except (OSError, StopIteration):
        return False
    return bool({"avx512_bf16", "amx_bf16"} & set(flags.split()))


def _driver() -> str:
    try:
        first = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0]
        return f"driver {first.split('  ')[1] if '  ' in first else first}"
    except (OSError, IndexError):
        return "no NVIDIA driver is loaded"
