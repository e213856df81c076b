"""Zips and folders as they are found in the wild; the numbers are those of the table of cases."""

import json
import stat
import struct
import zipfile
from pathlib import Path

import pytest
from trainyard_api.architectures import Task
from trainyard_api.dataset import Dataset, LabelPolicy
from trainyard_trainer import voc, voc_source
from trainyard_trainer.errors import BadData
from trainyard_trainer.fetch import fetch
from trainyard_trainer.store import Storage

from tests.trainer.vocfiles import Files, found, good, load, load_uri, obj, picture, record, xml, zipped


def test_a_text_file_is_no_zip_and_its_beginning_is_said(tmp_path: Path):
    path = tmp_path / "data.zip"
    path.write_text("image,label\na.jpg,cell\n")
    with pytest.raises(BadData, match=r"data.zip is no zip file but text beginning with 'image,label'"):
        load_uri(path.as_uri(), tmp_path)


@pytest.mark.parametrize(
    ("start", "what"), [(b"\x1f\x8b", "gzip data"), (b"Rar!\x1a", "a RAR archive"), (b"PK\x03\x04", "that is whole")]
)
def test_other_archives_are_named(tmp_path: Path, start: bytes, what: str):
    path = tmp_path / "data.zip"
    path.write_bytes(start + bytes(100))
    with pytest.raises(BadData, match=f"is no zip file.*{what}"):
        load_uri(path.as_uri(), tmp_path)


def test_a_zip_of_pictures_only_is_told_the_layout_and_what_was_found(tmp_path: Path):
    files = {f"photos/{i}.jpg": picture(i) for i in range(12)}
    with pytest.raises(BadData, match=r"has no Annotations folder: .*JPEGImages.*Found: 12 x .jpg in photos"):
        load(files, tmp_path)


def test_annotations_without_images_are_an_error(tmp_path: Path):
    with pytest.raises(BadData, match="has annotations but no images"):
        load({name: data for name, data in good().items() if name.endswith("xml")}, tmp_path)


def test_25_a_folder_around_the_two_is_found(tmp_path: Path):
    dataset = load({f"my data/VOC2007/{name}": data for name, data in good().items()}, tmp_path)
    assert len(dataset.records) == 12


def test_25_two_datasets_in_one_zip_are_an_error_that_says_how_to_zip(tmp_path: Path):
    files = {f"{year}/{name}": data for year in ("VOC2007", "VOC2012") for name, data in good().items()}
    with pytest.raises(BadData, match=r"holds 2 datasets: VOC2007/Annotations .*Zip each one by itself"):
        load(files, tmp_path)


def test_26_what_operating_systems_leave_behind_is_ignored(tmp_path: Path):
    junk = {
        "__MACOSX/Annotations/._img_00.xml": b"\0\5\26\7",
        "Annotations/._img_00.xml": b"\0",
        "JPEGImages/._img_00.jpg": b"\0",
        "Annotations/.DS_Store": b"\0",
        "JPEGImages/Thumbs.db": b"\0",
    }
    dataset = load({**good(), **junk}, tmp_path)
    assert len(dataset.records) == 12


def test_23_names_in_unicode_and_in_cp437(tmp_path: Path):
    files = good()
    files["Annotations/Zürich-細胞.xml"] = xml(obj(), name="Zürich-細胞.jpg")
    files["JPEGImages/Zürich-細胞.jpg"] = picture(99)
    path = zipped(files, tmp_path / "data.zip")
    # An old archiver writes the bytes without saying that they are UTF-8: the flag is cleared in both headers.
    data = bytearray(path.read_bytes())
    for signature, at in ((b"PK\1\2", 8), (b"PK\3\4", 6)):
        start = 0
        while (start := data.find(signature, start)) >= 0:
            data[start + at + 1] &= ~0x08
            start += 4
    path.write_bytes(bytes(data))
    dataset = load_uri(path.as_uri(), tmp_path)
    assert record(dataset, "Zürich-細胞").image == "JPEGImages/Zürich-細胞.jpg"
    assert not found(dataset, "FilenameWrong")


def test_27_a_coco_dataset_is_named_with_the_way_to_convert_it(tmp_path: Path):
    coco = {"images": [], "annotations": [], "categories": []}
    files = {"annotations/instances_train.json": json.dumps(coco).encode(), "images/1.jpg": picture(1)}
    with pytest.raises(BadData, match=r"is a COCO dataset \(annotations/instances_train.json\); .*dataset convert"):
        load(files, tmp_path)


def test_27_a_yolo_dataset_is_named_with_the_way_to_convert_it(tmp_path: Path):
    files: Files = {"data.yaml": b"names: [cell]", "images/1.jpg": picture(1), "labels/1.txt": b"0 .5 .5 .1 .1"}
    with pytest.raises(BadData, match=r"is a YOLO dataset \(1 files in labels/\); .*dataset convert"):
        load(files, tmp_path)


@pytest.mark.parametrize(
    "name", ["../evil.xml", "Annotations/../../evil.xml", "/etc/evil.xml", "C:\\evil.xml", "..\\evil.xml"]
)
def test_30_names_that_leave_the_folder_are_an_error(tmp_path: Path, name: str):
    with pytest.raises(BadData, match="leaves its folder"):
        load({**good(), name: b"<annotation/>"}, tmp_path)


def test_30_a_symbolic_link_in_a_zip_is_an_error(tmp_path: Path):
    path = zipped(good(), tmp_path / "data.zip")
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("Annotations/link.xml")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(BadData, match=r"'Annotations/link\.xml' is a symbolic link"):
        load_uri(path.as_uri(), tmp_path)


