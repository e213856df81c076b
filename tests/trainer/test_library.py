"""Versions as things to use: fetched by checksum, copied under plain names, and what is no version is refused in a sentence."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from trainyard_api.run import RunSpec
from trainyard_trainer import library
from trainyard_trainer.errors import BadSpec, StorageRefused
from trainyard_trainer.report import Reporter
from trainyard_trainer.store import Storage
from trainyard_trainer.versions import publish_copy

from tests.trainer.runs import run_spec

FILES = {"model.onnx": b"graph", "labels.txt": b"a\nb\n"}


def write_version(folder: Path, **changes: Any) -> str:
    """A version whose files are in the folder of attempt 2; returns the address of its manifest."""
    (folder / "a2").mkdir(parents=True)
    files = []
    for name, data in FILES.items():
        (folder / "a2" / name).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        files.append({"name": name, "path": f"a2/{name}", "size": len(data), "sha256": digest})
    told = {"name": "cells-v1", "task": "Detection", "labels": ["a", "b"], "files": files, **changes}
    (folder / "manifest.json").write_text(json.dumps(told))
    return (folder / "manifest.json").as_uri()


@pytest.fixture
def version(tmp_path: Path) -> library.Version:
    return library.open_version(Storage(), write_version(tmp_path / "v1"))


def test_a_version_is_found_by_its_folder_as_by_its_manifest(version: library.Version, tmp_path: Path) -> None:
    assert library.open_version(Storage(), (tmp_path / "v1").as_uri()) == version
    assert library.open_version(Storage(), (tmp_path / "v1").as_uri() + "/") == version


def test_a_file_is_fetched_once_and_is_what_the_manifest_says(version: library.Version, tmp_path: Path) -> None:
    path = library.fetch(Storage(), version, "model.onnx", tmp_path / "cache")
    assert path.read_bytes() == b"graph"
    (tmp_path / "v1/a2/model.onnx").unlink()
    assert library.fetch(Storage(), version, "model.onnx", tmp_path / "cache") == path
    (tmp_path / "v1/a2/labels.txt").write_bytes(b"b\na\n")
    with pytest.raises(StorageRefused, match="sha256 differs"):
        library.fetch(Storage(), version, "labels.txt", tmp_path / "cache")
    with pytest.raises(BadSpec, match=r"has no model\.pt; it has model\.onnx, labels\.txt"):
        library.fetch(Storage(), version, "model.pt", tmp_path / "cache")


def test_a_copy_has_plain_names_and_is_a_version_itself(version: library.Version, tmp_path: Path) -> None:
    target = tmp_path / "published"
    written = library.copy(version, Storage(), Storage(), target.as_uri())
    assert sorted(path.name for path in target.iterdir()) == ["labels.txt", "manifest.json", "model.onnx"]
    assert written[-1].endswith("manifest.json"), "last, so that whoever sees it finds all of it"
    again = library.open_version(Storage(), target.as_uri())
    assert library.fetch(Storage(), again, "labels.txt", tmp_path / "cache").read_bytes() == FILES["labels.txt"]


@pytest.mark.parametrize("text", ["", "[]", "{}", "no json", '{"name": "x"}'])
def test_what_is_no_manifest_is_said_to_be_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(BadSpec, match="not the manifest"):
        library.open_version(Storage(), tmp_path.as_uri())
    with pytest.raises(BadSpec, match="there is no version"):
        library.open_version(Storage(), (tmp_path / "elsewhere").as_uri())


def spec_of_version(tmp_path: Path, publish_uri: str) -> RunSpec:
    spec = run_spec(tmp_path, tmp_path / "none.zip", publishURI=publish_uri)
    write_version(Path(spec.version_uri.removeprefix("file://")), job=spec.job, uid=spec.uid, run=spec.run)
    return spec


def test_an_attempt_that_finds_its_version_standing_copies_it_where_it_was_asked_to(tmp_path: Path) -> None:
    spec = spec_of_version(tmp_path, (tmp_path / "live").as_uri() + "/")
    publish_copy(spec, Storage(), Reporter(spec))
    assert (tmp_path / "live/model.onnx").read_bytes() == b"graph"


def test_a_place_that_refuses_the_copy_is_a_warning_that_says_how_to_repeat_it(tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file, no folder")
    spec = spec_of_version(tmp_path, (tmp_path / "occupied").as_uri())
    reporter = Reporter(spec)
    publish_copy(spec, Storage(), reporter)
    assert [warning.reason for warning in reporter.warnings] == ["NotPublished"]
    assert f"trainyard model publish cells-v1 {spec.publish_uri}" in reporter.warnings[0].message
