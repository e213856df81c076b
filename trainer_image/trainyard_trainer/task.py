"""What the loop, evaluation, export and publishing need of an architecture, whatever it learns: the `Task` protocol.

A module of the catalogue (`Architecture.module`) has one function `build(architecture, wanted)` that gives a `Task`. Nothing here
imports such a module before it is asked for: our own detectors do without torchvision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from trainyard_api.architectures import ARCHITECTURES, Architecture
from trainyard_api.architectures import Task as TaskName
from trainyard_api.run import RunSpec
from trainyard_api.status import Scores
from trainyard_api.training import Evaluation as PredictionSettings
from trainyard_api.training import Training

from trainyard_trainer.batch import Batch
from trainyard_trainer.records import Record, StopFlag


@dataclass(frozen=True)
class Loss:
    """`total` has a gradient; `parts` are detached scalars on the device: of a detector box, cls, dfl."""

    total: Tensor
    parts: Mapping[str, Tensor]


@dataclass(frozen=True)
class LabelRows:
    """Where labels are in a tensor's first dimension: `groups` times (`before` rows of no label, then a row per label)."""

    groups: int = 1
    before: int = 0

    def row(self, group: int, label: int, labels: int) -> int:
        """Row of a label's index in one of the groups, in a tensor of `labels` labels."""
        return group * (self.before + labels) + self.before + label


class Evaluation(Protocol):
    """Scores of one side. `records` are the images in the order in which they were looked at, `loss` their mean."""

    @property
    def loss(self) -> float: ...

    @property
    def records(self) -> tuple[int, ...]: ...

    @property
    def threshold(self) -> float:
        """Confidence from which on a prediction counts for precision and recall."""
        ...

    def value(self, metric: str) -> float:
        """A metric of `selectBy`; higher is better, 0 where it cannot be measured."""
        ...

    def scores(self, labels: Sequence[str], step: int, *, per_class: bool = True) -> Scores:
        """As the status shows them."""
        ...

    def numbers(self) -> dict[str, float | None]:
        """The metrics under the names of `metrics.jsonl`."""
        ...

    def details(self, labels: Sequence[str]) -> dict[str, Any]:
        """All of it, for `metrics.json`."""
        ...

    def joined(self, other: Any) -> Evaluation:
        """This and another side as one set, at this one's threshold."""
        ...

    def draw(
        self,
        path: Path,
        pixels: Callable[[int], np.ndarray],
        records: Sequence[Record],
        labels: Sequence[str],
        threshold: float,
    ) -> None:
        """A picture of predictions; `pixels(i)` is the image of record `i`, `threshold` the least score shown."""
        ...


class Task(Protocol):
    """A network, what it learns and how it is judged."""

    network: nn.Module

    @property
    def backbone(self) -> nn.Module:
        """The part of the network that `freezeEpochs` freezes."""
        ...

    @property
    def label_rows(self) -> Mapping[str, LabelRows | None]:
        """Tensors of the network that have rows of labels (None: nobody knows where); the others fit whatever the labels are."""
        ...

    @property
    def fitted_tensors(self) -> tuple[str, ...]:
        """Tensors of the network that are fitted to this dataset and input, not learnt (anchors): no other weights replace them."""
        ...

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what `raw_graph` gives: `boxes` and `scores` of a detector, `scores` of an image network."""
        ...

    @property
    def ordered(self) -> bool:
        """Whether each row of the outputs always speaks of the same place; proposals come in the order of their scores instead."""
        ...

    def loss(self, batch: Batch) -> Loss: ...

    def weight(self, batch: Batch) -> float:
        """What the loss is a mean over, objects or images: the share of a micro-batch in its batch. Known on the CPU."""
        ...

    def predict(self, images: Tensor) -> Any:
        """What the network sees in images `[batch, 3, height, width]` in 0..1."""
        ...

    def score(
        self,
        batches: Iterable[Batch],
        records: Sequence[Record],
        labels: Sequence[str],
        *,
        device: torch.device,
        autocast: torch.dtype | None = None,
        threshold: float | None = None,
        stop: StopFlag,
    ) -> Evaluation | None:
        """Scores over all batches, or None when asked to stop, which is looked at before every batch.

        `autocast` is the precision of the network (None: FP32). `threshold`: found by the best F1 when not given.
        """
        ...

    def raw_graph(self, size: tuple[int, int]) -> nn.Module:
        """What `model.onnx` computes, for inputs of (width, height)."""
        ...


@dataclass(frozen=True)
class Wanted:
    """What a network is built for. `records` are all images, for class weights and anchors."""

    task: TaskName
    labels: tuple[str, ...]
    records: Sequence[Record]
    size: tuple[int, int]
    training: Training
    prediction: PredictionSettings


def build_task(spec: RunSpec, labels: Sequence[str], records: Sequence[Record], size: tuple[int, int]) -> Task:
    """The spec's architecture with fresh weights, drawn on the CPU from torch's generator."""
    architecture = ARCHITECTURES[spec.architecture]
    module = import_module(f"trainyard_trainer.{architecture.module}")
    wanted = Wanted(spec.task, tuple(labels), records, size, spec.training, spec.evaluation)
    build: Callable[[Architecture, Wanted], Task] = module.build
    return build(architecture, wanted)