def test_30_a_link_out_of_a_folder_is_an_error(tmp_path: Path):
    root = tmp_path / "data"
    for name, data in good().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    (root / "Annotations" / "link.xml").symlink_to("/etc/hostname")
    with pytest.raises(BadData, match=r"link\.xml is a link that leads out of"):
        load_uri(root.as_uri(), tmp_path)


def test_30_control_characters_in_a_name_are_an_error_that_does_not_repeat_them(tmp_path: Path):
    with pytest.raises(
        BadData, match=r"the file 'Annotations/\\x1b\[2J.xml' has control characters in its name; rename it"
    ):
        load({**good(), "Annotations/\x1b[2J.xml": xml()}, tmp_path)


def test_31_more_members_or_more_unpacked_bytes_than_allowed_are_an_error(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(voc_source, "MAX_MEMBERS", 23)
    with pytest.raises(BadData, match=r"has 24 files; at most 23 are read. Split it into several sources"):
        load(good(), tmp_path)
    monkeypatch.undo()
    # Thousands of texts that compress well: each is small, all together are not.
    files = {f"Annotations/{i}.xml": b" " * 30_000 for i in range(12)}
    with pytest.raises(BadData, match=r"unpacks to 3.* bytes, more than 4 times dataset.limits.maxBytes \(40,960\)"):
        load({**good(), **files}, tmp_path, limits={"maxBytes": "40Ki"})


def test_31_a_bomb_is_refused_by_its_directory(tmp_path: Path):
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("JPEGImages/bomb.jpg", bytes(20 << 20))
    with pytest.raises(BadData, match=r"'JPEGImages/bomb.jpg' unpacks from .* to 20,971,520 bytes"):
        load_uri(path.as_uri(), tmp_path)


def test_31_a_member_larger_than_it_claims_is_an_error(tmp_path: Path):
    path = zipped(good(), tmp_path / "data.zip")
    data = bytearray(path.read_bytes())
    entry = data.find(b"PK\1\2")
    data[entry + 24 : entry + 28] = struct.pack("<I", 40)
    path.write_bytes(bytes(data))
    with pytest.raises(
        BadData, match=r"Annotations/img_00.xml in .* (cannot be unpacked|has 41 bytes where the zip promises 40)"
    ):
        load_uri(path.as_uri(), tmp_path)


def test_31_more_bytes_than_allowed_are_an_error(tmp_path: Path):
    with pytest.raises(BadData, match=r"more than dataset.limits.maxBytes \(1,024\); raise it"):
        load(good(), tmp_path, limits={"maxBytes": "1Ki"})


def test_31_more_images_than_allowed_are_an_error(tmp_path: Path):
    with pytest.raises(BadData, match=r"12 images, more than dataset.limits.maxImages \(11\)"):
        load(good(), tmp_path, limits={"maxImages": 11})


def _patched(tmp_path: Path, offset: int, value: int) -> str:
    """A zip whose first entry says something else in its directory."""
    path = zipped(good(), tmp_path / "data.zip")
    data = bytearray(path.read_bytes())
    entry = data.find(b"PK\1\2")
    data[entry + offset : entry + offset + 2] = struct.pack("<H", value)
    path.write_bytes(bytes(data))
    return path.as_uri()


def test_32_an_encrypted_member_is_an_error(tmp_path: Path):
    with pytest.raises(BadData, match=r"'Annotations/img_00\.xml' is encrypted; make the zip without a password"):
        load_uri(_patched(tmp_path, 8, 1), tmp_path)


def test_32_an_unknown_compression_is_an_error(tmp_path: Path):
    with pytest.raises(BadData, match=r"'Annotations/img_00.xml' is compressed by method 98; use deflate"):
        load_uri(_patched(tmp_path, 10, 98), tmp_path)


def test_33_zip64_is_read(tmp_path: Path):
    path = tmp_path / "data.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in good().items():
            with archive.open(name, "w", force_zip64=True) as member:
                member.write(data)
    assert len(load_uri(path.as_uri(), tmp_path).records) == 12


def test_a_damaged_member_is_an_error_that_names_it(tmp_path: Path):
    path = zipped(good(), tmp_path / "data.zip")
    data = bytearray(path.read_bytes())
    start = data.find(b"Annotations/img_00.xml") + 40
    data[start : start + 20] = bytes(20)
    path.write_bytes(bytes(data))
    with pytest.raises(BadData, match=r"Annotations/img_00.xml in .*data.zip cannot be unpacked"):
        load_uri(path.as_uri(), tmp_path)


def test_a_folder_is_read_in_place(tmp_path: Path):
    root = tmp_path / "data"
    for name, data in good().items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    dataset = load_uri(f"{root.as_uri()}/", tmp_path)
    assert (len(dataset.records), dataset.labels) == (12, ("cell", "dot"))


def test_several_sources_are_merged_with_prefixed_names(tmp_path: Path):
    first, second = zipped(good(), tmp_path / "a.zip"), zipped(good(labels=("cell", "ring")), tmp_path / "b.zip")
    uris = [first.as_uri(), second.as_uri()]
    sources, _ = fetch(uris, Storage(), tmp_path, max_bytes=1 << 30)
    spec = Dataset.model_validate({"sources": [{"uri": uri} for uri in uris]})
    dataset = voc.load(spec, Task.DETECTION, sources)
    assert {r.name for r in dataset.records} >= {"0/img_00", "1/img_00"}
    assert dataset.labels == ("cell", "dot", "ring")
    messages = [f.message for f in found(dataset, "LabelsDifferBetweenSources")]
    assert len(messages) == 2
    assert "a.zip has no object labelled 'ring'; its objects would count as background there" in messages[0]
    with pytest.raises(BadData, match=r"a.zip has no object labelled 'ring'; dataset.labelPolicy is Identical"):
        voc.load(spec.model_copy(update={"label_policy": LabelPolicy.IDENTICAL}), Task.DETECTION, sources)
