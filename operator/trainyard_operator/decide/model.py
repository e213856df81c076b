"""What the operator observes (the snapshots) and what it means to do (the plans): frozen data, nothing else.

The shell (`reconcile.py`) builds a snapshot from its caches, calls `decide`, and carries the plan out:

1. Patch `status` when it differs from the one observed (JSON Patch, tested on uid and revision). Refused: look again, do
   nothing else. So an intent (`status.attempts[]`, `status.version`) is written before the action that it announces.
2. Emit `events`.
3. Carry out `actions` in order; the first that fails ends the pass, and the key is tried again with backoff. An action that
   finds itself done already (created, deleted, lowered) is a success.
4. Look again at `look_again_at`, and at once after any action.

Every action follows again from the written status until its effect is observed, so a crash between any two lines loses and
doubles nothing.

Who writes which part of a TrainingJob's status. While `status.current` is set the intake owns `progress`, `metrics`, `dataset`
and `summary.{progress,epoch,step,metric,eta}`; its patches test `/status/current`. The loop owns everything else always, and
those too while `current` is unset: it clears them when an attempt starts and fills in the result when it ends. What the loop
needs from reports is in `progress`: `phase` and `updatedAt` (stall), `checkpointStep`, `trainingSeconds`, `warnings` (folded into
`status.warnings` by the loop) and `result` (of the last report). The loop looks again when `progress.phase`, `.warnings`
or `.result` change, never on mere progress.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from trainyard_api.execution import Execution, Instance
from trainyard_api.modelversion import ModelVersionSpec, ModelVersionStatus
from trainyard_api.run import RunSpec
from trainyard_api.trainingbudget import TrainingBudgetSpec, TrainingBudgetStatus
from trainyard_api.trainingjob import Attempt, TrainingJobSpec, TrainingJobStatus
from trainyard_api.trainingservice import TrainingServiceSpec, TrainingServiceStatus

if TYPE_CHECKING:
    from trainyard_operator.decide.tally import Tally

TRAINER_CONTAINER = "trainer"
MAX_ATTEMPT_NUMBER = 999

LABEL_JOB = "trainyard.dev/job"
LABEL_JOB_UID = "trainyard.dev/job-uid"
LABEL_SERVICE = "trainyard.dev/service"
LABEL_MODEL = "trainyard.dev/model"
LABEL_ARCHITECTURE = "trainyard.dev/architecture"
LABEL_RUN = "trainyard.dev/run"
LABEL_ATTEMPT = "trainyard.dev/attempt"
LABEL_STANDBY = "trainyard.dev/standby"
"""On Jobs and pods that wait for work: the digest of what they were made of. Taken off the Job when an execution takes it."""
LABEL_COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index"


# --- what is observed ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Metadata:
    namespace: str
    name: str
    uid: str
    generation: int = 1
    creation_time: datetime | None = None
    deletion_time: datetime | None = None


@dataclass(frozen=True)
class JobView:
    """A TrainingJob."""

    metadata: Metadata
    spec: TrainingJobSpec
    status: TrainingJobStatus
    priority_class: str | None = None
    """The WorkloadPriorityClass of Kueue that its label names."""


@dataclass(frozen=True)
class ServiceView:
    """A TrainingService."""

    metadata: Metadata
    spec: TrainingServiceSpec
    status: TrainingServiceStatus


@dataclass(frozen=True)
class BudgetView:
    """A TrainingBudget."""

    metadata: Metadata
    spec: TrainingBudgetSpec
    status: TrainingBudgetStatus


@dataclass(frozen=True)
class VersionView:
    """A ModelVersion."""

    metadata: Metadata
    spec: ModelVersionSpec
    status: ModelVersionStatus


@dataclass(frozen=True)
class ObjectCondition:
    """A condition of a Job, a Pod or a Node."""

    type: str
    status: str
    reason: str = ""
    message: str = ""
    since: datetime | None = None


def holding(conditions: Iterable[ObjectCondition], type_: str) -> ObjectCondition | None:
    """The condition of this type when it is True."""
    return next((c for c in conditions if c.type == type_ and c.status == "True"), None)


@dataclass(frozen=True)
class Waiting:
    reason: str
    message: str = ""


@dataclass(frozen=True)
class Terminated:
    exit_code: int
    reason: str = ""
    message: str = ""
    started_at: datetime | None = None
    finished_at: datetime | None = None


@dataclass(frozen=True)
class ContainerView:
    """At most one of `waiting`, `running` and `terminated` is set; none: the kubelet has said nothing yet."""

    name: str
    waiting: Waiting | None = None
    running: bool = False
    running_since: datetime | None = None
    terminated: Terminated | None = None
    last_terminated: Terminated | None = None
    image_id: str = ""
    init: bool = False


@dataclass(frozen=True)
class AttemptJob:
    """A batch/v1 Job."""

    metadata: Metadata
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    owner_uid: str | None = None
    suspended: bool = False
    start_time: datetime | None = None
    conditions: tuple[ObjectCondition, ...] = ()
    completions: int = 1
    """Pods that it was made for: those of a gang, whatever the service's instance has become."""

    def condition(self, type_: str) -> ObjectCondition | None:
        """The condition when it is True."""
        return holding(self.conditions, type_)

    @property
    def finished(self) -> ObjectCondition | None:
        """Complete or Failed: the Job controller does nothing more."""
        return self.condition("Complete") or self.condition("Failed")


