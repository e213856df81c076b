"""The first weights of a training: published ones, another version's, another job's, or a file's."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

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
from trainyard_trainer.versions import Parent


def load_start(
    spec: RunSpec,
    parent: Parent | None,
    task: Task,
    labels: Sequence[str],
    storage: Storage,
    folder: Path,
    reporter: Reporter,
) -> None:
    """Fills the network as `startFrom` says; rows of labels go to the same label, new labels keep their fresh weights.

    What does not fit is made anew and said as a warning. Raises BadSpec when the weights are of something else.
    """
    source = _source(spec, parent, storage, folder)
    if source is None:
        if spec.start.weights is Weights.DEFAULT:
            load_published(spec, task, folder, reporter)
        return
    if source.architecture not in (None, spec.architecture):
        raise BadSpec(
            f"{source.name} is a {source.architecture}, this job trains {spec.architecture}; start from one of the same."
        )
    remade = _adopt(task, source, labels)
    if source.labels and source.labels != tuple(labels):
        reporter.warn("LabelsDifferFromPreviousVersion", _label_difference(source, labels, remade))
    elif remade:
        reporter.warn(
            "HeadRemade",
            f"{source.name} says nothing of its labels, or has another number of them: {_anew(remade)}, all other weights are kept.",
        )
    if _refitted(task, source):
        reporter.warn(
            "AnchorsFittedAnew",
            f"{source.name} has anchors for other objects or another size of the input; here they are fitted to those of this training.",
        )


@dataclass(frozen=True)
class _Source:
    """Weights of an earlier training. `labels` are empty, `architecture` is None where it does not say."""

    name: str
    tensors: Mapping[str, Tensor]
    labels: tuple[str, ...] = ()
    architecture: str | None = None


def _source(spec: RunSpec, parent: Parent | None, storage: Storage, folder: Path) -> _Source | None:
    """None: from published weights, or from scratch."""
    start = spec.start
    if parent is not None:
        file = parent.version.file("model.safetensors")
        weights = _safetensors(storage, parent.version.folder + file["path"], file["sha256"], folder)
        return replace(weights, name=start.parent_version or parent.version.name, labels=parent.labels)
    if start.attempt_uris:
        saved = checkpoint.newest(storage, start.attempt_uris)
        if saved is None:
            raise BadSpec("the job in startFrom has no checkpoint on storage; start from one that has trained.")
        packed = checkpoint.load(storage, saved, folder, None, None)
        best = packed["best"]
        weights = best["weights"] if best else {**packed["network"], **packed["average"]}
        return _Source(saved.uri, weights, tuple(packed.get("labels", ())), packed.get("architecture"))
    if start.uri is not None:
        return _safetensors(storage, start.uri, start.sha256, folder)
    return None


def _anew(remade: Sequence[str]) -> str:
    return f"{len(remade)} tensors of the head start anew"


def _label_difference(source: _Source, labels: Sequence[str], remade: Sequence[str]) -> str:
    """What became of each label."""
    new = [label for label in labels if label not in source.labels]
    gone = [label for label in source.labels if label not in labels]
    told = [f"{source.name} had {', '.join(source.labels)}; now they are {', '.join(labels)}"]
    if remade:
        told.append(f"{_anew(remade)}, as nothing says which of their rows are which label's")
    elif new:
        told.append(f"{', '.join(new)} {'starts' if len(new) == 1 else 'start'} anew")
    if gone:
        told.append(f"{', '.join(gone)} {'is' if len(gone) == 1 else 'are'} forgotten")
    return "; ".join([*told, "all other weights are kept."])


def _safetensors(storage: Storage, uri: str, sha256: str | None, folder: Path) -> _Source:
    from safetensors import SafetensorError, safe_open

    path = folder / "start.safetensors"
    storage.download(uri, path)
    found = sha256_of(path)
    if sha256 is not None and found != sha256:
        raise StorageRefused(f"{uri} has sha256 {found}, not {sha256}; name the file that is meant.")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 it is no dict
            about = json.loads((file.metadata() or {}).get("trainyard", "{}"))
    except (SafetensorError, ValueError) as error:
        raise BadSpec(f"{uri} is no safetensors file: {error}") from error
    path.unlink()
    return _Source(uri, tensors, tuple(about.get("labels", ())), about.get("architecture"))


@torch.no_grad()
def _adopt(task: Task, source: _Source, mine: Sequence[str]) -> list[str]:
    """Copies what fits; with other labels row by row. Returns the tensors of labels that start anew. BadSpec when hardly anything fits."""
    state, rows = task.network.state_dict(), task.label_rows
    others = source.labels not in ((), tuple(mine))
    taken, remade = 0, []
    for name, tensor in state.items():
        theirs = source.tensors.get(name)
        if theirs is None or name in task.fitted_tensors:
            continue
        if name in rows and others:
            fits = _adopt_rows(tensor, theirs, rows[name], source.labels, mine)
        elif fits := theirs.shape == tensor.shape:
            tensor.copy_(theirs)
        if name in rows and not fits:
            remade.append(name)
        taken += fits or name in rows
    asked = len(state) - len(task.fitted_tensors)
    if taken < 0.9 * asked:
        raise BadSpec(
            f"only {taken} of {asked} tensors of {source.name} fit this architecture; name weights of the same one in startFrom."
        )
    return remade


def _refitted(task: Task, source: _Source) -> bool:
    """Whether the source was fitted to something else than this training."""
    state = task.network.state_dict()
    return any(
        name in source.tensors and not torch.equal(source.tensors[name].float(), state[name].float())
        for name in task.fitted_tensors
    )


def _adopt_rows(
    tensor: Tensor, source: Tensor, rows: LabelRows | None, theirs: Sequence[str], mine: Sequence[str]
) -> bool:
    """Rows of a label go to the same label, rows of no label stay where they are. False: nothing could be taken."""
    if rows is None or source.shape != (rows.groups * (rows.before + len(theirs)), *tensor.shape[1:]):
        return False
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
    return True
