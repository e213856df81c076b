"""TrainingJob: one training, from data to a model version."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from trainyard_api.architectures import ArchitectureName, Task
from trainyard_api.base import DNSLabel, DNSSubdomain, Model, ModelName, StorageURI, matching, says_nothing
from trainyard_api.dataset import Dataset
from trainyard_api.execution import Policy, Resources
from trainyard_api.status import Artifact, Condition, DatasetSummary, Metrics, Scores, Text, Warning_, Word
from trainyard_api.training import Augmentation, Evaluation, Training


class Weights(StrEnum):
    DEFAULT = "Default"
    NONE = "None"


_SHA256 = "^[0-9a-f]{64}$"
Sha256 = Annotated[
    str,
    Field(
        max_length=64,
        pattern=_SHA256,
        json_schema_extra=matching(_SHA256, "write the 64 hexadecimal digits that sha256sum prints, in lower case"),
    ),
]


class StartFrom(Model):
    """Where the first weights come from; exactly one way."""

    schema_defaults = False

    weights: Weights | None = Field(
        default=None,
        description="Default: the architecture's published weights where they are available, else from scratch with a warning; None: from scratch.",
    )
    version: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None, description="A version of the same model."
    )
    model_version: DNSLabel | None = Field(default=None, description="A ModelVersion of this namespace, by name.")
    job: DNSLabel | None = Field(
        default=None, description="The last checkpoint of another, stopped job of this namespace."
    )
    uri: StorageURI | None = Field(default=None, description="A weights file (.safetensors) by address; needs sha256.")
    sha256: Sha256 | None = Field(default=None, description="Checksum of the file at uri.")


class Output(Model):
    uri: StorageURI = Field(description="Where runs and versions go: <uri>/<model>/….")
    secret_name: DNSSubdomain | None = Field(
        default=None, description="Secret with the credentials for it; default: the service's, else the dataset's."
    )
    publish_uri: StorageURI | None = Field(
        default=None, alias="publishURI", description="A finished version is copied there under plain names."
    )


class End(StrEnum):
    FINISH = "Finish"
    ABORT = "Abort"


class TrainingJobSpec(Model):
    architecture: ArchitectureName = Field(
        description="A name of the catalogue (trainyard architectures), or private/<name> of a service that brings its own image."
    )
    task: Task | None = Field(
        default=None, description="Detection, Classification or Tagging; default: the architecture's."
    )
    service_name: DNSLabel | None = Field(
        default=None,
        description="The TrainingService to run on; default mgmt-train-<architecture>, made when it is missing.",
    )
    model: ModelName | None = Field(
        default=None, description="The series of versions this job adds to; default: the job's name."
    )
    version_name: Annotated[str, Field(max_length=128)] | None = Field(
        default=None, description="A name for the version, free text."
    )
    description: Annotated[str, Field(max_length=4096)] | None = Field(
        default=None, description="What this training is about, free text; goes to the version too."
    )
    dataset: Dataset = Field(description="The data to learn from.")
    start_from: StartFrom = Field(
        default_factory=lambda: StartFrom(weights=Weights.DEFAULT), description="Where the first weights come from."
    )
    training: Training = Field(default_factory=Training, description="How it is trained.")
    augmentation: Augmentation = Field(default_factory=Augmentation, description="How training images are varied.")
    evaluation: Evaluation = Field(default_factory=Evaluation, description="What counts as a prediction.")
    resources: Resources = Field(
        default_factory=Resources, description="Overrides of the service's instance; such a job starts cold."
    )
    policy: Policy = Field(
        default_factory=Policy, description="Overrides of the service's execution, and the priority."
    )
    output: Output = Field(description="Where runs and versions go.")
    suspend: bool = Field(
        default=False, description="true stops the job gracefully; back to false resumes it from its checkpoint."
    )
    end: End | None = Field(
        default=None,
        description="Finish: publish the best model so far, now; Abort: end at once, nothing is published.",
    )
    rerun: Annotated[int, Field(ge=0, le=9999)] = Field(
        default=0, description="Above status.run, a finished job is run again."
    )
    ttl_seconds_after_finished: Annotated[int, Field(ge=0, le=315_360_000)] | None = Field(
        default=None, description="The job is deleted this long after its end; its versions stay."
    )


class JobState(StrEnum):
    CREATED = "Created"
    QUEUED = "Queued"
    TRY_AGAIN_LATER = "TryAgainLater"
    PREPARING = "Preparing"
    RUNNING = "Running"
    RERUN = "Rerun"
    STOP_REQUESTED = "StopRequested"
    STOPPING = "Stopping"
    STOPPED = "Stopped"
    CANCELED = "Canceled"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    ABORTED = "Aborted"
    UNSPECIFIED = "Unspecified"


class Cause(StrEnum):
    """Why an attempt ended."""

    COMPLETED = "Completed"
    ERROR = "Error"
    OUT_OF_MEMORY = "OutOfMemory"
    DISRUPTED = "Disrupted"
    INTERRUPTED = "Interrupted"
    TIMED_OUT = "TimedOut"
    STALLED = "Stalled"
    START_TIMED_OUT = "StartTimedOut"
    STOPPED = "Stopped"
    ABORTED = "Aborted"
    LOST = "Lost"
    INVALID_SPEC = "InvalidSpec"
    INVALID_DATA = "InvalidData"
    STORAGE_DENIED = "StorageDenied"
    STORAGE_UNREACHABLE = "StorageUnreachable"
    DISK_FULL = "DiskFull"
    VERSION_TAKEN = "VersionTaken"
    START_FAILED = "StartFailed"
    REFUSED = "Refused"
    RESET = "Reset"
    FINISHED = "Finished"
    SCALED_DOWN = "ScaledDown"
    GAVE_WAY = "GaveWay"
    REQUEUED = "Requeued"


class Attempt(Model):
    """One entry of the ledger."""

    schema_defaults = False

    number: Annotated[int, Field(ge=1, le=999)] = Field(description="Counts the attempts of a run from 1.")
    run: Annotated[int, Field(ge=0, le=9999)] = Field(default=0, description="The rerun that it belongs to.")
    job_name: Word = Field(description="Name of its batch/v1 Job.")
    job_uid: Word | None = Field(default=None, alias="jobUID", description="Uid of the Job.")
    pod_name: Word | None = Field(default=None, description="Name of its pod (of rank 0).")
    pod_uid: Word | None = Field(default=None, alias="podUID", description="Uid of the pod.")
    node: Word | None = Field(default=None, description="The node it ran on.")
    standby: bool = Field(
        default=False, exclude_if=says_nothing, description="Whether it took a warm standby instance."
    )
    process: Annotated[int, Field(ge=1, le=999)] = Field(
        default=1,
        exclude_if=lambda number: number == 1,
        description="Which start of the training's process in its pod it is (rerunAsProcess).",
    )
    create_time: datetime = Field(description="When the attempt was decided.")
    start_time: datetime | None = Field(default=None, description="When its container ran.")
    training_start_time: datetime | None = Field(default=None, description="When its first training step was reported.")
    end_time: datetime | None = Field(default=None, description="When it ended.")
    ending: Cause | None = Field(default=None, description="Set before the operator ends the attempt: what for.")
    ending_message: Text | None = Field(default=None, description="The sentence that goes with it.")
    ending_time: datetime | None = Field(default=None, description="When the end was decided.")
    exit_code: int | None = Field(default=None, ge=-1, le=255, description="Exit code of the trainer.")
    cause: Cause | None = Field(default=None, description="Why it ended.")
    message: Text | None = Field(default=None, description="Why it ended, as a sentence.")
    charged: bool | None = Field(default=None, description="Whether it counts against maxAttempts.")
    fenced: bool = Field(
        default=False,
        exclude_if=says_nothing,
        description="Given up as lost: it can neither report nor publish, and holds no slot.",
    )
    training_seconds: int = Field(default=0, ge=0, description="Time spent in Running.")
    reset: int = Field(default=0, ge=0, exclude_if=says_nothing, description="The service's reset when it was decided.")
    timeout_seconds: int | None = Field(
        default=None, ge=0, description="Its longest time, as it was when the attempt was decided."
    )
    finish: bool = Field(
        default=False, exclude_if=says_nothing, description="Whether it was made only to publish the best model so far."
    )
    budget_uids: Annotated[tuple[Word, ...], Field(max_length=64)] = Field(
        default=(),
        exclude_if=says_nothing,
        alias="budgetUIDs",
        description="Uids of the TrainingBudgets that had its time set aside before it began.",
    )
    image: Annotated[str, Field(max_length=1024)] | None = Field(
        default=None, description="Digest of the image that ran."
    )
    resumed_from_step: int | None = Field(default=None, ge=0, description="Step of the checkpoint it started from.")
    checkpoint_step: int | None = Field(default=None, ge=0, description="Step of its last saved checkpoint.")


class Current(Model):
    """Whose reports are taken; written by the operator's loop, tested by the intake."""

    schema_defaults = False
    atomic = True

    attempt: int = Field(ge=1, description="Number of the attempt.")
    pod_uid: Word = Field(alias="podUID", description="Uid of its pod.")


