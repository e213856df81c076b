"""Which precision, device and number of threads a training gets."""

from pathlib import Path

import pytest
import torch
from trainyard_api.run import RunSpec
from trainyard_trainer import device
from trainyard_trainer.errors import BadSpec

from tests.trainer.runs import run_spec

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def spec(precision: str = "Auto", **changes: object) -> RunSpec:
    return run_spec(
        Path("/nowhere"), Path("/nowhere/data.zip"), training={"steps": 1, "precision": precision}, **changes
    )


@pytest.mark.parametrize(
    ("precision", "hardware", "expected"),
    [
        ("Auto", True, torch.bfloat16),
        ("Auto", False, None),
        ("BF16", False, torch.bfloat16),
        ("FP32", True, None),
    ],
)
def test_the_precision_on_a_cpu(
    precision: str, hardware: bool, expected: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: hardware)
    assert device.autocast_type(spec(precision), CPU) is expected


@pytest.mark.parametrize(
    ("precision", "hardware", "expected"),
    [
        ("Auto", True, torch.bfloat16),
        ("Auto", False, None),
        ("FP16", True, torch.float16),
        ("BF16", True, torch.bfloat16),
        ("FP32", True, None),
    ],
)
def test_the_precision_on_a_gpu(
    precision: str, hardware: bool, expected: torch.dtype | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: hardware)
    assert device.autocast_type(spec(precision), CUDA) is expected


def test_fp16_on_a_cpu_is_refused() -> None:
    with pytest.raises(BadSpec, match="needs a GPU"):
        device.autocast_type(spec("FP16"), CPU)


def test_bf16_is_read_from_the_cpu_s_flags(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    for flags, expected in (("fpu avx512_bf16 sse", True), ("amx_bf16", True), ("avx2 avx512f", False)):
        info.write_text(f"processor : 0\nflags\t\t: {flags}\n")
        assert device.cpu_has_bf16(str(info)) is expected
    assert not device.cpu_has_bf16(str(tmp_path / "missing"))


def test_threads_follow_the_cgroup_s_quota(tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    for text, expected in (("150000 100000", 2), ("50000 100000", 1), ("max 100000", 1 << 16)):
        quota.write_text(text)
        assert device.cgroup_cpus(str(quota)) == expected
