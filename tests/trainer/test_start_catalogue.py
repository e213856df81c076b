"""Continuing the catalogue's networks with other labels, other data and another size: what is kept, what is made anew, and that it is said."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor
from trainyard_trainer.task import LabelRows

from tests.trainer.continued import NEW, OLD, Job, records

DETECTORS = ["ssdlite320-mobilenet-v3", "ssd300-vgg16", "retinanet-resnet50-fpn-v2", "fasterrcnn-mobilenet-v3-fpn"]
"""One of each kind of head: two modules per level, one per level, one for all levels, one that looks at proposals."""
pytestmark = pytest.mark.training


def by_label(tensor: Tensor, rows: LabelRows, labels: Sequence[str]) -> dict[str, Tensor]:
    """`[groups, ...]` of each label, and of what comes before them."""
    grouped = tensor.unflatten(0, (rows.groups, rows.before + len(labels)))
    return {"": grouped[:, : rows.before]} | {label: grouped[:, rows.before + i] for i, label in enumerate(labels)}


@pytest.mark.parametrize("name", [*DETECTORS, "yard-nano", "fcos-resnet50-fpn", "mobilenet-v3-small"])
def test_labels_that_stay_keep_their_rows_wherever_they_lie_and_new_ones_start_anew(name: str, tmp_path: Path) -> None:
    theirs = Job(tmp_path / "v1", name)
    mine = Job(tmp_path / "v2", name, NEW, seed=2)
    fresh, old = mine.continues(theirs.version()), theirs.state
    assert mine.task.label_rows
    for tensor, rows in mine.task.label_rows.items():
        assert rows is not None
        now, before = by_label(mine.state[tensor], rows, NEW), by_label(old[tensor], rows, OLD)
        assert all(torch.equal(now[kept], before[kept]) for kept in ("", "a", "c"))
        unlearnt = by_label(fresh[tensor], rows, NEW)
        assert all(torch.equal(now[label], unlearnt[label]) for label in ("new", "more"))
    assert all(torch.equal(mine.state[rest], old[rest]) for rest in old if rest not in mine.task.label_rows)
    assert mine.warnings() == {
        "LabelsDifferFromPreviousVersion": "v1 had a, b, c; now they are c, new, a, more; new, more start anew; b is forgotten;"
        " all other weights are kept."
    }


@pytest.mark.parametrize("name", [*DETECTORS, "mobilenet-v3-small"])
@torch.no_grad()
def test_a_label_is_scored_as_before_when_it_comes_at_another_place(name: str, tmp_path: Path) -> None:
    side = 288 if name == "ssd300-vgg16" else 64
    theirs = Job(tmp_path / "v1", name, size=side)
    for tensor in theirs.task.label_rows:
        theirs.state[tensor].normal_()
    mine = Job(tmp_path / "v2", name, ("c", "a", "b"), side, seed=2)
    mine.continues(theirs.version())
    images = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    before, now = (job.scores(images) for job in (theirs, mine))
    torch.testing.assert_close(now, before[..., [2, 0, 1]])
    assert not torch.allclose(now, before)


@pytest.mark.parametrize("name", ["ssdlite320-mobilenet-v3", "fasterrcnn-mobilenet-v3-fpn"])
@pytest.mark.parametrize(("size", "scale"), [(640, 1.0), (320, 0.5)], ids=["another size", "other data"])
def test_anchors_are_those_of_the_data_whatever_is_continued(
    name: str, size: int, scale: float, tmp_path: Path
) -> None:
    theirs = Job(tmp_path / "v1", name)
    mine = Job(tmp_path / "v2", name, size=size, data=records(scale), seed=2)
    fresh, old = mine.continues(theirs.version()), theirs.state
    assert torch.equal(mine.state["shapes"], fresh["shapes"])
    torch.testing.assert_close(fresh["shapes"][:3], old["shapes"][:3] * scale * size / 320, rtol=0.1, atol=0)
    assert all(torch.equal(mine.state[rest], old[rest]) for rest in old if rest != "shapes")
    assert mine.warnings() == {
        "AnchorsFittedAnew": "v1 has anchors for other objects or another size of the input; here they are fitted to those of this"
        " training."
    }


def test_the_same_data_and_size_have_the_same_anchors(tmp_path: Path) -> None:
    theirs, mine = (Job(tmp_path / name, "ssdlite320-mobilenet-v3") for name in ("v1", "v2"))
    mine.continues(theirs.version())
    assert all(torch.equal(tensor, mine.state[name]) for name, tensor in theirs.state.items())
    assert mine.warnings() == {}


@pytest.mark.parametrize("name", ["ssdlite320-mobilenet-v3", "fasterrcnn-mobilenet-v3-fpn"])
def test_published_weights_bring_no_anchors(name: str, tmp_path: Path) -> None:
    theirs = Job(tmp_path / "v1", name, data=records(2.0))
    theirs.version()
    (tmp_path / "v1" / "m.safetensors").rename(tmp_path / "v1" / f"{name}.safetensors")
    mine = Job(tmp_path / "v2", name, seed=2)
    fresh = mine.state["shapes"].clone()
    mine.follow(mine.spec.model_copy(update={"weights_uri": (tmp_path / "v1").as_uri()}))
    assert torch.equal(mine.state["shapes"], fresh)
    assert torch.equal(next(mine.task.backbone.parameters()), next(theirs.task.backbone.parameters()))
