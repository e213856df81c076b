"""What the trainer tells back: `Report` to the intake while it runs, `Result` in the termination message, `ExitCode` at the end."""

from enum import IntEnum, StrEnum
from typing import Annotated

from pydantic import Field

from trainyard_api.base import Count, DNSLabel, Model
from trainyard_api.status import Artifact, DatasetSummary, Metrics, Scores, Warning_, Word
from trainyard_api.trainingjob import AttemptResult, End

MAX_REPORT_BYTES = 64 * 1024
MAX_TERMINATION_MESSAGE_BYTES = 4096
LAST_SEQUENCE = 2**31 - 1
"""Of the report that a process failed: it comes from its supervisor, after all that the process itself has sent."""
TOKEN_AUDIENCE = "trainyard.dev"  # noqa: S105 an audience, not a password


class ExitCode(IntEnum):
    """How a trainer's process ends; documented, so that `podFailurePolicy` and people can read it."""

    DONE = 0
    ERROR = 1
    BAD_SPEC = 64
    BAD_DATA = 65
    STORAGE_UNREACHABLE = 69
    DISK_FULL = 73
    STORAGE_REFUSED = 74
    INTERRUPTED = 75
    GPU_OUT_OF_MEMORY = 76
    NOTHING_IN_TIME = 77
    VERSION_TAKEN = 78
    GPU_MISSING = 79


NEVER_RETRIED = frozenset({ExitCode.BAD_SPEC, ExitCode.BAD_DATA, ExitCode.DISK_FULL, ExitCode.STORAGE_REFUSED})


RANK_LOST = "RankLost"
"""`Result.reason` of a process that ended only because another one of the same training did."""


class Phase(StrEnum):
    STARTING = "Starting"
    FETCHING = "Fetching"
    CHECKING = "Checking"
    CACHING = "Caching"
    TRAINING = "Training"
    EVALUATING = "Evaluating"
    SAVING = "Saving"
    EXPORTING = "Exporting"
    UPLOADING = "Uploading"
    DONE = "Done"
    RESTARTING = "Restarting"
    """The training's process failed, its pod lives: the next attempt could begin there at once (`rerunAsProcess`)."""


class Outcome(StrEnum):
    """Why a training that published a version ended; becomes the job's reason."""

    COMPLETED = "Completed"
    EARLY_STOPPED = "EarlyStopped"
    MAX_DURATION_REACHED = "MaxDurationReached"
    TIMEOUT_REACHED = "TimeoutReached"
    FINISHED_EARLY = "FinishedEarly"


class Result(Model):
    """How an attempt ended; the termination message, at most 4 KiB as JSON (`to_termination_message`).

    A result with `manifest_uri` is the completion record: an exit 0 without it counts as interrupted.
    """

    exit_code: Annotated[int, Field(ge=-1, le=255)]
    reason: str
    """An `Outcome` on success; else one word for the cause."""
    message: str = ""
    step: Count | None = None
    steps: Count | None = None
    checkpoint_step: Count | None = None
    """Step of the last saved checkpoint; absent when there is none yet."""
    resumed_from_step: Count | None = None
    training_seconds: Count = 0
    version: Count | None = None
    """On exit 78: the highest version that storage already has."""
    manifest_uri: Annotated[str, Field(max_length=2048)] | None = Field(default=None, alias="manifestURI")
    metrics: Scores | None = None
    """Of the published model on validation, without `per_class`."""
    test: Scores | None = None
    artifacts: tuple[Artifact, ...] = ()
    dataset_digest: Annotated[str, Field(max_length=128)] | None = None
    labels: tuple[str, ...] = ()

    def to_termination_message(self) -> str:
        """JSON of at most 4 KiB: artifacts, labels, then the message's tail are dropped until it fits."""
        for slim in (
            self,
            self.model_copy(update={"labels": ()}),
            self.model_copy(update={"labels": (), "artifacts": ()}),
        ):
            text = slim.model_dump_json(by_alias=True, exclude_none=True, exclude_defaults=True)
            if len(text.encode()) <= MAX_TERMINATION_MESSAGE_BYTES:
                return text
        bare = self.model_copy(update={"labels": (), "artifacts": (), "message": self.message[:500]})
        return bare.model_dump_json(by_alias=True, exclude_none=True, exclude_defaults=True)

    def to_status(self) -> AttemptResult:
        """Cut to the bounds of a status field."""
        return AttemptResult.model_validate(
            self.model_dump()
            | {
                "reason": self.reason[:253],
                "message": self.message[-4096:],
                "artifacts": self.artifacts[:32],
                "labels": tuple(label[:128] for label in self.labels[:1000]),
            }
        )


class Report(Model):
    """A complete snapshot of an attempt; a lost one costs nothing.

    What is one can be written into a job's status, whatever image it comes from; the names are parts of paths.
    """

    job: DNSLabel
    namespace: DNSLabel
    uid: Word
    run: Annotated[int, Field(ge=0, le=9999)] = 0
    attempt: Annotated[int, Field(ge=1, le=999)]
    sequence: Annotated[int, Field(ge=1, le=LAST_SEQUENCE)]
    """Goes up with every report of an attempt; one that goes back is refused."""

    phase: Phase
    message: Annotated[str, Field(max_length=1024)] | None = None
    percent: Annotated[int, Field(ge=0, le=100)] | None = None
    step: Count | None = None
    steps: Count | None = None
    epoch: Count | None = None
    epochs: Count | None = None
    steps_per_epoch: Count | None = None
    batch_size: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    images_per_second: float | None = None
    eta_seconds: Count | None = None
    training_seconds: Count = 0
    checkpoint_step: Count | None = None
    resumed_from_step: Count | None = None

    metrics: Metrics | None = None
    warnings: Annotated[tuple[Warning_, ...], Field(max_length=32)] = ()
    dataset: DatasetSummary | None = None
    result: Result | None = None
    """In the last report only."""


class Answer(Model):
    """What the intake says to a report that it took."""

    end: End | None = None
    """`Finish`: stop training now and publish the best so far."""
