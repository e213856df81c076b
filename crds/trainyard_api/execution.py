"""How executions run: policies, instances, and the pod parts that services and jobs share."""

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from trainyard_api.base import DNSLabel, DNSSubdomain, Model, Quantity, Seconds, matching, said


class OnTimeout(StrEnum):
    FINISH = "Finish"
    FAIL = "Fail"


class OnReset(StrEnum):
    RERUN = "Rerun"
    FAIL = "Fail"


class Execution(Model):
    """How one execution is timed, retried and ended. On a service; the operator's defaults are the chart's."""

    timeout_seconds: Annotated[int, Field(ge=10, le=31_536_000)] = Field(
        default=3600, description="Longest time of one execution, from the moment the trainer runs."
    )
    on_timeout: OnTimeout = Field(
        default=OnTimeout.FINISH,
        description="Finish: the trainer ends drainSeconds before its time and publishes the best so far; Fail: it does not.",
    )
    drain_seconds: Annotated[int, Field(ge=1, le=86_400)] = Field(
        default=300, description="Time to save and upload a checkpoint when an execution is asked to end."
    )
    on_reset: OnReset = Field(
        default=OnReset.RERUN,
        description="What follows a reset of the service, an eviction or a lost node: Rerun or Fail.",
    )
    max_attempts: Annotated[int, Field(ge=1, le=100)] = Field(
        default=3, description="Attempts that count, errors above all; disruptions and stops do not."
    )
    max_disruptions: Annotated[int, Field(ge=0, le=999)] = Field(
        default=20, description="Attempts lost to evictions, preemption or nodes before the job fails."
    )
    backoff_seconds: Seconds = Field(
        default=10, description="Wait before the second attempt; doubled with each that counts, at most an hour."
    )
    start_timeout_seconds: Annotated[int, Field(ge=5, le=86_400)] = Field(
        default=900, description="A pod that does not run after this long is ended with the cause as reason."
    )
    stall_timeout_seconds: Annotated[int, Field(ge=10, le=86_400)] = Field(
        default=600, description="An execution without a report for this long is ended; it counts."
    )
    rerun_as_process: bool = Field(
        default=False,
        description="A training process that fails is started again at once in the same pod, with the image and the data that are "
        "there, as an attempt of its own that counts; the attempts of a pod share its timeoutSeconds. Not with nodes above 1.",
    )


class Policy(Model):
    """Overrides of the service's execution for one job, and its priority."""

    schema_defaults = False

    timeout_seconds: Annotated[int, Field(ge=10, le=31_536_000)] | None = Field(
        default=None, description="Longest time of one execution; default: the service's."
    )
    on_timeout: OnTimeout | None = Field(
        default=None, description="Finish or Fail at the timeout; default: the service's."
    )
    drain_seconds: Annotated[int, Field(ge=1, le=86_400)] | None = Field(
        default=None,
        description="Time to save a checkpoint when asked to end; default: the service's. Such a job starts cold.",
    )
    on_reset: OnReset | None = Field(
        default=None, description="Rerun or Fail after a reset or disruption; default: the service's."
    )
    max_attempts: Annotated[int, Field(ge=1, le=100)] | None = Field(
        default=None, description="Attempts that count; default: the service's."
    )
    max_disruptions: Annotated[int, Field(ge=0, le=999)] | None = Field(
        default=None, description="Attempts lost to disruptions before the job fails; default: the service's."
    )
    backoff_seconds: Seconds | None = Field(
        default=None, description="Wait before the second attempt; default: the service's."
    )
    start_timeout_seconds: Annotated[int, Field(ge=5, le=86_400)] | None = Field(
        default=None, description="Longest time until the pod runs; default: the service's."
    )
    stall_timeout_seconds: Annotated[int, Field(ge=10, le=86_400)] | None = Field(
        default=None, description="Longest time without a report; default: the service's."
    )
    rerun_as_process: bool | None = Field(
        default=None, description="Restart a crashed process in the same pod; default: the service's."
    )
    priority: Annotated[int, Field(ge=-1_000_000, le=1_000_000)] | None = Field(
        default=None, description="Higher starts first; default 0; may be changed while the job waits."
    )

    def over(self, execution: Execution) -> Execution:
        """The service's execution with what this job overrides."""
        own = {k: v for k, v in self.model_dump(exclude={"priority"}).items() if v is not None}
        return execution.model_copy(update=own)


class Toleration(Model):
    """As in a pod spec."""

    schema_defaults = False

    key: str | None = Field(
        default=None, max_length=317, description="Taint key; unset with operator Exists: every taint."
    )
    operator: Literal["Exists", "Equal"] | None = Field(default=None, description="Exists or Equal; default Equal.")
    value: str | None = Field(default=None, max_length=63, description="Taint value, with Equal.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        default=None, description="Taint effect; unset: all."
    )
    toleration_seconds: Annotated[int, Field(ge=0, le=31_536_000)] | None = Field(
        default=None, description="How long a NoExecute taint is tolerated."
    )


_VARIABLE = r"^[A-Za-z_][A-Za-z0-9_]*$"


class EnvVar(Model):
    """Plain name and value: secrets go by secretNames, never through the environment of a spec."""

    schema_defaults = False

    name: Annotated[
        str,
        Field(
            min_length=1,
            max_length=253,
            pattern=_VARIABLE,
            json_schema_extra=matching(
                _VARIABLE, "write a variable's name of letters, digits and _, such as OMP_NUM_THREADS"
            ),
        ),
    ] = Field(description="Name of the variable.")
    value: str = Field(default="", max_length=4096, description="Its value, taken as written: $(VAR) is not expanded.")


