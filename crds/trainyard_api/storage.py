"""The layout on storage: plain string functions, so that operator, trainer and CLI name the same places."""


def run_uri(output_uri: str, model: str, job: str, uid: str, run: int) -> str:
    """Folder of one run; ends in `/`. The first 8 digits of the uid keep a job that was deleted and made again apart."""
    return f"{output_uri.rstrip('/')}/{model}/runs/{job}-{uid[:8]}-r{run}/"


def attempt_uri(run_folder: str, attempt: int) -> str:
    """Folder of one attempt, the only one below its run that it writes to; ends in `/`."""
    return f"{run_folder}attempts/{attempt}/"


def version_uri(output_uri: str, model: str, version: int) -> str:
    """Folder of a version; ends in `/`. It is complete when `manifest.json` is there."""
    return f"{output_uri.rstrip('/')}/{model}/v{version}/"


def manifest_uri(version_folder: str) -> str:
    return f"{version_folder}manifest.json"


def version_name(model: str, version: int) -> str:
    """Name of the ModelVersion."""
    return f"{model}-v{version}"


def attempt_job_name(job: str, run: int, attempt: int) -> str:
    """Name of the batch/v1 Job of an attempt: deterministic, so that creating it twice is harmless."""
    return f"{job}-r{run}-a{attempt}"
