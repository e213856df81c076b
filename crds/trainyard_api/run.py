"""RunSpec: all that one attempt of the trainer is told. Written by the operator (or `trainyard run`), read by the trainer.

It holds no secret: credentials are files under `secrets_path`, in the folders `dataset`, `output` and `service`.
"""

from typing import Annotated

from pydantic import Field

from trainyard_api.architectures import Task
from trainyard_api.base import Model
from trainyard_api.dataset import Dataset
from trainyard_api.execution import OnTimeout
from trainyard_api.storage import attempt_uri, run_uri, version_uri
from trainyard_api.training import Augmentation, Evaluation, Training
from trainyard_api.trainingjob import Weights

RUN_SPEC_ENV = "TRAINYARD_RUN_SPEC"
"""Names the file that the trainer reads its RunSpec from."""
RUN_SPEC_FILE = "/etc/trainyard/run-spec.json"
RUN_SPEC_ANNOTATION = "trainyard.dev/run-spec"
"""Annotation of the pod that the file shows."""
STANDBY_ENV = "TRAINYARD_STANDBY"
"""Names the file with the `StandbySpec` of a trainer that is to wait for a RunSpec."""
STANDBY_FILE = "/etc/trainyard/standby.json"
STANDBY_ANNOTATION = "trainyard.dev/standby-spec"
"""Annotation of the pod that the file shows."""
STANDBY_WARM_FILE = "/tmp/trainyard-warm"  # noqa: S108 the pod's own
"""Made by a trainer that is warm and waits: the pod's readiness probe looks for it."""
NODE_RANK_ENV = "JOB_COMPLETION_INDEX"
"""Set by Kubernetes in the pods of an Indexed Job: 0 for the first node."""


class Start(Model):
    """Where the first weights come from, resolved: at most one of `manifest_uri`, `attempt_uris`, `uri`; else `weights`."""

    weights: Weights = Weights.DEFAULT
    manifest_uri: str | None = Field(default=None, alias="manifestURI")
    """Manifest of the version to continue: weights, labels and split come from it."""
    attempt_uris: tuple[str, ...] = Field(default=(), alias="attemptURIs")
    """Attempt folders of another job (`startFrom.job`); the newest checkpoint among them is taken."""
    uri: str | None = None
    sha256: str | None = None
    parent_version: str | None = None
    """Name of the ModelVersion that it continues."""


class Intake(Model):
    """Where reports go. `ca_pem` is the PEM of the CA that signed the intake's certificate."""

    url: str
    token_path: str = "/var/run/secrets/trainyard.dev/token"  # noqa: S105 a path, not a password
    ca_pem: str | None = None


class StandbySpec(Model):
    """What a trainer is told that is started before there is a job for it: where to wait, and what to be warm for.

    It posts to `intake.url` with `/v1/reports` replaced by `/v1/standby`: 204 means ask again, 200 brings the RunSpec, 410 that
    there will be none. Its time counts from that answer.
    """

    intake: Intake
    architecture: str
    gpus: Annotated[int, Field(ge=0)] = 0


class Rendezvous(Model):
    """Where the pods of an attempt over several nodes meet: the one with completion index 0, and a port of its own there."""

    host: str
    """DNS name of the pod with index 0, below the headless Service; it may take some seconds until it resolves."""
    port: Annotated[int, Field(ge=1, le=65_535)] = 29_400


class RunSpec(Model):
    """One attempt. Durations are seconds, sizes quantities, `deadline` counts from the start of the trainer's process."""

    job: str
    namespace: str
    uid: str
    """Uid of the TrainingJob; on a laptop 32 hex digits made from the manifest, so that running it again continues."""
    run: Annotated[int, Field(ge=0)] = 0
    attempt: Annotated[int, Field(ge=1)] = 1

    architecture: str
    task: Task
    model: str
    version: Annotated[int, Field(ge=1)] = 1
    version_name: str | None = None
    description: str | None = None

    dataset: Dataset
    start: Start = Field(default_factory=Start)
    training: Training = Field(default_factory=Training)
    augmentation: Augmentation = Field(default_factory=Augmentation)
    evaluation: Evaluation = Field(default_factory=Evaluation)

    output_uri: str = Field(alias="outputURI")
    publish_uri: str | None = Field(default=None, alias="publishURI")
    weights_uri: str | None = Field(default=None, alias="weightsURI")
    resume_from: tuple[str, ...] = ()
    """Attempt folders of this run whose newest checkpoint is continued; empty: start anew."""

    gpus: Annotated[int, Field(ge=0)] = 0
    """Per node; one process is started for each, and one for the CPU when there is none."""
    nodes: Annotated[int, Field(ge=1)] = 1
    """Pods of the attempt. Each has the same RunSpec and reads its number from `JOB_COMPLETION_INDEX` (NODE_RANK_ENV)."""
    rendezvous: Rendezvous | None = None
    """Needed with more than one node. Only the pod with index 0 reports, saves and publishes."""
    timeout_seconds: int = 3600
    drain_seconds: int = 300
    on_timeout: OnTimeout = OnTimeout.FINISH
    trained_seconds: int = 0
    """Training time of the earlier attempts of this run, for `training.max_duration_seconds`."""
    finish: bool = False
    """Train no further: publish the best model of `resume_from`."""
    max_process_starts: Annotated[int, Field(ge=1)] = 1
    """How often the training's process may be started in this pod, the first time included (`rerunAsProcess`): after an error the
    next attempt begins there, once the intake takes its reports."""

    secrets_path: str = "/secrets"
    cache_path: str = "/cache"
    intake: Intake | None = None

    @property
    def run_uri(self) -> str:
        """Folder of this run on storage."""
        return run_uri(self.output_uri, self.model, self.job, self.uid, self.run)

    @property
    def attempt_uri(self) -> str:
        """Folder of this attempt on storage."""
        return attempt_uri(self.run_uri, self.attempt)

    @property
    def version_uri(self) -> str:
        """Folder of the version that it makes."""
        return version_uri(self.output_uri, self.model, self.version)