_LABEL_KEY = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
_LABEL_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
_EXTENDED_RESOURCE = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
LabelKey = Annotated[str, Field(min_length=1, max_length=317)]
LabelValue = Annotated[str, Field(max_length=63)]
NodeSelector = Annotated[
    dict[LabelKey, LabelValue],
    Field(
        max_length=32,
        json_schema_extra=said(
            f"self.all(key, size(key) <= 317 && key.matches(r'{_LABEL_KEY}') && self[key].matches(r'{_LABEL_VALUE}'))",
            "write node labels as Kubernetes has them, such as kubernetes.io/arch: amd64",
        ),
    ),
]
Tolerations = Annotated[tuple[Toleration, ...], Field(max_length=32)]
SecretNames = Annotated[
    tuple[DNSSubdomain, ...], Field(max_length=16, json_schema_extra={"x-kubernetes-list-type": "set"})
]
Env = Annotated[
    tuple[EnvVar, ...],
    Field(max_length=64, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]}),
]
Image = Annotated[
    str,
    Field(
        min_length=1,
        max_length=512,
        pattern=r"^\S+$",
        json_schema_extra=matching(r"^\S+$", "write an image without blanks, such as registry.example/trainer:1.2"),
    ),
]
ExtendedResource = Annotated[
    str,
    Field(
        min_length=3,
        max_length=317,
        pattern=_EXTENDED_RESOURCE,
        json_schema_extra=matching(_EXTENDED_RESOURCE, "write an extended resource such as nvidia.com/gpu"),
    ),
]
_Preserved = Annotated[
    dict[str, JsonValue], Field(max_length=8, json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})
]


class Affinity(Model):
    """As in a pod spec."""

    schema_defaults = False

    node_affinity: _Preserved | None = Field(default=None, description="As in a pod spec: which nodes it may run on.")
    pod_affinity: _Preserved | None = Field(default=None, description="As in a pod spec: beside which pods it runs.")
    pod_anti_affinity: _Preserved | None = Field(
        default=None, description="As in a pod spec: beside which pods it does not run."
    )


class Instance(Model):
    """One execution's worth of hardware: one pod, or one gang of `nodes` pods."""

    gpus: Annotated[int, Field(ge=0, le=64)] = Field(default=1, description="GPUs per pod; 0 trains on CPU.")
    gpu_resource_name: ExtendedResource = Field(
        default="nvidia.com/gpu", description="Extended resource of a whole GPU."
    )
    shared_gpu_resource_name: ExtendedResource | None = Field(
        default=None,
        description="Extended resource of a shared GPU; needed when concurrency is above 1 and gpus above 0.",
    )
    cpu: Quantity | None = Field(default=None, description="CPU request of the pod; default: the chart's.")
    memory: Quantity | None = Field(
        default=None, description="Memory request and limit of the pod; default: the chart's."
    )
    shared_memory: Quantity | None = Field(default=None, description="Size of /dev/shm; default: the chart's.")
    ephemeral_storage: Quantity | None = Field(
        default=None, description="Request and limit of local disk; default: the chart's."
    )
    nodes: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1, description="Pods of one execution; above 1 they train together."
    )
    preemptible: bool = Field(
        default=False, description="Run on preemptible nodes: adds the chart's tolerations and node selector."
    )
    machine_type: DNSLabel | None = Field(
        default=None, description="A named entry of the chart's machine types: selector, tolerations and sizes."
    )
    node_selector: NodeSelector | None = Field(default=None, description="Labels that the node must have.")
    tolerations: Tolerations | None = Field(default=None, description="Taints that the pod tolerates.")
    affinity: Affinity | None = Field(default=None, description="Affinity of the pod, as in a pod spec.")
    priority_class_name: DNSSubdomain | None = Field(default=None, description="PriorityClass of the pods.")
    runtime_class_name: DNSSubdomain | None = Field(default=None, description="RuntimeClass of the pods.")


class Resources(Model):
    """Overrides of the service's instance for one job; such a job starts cold."""

    schema_defaults = False

    gpus: Annotated[int, Field(ge=0, le=64)] | None = Field(
        default=None, description="GPUs per pod; 0 trains on CPU; default: the service's."
    )
    cpu: Quantity | None = Field(default=None, description="CPU request of the pod; default: the service's.")
    memory: Quantity | None = Field(
        default=None, description="Memory request and limit of the pod; default: the service's."
    )
    nodes: Annotated[int, Field(ge=1, le=64)] | None = Field(
        default=None, description="Pods that train together; default: the service's."
    )
    preemptible: bool | None = Field(default=None, description="Run on preemptible nodes; default: the service's.")
    machine_type: DNSLabel | None = Field(
        default=None, description="A named entry of the chart's machine types; default: the service's."
    )
    node_selector: NodeSelector | None = Field(
        default=None, description="Labels that the node must have, instead of the service's."
    )
    tolerations: Tolerations | None = Field(
        default=None, description="Taints that the pod tolerates, instead of the service's."
    )
    image: Image | None = Field(default=None, description="Trainer image, instead of the service's.")
    secret_names: SecretNames | None = Field(
        default=None, description="Secrets mounted under /secrets/<name>, besides the service's."
    )
    env: Env | None = Field(default=None, description="Environment of the trainer, over the service's.")

    def over(self, instance: Instance) -> Instance:
        """The service's instance with what this job overrides."""
        own = {
            k: getattr(self, k)
            for k in type(self).model_fields
            if k in Instance.model_fields and getattr(self, k) is not None
        }
        return instance.model_copy(update=own)
