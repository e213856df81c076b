"""Starting weights: which file is taken, that it is the file that its name says, and what of it is learnt on from."""

import io
import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from trainyard_api.architectures import ARCHITECTURES, Task
from trainyard_trainer import published
from trainyard_trainer.checkpoint import sha256_of
from trainyard_trainer.errors import BadSpec, StorageRefused
from trainyard_trainer.image_network import network
from trainyard_trainer.image_task import ImageTask
from trainyard_trainer.lean_torchvision import torchvision
from trainyard_trainer.report import Reporter

from tests.trainer.runs import run_spec

HASH = "0123abcd"


@pytest.mark.parametrize(
    ("architecture", "names", "chosen"),
    [
        ("resnet18", ["resnet18-0123abcd.pth", "resnet50-0123abcd.pth"], ("resnet18-0123abcd.pth", HASH)),
        ("resnet18", ["resnet18-0123abcd.pth", "resnet18.safetensors"], ("resnet18.safetensors", "")),
        ("resnet18", ["resnet18.pth", "my-resnet18-0123abcd.pth", "resnet18-0123abcd.pth.tmp"], None),
        ("yard-nano", ["yard-nano.safetensors"], ("yard-nano.safetensors", "")),
        ("yard-nano", ["-0123abcd.pth"], None),
        (
            "fcos-resnet50-fpn",
            ["resnet50-0123abcd.pth", "fcos_resnet50_fpn_coco-0123abcd.pth"],
            ("fcos_resnet50_fpn_coco-0123abcd.pth", HASH),
        ),
        ("fcos-resnet50-fpn", ["resnet50-0123abcd.pth"], ("resnet50-0123abcd.pth", HASH)),
    ],
)
def test_the_file_of_the_architecture_is_taken(
    architecture: str, names: Iterable[str], chosen: tuple[str, str] | None
) -> None:
    assert published.choose(ARCHITECTURES[architecture], names) == chosen


def test_names_of_a_backbone_below_a_pyramid_are_found() -> None:
    shape = torch.zeros(2, 3)
    own = {"backbone.body.conv1.weight": shape, "backbone.body.0.0.weight": shape, "backbone.fpn.inner.weight": shape}
    assert published.fitting(own, {"conv1.weight": shape}, "backbone.body.", "") == {
        "backbone.body.conv1.weight": "conv1.weight"
    }
    assert published.fitting(own, {"features.0.0.weight": shape}, "backbone.body.", "features.") == {
        "backbone.body.0.0.weight": "features.0.0.weight"
    }
    assert not published.fitting(own, {"conv1.weight": torch.zeros(3, 3)}, "backbone.body.", "")


class Case:
    """A task, a folder of weights, and what is told."""

    def __init__(self, folder: Path, **fields: object) -> None:
        self.weights = folder / "weights"
        self.weights.mkdir()
        spec = run_spec(folder, folder / "data.zip", architecture="mobilenet-v3-small", task="Tagging")
        self.spec = spec.model_copy(update={"weights_uri": self.weights.as_uri(), **fields})
        self.folder, self.out = folder, io.StringIO()
        self.reporter = Reporter(spec, folder / "metrics.jsonl", out=self.out)
        torch.manual_seed(1)
        self.task = ImageTask(network("mobilenet_v3_small", 3), Task.TAGGING)

    def load(self) -> list[dict]:
        """What was told."""
        published.load_published(self.spec, self.task, self.folder, self.reporter)
        return [json.loads(line) for line in self.out.getvalue().splitlines()]


@pytest.fixture(scope="module")
def theirs() -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    return torchvision.models.mobilenet_v3_small(weights=None).state_dict()


def saved(tensors: object, folder: Path) -> Path:
    """Under the name that torchvision would give it."""
    path = folder / "new.pth"
    torch.save(tensors, path)
    return path.rename(folder / f"mobilenet_v3_small-{sha256_of(path)[:8]}.pth")


def test_torchvisions_weights_fill_the_backbone_and_labels_learn_anew(tmp_path: Path, theirs: dict) -> None:
    case = Case(tmp_path)
    fresh = case.task.network.head.weight.clone()
    saved(theirs, case.weights)
    assert [line["event"] for line in case.load()] == ["weights"]
    state = case.task.network.backbone.state_dict()
    assert state
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in state.items())
    assert torch.equal(case.task.network.head.weight, fresh)


def test_the_images_folder_is_looked_at_when_the_service_has_none(
    tmp_path: Path, theirs: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(tmp_path, weights_uri=None)
    image = tmp_path / "image"
    image.mkdir()
    save_file({f"backbone.{name}": tensor for name, tensor in theirs.items()}, image / "mobilenet-v3-small.safetensors")
    monkeypatch.setenv(published.FOLDER, str(image))
    assert case.load()[0]["source"] == str(image / "mobilenet-v3-small.safetensors")
    assert torch.equal(case.task.network.backbone.state_dict()["features.0.0.weight"], theirs["features.0.0.weight"])


def test_without_any_it_starts_from_scratch_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(published.FOLDER, str(tmp_path / "nowhere"))
    assert [line["reason"] for line in Case(tmp_path).load()] == ["TrainedFromScratch"]


def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path, theirs: dict) -> None:
    case = Case(tmp_path)
    saved(theirs, case.weights).rename(case.weights / "mobilenet_v3_small-0123abcd.pth")
    with pytest.raises(StorageRefused, match=r"has sha256 .* not 0123abcd"):
        case.load()


@pytest.mark.parametrize(
    ("content", "words"),
    [({"a": torch.zeros(1)}, "only 0 tensors"), ([1, 2], "no table of weights"), (io.StringIO, "cannot|can be read")],
)
def test_a_file_of_something_else_is_a_sentence(content: object, words: str, tmp_path: Path) -> None:
    case = Case(tmp_path)
    saved(content, case.weights)
    with pytest.raises(BadSpec, match=words):
        case.load()
