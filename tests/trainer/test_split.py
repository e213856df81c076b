"""Which image is on which side: properties that hold always, and the named subsets."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trainyard_api.dataset import Split
from trainyard_trainer import split
from trainyard_trainer.errors import BadData
from trainyard_trainer.records import Object, Record, Side

from tests.trainer.vocfiles import found, good, obj, picture, prepared, xml


def records(labels: list[set[str]], digests: list[str] | None = None) -> list[Record]:
    return [
        Record(
            name=f"{i:04d}",
            image=f"JPEGImages/{i:04d}.jpg",
            annotation=f"Annotations/{i:04d}.xml",
            source=0,
            width=10,
            height=10,
            digest=digests[i] if digests else f"d{i}",
            objects=tuple(Object(label, (0, 0, 5, 5)) for label in sorted(own)),
        )
        for i, own in enumerate(labels)
    ]


datasets = st.lists(st.tuples(st.sets(st.sampled_from("abc")), st.integers(0, 40)), min_size=10, max_size=60).map(
    lambda rows: records([labels for labels, _ in rows], [str(digest) for _, digest in rows])
)


@settings(max_examples=30, deadline=None)
@given(datasets, st.integers(0, 5))
def test_every_image_is_on_one_side_identical_ones_together_and_always_the_same(data: list[Record], seed: int):
    wish = Split(seed=seed)
    sides = split.draw(data, wish)
    assert sorted(sides.train + sides.validation + sides.test) == list(range(len(data)))
    side_of = {data[i].digest: side for side in Side for i in sides.of(side)}
    assert all(side_of[data[i].digest] is side for side in Side for i in sides.of(side))
    assert sides == split.draw(data, wish)
    assert sides.train


@settings(max_examples=20, deadline=None)
@given(datasets, datasets)
def test_known_images_keep_their_side(first: list[Record], second: list[Record]):
    known = split.known_from_json(split.to_json(first, split.draw(first, Split())))
    sides = split.draw(first + second, Split(seed=9), known)
    together = first + second
    for side in Side:
        for i in sides.of(side):
            assert known.get(together[i].digest, side) is side


@pytest.mark.parametrize(("count", "expected"), [(364, (292, 36, 36)), (100, (80, 10, 10)), (10, (8, 1, 1))])
def test_sides_have_the_asked_sizes(count: int, expected: tuple[int, int, int]):
    sides = split.draw(records([{"a"}] * count), Split())
    assert (len(sides.train), len(sides.validation), len(sides.test)) == expected


def test_37_every_side_that_is_asked_for_has_an_image_in_a_tiny_set_and_a_warning_says_so():
    sides = split.draw(records([{"a"}] * 12), Split(train_percent=98, validation_percent=1, test_percent=1))
    assert (len(sides.validation), len(sides.test)) == (1, 1)
    assert "FewImages" in {finding.reason for finding in sides.findings}


def test_what_is_over_a_cap_goes_to_training():
    wish = Split(max_validation_images=3, max_test_images=2)
    sides = split.draw(records([{"a"}] * 100), wish)
    assert (len(sides.train), len(sides.validation), len(sides.test)) == (95, 3, 2)


def test_a_rare_label_is_spread_over_the_sides():
    sides = split.draw(records([{"rare", "a"} if i % 10 == 0 else {"a"} for i in range(100)]), Split())
    rare = {side: sum(i % 10 == 0 for i in sides.of(side)) for side in Side}
    assert rare == {Side.TRAIN: 8, Side.VALIDATION: 1, Side.TEST: 1}


def test_35_a_label_without_validation_image_is_a_warning():
    sides = split.draw(records([{"one", "a"} if i == 0 else {"a"} for i in range(30)]), Split())
    messages = [finding.message for finding in sides.findings if finding.reason == "LabelNotInValidation"]
    assert messages == (
        ["no validation image has 'one'; its score will be missing"] if 0 not in sides.validation else []
    )
    assert 0 in sides.train, "the only image of a label is trained on"


def test_recorded_sides_that_are_damaged_are_an_error():
    with pytest.raises(BadData, match=r"recorded sides .* cannot be read"):
        split.known_from_json('{"sides": {"nowhere": {}}}')


LISTS = {
    "ImageSets/Main/train.txt": "\n".join(f"img_{i:02d}" for i in range(10)).encode(),
    "ImageSets/Main/val.txt": b"img_10.jpg\nimg_11\n",
}


def test_28_lists_are_honoured_when_asked(tmp_path: Path):
    data = prepared(
        {**good(), **LISTS}, tmp_path, subsets={"train": {"imageSet": "train"}, "validation": {"imageSet": "val"}}
    )
    assert [len(data.of(side)) for side in Side] == [10, 2, 0]
    assert not found(data, "ListsNotUsed")


def test_28_a_list_that_names_what_is_not_there_is_an_error(tmp_path: Path):
    files = {**good(), **LISTS, "ImageSets/Main/train.txt": b"img_00\nimg_99\n"}
    with pytest.raises(BadData, match=r"ImageSets/Main/train.txt in .*: 'img_99' \(entry 2\) names no image"):
        prepared(files, tmp_path, subsets={"train": {"imageSet": "train"}})


def test_28_a_list_may_name_an_image_that_was_left_out(tmp_path: Path):
    files = {**good(), **LISTS}
    del files["Annotations/img_03.xml"]
    data = prepared(files, tmp_path, subsets={"train": {"imageSet": "train"}})
    assert len(data.sides.train) == 9


def test_a_list_that_is_not_there_is_an_error_that_names_those_that_are(tmp_path: Path):
    with pytest.raises(BadData, match=r"no ImageSets/Main/test.txt; there are train, val"):
        prepared({**good(), **LISTS}, tmp_path, subsets={"train": {"imageSet": "test"}})


def test_subsets_by_folder_pattern_labels_and_list(tmp_path: Path):
    files = {name.replace("JPEGImages/img_00", "JPEGImages/held/img_00"): data for name, data in good().items()}
    files["Annotations/img_05.xml"] = xml(obj("rare"))
    (tmp_path / "list.txt").write_text("img_01\n\n# a comment\nimg_02.jpg\n")
    data = prepared(
        files,
        tmp_path,
        subsets={
            "train": {"listURI": (tmp_path / "list.txt").as_uri()},
            "validation": {"folder": "JPEGImages/held"},
            "test": {"labels": ["rare"]},
        },
    )
    names = {side: [data.dataset.records[i].name for i in data.of(side)] for side in Side}
    assert names == {Side.TRAIN: ["img_01", "img_02"], Side.VALIDATION: ["img_00"], Side.TEST: ["img_05"]}
    data = prepared(
        files, tmp_path, subsets={"train": {"pattern": "img_0[1-9].jpg"}, "test": {"pattern": "img_1?.jpg"}}
    )
    assert [len(data.of(side)) for side in Side] == [9, 0, 2]


def test_an_image_on_two_sides_is_an_error(tmp_path: Path):
    with pytest.raises(BadData, match=r"JPEGImages/img_00.jpg is on two sides, train and test"):
        prepared(good(), tmp_path, subsets={"train": {"pattern": "*"}, "test": {"pattern": "img_00*"}})


def test_the_same_picture_on_two_sides_is_an_error(tmp_path: Path):
    files = {**good(), "JPEGImages/img_01.jpg": picture(0)}
    with pytest.raises(BadData, match=r"img_01.jpg \(test\) and .*img_00.jpg \(train\) are the same picture"):
        prepared(files, tmp_path, subsets={"train": {"pattern": "img_00*"}, "test": {"pattern": "img_01*"}})


def test_a_subset_without_images_is_an_error(tmp_path: Path):
    with pytest.raises(BadData, match=r"dataset.subsets.train: no image matches pattern 'x\*'; the first image is"):
        prepared(good(), tmp_path, subsets={"train": {"pattern": "x*"}})
