"""ModelVersion: one trained model in a team's library. Made by the operator, never by hand."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from trainyard_api.architectures import Task
from trainyard_api.base import Model, ModelName, says_nothing
from trainyard_api.status import Artifact, Condition, Scores, Text, Word


class VersionState(StrEnum):
    TRAINING = "Training"
    STOPPED = "Stopped"
    READY = "Ready"
    FAILED = "Failed"


class ModelVersionSpec(Model):
    """What the version is of; fixed when its run starts."""

    model: ModelName = Field(description="The series of versions.")
    version: Annotated[int, Field(ge=1, le=1_000_000)] = Field(description="Its number.")
    job_name: Word = Field(description="The TrainingJob that makes it.")
    job_uid: Word = Field(alias="jobUID", description="Uid of that job.")
    run: Annotated[int, Field(ge=0, le=9999)] = Field(default=0, description="Its rerun.")
    architecture: Word = Field(description="Architecture.")
    task: Task = Field(description="Detection, Classification or Tagging.")
    version_name: Annotated[str, Field(max_length=128)] | None = Field(default=None, description="A name for people.")
    description: Annotated[str, Field(max_length=4096)] | None = Field(default=None, description="What it is about.")
    parent_version: Word | None = Field(default=None, description="The ModelVersion it continues.")
    uri: Annotated[str, Field(max_length=2048)] = Field(description="Folder of the version.")


class ModelVersionStatus(Model):
    """What the operator knows of the version."""

    schema_defaults = False

    state: VersionState = Field(default=VersionState.TRAINING, description="Training, Stopped, Ready or Failed.")
    observed_generation: int = Field(
        default=-1, ge=-1, description="Generation of the spec that the operator has seen; -1: none yet."
    )
    reason: Word | None = Field(default=None, description="Why, as one word.")
    message: Text | None = Field(default=None, description="Why, as a sentence.")
    metric: Word | None = Field(default=None, description="mAP50 0.871, for the printer column.")
    labels: Annotated[tuple[Annotated[str, Field(max_length=128)], ...], Field(max_length=1000)] = Field(
        default=(), exclude_if=says_nothing, description="What its score columns mean."
    )
    validation: Scores | None = Field(default=None, description="Scores on the validation images.")
    test: Scores | None = Field(default=None, description="Scores on the test images.")
    dataset_digest: Annotated[str, Field(max_length=128)] | None = Field(
        default=None, description="The data it learned from."
    )
    split_uri: Annotated[str, Field(max_length=2048)] | None = Field(
        default=None, alias="splitURI", description="Which image was on which side."
    )
    artifacts: Annotated[tuple[Artifact, ...], Field(max_length=32)] = Field(
        default=(), exclude_if=says_nothing, description="Its files."
    )
    manifest_uri: Annotated[str, Field(max_length=2048)] | None = Field(
        default=None, alias="manifestURI", description="Names every file with size and checksum."
    )
    published_time: datetime | None = Field(default=None, description="When it became Ready.")
    published_uri: Annotated[str, Field(max_length=2048)] | None = Field(
        default=None, alias="publishedURI", description="Where it was copied to."
    )
    conditions: Annotated[tuple[Condition, ...], Field(max_length=8)] = Field(
        default=(),
        description="Ready.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )


class ModelVersion(Model):
    """One trained model in a team's library."""

    spec: ModelVersionSpec
    status: ModelVersionStatus | None = None