class AttemptResult(Model):
    """What an attempt said at its end: its last report, or its pod's termination message."""

    schema_defaults = False

    exit_code: int = Field(ge=-1, le=255, description="Exit code of the trainer.")
    reason: Word = Field(default="", description="Why a training that published ended, or the cause as one word.")
    message: Text = Field(default="", exclude_if=says_nothing, description="The cause, as a sentence.")
    step: int | None = Field(default=None, ge=0, description="Steps taken.")
    steps: int | None = Field(default=None, ge=0, description="Steps to take.")
    checkpoint_step: int | None = Field(default=None, ge=0, description="Step of the last saved checkpoint.")
    resumed_from_step: int | None = Field(default=None, ge=0, description="Step of the checkpoint it started from.")
    training_seconds: int = Field(default=0, ge=0, description="Training time of this attempt.")
    version: int | None = Field(default=None, ge=0, description="The highest version that storage already has.")
    manifest_uri: Annotated[str, Field(max_length=2048)] | None = Field(
        default=None, alias="manifestURI", description="Manifest of the version: with it, the training is complete."
    )
    metrics: Scores | None = Field(default=None, description="Of the published model on validation.")
    test: Scores | None = Field(default=None, description="Of the published model on the test images.")
    artifacts: Annotated[tuple[Artifact, ...], Field(max_length=32)] = Field(
        default=(), exclude_if=says_nothing, description="Files of the version."
    )
    dataset_digest: Annotated[str, Field(max_length=128)] | None = Field(
        default=None, description="The data it learned from."
    )
    labels: Annotated[tuple[Annotated[str, Field(max_length=128)], ...], Field(max_length=1000)] = Field(
        default=(), exclude_if=says_nothing, description="What the score columns mean."
    )


