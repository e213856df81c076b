"""The example of a private architecture as a module, and its task."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

from torch import nn
from trainyard_api.architectures import Task
from trainyard_api.training import Evaluation, Training
from trainyard_trainer.private import PrivateDetector
from trainyard_trainer.task import Wanted

EXAMPLE = Path(__file__).parents[2] / "examples" / "private" / "train.py"
NAME = "private/centers"
_found = spec_from_file_location("centers_example", EXAMPLE)
assert _found is not None
assert _found.loader is not None
example: Any = module_from_spec(_found)
_found.loader.exec_module(example)


class Silent(example.Centers):
    """The network, but it does not say where its labels are."""

    label_rows = None


def task(wanted: Wanted | None = None, network: type[nn.Module] = example.Centers, **training: Any) -> PrivateDetector:
    settings = Training.model_validate(training)
    wanted = wanted or Wanted(Task.DETECTION, ("a", "b", "c"), (), (64, 64), settings, Evaluation())
    return PrivateDetector(NAME, wanted, network, example.loss, example.boxes)