@dataclass(frozen=True)
class Taint:
    key: str
    value: str = ""
    effect: str = "NoSchedule"

    def __str__(self) -> str:
        return f"{self.key}{f'={self.value}' if self.value else ''}:{self.effect}"


@dataclass(frozen=True)
class Toleration:
    key: str = ""
    operator: str = "Equal"
    value: str = ""
    effect: str = ""

    def tolerates(self, taint: Taint) -> bool:
        """As the scheduler has it: an empty key or effect means any, `Exists` any value."""
        if self.effect and self.effect != taint.effect:
            return False
        if not self.key:
            return self.operator == "Exists"
        return self.key == taint.key and (self.operator == "Exists" or self.value == taint.value)


@dataclass(frozen=True)
class Wants:
    """What a pod asks of its node."""

    resources: Mapping[str, str] = field(default_factory=dict[str, str])
    """Requests of its containers, by resource; of several containers the sum is not made, the trainer's counts."""
    node_selector: Mapping[str, str] = field(default_factory=dict[str, str])
    tolerations: tuple[Toleration, ...] = ()


@dataclass(frozen=True)
class AttemptPod:
    """A pod of an attempt."""

    metadata: Metadata
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    owner_uid: str | None = None
    owner_name: str | None = None
    node: str | None = None
    phase: str = "Pending"
    reason: str = ""
    message: str = ""
    conditions: tuple[ObjectCondition, ...] = ()
    containers: tuple[ContainerView, ...] = ()
    start_time: datetime | None = None
    active_deadline_seconds: int | None = None
    grace_seconds: int = 30
    wants: Wants | None = None
    """Kept until the pod has a node: afterwards nobody asks."""

    def condition(self, type_: str) -> ObjectCondition | None:
        """The condition when it is True."""
        return holding(self.conditions, type_)

    @property
    def over(self) -> bool:
        """Whether Kubernetes has it as ended; kept pods of finished attempts are."""
        return self.phase in ("Succeeded", "Failed")

    @property
    def trainer(self) -> ContainerView | None:
        """The container that trains; sidecars do not count."""
        named = next((c for c in self.containers if c.name == TRAINER_CONTAINER and not c.init), None)
        return named or next((c for c in self.containers if not c.init), None)

    @property
    def running(self) -> bool:
        """Whether the trainer runs."""
        return self.trainer is not None and self.trainer.running

    @property
    def index(self) -> int:
        """Rank of the node in a gang; 0 when it is alone."""
        text = self.labels.get(LABEL_COMPLETION_INDEX, "0")
        return int(text) if text.isdigit() else 0


@dataclass(frozen=True)
class EventView:
    """A Kubernetes Event about a pod, or about the Job that could not make one."""

    kind: str
    name: str
    uid: str
    reason: str
    message: str
    warning: bool = True
    last_time: datetime | None = None


@dataclass(frozen=True)
class WorkloadView:
    """A Workload: Kueue's request for quota for a Job."""

    name: str
    job_uid: str
    active: bool = True
    conditions: tuple[ObjectCondition, ...] = ()
    pending_checks: tuple[tuple[str, str], ...] = ()
    """Name and message of the admission checks that it has not passed."""

    def condition(self, type_: str) -> ObjectCondition | None:
        """The condition when it is True."""
        return holding(self.conditions, type_)


@dataclass(frozen=True)
class NodeView:
    name: str
    uid: str = ""
    ready: str = "True"
    """Status of the condition Ready: True, False, or Unknown when its kubelet is silent."""
    since: datetime | None = None
    """When Ready changed last."""
    taints: tuple[Taint, ...] = ()
    allocatable: Mapping[str, str] = field(default_factory=dict[str, str])


