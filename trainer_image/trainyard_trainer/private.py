"""Detectors of one's own: a network and two functions are brought, everything else of a training is this package's.

    if __name__ == "__main__":
        private.detector("private/centers", network=Centers, loss=loss, boxes=boxes)

A program of that kind is the entry point of a trainer image (examples/private): it reads the RunSpec, fetches and checks the data,
trains with checkpoints, reports, stopping and planned time, and publishes a version with ONNX and report, as the catalogue's do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from trainyard_api.architectures import ARCHITECTURES, PRIVATE_PREFIX, Architecture
from trainyard_api.architectures import Task as TaskName

from trainyard_trainer.batch import Batch
from trainyard_trainer.box_task import BoxTask, Selection, loss_settings
from trainyard_trainer.task import LabelRows, Loss, Task, Wanted

MakeNetwork = Callable[[int], nn.Module]
"""From the number of labels to a network with fresh weights; it takes images `[batch, 3, height, width]` in 0..1."""
LossOf = Callable[[Any, Batch], Mapping[str, Tensor]]
"""From what the network gave and the batch to the parts of the loss, by name; their sum has a gradient."""
BoxesOf = Callable[[Any, Tensor], tuple[Tensor, Tensor]]
"""From what the network gave and the images to boxes `[batch, n, 4]` (xyxy, pixels of the input) and scores `[batch, n, labels]`."""

_builders: dict[str, Callable[[Wanted], Task]] = {}


def detector(
    name: str,
    *,
    network: MakeNetwork,
    loss: LossOf,
    boxes: BoxesOf,
    image_size: int = 320,
    batch_cpu: int = 8,
    batch_gpu: int = 32,
    learning_rate: float = 1e-3,
) -> NoReturn:
    """Runs this process as the trainer of the detector `name` (`private/…`). What a job leaves out is as given here."""
    entry = Architecture(name, (TaskName.DETECTION,), image_size, batch_cpu, batch_gpu, learning_rate, module="private")
    serve(entry, lambda wanted: PrivateDetector(wanted, network, loss, boxes))


def serve(entry: Architecture, builder: Callable[[Wanted], Task]) -> NoReturn:
    """Runs this process as the trainer of any `Task`. Raises ValueError for a name that is not private."""
    from trainyard_trainer.__main__ import main

    register(entry, builder)
    main()
    raise AssertionError("main ends the process")


def register(entry: Architecture, builder: Callable[[Wanted], Task]) -> None:
    """Adds an architecture to this process's catalogue."""
    if not entry.name.startswith(PRIVATE_PREFIX) or entry.module != "private":
        raise ValueError(
            f"{entry.name!r} is no private architecture: its name begins with {PRIVATE_PREFIX}, its module is 'private'."
        )
    ARCHITECTURES[entry.name] = entry
    _builders[entry.name] = builder


def build(architecture: Architecture, wanted: Wanted) -> Task:
    """As of every module of the catalogue."""
    return _builders[architecture.name](wanted)


class PrivateDetector(BoxTask):
    """A detector out of a network and two functions. `freezeEpochs` freezes the network's `backbone`, where it has one."""

    def __init__(self, wanted: Wanted, network: MakeNetwork, loss: LossOf, boxes: BoxesOf) -> None:
        objects = [record.objects for record in wanted.records]
        selection = Selection(wanted.prediction.iou_threshold_percent / 100, wanted.prediction.max_detections)
        settings = loss_settings(wanted.training, objects, wanted.labels)
        super().__init__(network(len(wanted.labels)), len(wanted.labels), settings, selection)
        self._loss, self._boxes = loss, boxes
        self._nothing = nn.Identity()

    @property
    def backbone(self) -> nn.Module:
        own = getattr(self.network, "backbone", None)
        return own if isinstance(own, nn.Module) else self._nothing

    @property
    def label_rows(self) -> Mapping[str, LabelRows]:
        return {}

    def loss_of(self, raw: Any, batch: Batch) -> Loss:
        parts = self._loss(_float(raw), batch)
        return Loss(torch.stack(list(parts.values())).sum(), {name: part.detach() for name, part in parts.items()})

    def decoded(self, raw: Any, images: Tensor) -> tuple[Tensor, Tensor]:
        return self._boxes(_float(raw), images)

    def raw_graph(self, size: tuple[int, int]) -> nn.Module:
        return _Graph(self.network, self._boxes)


class _Graph(nn.Module):
    """What `model.onnx` computes."""

    def __init__(self, network: nn.Module, boxes: BoxesOf) -> None:
        super().__init__()
        self.network, self._boxes = network, boxes

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self._boxes(self.network(images), images)


def _float(raw: Any) -> Any:
    """Losses and boxes are computed in FP32, whatever the network computed in."""
    if isinstance(raw, Tensor):
        return raw.float()
    return type(raw)(_float(one) for one in raw) if isinstance(raw, list | tuple) else raw
