"""Published weights of an architecture: from the service's `weightsURI`, or from the folder that the image brings.

A folder may hold `<architecture>.safetensors` (of ours, a version's `model.safetensors`), or a `.pth` of torchvision under its own
name, such as `resnet18-f37072fd.pth`, which ends in the first digits of its sha256: they are checked. A detector takes the weights of
its backbone alone where there are none of the whole.
"""

from __future__ import annotations

import os
import pickle
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from trainyard_api.architectures import ARCHITECTURES, Architecture
from trainyard_api.run import RunSpec

from trainyard_trainer.checkpoint import sha256_of
from trainyard_trainer.errors import BadSpec, StorageRefused
from trainyard_trainer.report import Reporter
from trainyard_trainer.store import Storage
from trainyard_trainer.task import Task

FOLDER = "TRAINYARD_WEIGHTS"
"""Environment variable with the image's folder of weights; default /weights."""
LEAST_SHARE = 0.5
"""Of the backbone's tensors that have to be in the file."""
PREFIXES = (
    ("", ""),
    ("backbone.", ""),
    ("backbone.body.", ""),
    ("backbone.body.", "features."),
)
"""What a tensor's name begins with here and there: torchvision's detector, image network, ResNet and MobileNet below an FPN."""
VGG_CUT = 23
"""SSD's backbone calls VGG16's features from its fourth pooling on `extra.0`, and counts them anew."""


@dataclass(frozen=True)
class Found:
    """A file of weights. `digest`: what its sha256 begins with."""

    place: str
    name: str
    digest: str = ""


def load_published(spec: RunSpec, task: Task, folder: Path, reporter: Reporter) -> None:
    """Fills the network with published weights; labels learn anew. Where there are none, it starts from scratch, with a warning.

    Raises StorageRefused for a file that is not what its name says, BadSpec for one of another architecture.
    """
    storage = Storage.open(spec.secrets_path, "service")
    found = find(spec, storage)
    if found is None:
        reporter.warn(
            "TrainedFromScratch", f"there are no published weights for {spec.architecture}; it starts from scratch."
        )
        return
    path = folder / found.name
    if "://" in found.place:
        storage.download(found.place, path)
    else:
        shutil.copyfile(found.place, path)
    digest = sha256_of(path)
    if not digest.startswith(found.digest):
        raise StorageRefused(
            f"{found.place} has sha256 {digest}, not {found.digest}…; put the file there that is meant."
        )
    taken, backbone = adopt(task, tensors_of(path, found.place))
    path.unlink()
    if taken < LEAST_SHARE * backbone:
        raise BadSpec(
            f"only {taken} tensors of {found.place} fit {spec.architecture}; put weights of the same architecture there, or set"
            " startFrom.weights to None."
        )
    reporter.line("weights", source=found.place, sha256=digest, tensors=taken, of=len(task.network.state_dict()))


def find(spec: RunSpec, storage: Storage) -> Found | None:
    """The service's weights go before the image's."""
    entry = ARCHITECTURES[spec.architecture]
    if spec.weights_uri is not None:
        prefix = spec.weights_uri.rstrip("/") + "/"
        uris = {file.uri.rsplit("/", 1)[-1]: file.uri for file in storage.list(prefix)}
        if chosen := choose(entry, uris):
            return Found(uris[chosen[0]], *chosen)
    image = Path(os.environ.get(FOLDER, "/weights"))
    if image.is_dir():
        paths = {path.name: str(path) for path in image.iterdir()}
        if chosen := choose(entry, paths):
            return Found(paths[chosen[0]], *chosen)
    return None


def choose(entry: Architecture, names: Iterable[str]) -> tuple[str, str] | None:
    """The best of the files' names for an architecture, and what its sha256 begins with."""
    names = sorted(names)
    own = f"{entry.name}.safetensors"
    if own in names:
        return own, ""
    for source in (entry.source, entry.backbone_source):
        pattern = re.compile(re.escape(source) + r"(?:_coco|_rwightman)?-([0-9a-f]{8,64})\.pth")
        for name in names:
            if source and (match := pattern.fullmatch(name)):
                return name, match[1]
    return None


def tensors_of(path: Path, place: str) -> dict[str, Tensor]:
    """The tensors of a safetensors or a .pth file; no code in it is ever run."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError) as error:
        first = str(error).splitlines()[0]
        raise BadSpec(
            f"{place} holds no weights that can be read ({first.rstrip('.')}); put torchvision's file, or a version's"
            " model.safetensors, there again."
        ) from error
    if not isinstance(loaded, dict):
        raise BadSpec(f"{place} holds no table of weights; save the network's state_dict() there.")
    return {str(name): tensor for name, tensor in loaded.items() if isinstance(tensor, Tensor)}


@torch.no_grad()
def adopt(task: Task, tensors: Mapping[str, Tensor]) -> tuple[int, int]:
    """Copies what fits, rows of labels and anchors excepted. Returns how many tensors were taken, and how many the backbone has."""
    others = {*task.label_rows, *task.fitted_tensors}
    own = {name: tensor for name, tensor in task.network.state_dict().items() if name not in others}
    names = max((fitting(own, tensors, *prefix) for prefix in PREFIXES), key=len)
    for name, theirs in names.items():
        own[name].copy_(tensors[theirs])
    return len(names), len(task.backbone.state_dict())


def fitting(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], mine: str, theirs: str) -> dict[str, str]:
    """Names of tensors that are in both with the same shape, when `mine` at the front of ours is `theirs` at the front of theirs."""
    names = {name: _numbered(theirs + name.removeprefix(mine)) for name in own if name.startswith(mine)}
    return {
        name: other for name, other in names.items() if other in tensors and tensors[other].shape == own[name].shape
    }


def _numbered(name: str) -> str:
    """The name as in VGG16 itself of what SSD's backbone numbers anew; any other stays."""
    return re.sub(r"^extra\.0\.(\d+)\.", lambda match: f"features.{int(match[1]) + VGG_CUT}.", name)
