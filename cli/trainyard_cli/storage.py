"""The storage of a job or a version, as this user may reach it, and the folders of a run there.

Credentials are those of the environment (`AWS_…`), as for every other tool; where it has none, those of the Secret that the job
names, if the user may read it.
"""

from __future__ import annotations

import base64
import os
from typing import TYPE_CHECKING, Any

from trainyard_cli.errors import CLIError

if TYPE_CHECKING:
    from trainyard_trainer.store import Storage

Object = dict[str, Any]
PATIENCE = 15.0
OF_THE_ENVIRONMENT = ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_WEB_IDENTITY_TOKEN_FILE", "AWS_SHARED_CREDENTIALS_FILE")


def storage_of(cluster: Any, job: Object) -> Storage:
    """The storage of a job's output."""
    from trainyard_trainer.store import CREDENTIAL_NAMES, Storage

    names = _secrets(cluster, job)
    if _has_environment() or not job["spec"]["output"]["uri"].startswith("s3://") or not names:
        return here()
    secret = _secret(cluster, names[0])
    found = {name: base64.b64decode(text).decode().strip() for name, text in secret.items() if name in CREDENTIAL_NAMES}
    if not found:
        return here()
    return Storage(found, source=f"the Secret {names[0]}", patience=PATIENCE)


def here() -> Storage:
    """Storage with what this machine has: files, and S3 with the environment's credentials."""
    from trainyard_trainer.store import Storage

    return Storage(None, patience=PATIENCE)


def run_folder(job: Object, run: int) -> str:
    """Address of a run's folder; ends in a slash."""
    from trainyard_api.storage import run_uri

    spec, metadata = job["spec"], job["metadata"]
    return run_uri(spec["output"]["uri"], spec.get("model", metadata["name"]), metadata["name"], metadata["uid"], run)


def attempt_folders(job: Object, run: int) -> dict[int, str]:
    """Number to folder of the attempts of a run that the ledger has, in order."""
    from trainyard_api.storage import attempt_uri

    folder = run_folder(job, run)
    ledger = job.get("status", {}).get("attempts", [])
    numbers = sorted({entry["number"] for entry in ledger if entry.get("run", 0) == run})
    return {number: attempt_uri(folder, number) for number in numbers}


def current_run(job: Object) -> int:
    return job.get("status", {}).get("run") or 0


def _secrets(cluster: Any, job: Object) -> list[str]:
    """Names of the Secrets that the trainer takes for its output, first one first."""
    spec = job["spec"]
    if name := spec["output"].get("secretName"):
        return [name]
    service = job.get("status", {}).get("serviceName") or spec.get("serviceName")
    names: list[str] = []
    if service:
        from trainyard_cli.cluster import APIError

        try:
            names = cluster.get("trainingservices", service)["spec"].get("secretNames") or []
        except APIError as error:
            if error.status not in (403, 404):
                raise
    names = [*names, *((spec.get("resources") or {}).get("secretNames") or [])]
    own = spec["dataset"].get("secretName")
    return names or ([own] if own else [])


def _secret(cluster: Any, name: str) -> dict[str, str]:
    from trainyard_cli.cluster import APIError

    try:
        return cluster.request("GET", f"/api/v1/namespaces/{cluster.namespace}/secrets/{name}").get("data") or {}
    except APIError as error:
        if error.status in (403, 404):
            raise CLIError(
                f"No credentials for storage: the environment has none, and the Secret {name} cannot be read ({error})."
                " Set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, unless it is AWS, AWS_ENDPOINT_URL."
            ) from error
        raise


def _has_environment() -> bool:
    return any(os.environ.get(name) for name in OF_THE_ENVIRONMENT)