@dataclass(frozen=True)
class Defaults:
    """Settings of the chart that decisions depend on; times in seconds."""

    service: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Spec (as written in YAML) of a service that the operator makes, besides its architecture."""
    keep_finished_seconds: int = 86_400
    """How long an ended attempt's Job and pods are kept for `kubectl logs`."""
    lost_node_seconds: int = 300
    """A node that is silent this long is lost, and so are the attempts on it."""
    overdue_seconds: int = 60
    """A deleted pod that is still there this long after its grace is lost when its node is not ready or unknown."""
    settled_seconds: int = 2
    """How long a trainer that was started cold runs before that is written: it imports PyTorch first and reports nothing, and one that
    ends sooner costs a write less."""
    queue_refresh_seconds: int = 30
    """Queue positions are written at most this often."""


@dataclass(frozen=True)
class Refusal:
    """An action that was refused: by the API server, by admission, or by the limits of this installation.

    Kept in memory only: an operator that starts anew is refused again, and knows it as soon.
    """

    action: str
    """Name of the action's class."""
    name: str
    """Name of the object that it is about."""
    message: str
    """The sentence of who refused."""
    retry_at: datetime
    """Not tried again before; whole seconds."""
    status: int = 0
    """HTTP status; 0: this operator itself would not."""
    reason: str = ""
    """The API server's word for it."""
    tries: int = 1


@dataclass(frozen=True)
class QueuePlace:
    """How a service's queue looks from one of its waiting jobs; made by `admission.queue_place`."""

    position: int | None = None
    """From 1; None: it does not wait there."""
    next: bool = False
    """It is new, and a slot is free for it: the next batch has it."""
    full: bool = False
    """It is beyond `queue.maxLength`."""
    surplus: bool = False
    """Its execution is one that a lowered maximum ends."""
    wanted: bool = False
    """Every slot is taken, one by its execution, which does not start for what the job itself asks for; others wait, and it is the
    one to make room for them."""


@dataclass(frozen=True)
class JobSnapshot:
    """All that a decision about one TrainingJob is made of."""

    now: datetime
    job: JobView
    service: ServiceView | None = None
    """The service that the job names (`jobs.service_name_of`), if it exists."""
    queue: QueuePlace = field(default_factory=QueuePlace)
    jobs: tuple[AttemptJob, ...] = ()
    """Every batch/v1 Job labelled with this job's name, and those with the name of one of its attempts."""
    pods: tuple[AttemptPod, ...] = ()
    """Every pod labelled with this job's name."""
    events: tuple[EventView, ...] = ()
    """Events about these Jobs and pods."""
    workloads: tuple[WorkloadView, ...] = ()
    """Those that Kueue made for the suspended ones of these Jobs."""
    nodes: Mapping[str, NodeView] | None = None
    """Nodes by name; None where the operator may not read them."""
    versions: tuple[VersionView, ...] = ()
    """Every ModelVersion of the namespace."""
    start_job: JobView | None = None
    """The job that `startFrom.job` names, if it exists."""
    refusals: tuple[Refusal, ...] = ()
    """What the API server did not let this operator do for the job, as it last said."""
    budgets: tuple[BudgetView, ...] = ()
    """Every TrainingBudget of the namespace."""
    reports_since: datetime | None = None
    """Since when this operator takes reports: nobody is blamed for silence before that."""
    defaults: Defaults = field(default_factory=Defaults)


@dataclass(frozen=True)
class ServiceSnapshot:
    """All that a decision about one TrainingService is made of."""

    now: datetime
    service: ServiceView
    tally: "Tally"
    """Of every TrainingJob whose service it is (`jobs.service_name_of`), and of every pod labelled with the service, those of
    deleted jobs too. The caches keep one for each service and go on changing it: it is read at once."""
    standby_jobs: tuple[AttemptJob, ...] = ()
    """Every batch/v1 Job of the service that is labelled as standby."""
    standby_template: str = ""
    """Digest of what a standby would be made of now; empty: the service has none."""
    standby_refused: str = ""
    """Why this installation makes none, as a sentence without its end; the digest is empty then."""
    events: tuple[EventView, ...] = ()
    """Events about the standby Jobs and their pods."""
    workloads: tuple[WorkloadView, ...] = ()
    """Those that Kueue made for the suspended ones of the standby Jobs."""
    refusals: tuple[Refusal, ...] = ()
    """What the API server did not let this operator do for the service, as it last said."""
    nodes: Mapping[str, NodeView] | None = None
    """Nodes by name; None where the operator may not read them."""
    defaults: Defaults = field(default_factory=Defaults)


