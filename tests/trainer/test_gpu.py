"""What only a GPU can show. Skipped, with that reason, where there is none."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from trainyard_api.report import Outcome
from trainyard_trainer.assemble import uncompiled
from trainyard_trainer.batch import Batch
from trainyard_trainer.data import TrainBatches
from trainyard_trainer.device import OnDevice
from trainyard_trainer.prepare import Prepared

from tests.trainer.test_data import ALL_ON
from tests.trainer.test_detector import a_batch
from tests.trainer.test_device_paint import data as shapes  # noqa: F401 a fixture
from tests.trainer.test_loop import Run, data, prepared  # noqa: F401 fixtures

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.training
def test_a_compiled_network_is_itself_again_for_the_export() -> None:
    network = nn.Linear(2, 2)
    names = list(network.state_dict())
    network.compile()
    assert list(network.state_dict()) == names
    assert uncompiled(network)._compiled_call_impl is None
    assert network(torch.zeros(1, 2)).shape == (1, 2)


def trained(folder: Path, data: Path, prepared: Any, **training: Any) -> Run:  # noqa: F811
    run = Run(
        folder, data, prepared, gpus=1, training={"steps": 6, "batchSize": 4, "evaluateEverySteps": 3, **training}
    )
    assert run.loop.work.device.type == "cuda"
    assert run.loop.run().outcome is Outcome.COMPLETED
    return run


@gpu
@pytest.mark.parametrize("precision", ["FP32", "BF16", "FP16"])
def test_a_training_on_a_gpu_in_every_precision(precision: str, tmp_path: Path, data: Path, prepared: Any) -> None:  # noqa: F811
    run = trained(tmp_path, data, prepared, precision=precision)
    assert all(torch.isfinite(tensor).all() for tensor in run.loop.network.state_dict().values())
    assert (run.loop.state.loss_scale > 1) == (precision == "FP16")


@gpu
def test_a_compiled_training_on_a_gpu(tmp_path: Path, data: Path, prepared: Any) -> None:  # noqa: F811
    run = trained(tmp_path, data, prepared, compile=True)
    assert not any("_orig_mod" in name for name in run.loop.network.state_dict())


@gpu
def test_batches_copied_on_a_stream_of_their_own_are_the_same() -> None:
    batches: list[Batch] = [a_batch(seed=seed) for seed in range(6)]
    on_device = OnDevice(lambda step, steps: batches[step], torch.device("cuda", 0))
    made = [on_device(step, 6).to("cuda") for step in range(6)]
    for batch, moved in zip(batches, made, strict=True):
        assert torch.equal(batch.images, moved.images.cpu())
        assert torch.equal(batch.boxes, moved.boxes.cpu())


@gpu
def test_pictures_are_painted_on_the_gpu_without_a_wait_and_as_on_the_cpu(shapes: Prepared) -> None:  # noqa: F811
    device = torch.device("cuda", 0)
    on_gpu, on_cpu = (
        TrainBatches(shapes, size=(160, 160), batch_size=8, augmentation=ALL_ON, device=place)
        for place in (device, torch.device("cpu"))
    )
    painted = OnDevice(on_gpu.batch, device)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = [painted(step, 100).to(device) for step in range(3)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for step, batch in enumerate(batches):
        expected = on_cpu.batch(step, 100)
        assert (batch.images.cpu() - expected.images).abs().mean() < 2e-3
        assert torch.equal(batch.boxes.cpu(), expected.boxes)
