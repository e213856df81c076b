"""`job submit`: manifests into jobs, and what a job would do without running it."""

import math
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from trainyard_api.dataset import Dataset
from trainyard_api.resolve import Attempt, Contradiction, run_spec
from trainyard_api.run import RunSpec
from trainyard_api.trainingjob import TrainingJobSpec
from trainyard_api.trainingservice import TrainingServiceSpec, default_service_name

from trainyard_cli.cluster import APIError, Cluster
from trainyard_cli.errors import CLIError

Object = dict[str, Any]


def read_jobs(files: list[str]) -> list[Object]:
    """The TrainingJobs of the files; `-` is stdin. Raises `CLIError` with file and place."""
    jobs: list[Object] = []
    for file in files:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        try:
            documents = [document for document in yaml.safe_load_all(text) if document]
        except yaml.YAMLError as error:
            raise CLIError(f"{file} is not YAML: {' '.join(str(error).split())}") from error
        for document in documents:
            kind = document.get("kind") if isinstance(document, dict) else None
            if kind != "TrainingJob":
                raise CLIError(
                    f"{file}: kind is {kind}, not TrainingJob; use `kubectl apply -f {file}` for other kinds."
                )
            if not document.get("metadata", {}).get("name"):
                raise CLIError(f"{file}: metadata.name is missing; give the job a name.")
            jobs.append(document)
    if not jobs:
        raise CLIError(f"{', '.join(files)}: no TrainingJob in there.")
    return jobs


def submit(cluster: Cluster, job: Object, dry_run: bool) -> Object:
    """Create the job (or have the API server check it only). Raises `CLIError`."""
    name = job["metadata"]["name"]
    place = job["metadata"].get("namespace")
    if place and place != cluster.namespace:
        raise CLIError(
            f"{name}: the manifest says namespace {place}, not {cluster.namespace}; leave one of the two out."
        )
    query = {"fieldManager": "trainyard", "fieldValidation": "Strict"} | ({"dryRun": "All"} if dry_run else {})
    try:
        return cluster.request("POST", cluster.path("trainingjobs"), query=query, body=job)
    except APIError as error:
        if error.status == 409:
            raise CLIError(
                f"There is a TrainingJob {name} already; run it again with `trainyard job rerun {name}`, or choose "
                "another name."
            ) from error
        raise


def preview(cluster: Cluster, job: Object) -> list[tuple[str, str]]:
    """What the job would do, as (name, value) lines: defaults resolved, steps and epochs where the data is known."""
    name = job["metadata"]["name"]
    try:
        spec = TrainingJobSpec.model_validate(job["spec"])
        service = _service(cluster, spec)
        told = run_spec(spec, service, Attempt(name=name, namespace=cluster.namespace, uid="0" * 32))
    except (Contradiction, ValidationError) as error:
        raise CLIError(f"{name}: {error}") from error
    lines = [
        ("job", f"{cluster.namespace}/{name}"),
        ("architecture", f"{told.architecture} ({told.task})"),
        ("service", spec.service_name or default_service_name(spec.architecture)),
        ("hardware", f"{told.nodes} node(s), {told.gpus} GPU(s) each" if told.gpus else "CPU"),
        ("image size", str(told.dataset.image_size or "the architecture's")),
        ("batch", str(told.training.batch_size or "the architecture's")),
        ("time", f"at most {told.timeout_seconds} s for an execution, {told.drain_seconds} s of it to finish"),
        ("output", f"{told.output_uri.rstrip('/')}/{told.model}/"),
    ]
    return lines + _length(told, _known_images(cluster, spec.dataset))


def _service(cluster: Cluster, spec: TrainingJobSpec) -> TrainingServiceSpec:
    """The service that the job would run on; what the operator would make, when there is none."""
    name = spec.service_name or default_service_name(spec.architecture)
    try:
        return TrainingServiceSpec.model_validate(
            cluster.request("GET", cluster.path("trainingservices", name))["spec"]
        )
    except APIError as error:
        if error.status != 404 or spec.service_name:
            raise
        return TrainingServiceSpec(architecture=spec.architecture)


def _known_images(cluster: Cluster, dataset: Dataset) -> int | None:
    """Training images, when an earlier job of the namespace has looked at exactly this data in this way."""
    for job in cluster.list_jobs():
        found = job.get("status", {}).get("dataset")
        if found and Dataset.model_validate(job["spec"]["dataset"]) == dataset:
            return found.get("trainImages") or None
    return None


def _length(told: RunSpec, images: int | None) -> list[tuple[str, str]]:
    """Steps per epoch, steps and epochs: a batch crosses the end of an epoch, so only the sum is rounded."""
    training, batch = told.training, told.training.batch_size
    if images is None or batch is None:
        length = f"{training.steps} steps" if training.steps else f"{training.planned_epochs} epochs"
        return [
            ("length", length),
            ("steps per epoch", "known once a job has read this data; `trainyard dataset stats` counts it now"),
        ]
    steps = training.steps or math.ceil((training.planned_epochs or 0) * images / batch)
    return [
        ("training images", str(images)),
        ("steps per epoch", f"{images / batch:.1f}"),
        ("steps", str(steps)),
        ("epochs", f"{steps * batch / images:.1f}" if training.steps else str(training.planned_epochs)),
    ]