@dataclass(frozen=True)
class BudgetSnapshot:
    """All that a decision about one TrainingBudget is made of."""

    now: datetime
    budget: BudgetView
    services: tuple[ServiceView, ...] = ()
    """Every TrainingService of the namespace."""
    jobs: tuple[JobView, ...] = ()
    """At least every TrainingJob that has a reservation, is in the batch of a service, or has an attempt that has not ended."""


# --- what is to be done -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CreateService:
    """Make the default service; one that is there already is fine."""

    name: str
    spec: Mapping[str, Any]


@dataclass(frozen=True)
class CreateVersion:
    """Make the ModelVersion (no owner: it outlives the job). One with the same `jobUID` and `run` is adopted; another's is a
    failure of this action: the next pass takes the next number."""

    name: str
    spec: ModelVersionSpec


@dataclass(frozen=True)
class WriteVersionStatus:
    name: str
    uid: str
    status: ModelVersionStatus


@dataclass(frozen=True)
class CreateJob:
    """Make the attempt's batch/v1 Job, named `attempt.job_name`. One whose owner is this TrainingJob is adopted; another's is a
    failure of this action. The shell adds to `run` what only it knows: the intake."""

    attempt: Attempt
    run: RunSpec
    instance: Instance
    execution: Execution
    active_deadline_seconds: int


@dataclass(frozen=True)
class CreateStandby:
    """Make a batch/v1 Job of the service that waits for work. One of its name is adopted, whoever has it by now."""

    name: str


@dataclass(frozen=True)
class CreateHeadless:
    """Make the headless Service below which the pods of gangs find each other; one that is there already is fine."""

    name: str
    service_name: str
    service_uid: str


@dataclass(frozen=True)
class HandOver:
    """Give a standby's Job and pod to the attempt: owner, labels and RunSpec of the Job, then labels and deadline of the pod, then
    the intake answers the pod. Each step is repeated without harm; what is gone or another's ends the attempt by what is
    observed."""

    attempt: Attempt
    run: RunSpec
    service_uid: str
    active_deadline_seconds: int


@dataclass(frozen=True)
class LowerDeadline:
    """Set the pod's `activeDeadlineSeconds`; 1 ends it gracefully (SIGTERM, its grace, its exit code is kept)."""

    pod: str
    uid: str
    seconds: int


@dataclass(frozen=True)
class DeletePod:
    pod: str
    uid: str
    grace_seconds: int


@dataclass(frozen=True)
class DeleteJob:
    """Delete a batch/v1 Job and, in the background, its pods."""

    name: str
    uid: str


@dataclass(frozen=True)
class DeleteTrainingJob:
    """Its time to live is over."""

    name: str
    uid: str


Action = (
    CreateService
    | CreateVersion
    | WriteVersionStatus
    | CreateHeadless
    | CreateJob
    | HandOver
    | LowerDeadline
    | DeletePod
    | DeleteJob
    | DeleteTrainingJob
)
ServiceAction = CreateStandby | DeleteJob


def name_of(action: Action | ServiceAction) -> str:
    """Name of the object that an action is about."""
    match action:
        case CreateJob() | HandOver():
            return action.attempt.job_name
        case LowerDeadline() | DeletePod():
            return action.pod
        case _:
            return action.name


@dataclass(frozen=True)
class Note:
    """An Event to emit about the object, after the write that it speaks of succeeded."""

    reason: str
    message: str
    warning: bool = False


@dataclass(frozen=True)
class JobPlan:
    status: TrainingJobStatus
    """The whole new status; `revision` is that of the snapshot, the shell raises it when it writes."""
    actions: tuple[Action, ...] = ()
    events: tuple[Note, ...] = ()
    look_again_at: datetime | None = None


@dataclass(frozen=True)
class ServicePlan:
    status: TrainingServiceStatus
    """The whole new status; `admission.revision` is raised when the batch changed. The write tests the observed
    `admission.revision`."""
    misplaced: tuple[str, ...] = ()
    """Names of waiting jobs whose status shows another place than they have: to be reconciled now and then."""
    actions: tuple[ServiceAction, ...] = ()
    events: tuple[Note, ...] = ()
    look_again_at: datetime | None = None


@dataclass(frozen=True)
class BudgetPlan:
    status: TrainingBudgetStatus
    """The whole new status; `revision` is that of the snapshot, the shell raises it when it writes."""
    events: tuple[Note, ...] = ()
    look_again_at: datetime | None = None


@dataclass(frozen=True)
class VersionPlan:
    """For a ModelVersion without its job; `status` None: nothing to write."""

    status: ModelVersionStatus | None = None
