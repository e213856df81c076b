"""torchvision's own files: which of them each architecture takes, and that its network has their very numbers afterwards.

Nothing is downloaded: the layouts come from torchvision's constructors, the numbers are random.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from trainyard_api.architectures import ARCHITECTURES, Architecture
from trainyard_trainer import published
from trainyard_trainer.checkpoint import sha256_of
from trainyard_trainer.errors import BadSpec
from trainyard_trainer.lean_torchvision import torchvision
from trainyard_trainer.report import Reporter
from trainyard_trainer.task import Task, build_task

from tests.trainer.continued import records
from tests.trainer.runs import run_spec

pytestmark = pytest.mark.training

OF_IMAGES = [name for name, entry in ARCHITECTURES.items() if entry.module == "image_network"]
DETECTORS = [name for name, entry in ARCHITECTURES.items() if entry.module in ("zoo", "rcnn")]
BACKBONES = {
    "ssd300-vgg16": "vgg16",
    "retinanet-resnet50-fpn-v2": "resnet50",
    "fcos-resnet50-fpn": "resnet50",
    "fasterrcnn-mobilenet-v3-fpn": "mobilenet_v3_large",
    "fasterrcnn-resnet50-fpn-v2": "resnet50",
}
"""Detectors that take an image network's file, and torchvision's name for that network."""
NOT_IN_VGG = ("scale_weight", "extra.0.7.", "extra.1.", "extra.2.", "extra.3.", "extra.4.")
"""What SSD puts behind VGG16 and scales between."""


def layout(source: str, **fields: Any) -> dict[str, Tensor]:
    """A file's tensors: those of torchvision's network, with numbers of their own."""
    models = torchvision.models.detection if hasattr(torchvision.models.detection, source) else torchvision.models
    state = getattr(models, source)(weights=None, **fields).state_dict()
    random = torch.Generator().manual_seed(3)
    return {
        name: torch.rand(tensor.shape, generator=random) if tensor.is_floating_point() else torch.full_like(tensor, 7)
        for name, tensor in state.items()
    }


def names_of(source: str) -> Iterator[str]:
    """What torchvision calls its files of a network."""
    for weights in torchvision.models.get_model_weights(source):
        yield weights.url.rsplit("/", 1)[1]


class Adoption:
    """An architecture that begins with a file."""

    def __init__(self, name: str, folder: Path) -> None:
        entry = ARCHITECTURES[name]
        self.weights = folder / "weights"
        self.weights.mkdir()
        self.folder, self.out = folder, io.StringIO()
        self.spec = run_spec(
            folder, folder / "x.zip", architecture=name, task=entry.task, weightsURI=self.weights.as_uri()
        )
        torch.manual_seed(1)
        self.task: Task = build_task(self.spec, ("a", "b", "c"), records(), (320, 320))
        self.fresh = {key: tensor.clone() for key, tensor in self.task.network.state_dict().items()}

    def put(self, content: object, name: str) -> Path:
        """The file as torchvision would name it, with its checksum at the end."""
        path = self.weights / "new"
        torch.save(content, path)
        return path.rename(self.weights / f"{name}-{sha256_of(path)[:8]}.pth")

    def adopted(self) -> dict[str, Tensor]:
        published.load_published(self.spec, self.task, self.folder, Reporter(self.spec, out=self.out))
        (line,) = [json.loads(line) for line in self.out.getvalue().splitlines()]
        assert line["event"] == "weights"
        return dict(self.task.network.state_dict())


def stems(entry: Architecture) -> Iterator[str]:
    """Names of files that an architecture takes, without the checksum."""
    for name in names_of(entry.source):
        yield name.rsplit("-", 1)[0]


@pytest.mark.parametrize("name", [*OF_IMAGES, *DETECTORS])
def test_every_file_that_torchvision_publishes_for_it_is_taken(name: str) -> None:
    entry = ARCHITECTURES[name]
    for file in names_of(entry.source):
        assert published.choose(entry, [file]) == (file, file.rsplit("-", 1)[1].removesuffix(".pth"))


@pytest.mark.parametrize(("name", "backbone"), BACKBONES.items())
def test_a_backbone_s_file_is_taken_when_its_colours_are_those_of_the_detector(name: str, backbone: str) -> None:
    """VGG16 is published for two ranges of colours; SSD's is the one that Caffe had."""
    detector = getattr(torchvision.models.detection, ARCHITECTURES[name].source)(weights=None, weights_backbone=None)
    taken = 0
    for weights in torchvision.models.get_model_weights(backbone):
        file, colours = weights.url.rsplit("/", 1)[1], weights.transforms()
        same = (colours.mean, colours.std) == (detector.transform.image_mean, detector.transform.image_std)
        assert (published.choose(ARCHITECTURES[name], [file]) is not None) == same
        taken += same
    assert taken


