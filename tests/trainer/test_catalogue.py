"""The catalogue says the truth about every architecture that this release has."""

from importlib import import_module

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from trainyard_api.architectures import ARCHITECTURES
from trainyard_api.training import Evaluation, Training
from trainyard_trainer.task import Task, Wanted

LABELS = tuple(f"label {number}" for number in range(20))


def built(name: str) -> Task:
    entry = ARCHITECTURES[name]
    size = (entry.image_size, entry.image_size)
    wanted = Wanted(entry.task, LABELS, (), size, Training(), Evaluation())
    return import_module(f"trainyard_trainer.{entry.module}").build(entry, wanted)


@pytest.mark.training
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameters_and_operations_are_as_told(name: str) -> None:
    entry = ARCHITECTURES[name]
    with torch.device("meta"):
        task = built(name)
    task.network.eval().to("meta")
    assert sum(parameter.numel() for parameter in task.network.parameters()) == entry.parameters
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        task.raw_graph((entry.image_size, entry.image_size)).to("meta")(
            torch.zeros(1, 3, entry.image_size, entry.image_size, device="meta")
        )
    assert counter.get_total_flops() / 1e9 == pytest.approx(entry.gflops, rel=0.02, abs=0.005)
