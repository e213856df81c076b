"""Labels, amounts and tasks; the numbers are those of the table of cases."""

from pathlib import Path

import pytest
from trainyard_api.architectures import Task
from trainyard_trainer import voc
from trainyard_trainer.errors import BadData
from trainyard_trainer.fetch import fetch
from trainyard_trainer.records import Kind
from trainyard_trainer.store import Storage

from tests.trainer.vocfiles import Files, found, good, load, obj, picture, record, spec, xml, zipped

A = "Annotations/img_00.xml"


def test_labels_are_ordered_by_code_point(tmp_path: Path):
    dataset = load({**good(), A: xml(obj("Zebra"), obj("äpfel"), obj("ape"))}, tmp_path)
    assert dataset.labels == ("Zebra", "ape", "cell", "dot", "äpfel")


def test_declared_labels_keep_their_order(tmp_path: Path):
    assert load(good(), tmp_path, labels=["dot", "cell"]).labels == ("dot", "cell")


def test_24_a_label_that_is_not_declared_is_an_error_with_file_line_and_nearest_match(tmp_path: Path):
    with pytest.raises(
        BadData, match=r"^Annotations/img_00.xml:7: the label 'cel' is not in dataset.labels; did you mean 'cell'\?"
    ):
        load({**good(), A: xml(obj("cel"))}, tmp_path, labels=["cell", "dot"])


def test_24_a_declared_label_that_is_absent_is_an_error(tmp_path: Path):
    with pytest.raises(BadData, match=r"the label 'dott' of dataset.labels is nowhere in the data; the data has 'dot'"):
        load(good(), tmp_path, labels=["cell", "dot", "dott"])


def test_labels_of_the_version_that_is_continued_come_first(tmp_path: Path):
    uri = zipped(good(), tmp_path / "data.zip").as_uri()
    sources, _ = fetch([uri], Storage(), tmp_path, max_bytes=1 << 30)
    dataset = voc.load(spec(uri), Task.DETECTION, sources, known_labels=("ring", "dot"))
    assert dataset.labels == ("ring", "dot", "cell")
    (finding,) = found(dataset, "LabelsDifferFromPreviousVersion")
    assert "new ['cell'], not in this data ['ring']" in finding.message


def test_35_fewer_than_ten_annotated_images_are_an_error(tmp_path: Path):
    with pytest.raises(BadData, match="9 annotated images are too few to train on; at least 10 are needed"):
        load(good(9), tmp_path)


def test_35_few_examples_imbalance_and_box_sizes_are_warnings(tmp_path: Path):
    files = good(20)
    for index in range(20):
        files[f"Annotations/img_{index:02d}.xml"] = xml(*[obj(box=(x, 2, x + 8, 9)) for x in range(0, 50, 10)])
    files[A] = xml(obj("rare", (0, 0, 63, 47)), obj("cell", (3.2, 8, 3.7, 20)))
    dataset = load(files, tmp_path)
    assert (
        "2 of 2 labels have fewer than 300 examples ('cell' 96, 'rare' 1)" in found(dataset, "FewExamples")[0].message
    )
    assert found(dataset, "FewExamplesInAll")[0].message.startswith("97 examples in all")
    assert "'cell' has 96 examples, 'rare' has 1: 96 times fewer" in found(dataset, "ClassImbalance")[0].message
    assert "1 of 97 boxes are under 1 %" in found(dataset, "BoxesTooSmall")[0].message
    assert "1 of 97 boxes are over 90 %" in found(dataset, "BoxesTooLarge")[0].message


def test_a_dataset_without_any_object_is_an_error(tmp_path: Path):
    files = {name: xml() if name.endswith("xml") else data for name, data in good().items()}
    with pytest.raises(BadData, match="no image has an object"):
        load(files, tmp_path)


def test_28_lists_that_nobody_asked_for_are_a_warning(tmp_path: Path):
    files = {**good(), "ImageSets/Main/train.txt": b"img_00\n", "ImageSets/Main/val.txt": b"img_01\n"}
    assert "lists train, val in ImageSets/Main" in found(load(files, tmp_path), "ListsNotUsed")[0].message


