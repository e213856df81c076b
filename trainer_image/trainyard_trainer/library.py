"""A finished version as a thing to use: its manifest, its files checked by sha256, and copies of it under plain names. No torch."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainyard_trainer.errors import BadSpec, StorageRefused
from trainyard_trainer.store import Storage

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Version:
    """What a manifest says, and the folder (ends in a slash) that the paths of its files are below."""

    manifest: Mapping[str, Any]
    folder: str

    @property
    def name(self) -> str:
        return str(self.manifest["name"])

    def file(self, name: str) -> Mapping[str, Any]:
        """The entry of a file. Raises BadSpec with what there is."""
        entry = self.find(name)
        if entry is None:
            there = ", ".join(entry["name"] for entry in self.manifest["files"])
            raise BadSpec(f"{self.name} has no {name}; it has {there}.")
        return entry

    def find(self, name: str) -> Mapping[str, Any] | None:
        """The entry of a file that not every version has."""
        return next((entry for entry in self.manifest["files"] if entry["name"] == name), None)


def open_version(storage: Storage, uri: str) -> Version:
    """The version whose manifest, or whose folder, is at `uri`. Raises BadSpec where there is none, or something else."""
    manifest = uri if uri.endswith(".json") else f"{uri.rstrip('/')}/{MANIFEST}"
    if storage.head(manifest) is None:
        raise BadSpec(
            f"there is no version at {uri}: {manifest} does not exist; a version that is not complete has none."
        )
    try:
        told = json.loads(storage.get_bytes(manifest))
        known = {"name", "labels", "files", "task"} <= told.keys()
    except (ValueError, AttributeError):
        known = False
    if not known:
        raise BadSpec(f"{manifest} is not the manifest of a model version.")
    return Version(told, manifest.rsplit("/", 1)[0] + "/")


def fetch(storage: Storage, version: Version, name: str, cache: Path) -> Path:
    """A file of the version on this machine, below `cache` by its checksum; what is there already is not fetched again.

    Raises StorageRefused when it is not what the manifest says.
    """
    entry = version.file(name)
    path = cache / entry["sha256"] / name
    if path.exists() and path.stat().st_size == entry["size"]:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    uri = version.folder + entry["path"]
    storage.download(uri, path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != entry["sha256"]:
        path.unlink()
        raise StorageRefused(f"{uri} is not what the manifest of {version.name} says (sha256 differs).")
    return path


def copy(version: Version, source: Storage, target: Storage, uri: str, local: Path | None = None) -> list[str]:
    """Copies the version's files to `uri` under their plain names, the manifest last; returns the addresses.

    `local` is a folder that has the files already. The copy is a version itself: `open_version` reads it.
    """
    folder = uri.rstrip("/") + "/"
    written = []
    with tempfile.TemporaryDirectory(prefix="trainyard-") as temporary:
        for entry in version.manifest["files"]:
            path = local / entry["name"] if local else fetch(source, version, entry["name"], Path(temporary))
            target.upload(path, folder + entry["name"])
            written.append(folder + entry["name"])
    plain = [{**entry, "path": entry["name"]} for entry in version.manifest["files"]]
    text = json.dumps({**version.manifest, "files": plain}, ensure_ascii=False, indent=1)
    target.put_bytes(folder + MANIFEST, text.encode())
    return [*written, folder + MANIFEST]