class Progress(Model):
    """Where the training stands; written by the intake."""

    schema_defaults = False
    atomic = True

    phase: Word = Field(
        description="Starting, Fetching, Checking, Caching, Training, Evaluating, Exporting, Uploading, Saving, Done or Restarting."
    )
    message: Text | None = Field(default=None, description="What it is doing.")
    percent: Annotated[int, Field(ge=0, le=100)] | None = Field(default=None, description="Share of the steps taken.")
    step: int | None = Field(default=None, ge=0, description="Steps taken.")
    steps: int | None = Field(default=None, ge=0, description="Steps to take.")
    epoch: int | None = Field(default=None, ge=0, description="Passes over the training images.")
    epochs: int | None = Field(default=None, ge=0, description="Passes to make.")
    steps_per_epoch: int | None = Field(default=None, ge=0, description="Steps in one pass.")
    batch_size: int | None = Field(default=None, ge=1, description="Images per step.")
    images_per_second: float | None = Field(default=None, ge=0, description="Training speed.")
    eta_seconds: int | None = Field(default=None, ge=0, description="Time left at this speed.")
    training_seconds: int | None = Field(default=None, ge=0, description="Training time of this attempt so far.")
    checkpoint_step: int | None = Field(default=None, ge=0, description="Step of the last saved checkpoint.")
    sequence: int | None = Field(default=None, ge=0, description="Number of the report.")
    updated_at: datetime | None = Field(default=None, description="When the report was taken.")
    warnings: Annotated[tuple[Warning_, ...], Field(max_length=32)] = Field(
        default=(), exclude_if=says_nothing, description="The trainer's warnings, as reported."
    )
    result: AttemptResult | None = Field(default=None, description="How the attempt ended, once it says so.")


