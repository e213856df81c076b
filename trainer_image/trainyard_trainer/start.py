"""The first weights of a training: published ones, another version's, another job's, or a file's."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from trainyard_api.run import RunSpec
from trainyard_api.trainingjob import Weights

from trainyard_trainer import checkpoint
from trainyard_trainer.checkpoint import sha256_of
from trainyard_trainer.errors import BadSpec, StorageRefused
from trainyard_trainer.published import load_published
from trainyard_trainer.report import Reporter
from trainyard_trainer.store import Storage
from trainyard_trainer.task import LabelRows, Task


@dataclass(frozen=True)
class Parent:
    """The version that a training continues: its manifest, and the text of its dataset.json when it has one."""

    manifest: dict[str, Any]
    dataset: bytes | None

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.manifest["labels"])


def parent_of(spec: RunSpec, storage: Storage) -> Parent | None:
    """What has to be known of the version before the data is read. None when no version is continued."""
    uri = spec.start.manifest_uri
    if uri is None:
        return None
    manifest = json.loads(storage.get_bytes(uri))
    if manifest["architecture"] != spec.architecture:
        raise BadSpec(
            f"{uri} is a {manifest['architecture']}, this job trains {spec.architecture}; name a version of the same."
        )
    dataset = _file(manifest, uri, "dataset.json")
    return Parent(manifest, storage.get_bytes(dataset[0]) if dataset else None)


def load_start(
    spec: RunSpec,
    parent: Parent | None,
    task: Task,
    labels: Sequence[str],
    storage: Storage,
    folder: Path,
    reporter: Reporter,
) -> None:
    """Fills the network as `startFrom` says; rows of labels go to the same label, new labels keep their fresh weights."""
    start = spec.start
    if parent is not None:
        assert start.manifest_uri is not None
        file = _file(parent.manifest, start.manifest_uri, "model.safetensors")
        if file is None:
            raise BadSpec(f"{start.manifest_uri} names no model.safetensors; start from another version.")
        _adopt(task, _safetensors(storage, *file, folder), parent.labels, labels)
        if tuple(labels[: len(parent.labels)]) != parent.labels or len(labels) != len(parent.labels):
            reporter.warn(
                "LabelsDifferFromPreviousVersion",
                f"the version had {', '.join(parent.labels)}; now they are {', '.join(labels)}.",
            )
    elif start.attempt_uris:
        saved = checkpoint.newest(storage, start.attempt_uris)
        if saved is None:
            raise BadSpec("the job in startFrom has no checkpoint on storage; start from one that has trained.")
        packed = checkpoint.load(storage, saved, folder, None, None)
        best = packed["best"]
        _adopt(task, best["weights"] if best else {**packed["network"], **packed["average"]}, (), labels)
    elif start.uri is not None:
        _adopt(task, _safetensors(storage, start.uri, start.sha256, folder), (), labels)
    elif start.weights is Weights.DEFAULT:
        load_published(spec, task, folder, reporter)


def _file(manifest: dict[str, Any], uri: str, name: str) -> tuple[str, str] | None:
    """Address and sha256 of a file that a manifest names."""
    for file in manifest["files"]:
        if file["name"] == name:
            return uri.rsplit("/", 1)[0] + "/" + file["path"], file["sha256"]
    return None


def _safetensors(storage: Storage, uri: str, sha256: str | None, folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / "start.safetensors"
    storage.download(uri, path)
    found = sha256_of(path)
    if sha256 is not None and found != sha256:
        raise StorageRefused(f"{uri} has sha256 {found}, not {sha256}; name the file that is meant.")
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise BadSpec(f"{uri} is no safetensors file: {error}") from error
    path.unlink()
    return tensors


@torch.no_grad()
def _adopt(task: Task, tensors: dict[str, Tensor], theirs: Sequence[str], mine: Sequence[str]) -> None:
    """Copies what fits; a tensor of labels row by row. Raises BadSpec when hardly anything fits."""
    state = task.network.state_dict()
    taken = 0
    for name, tensor in state.items():
        source = tensors.get(name)
        if source is None:
            continue
        rows = task.label_rows.get(name)
        if rows is not None and (theirs or source.shape != tensor.shape):
            if source.shape[1:] == tensor.shape[1:]:
                _adopt_rows(tensor, source, rows, theirs, mine)
            taken += 1
        elif source.shape == tensor.shape:
            tensor.copy_(source)
            taken += 1
    if taken < 0.9 * len(state):
        raise BadSpec(
            f"only {taken} of {len(state)} tensors of the weights in startFrom fit this architecture; name weights of the same one."
        )


def _adopt_rows(tensor: Tensor, source: Tensor, rows: LabelRows, theirs: Sequence[str], mine: Sequence[str]) -> None:
    """Rows of a label go to the same label, rows of no label stay where they are."""
    if len(source) != rows.groups * (rows.before + len(theirs)):
        return
    for group in range(rows.groups):
        for row in range(rows.before):
            tensor[rows.row(group, row - rows.before, len(mine))] = source[
                rows.row(group, row - rows.before, len(theirs))
            ]
        for number, label in enumerate(theirs):
            if label in mine:
                tensor[rows.row(group, list(mine).index(label), len(mine))] = source[
                    rows.row(group, number, len(theirs))
                ]
