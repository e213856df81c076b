"""Which version is meant: the name of a ModelVersion in the cluster, or the address of a version's folder or manifest, here or on S3."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainyard_cli.errors import CLIError
from trainyard_cli.storage import here, storage_of

if TYPE_CHECKING:
    from trainyard_trainer.library import Version
    from trainyard_trainer.store import Storage

Object = dict[str, Any]
Connect = Callable[[], Any]
"""Makes the connection to the cluster; called only when a name has to be looked up there."""


@dataclass(frozen=True)
class Found:
    """A version and the storage that it can be read from."""

    version: Version
    storage: Storage

    def fetch(self, name: str) -> Path:
        """A file of it on this machine, kept by its checksum."""
        from trainyard_trainer.library import fetch

        return fetch(self.storage, self.version, name, cache())

    def json(self, name: str) -> Any:
        """A file of it, read as JSON."""
        import json

        return json.loads(self.fetch(name).read_bytes())


def find(reference: str, connect: Connect) -> Found:
    """The version that a person named. Raises CLIError when it is not finished."""
    from trainyard_trainer.library import open_version

    from trainyard_cli.run import address

    if "/" in reference or Path(reference).exists():
        storage = here()
        return Found(open_version(storage, address(reference)), storage)
    cluster = connect()
    model = cluster.get("modelversions", reference)
    status = model.get("status", {})
    if not status.get("manifestURI"):
        why = f": {status['message']}" if status.get("message") else ""
        raise CLIError(f"{reference} is {status.get('state', 'Training')}, it has no files yet{why}.")
    storage = _storage(cluster, model)
    return Found(open_version(storage, status["manifestURI"]), storage)


def cache() -> Path:
    """Where files of versions are kept on this machine."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trainyard" / "versions"


def _storage(cluster: Any, model: Object) -> Storage:
    """The storage that its job wrote to; a version outlives its job, then the environment's credentials have to do."""
    from trainyard_cli.cluster import APIError

    try:
        return storage_of(cluster, cluster.get_job(model["spec"]["jobName"]))
    except APIError as error:
        if error.status != 404:
            raise
        return here()
