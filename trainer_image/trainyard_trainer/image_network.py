"""torchvision's image networks. One more is an entry of the catalogue whose `source` names torchvision's function."""

from collections import Counter

import torch
from torch import nn
from trainyard_api.architectures import Architecture

from trainyard_trainer.box_task import label_weights
from trainyard_trainer.image_task import ImageNetwork, ImageTask
from trainyard_trainer.lean_torchvision import torchvision
from trainyard_trainer.task import Wanted

LEAST_MOMENTUM = 0.1
"""Of batch statistics: with less, those of a short training still remember that they began at 0 and 1."""


def build(architecture: Architecture, wanted: Wanted) -> ImageTask:
    counts = Counter(label for record in wanted.records for label in record.labels)
    return ImageTask(
        network(architecture.source, len(wanted.labels)),
        wanted.task,
        wanted.training.label_smoothing,
        label_weights(wanted.training, counts, wanted.labels),
    )


def network(source: str, labels: int) -> ImageNetwork:
    """torchvision's network of this name with fresh weights; its last layer becomes our head."""
    backbone: nn.Module = torchvision.models.get_model(source, weights=None)
    name, last = [(name, module) for name, module in backbone.named_modules() if isinstance(module, nn.Linear)][-1]
    backbone.set_submodule(name, nn.Identity())
    for module in backbone.modules():
        if isinstance(module, nn.BatchNorm2d) and module.momentum is not None:
            module.momentum = max(module.momentum, LEAST_MOMENTUM)
    return ImageNetwork(backbone, last.in_features, labels).to(memory_format=torch.channels_last)
