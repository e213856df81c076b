"""Versions on storage: whether this run's is there already, what it continues, and a manifest as the result of an attempt. No torch."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainyard_api.report import ExitCode, Outcome, Result
from trainyard_api.run import RunSpec
from trainyard_api.status import Artifact, Scores
from trainyard_api.storage import manifest_uri

from trainyard_trainer import library, split
from trainyard_trainer.errors import BadSpec, StorageRefused, VersionTaken
from trainyard_trainer.report import Reporter
from trainyard_trainer.store import Storage


@dataclass(frozen=True)
class Parent:
    """The version that a training continues, and the text of its dataset.json when it has one."""

    version: library.Version
    dataset: bytes | None

    @property
    def labels(self) -> tuple[str, ...]:
        return tuple(self.version.manifest["labels"])

    @property
    def sides(self) -> split.Known | None:
        """Where it had its images."""
        return split.known_from_json(self.dataset) if self.dataset is not None else None


def parent_of(spec: RunSpec, storage: Storage) -> Parent | None:
    """What has to be known of the version before the data is read. None when no version is continued."""
    uri = spec.start.manifest_uri
    if uri is None:
        return None
    version = library.open_version(storage, uri)
    architecture = version.manifest.get("architecture")
    if architecture != spec.architecture:
        raise BadSpec(f"{uri} is a {architecture}, this job trains {spec.architecture}; name a version of the same.")
    recorded = version.find("dataset.json")
    return Parent(version, storage.get_bytes(version.folder + recorded["path"]) if recorded else None)


def published_before(spec: RunSpec, storage: Storage) -> Result | None:
    """The result of this run when an earlier attempt has published it and was lost before it could say so.

    Raises VersionTaken when the version is another run's, with the highest one there.
    """
    uri = manifest_uri(spec.version_uri)
    if storage.head(uri) is None:
        return None
    manifest = json.loads(storage.get_bytes(uri))
    if (manifest.get("job"), manifest.get("uid"), manifest.get("run")) == (spec.job, spec.uid, spec.run):
        return result_of(manifest, uri)
    highest = highest_version(spec, storage)
    raise VersionTaken(
        f"storage already has version {spec.version} of {spec.model}, made by {manifest.get('job')}; the highest is {highest}.",
        highest=highest,
    )


def publish_copy(spec: RunSpec, storage: Storage, reporter: Reporter, local: Path | None = None) -> None:
    """Copies this run's version to `output.publishURI` under plain names, where that is asked for; again, if it was done before.

    Only the attempt whose manifest stands does so, or one that finds it standing. A storage that refuses is a warning: the version
    is complete without the copy.
    """
    if spec.publish_uri is None:
        return
    version = library.open_version(storage, manifest_uri(spec.version_uri))
    try:
        library.copy(version, storage, storage, spec.publish_uri, local)
    except StorageRefused as error:
        reporter.warn(
            "NotPublished",
            f"{version.name} is complete, but could not be copied to {spec.publish_uri}: {error} Then"
            f" `trainyard model publish {version.name} {spec.publish_uri}` copies it.",
        )


def highest_version(spec: RunSpec, storage: Storage) -> int:
    """The highest version of the model that has a manifest."""
    folder = spec.version_uri.rstrip("/").rsplit("/", 1)[0] + "/"
    return max(published_versions(storage, folder), default=spec.version)


def published_versions(storage: Storage, model_folder: str) -> dict[int, str]:
    """Number to address of the manifest, of every version below a model's folder (which ends in `/`)."""
    # Objects are listed by prefix, which leaves the runs out; files by folder.
    prefix = f"{model_folder}v" if model_folder.startswith("s3://") else model_folder
    pattern = re.compile(re.escape(model_folder) + r"v(\d+)/manifest\.json$")
    return {int(match[1]): entry.uri for entry in storage.list(prefix) if (match := pattern.match(entry.uri))}


def result_of(manifest: dict[str, Any], uri: str) -> Result:
    """The completion record that a manifest stands for."""
    folder = uri.rsplit("/", 1)[0] + "/"
    files = manifest["files"]
    return Result(
        exit_code=ExitCode.DONE,
        reason=manifest.get("outcome", Outcome.COMPLETED.value),
        message=manifest.get("message", ""),
        step=manifest.get("step"),
        steps=manifest.get("steps"),
        training_seconds=manifest.get("trainingSeconds", 0),
        version=manifest["version"],
        manifestURI=uri,
        metrics=Scores.model_validate(manifest["validation"]) if manifest.get("validation") else None,
        test=Scores.model_validate(manifest["test"]) if manifest.get("test") else None,
        artifacts=tuple(
            Artifact(name=f["name"], uri=folder + f["path"], size=f["size"], sha256=f["sha256"]) for f in files
        ),
        dataset_digest=manifest.get("datasetDigest"),
        labels=tuple(manifest["labels"]),
    )
