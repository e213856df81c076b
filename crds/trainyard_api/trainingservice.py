"""TrainingService: the queue and the instances of one architecture."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from trainyard_api.architectures import ArchitectureName
from trainyard_api.base import DNSLabel, DNSSubdomain, Model, Quantity, Seconds, StorageURI, said
from trainyard_api.execution import Env, Execution, Image, Instance, SecretNames
from trainyard_api.status import Condition, Text, Word


class ScalingType(StrEnum):
    AUTOSCALE = "Autoscale"
    FIXED = "Fixed"


class OnScaleDown(StrEnum):
    WAIT = "Wait"
    DRAIN = "Drain"


class Scaling(Model):
    type: ScalingType = Field(
        default=ScalingType.AUTOSCALE,
        description="Autoscale between minInstances and maxInstances, or Fixed: always maxInstances.",
    )
    min_instances: Annotated[int, Field(ge=0, le=10_000)] = Field(
        default=0, description="Instances kept warm without work."
    )
    max_instances: Annotated[int, Field(ge=0, le=10_000)] = Field(
        default=1, description="Most instances at once; 0 takes no new execution."
    )
    concurrency: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1, description="Executions that share one instance."
    )
    idle_seconds: Seconds = Field(default=300, description="An instance without work is kept this long.")
    on_scale_down: OnScaleDown = Field(
        default=OnScaleDown.WAIT,
        description="Wait lets running executions finish; Drain ends the lowest priority, youngest first.",
    )


class ServiceQueue(Model):
    max_length: Annotated[int, Field(ge=0, le=1_000_000)] | None = Field(
        default=None, description="Most jobs that wait; those beyond it try again later."
    )
    kueue_queue_name: DNSLabel | None = Field(
        default=None, description="A Kueue LocalQueue that admits the executions; with minInstances 0."
    )


_HOST_PATH = r"^(/[^/]+)+$"


class EmptyDir(Model):
    """A folder of the pod, gone with it."""

    schema_defaults = False

    size_limit: Quantity | None = Field(
        default=None, description="Most that it may hold; default: the instance's ephemeralStorage."
    )


class Cache(Model):
    """Where downloaded data is kept between executions; at most one kind."""

    schema_defaults = False

    empty_dir: EmptyDir | None = Field(
        default=None, description="A folder of the pod, gone with it; the default. Write {} to name it."
    )
    claim_name: DNSSubdomain | None = Field(default=None, description="A PersistentVolumeClaim.")
    host_path: (
        Annotated[
            str,
            Field(
                min_length=2,
                max_length=1024,
                pattern=_HOST_PATH,
                json_schema_extra=said(
                    f"self.matches(r'{_HOST_PATH}') && !self.matches(r'/[.][.]?(/|$)')",
                    "write an absolute path without . and .. in it, such as /var/cache/trainyard",
                ),
            ),
        ]
        | None
    ) = Field(default=None, description="A folder of the node, under a prefix that the chart allows.")


class TrainingServiceSpec(Model):
    architecture: ArchitectureName = Field(
        description="The architecture that it trains, or private/<name> with an image of its own."
    )
    image: Image | None = Field(default=None, description="Trainer image; default: the chart's.")
    instance: Instance = Field(default_factory=Instance, description="One execution's worth of hardware.")
    scaling: Scaling = Field(default_factory=Scaling, description="How many instances there are.")
    execution: Execution = Field(default_factory=Execution, description="How executions are timed, retried and ended.")
    queue: ServiceQueue = Field(default_factory=ServiceQueue, description="The jobs that wait.")
    secret_names: SecretNames | None = Field(
        default=None,
        description="Secrets mounted for every execution; the first with AWS_ACCESS_KEY_ID is the default for storage.",
    )
    env: Env | None = Field(default=None, description="Environment of every execution.")
    service_account_name: DNSSubdomain | None = Field(
        default=None, description="Service account of the pods; default: default."
    )
    cache: Cache = Field(
        default_factory=Cache,
        description="Where downloaded data is kept between executions. What was not used for longest goes where the disk is full.",
    )
    weights_uri: StorageURI | None = Field(default=None, alias="weightsURI", description="Folder of starting weights.")
    paused: bool = Field(default=False, description="No new execution starts; running ones go on.")
    reset: Annotated[int, Field(ge=0, le=1_000_000)] = Field(
        default=0, description="Raising it ends every running execution; onReset decides what follows."
    )


class StandbyInstance(Model):
    """A warm pod, as it was when an execution took it."""

    schema_defaults = False

    job_name: Word = Field(description="Name of its batch/v1 Job.")
    job_uid: Word = Field(alias="jobUID", description="Uid of the Job.")
    pod_name: Word = Field(description="Name of its pod.")
    pod_uid: Word = Field(alias="podUID", description="Uid of the pod.")
    node: Word | None = Field(default=None, description="The node it waits on.")


class Standby(Model):
    """The warm pods that wait for work, and how they get on."""

    schema_defaults = False

    number: int = Field(default=0, ge=0, description="Goes up with every standby instance that is made.")
    jobs: Annotated[tuple[Word, ...], Field(max_length=10_000)] = Field(
        default=(), description="Names of their batch/v1 Jobs."
    )
    surplus_time: datetime | None = Field(default=None, description="Since when there are more than should be.")
    failures: int = Field(default=0, ge=0, description="Those in a row that ended by themselves, or never got warm.")
    next_time: datetime | None = Field(default=None, description="None is made before.")
    reason: Word | None = Field(default=None, description="Why the last one ended, or none starts, as one word.")
    message: Text | None = Field(default=None, description="Why the last one ended, or none starts, as a sentence.")


class AdmittedJob(Model):
    """One job of a batch that is being started."""

    schema_defaults = False

    name: Word = Field(description="The job.")
    uid: Word = Field(description="Its uid.")
    attempt: int = Field(ge=1, description="The attempt that starts.")
    run: int = Field(default=0, ge=0, description="The run that it belongs to.")
    standby: StandbyInstance | None = Field(
        default=None, description="The warm instance that it takes; none: it starts cold."
    )


class Admission(Model):
    """The batch of executions that is being started; the next one is written only when it is done."""

    schema_defaults = False

    revision: int = Field(
        default=0, ge=0, description="Raised by every batch, and by every change of the standby instances."
    )
    jobs: Annotated[tuple[AdmittedJob, ...], Field(max_length=100)] = Field(default=(), description="The batch.")


class TrainingServiceStatus(Model):
    """What the operator sees."""

    schema_defaults = False

    observed_generation: int = Field(
        default=-1, ge=-1, description="Generation of the spec that the operator has seen; -1: none yet."
    )
    instances: int = Field(default=0, ge=0, description="Instances that exist.")
    desired_instances: int = Field(default=0, ge=0, description="Instances there should be.")
    standby_instances: int = Field(default=0, ge=0, description="Instances without work.")
    running: int = Field(default=0, ge=0, description="Executions that run.")
    queued: int = Field(default=0, ge=0, description="Jobs that wait.")
    capacity: int = Field(default=0, ge=0, description="Executions that may run at once.")
    state: Word | None = Field(default=None, description="Available, Degraded or Paused, for the printer column.")
    selector: Annotated[str, Field(max_length=512)] | None = Field(
        default=None, description="Label selector of its pods, for the scale subresource."
    )
    observed_reset: int = Field(default=0, ge=0, description="The reset that was carried out last.")
    admission: Admission | None = Field(default=None, description="The batch of executions that is being started.")
    standby: Standby | None = Field(default=None, description="The warm pods that wait for work.")
    conditions: Annotated[tuple[Condition, ...], Field(max_length=8)] = Field(
        default=(),
        description="Available, Degraded, Paused.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )


class TrainingService(Model):
    """The queue and the instances of one architecture."""

    spec: TrainingServiceSpec
    status: TrainingServiceStatus | None = None


def default_service_name(architecture: str) -> str:
    """`mgmt-train-<architecture>`, the service that a job gets when it names none."""
    return f"mgmt-train-{architecture.removeprefix('private/')}"
