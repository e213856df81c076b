"""`startFrom` on this machine: the version that is meant, and what a training would say of continuing it."""

from __future__ import annotations

import io
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainyard_api.architectures import ARCHITECTURES
from trainyard_api.run import RunSpec, Start
from trainyard_api.status import Warning_
from trainyard_api.storage import manifest_uri, version_name, version_uri
from trainyard_api.trainingjob import TrainingJobSpec, Weights

if TYPE_CHECKING:
    from trainyard_trainer.store import Storage
    from trainyard_trainer.survey import Survey
    from trainyard_trainer.versions import Parent


@dataclass(frozen=True)
class Continued:
    """What a training goes on from. `unread` says why it was not looked at; `problem` is the sentence that the training would fail with."""

    name: str
    parent: Parent | None = None
    known_images: int | None = None
    """Images that keep the side they had; None: nothing is known of their sides."""
    warnings: tuple[Warning_, ...] | None = None
    """None: as long as the data has faults, nobody knows."""
    unread: str | None = None
    problem: str | None = None

    @property
    def labels(self) -> tuple[str, ...] | None:
        return self.parent.labels if self.parent else None

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "labels": self.labels,
            "knownImages": self.known_images,
            "warnings": None if self.warnings is None else [warning.to_dict() for warning in self.warnings],
            "notFollowed": self.unread,
            "problem": self.problem,
        }


def version_here(job: TrainingJobSpec, model: str) -> Start | None:
    """The version that `startFrom` names, below the output of this job; None when it names none."""
    wanted = job.start_from
    name = wanted.model_version if wanted.version is None else version_name(model, wanted.version)
    found = re.fullmatch(r"(.+)-v(\d+)", name or "")
    if found is None:
        return None
    uri = manifest_uri(version_uri(job.output.uri, found[1], int(found[2])))
    return Start(weights=Weights.NONE, manifestURI=uri, parent_version=name)


def begin(job: TrainingJobSpec, spec: RunSpec, storage: Storage) -> Continued | None:
    """What is known before the data is read; None when no earlier training is continued."""
    from trainyard_trainer.errors import BadSpec, StorageRefused, StorageUnreachable
    from trainyard_trainer.versions import parent_of

    wanted, start = job.start_from, spec.start
    name = start.parent_version or wanted.uri or wanted.job or wanted.model_version
    if name is None:
        return None
    uri = start.manifest_uri or start.uri
    if uri is None:
        return Continued(name, unread="only a cluster knows where its files are.")
    if spec.architecture not in ARCHITECTURES:
        return Continued(name, unread=f"only the image of {spec.architecture} knows what fits.")
    try:
        if storage.head(uri) is None:
            return Continued(name, unread=f"{uri} does not exist.")
        return Continued(name, parent_of(spec, storage))
    except (StorageRefused, StorageUnreachable) as error:
        return Continued(name, unread=str(error))
    except BadSpec as error:
        return Continued(name, problem=str(error))


def follow(begun: Continued, spec: RunSpec, found: Survey, storage: Storage) -> Continued:
    """Builds the network and fills it as the training would."""
    import torch
    from trainyard_trainer.attempt import check_spec
    from trainyard_trainer.errors import TrainerError
    from trainyard_trainer.report import Reporter
    from trainyard_trainer.start import load_start
    from trainyard_trainer.task import build_task

    if begun.unread or begun.problem or found.problem:
        return begun
    records, labels, parent = found.dataset.records, found.dataset.labels, begun.parent
    sides = parent.sides if parent and found.decoded else None
    known = sum(record.digest in sides for record in records) if sides is not None else None
    reporter = Reporter(spec, out=io.StringIO())
    try:
        task = build_task(spec, labels, records, check_spec(spec))
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            load_start(spec, parent, task, labels, storage, Path(folder), reporter)
    except TrainerError as error:
        return replace(begun, known_images=known, problem=str(error))
    return replace(begun, known_images=known, warnings=reporter.warnings)