class Summary(Model):
    """Rendered for the printer columns."""

    schema_defaults = False
    atomic = True

    progress: Word | None = Field(default=None, description="Share of the steps taken: 63%.")
    epoch: Word | None = Field(default=None, description="Passes over the training images, of how many: 19/30.")
    step: Word | None = Field(default=None, description="Steps taken, of how many: 190/300.")
    metric: Word | None = Field(default=None, description="Score of the best model so far: mAP50 0.871.")
    eta: Word | None = Field(default=None, description="Time left at the present speed: 4m10s.")
    attempt: Word | None = Field(default=None, description="Attempts that count, of how many: 1/3.")


class TrainingJobStatus(Model):
    """Where the job stands. Written by the operator alone."""

    schema_defaults = False

    observed_generation: int = Field(
        default=-1, ge=-1, description="Generation of the spec that the operator has seen; -1: none yet."
    )
    state: JobState = Field(default=JobState.CREATED, description="Where the job stands.")
    reason: Word | None = Field(default=None, description="Why, as one word for programs.")
    message: Text | None = Field(default=None, description="Why, and what to do, as a sentence.")
    revision: int | None = Field(default=None, ge=0, description="Raised by every write of the operator's loop.")
    current: Current | None = Field(default=None, description="Whose reports are taken.")
    conditions: Annotated[tuple[Condition, ...], Field(max_length=16)] = Field(
        default=(),
        description="Admitted, Ready; Running, Succeeded, Failed, Suspended once they have held; Reconciling, Stalled while they hold.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    summary: Summary | None = Field(default=None, description="Rendered for the printer columns.")
    service_name: Word | None = Field(default=None, description="The service it runs on.")
    model: Word | None = Field(default=None, description="The series of versions it adds to.")
    run: Annotated[int, Field(ge=0, le=9999)] | None = Field(
        default=None, description="The rerun that status speaks of."
    )
    attempts: Annotated[tuple[Attempt, ...], Field(max_length=20)] = Field(
        default=(), description="The last 20 attempts."
    )
    attempt_count: int | None = Field(
        default=None, ge=0, description="Attempts of this run, those no longer listed included."
    )
    charged_attempts: int | None = Field(
        default=None, ge=0, description="Attempts of this run that count against maxAttempts."
    )
    disruptions: int | None = Field(
        default=None, ge=0, description="Attempts of this run that were lost to disruptions."
    )
    next_attempt_time: datetime | None = Field(default=None, description="Not started again before.")
    queue_position: int | None = Field(
        default=None, ge=1, description="Place in the queue of the service, for the first 20."
    )
    queued_time: datetime | None = Field(default=None, description="Since when it waits.")
    start_time: datetime | None = Field(default=None, description="When the first attempt of this run was decided.")
    completion_time: datetime | None = Field(default=None, description="When it reached its final state.")
    training_seconds: int | None = Field(
        default=None, ge=0, description="Time really spent in Running, over all attempts."
    )
    queue_seconds: int | None = Field(default=None, ge=0, description="Time spent waiting.")
    progress: Progress | None = Field(default=None, description="Where the training stands.")
    metrics: Metrics | None = Field(default=None, description="Scores of the training.")
    warnings: Annotated[tuple[Warning_, ...], Field(max_length=32)] = Field(
        default=(), exclude_if=says_nothing, description="What a user should know."
    )
    dataset: DatasetSummary | None = Field(default=None, description="What the trainer found in the data.")
    version: Word | None = Field(default=None, description="Name of the ModelVersion.")
    version_number: int | None = Field(default=None, ge=1, description="Its number.")
    artifacts: Annotated[tuple[Artifact, ...], Field(max_length=32)] = Field(
        default=(), exclude_if=says_nothing, description="Files of the version."
    )


class TrainingJob(Model):
    """One training, from data to a model version."""

    spec: TrainingJobSpec
    status: TrainingJobStatus | None = None
