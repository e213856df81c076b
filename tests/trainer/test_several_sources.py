"""What the fields of `dataset` do with several sources at once; each test shows an effect on records or sides."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trainyard_api.architectures import Task
from trainyard_api.dataset import Dataset as Spec
from trainyard_api.dataset import Resize
from trainyard_trainer.augment import fit, project
from trainyard_trainer.errors import BadData
from trainyard_trainer.prepare import Prepared, prepare
from trainyard_trainer.records import Side
from trainyard_trainer.store import Storage

from tests.trainer.vocfiles import Files, found, good, obj, picture, xml, zipped


def renamed(files: Files, old: str, new: str) -> Files:
    return {name.replace(old, new): data for name, data in files.items()}


def both(tmp_path: Path, first: Files, second: Files, **fields: Any) -> Prepared:
    uris = [zipped(files, tmp_path / f"{name}.zip").as_uri() for name, files in (("a", first), ("b", second))]
    spec = Spec.model_validate({"sources": [{"uri": uri} for uri in uris], **fields})
    return prepare(spec, Task.DETECTION, Storage(), tmp_path / "cache", image_size=(64, 64))


def names(data: Prepared, side: Side) -> set[str]:
    return {data.dataset.records[i].name for i in data.of(side)}


def test_an_image_that_two_sources_share_is_on_one_side(tmp_path: Path):
    second = renamed(good(20), "img_", "copy_")
    data = both(tmp_path, good(20), second, split={"trainPercent": 50, "validationPercent": 25, "testPercent": 25})
    assert len(data.dataset.records) == 40
    for index in range(20):
        own = {side for side in Side if {f"0/img_{index:02d}", f"1/copy_{index:02d}"} & names(data, side)}
        assert len(own) == 1, index


def test_a_list_of_one_source_names_images_of_that_source_only(tmp_path: Path):
    lists = {"ImageSets/Main/train.txt": "".join(f"img_{i:02d}\n" for i in range(10)).encode()}
    other = {f"Annotations/img_{i:02d}.xml": xml(obj()) for i in range(12)}
    other |= {f"JPEGImages/img_{i:02d}.jpg": picture(100 + i) for i in range(12)}
    held = {"ImageSets/Main/val.txt": b"img_00\nimg_11\n"}
    subsets = {"train": {"imageSet": "train"}, "validation": {"imageSet": "val"}}
    data = both(tmp_path, good(12) | lists, other | held, subsets=subsets)
    assert names(data, Side.TRAIN) == {f"0/img_{i:02d}" for i in range(10)}
    assert names(data, Side.VALIDATION) == {"1/img_00", "1/img_11"}


def test_a_folder_and_a_pattern_pick_from_all_sources(tmp_path: Path):
    second = {f"JPEGImages/night/n_{i:02d}.jpg": picture(200 + i) for i in range(12)}
    second |= {f"Annotations/n_{i:02d}.xml": xml(obj()) for i in range(12)}
    data = both(tmp_path, good(12), second, subsets={"train": {"pattern": "*_0[0-7].jpg"}, "test": {"pattern": "*_1*"}})
    assert (len(data.of(Side.TRAIN)), len(data.of(Side.TEST))) == (16, 4)
    assert len({data.dataset.records[i].source for i in data.of(Side.TRAIN)}) == 2
    data = both(tmp_path, good(12), second, subsets={"train": {"folder": "JPEGImages/night"}})
    assert names(data, Side.TRAIN) == {f"1/n_{i:02d}" for i in range(12)}


def test_findings_name_their_source(tmp_path: Path):
    data = both(tmp_path, good(40), {**good(40), "Annotations/img_03.xml": xml(obj(box=(40, 8, 10, 28)))})
    (finding,) = found(data, "BoxInverted")
    assert finding.file == f"{(tmp_path / 'b.zip').as_uri()}!Annotations/img_03.xml"
    assert finding.line == 7


def test_limits_hold_for_all_sources_together(tmp_path: Path):
    with pytest.raises(BadData, match=r"24 images, more than dataset.limits.maxImages \(20\)"):
        both(tmp_path, good(12), good(12), limits={"maxImages": 20})
    size = (tmp_path / "a.zip").stat().st_size
    with pytest.raises(BadData, match=r"more than dataset\.limits\.maxBytes"):
        both(tmp_path, good(12), good(12), limits={"maxBytes": str(size + 10)})


def test_another_seed_draws_other_sides_and_the_same_seed_the_same(tmp_path: Path):
    drawn = [names(both(tmp_path, good(20), good(20), split={"seed": seed}), Side.TEST) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_labels_are_spread_over_the_sides_in_proportion_whatever_their_source(tmp_path: Path):
    data = both(tmp_path, good(40, ("cell",)), renamed(good(20, ("ring",)), "img_", "ring_") | {
        f"JPEGImages/ring_{i:02d}.jpg": picture(300 + i) for i in range(20)
    })  # fmt: skip
    for side, cells, rings in ((Side.TRAIN, 32, 16), (Side.VALIDATION, 4, 2), (Side.TEST, 4, 2)):
        own = [data.dataset.records[i].labels for i in data.of(side)]
        assert (own.count(frozenset({"cell"})), own.count(frozenset({"ring"}))) == (cells, rings), side


@pytest.mark.parametrize(("unannotated", "used"), [("Skip", 24), ("Background", 27)])
def test_images_without_annotation_are_skipped_or_background_in_every_source(
    tmp_path: Path, unannotated: str, used: int
):
    bare = {f"JPEGImages/bare_{i}.jpg": picture(400 + i) for i in range(3)}
    data = both(tmp_path, good(12), {**renamed(good(12), "img_", "more_"), **bare}, unannotated=unannotated)
    assert len(data.dataset.records) == used
    backgrounds = [record for record in data.dataset.records if not record.objects]
    assert len(backgrounds) == used - 24


@pytest.mark.parametrize(
    ("resize", "corners"),
    [
        (Resize.LETTERBOX, [(0, 12), (64, 60)]),
        (Resize.STRETCH, [(0, 0), (64, 72)]),
        (Resize.CENTER_CROP, [(-16, 0), (80, 72)]),
    ],
)
def test_resize_kinds_put_the_picture_where_they_say(resize: Resize, corners: list[tuple[float, float]]):
    """A picture of 128 x 96 on an input of 64 x 72: all of it, stretched, or cut left and right."""
    matrix = fit((128, 96), (64, 72), resize)
    assert np.allclose(project(matrix, np.array([(0.0, 0.0), (128.0, 96.0)])), corners)