def test_28_tagging_lists_say_yes_no_and_ignored(tmp_path: Path):
    files: Files = {f"JPEGImages/img_{i:02d}.jpg": picture(i) for i in range(12)}
    answers = "".join(f"img_{i:02d} {'1' if i % 2 else '-1'}\n" for i in range(11)) + "img_11  0\n"
    files["ImageSets/Main/dog_trainval.txt"] = answers.encode()
    files["ImageSets/Main/cat_trainval.txt"] = "".join(f"img_{i:02d} 1\n" for i in range(12)).encode()
    files["ImageSets/Main/trainval.txt"] = "".join(f"img_{i:02d}\n" for i in range(12)).encode()
    files["Annotations/unused.xml"] = xml(name="unused.jpg")
    files["JPEGImages/unused.jpg"] = picture(77)
    dataset = load(files, tmp_path, Task.TAGGING)
    assert dataset.labels == ("cat", "dog")
    assert [dict(record(dataset, f"img_{i:02d}").tags)["dog"] for i in (0, 1, 11)] == [-1, 1, 0]


def test_28_a_tagging_list_with_an_unknown_name_is_an_error(tmp_path: Path):
    files = {**good(), "ImageSets/Main/dog_train.txt": b"img_00 1\nimg_77 -1\n"}
    with pytest.raises(BadData, match=r"dog_train.txt: names 'img_77', and there is no such image"):
        load(files, tmp_path, Task.TAGGING)


def test_tagging_takes_objects_as_tags(tmp_path: Path):
    hard = obj("dot", extra="<difficult>1</difficult>")
    dataset = load({**good(), A: xml(obj(), hard)}, tmp_path, Task.TAGGING)
    assert dict(record(dataset).tags) == {"cell": 1, "dot": 0}


def _classes(several: bool = False) -> Files:
    files = good()
    for index in range(12):
        labels = ["cell" if index % 2 else "dot"] * 2 + (["dot"] if several else [])
        files[f"Annotations/img_{index:02d}.xml"] = xml(*map(obj, labels))
    return files


def test_36_classification_takes_the_one_label_of_an_image(tmp_path: Path):
    files = _classes()
    files["Annotations/img_01.xml"] = xml(obj("cell"), obj("dot", extra="<difficult>1</difficult>"))
    files["Annotations/img_02.xml"] = xml()
    dataset = load(files, tmp_path, Task.CLASSIFICATION)
    assert record(dataset, "img_01").tags == (("cell", 1),)
    assert "img_02" not in {r.name for r in dataset.records}


def test_36_several_labels_in_one_image_are_an_error_that_names_tagging(tmp_path: Path):
    with pytest.raises(BadData, match=r"img_01.xml: has the labels 'cell', 'dot'; .* use tagging"):
        load(_classes(several=True), tmp_path, Task.CLASSIFICATION)


def test_classes_come_from_lists_where_there_are_no_objects(tmp_path: Path):
    files = good()
    for index in range(12):
        del files[f"Annotations/img_{index:02d}.xml"]
    files["Annotations/unused.xml"], files["JPEGImages/unused.jpg"] = xml(name="unused.jpg"), picture(77)
    for label, wanted in (("cat", 0), ("dog", 1)):
        answers = (f"img_{i:02d} {'1' if i % 2 == wanted else '-1'}\n" for i in range(12))
        files[f"ImageSets/Main/{label}_trainval.txt"] = "".join(answers).encode()
    dataset = load(files, tmp_path, Task.CLASSIFICATION)
    assert dataset.labels == ("cat", "dog")
    assert len(dataset.records) == 12
    assert record(dataset, "img_03").tags == (("dog", 1),)


def test_pictures_without_a_tag_are_used_or_skipped_as_told(tmp_path: Path):
    files = {**good(), A: xml()}
    assert len(load(files, tmp_path, Task.TAGGING).records) == 12
    assert len(load(files, tmp_path, Task.TAGGING, withoutObjects="Skip").records) == 11


def test_36_a_single_label_in_the_whole_set_is_an_error(tmp_path: Path):
    with pytest.raises(BadData, match="at least two labels; all images are 'cell'"):
        load(good(labels=("cell",)), tmp_path, Task.CLASSIFICATION)


def test_a_good_dataset_has_no_findings_but_its_small_size(tmp_path: Path):
    dataset = load(good(), tmp_path)
    assert {f.reason for f in dataset.findings} == {"FewExamples", "FewExamplesInAll"}
    assert {f.kind for f in dataset.findings} == {Kind.WARNING}