@pytest.mark.parametrize("name", OF_IMAGES)
def test_an_image_network_has_the_file_s_numbers_and_a_head_of_its_own(name: str, tmp_path: Path) -> None:
    entry = ARCHITECTURES[name]
    case, theirs = Adoption(name, tmp_path), layout(entry.source)
    case.put(theirs, next(stems(entry)))
    mine = case.adopted()
    assert mine.keys() - {f"backbone.{key}" for key in theirs} == {"head.weight", "head.bias"}
    for key, tensor in mine.items():
        expected = case.fresh[key] if key.startswith("head.") else theirs[key.removeprefix("backbone.")]
        assert torch.equal(tensor, expected), key


@pytest.mark.parametrize(
    ("name", "frozen_statistics"), [*((name, False) for name in DETECTORS), ("fcos-resnet50-fpn", True)]
)
def test_a_detector_has_the_file_s_numbers_but_for_labels_and_anchors(
    name: str, frozen_statistics: bool, tmp_path: Path
) -> None:
    """torchvision trained some with frozen batch statistics: their files lack the counters of batches."""
    entry = ARCHITECTURES[name]
    case, theirs = Adoption(name, tmp_path), layout(entry.source, weights_backbone=None)
    if frozen_statistics:
        theirs = {key: tensor for key, tensor in theirs.items() if not key.endswith("num_batches_tracked")}
    case.put(theirs, next(stems(entry)))
    own = {*case.task.label_rows, *case.task.fitted_tensors}
    if entry.module == "rcnn":
        # One box for each proposal whatever its label; torchvision's have one a label.
        own |= {f"roi_heads.box_predictor.bbox_pred.{kind}" for kind in ("weight", "bias")}
    for key, tensor in case.adopted().items():
        counter = frozen_statistics and key.endswith("num_batches_tracked")
        assert torch.equal(tensor, case.fresh[key] if key in own or counter else theirs[key]), key


@pytest.mark.parametrize(("name", "source"), BACKBONES.items())
def test_a_detector_s_backbone_has_the_numbers_of_the_image_network_s_file(
    name: str, source: str, tmp_path: Path
) -> None:
    case, theirs = Adoption(name, tmp_path), layout(source)
    case.put(theirs, ARCHITECTURES[name].backbone_source)
    mine = case.adopted()
    changed = {key: tensor for key, tensor in mine.items() if not torch.equal(tensor, case.fresh[key])}
    left = {key.removeprefix("backbone.").removeprefix("body.") for key in mine.keys() - changed.keys()}
    beside = ("fpn.", "head.", "rpn.", "roi_heads.", "shapes", *(NOT_IN_VGG if source == "vgg16" else ()))
    assert [key for key in left if not key.startswith(beside)] == []
    layers = [key for key in theirs if key.endswith("weight") and not key.startswith(("classifier.", "fc."))]
    for key, tensor in changed.items():
        found = [other for other in theirs if torch.equal(theirs[other], tensor)]
        assert found or key.endswith("num_batches_tracked"), key
    assert len([key for key in changed if key.endswith("weight")]) == len(layers)


def test_ssd_counts_vgg_s_last_convolutions_from_its_cut_on(tmp_path: Path) -> None:
    case, theirs = Adoption("ssd300-vgg16", tmp_path), layout("vgg16")
    case.put(theirs, "vgg16_features-amdegroot")
    mine = case.adopted()
    for own, other in (("features.0", 0), ("features.21", 21), ("extra.0.1", 24), ("extra.0.3", 26), ("extra.0.5", 28)):
        assert torch.equal(mine[f"backbone.{own}.weight"], theirs[f"features.{other}.weight"])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (layout("resnet18"), r"only \d+ tensors of file:.*vgg16_features-.*\.pth fit ssd300-vgg16; put weights of the same"),
        ({"model": layout("vgg16")}, r"only 0 tensors of file:.*\.pth fit ssd300-vgg16; put weights"),
        ([1, 2], r"file:.*\.pth holds no table of weights; save the network's state_dict\(\) there"),
        (io.StringIO, r"file:.*\.pth holds no weights that can be read \(.*\); put torchvision's file"),
    ],
    ids=["another network", "a whole checkpoint", "a list", "code"],
)  # fmt: skip
def test_a_wrong_file_is_one_sentence_with_its_place_and_what_to_do(
    content: object, sentence: str, tmp_path: Path
) -> None:
    case = Adoption("ssd300-vgg16", tmp_path)
    case.put(content, "vgg16_features-amdegroot")
    with pytest.raises(BadSpec, match=sentence) as error:
        case.adopted()
    assert "\n" not in str(error.value)
