"""Detectors of one's own: a network and two functions are brought, everything else of a training is this package's.

    if __name__ == "__main__":
        private.detector("private/centers", network=Centers, loss=loss, boxes=boxes)

A program of that kind is the entry point of a trainer image (examples/private): it reads the RunSpec, fetches and checks the data,
trains with checkpoints, reports, stopping and planned time, and publishes a version with ONNX and report, as the catalogue's do.

The loss is a mean over the images that it gets. How a step's batch is divided among processes and parts (`gradientAccumulation`) is
nothing that it has to know: each share weighs as many images as it has. A mean over something else, such as the objects, becomes the
mean of the shares' means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from trainyard_api.architectures import ARCHITECTURES, PRIVATE_PREFIX, Architecture
from trainyard_api.architectures import Task as TaskName
from trainyard_api.training import Training

from trainyard_trainer.batch import Batch
from trainyard_trainer.box_task import BoxTask, LossSettings, Selection
from trainyard_trainer.errors import BadSpec
from trainyard_trainer.ranks import over_ranks
from trainyard_trainer.task import LabelRows, Loss, Task, Wanted

MakeNetwork = Callable[[int], nn.Module]
"""From the number of labels to a network with fresh weights; it takes images `[batch, 3, height, width]` in 0..1."""
LossOf = Callable[[Any, Batch], Mapping[str, Tensor]]
"""From what the network gave and the batch to the parts of the loss, by name: means over its images; their sum has a gradient."""
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
    serve(entry, lambda wanted: PrivateDetector(entry.name, wanted, network, loss, boxes))


def serve(entry: Architecture, builder: Callable[[Wanted], Task]) -> NoReturn:
    """Runs this process as the trainer of any `Task`, whose loss divides by what `ranks.over_ranks` gives, as its gradients are added
    up over the processes. Raises ValueError for a name that is not private."""
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
    """A detector out of a network and two functions. The network may have a `backbone`, which `freezeEpochs` freezes, and
    `label_rows`, by which labels that stay keep what was learnt of them. Raises BadSpec for settings that nothing here takes."""

    def __init__(self, name: str, wanted: Wanted, network: MakeNetwork, loss: LossOf, boxes: BoxesOf) -> None:
        selection = Selection(wanted.prediction.iou_threshold_percent / 100, wanted.prediction.max_detections)
        super().__init__(network(len(wanted.labels)), len(wanted.labels), LossSettings(), selection)
        self._make, self._loss, self._boxes = network, loss, boxes
        self._nothing = nn.Identity()
        if ignored := self._ignored(wanted.training):
            raise BadSpec(f"{name} brings a loss and a network of its own, which do not take {ignored}; leave it out.")

    @property
    def backbone(self) -> nn.Module:
        own = getattr(self.network, "backbone", None)
        return own if isinstance(own, nn.Module) else self._nothing

    @property
    def label_rows(self) -> Mapping[str, LabelRows | None]:
        """As the network says it; else the tensors that have another shape with one label more, wherever their rows are."""
        told = getattr(self.network, "label_rows", None)
        if told is not None:
            return told
        with torch.random.fork_rng([]):
            larger = self._make(self.labels + 1).state_dict()
        return {name: None for name, own in self.network.state_dict().items() if larger[name].shape != own.shape}

    def loss_of(self, raw: Any, batch: Batch) -> Loss:
        images = torch.full((), float(len(batch)), device=batch.images.device)
        share = images / over_ranks(images)
        parts = {name: part * share for name, part in self._loss(_float(raw), batch).items()}
        return Loss(torch.stack(list(parts.values())).sum(), {name: part.detach() for name, part in parts.items()})

    def weight(self, batch: Batch) -> float:
        return len(batch)

    def decoded(self, raw: Any, images: Tensor) -> tuple[Tensor, Tensor]:
        return self._boxes(_float(raw), images)

    def raw_graph(self, size: tuple[int, int]) -> nn.Module:
        return _Graph(self.network, self._boxes)

    def _ignored(self, training: Training) -> str:
        """The settings that would change nothing, as a job writes them."""
        found = {
            "lossWeights": training.loss_weights is not None,
            "labelSmoothing": training.label_smoothing > 0,
            "classWeights": training.class_weights is not None,
            "freezeEpochs (the network has no backbone)": training.freeze_epochs > 0 and self.backbone is self._nothing,
        }
        return ", ".join(f"training.{name}" for name, given in found.items() if given)


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
