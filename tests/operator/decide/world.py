"""A small pure world for tests of `decide`: it keeps objects, carries plans out, and plays Job controller and kubelet on demand.

Nothing happens by itself: a test (or hypothesis) says what happens next. The rules it plays by are those of the recordings.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from trainyard_api.execution import Execution, Instance
from trainyard_api.modelversion import ModelVersionStatus
from trainyard_api.report import Phase, Result
from trainyard_api.trainingbudget import TrainingBudgetSpec, TrainingBudgetStatus
from trainyard_api.trainingjob import Progress, TrainingJobSpec, TrainingJobStatus
from trainyard_api.trainingservice import TrainingServiceSpec, TrainingServiceStatus
from trainyard_operator.decide import admission, budget, lifecycle, service
from trainyard_operator.decide.jobs import service_name_of
from trainyard_operator.decide.kueue import LABEL_DEMAND, LABEL_QUEUE, demand
from trainyard_operator.decide.model import (
    LABEL_ATTEMPT,
    LABEL_COMPLETION_INDEX,
    LABEL_JOB,
    LABEL_JOB_UID,
    LABEL_RUN,
    LABEL_SERVICE,
    LABEL_STANDBY,
    Action,
    AttemptJob,
    AttemptPod,
    BudgetSnapshot,
    BudgetView,
    ContainerView,
    CreateJob,
    CreateService,
    CreateStandby,
    CreateVersion,
    Defaults,
    DeleteJob,
    DeletePod,
    DeleteTrainingJob,
    EventView,
    HandOver,
    JobPlan,
    JobSnapshot,
    JobView,
    LowerDeadline,
    Metadata,
    NodeView,
    Note,
    ObjectCondition,
    QueuePlace,
    Refusal,
    ServiceSnapshot,
    ServiceView,
    Terminated,
    VersionView,
    Waiting,
    WorkloadView,
    WriteVersionStatus,
)
from trainyard_operator.decide.refusals import retry_time
from trainyard_operator.decide.tally import Tally

NAMESPACE = "vision"
START = datetime(2026, 1, 1, tzinfo=UTC)
SPEC: dict[str, Any] = {
    "architecture": "yard-nano",
    "dataset": {"sources": [{"uri": "s3://vision/bccd.zip"}]},
    "output": {"uri": "s3://vision/models"},
}
Observed = JobView | ServiceView | BudgetView


def unwatched(before: Observed, after: Observed) -> None:
    """Nobody looks at the writes."""


def job_spec(**changes: Any) -> TrainingJobSpec:
    return TrainingJobSpec.model_validate({**SPEC, **changes})


@dataclass
class World:
    now: datetime = START
    jobs: dict[str, JobView] = field(default_factory=dict)
    services: dict[str, ServiceView] = field(default_factory=dict)
    budgets: dict[str, BudgetView] = field(default_factory=dict)
    versions: dict[str, VersionView] = field(default_factory=dict)
    attempt_jobs: dict[str, AttemptJob] = field(default_factory=dict)
    pods: dict[str, AttemptPod] = field(default_factory=dict)
    nodes: dict[str, NodeView] = field(default_factory=lambda: {"node-0": NodeView("node-0")})
    events: list[EventView] = field(default_factory=list)
    workloads: tuple[WorkloadView, ...] = ()
    notes: list[tuple[str, Note]] = field(default_factory=list)
    created: list[CreateJob] = field(default_factory=list)
    refusals: tuple[Refusal, ...] = ()
    defaults: Defaults = field(default_factory=lambda: Defaults(settled_seconds=0))
    limits: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By uid of a Job: its pods' deadline and grace."""
    template: str = "one"
    """Digest of what standby pods are made of."""
    template_refused: str = ""
    """Why there are none."""
    machine_types: tuple[str, ...] = ()
    """Those that this installation has."""
    on_write: Callable[[Observed, Observed], None] = unwatched
    """Told of every status that the operator writes: the object as it was, and as it is now."""
    uids: int = 0
    tallies: dict[tuple[str | int, ...], tuple[Tally, list[JobView | AttemptPod]]] = field(default_factory=dict)
    """The last one, with the objects that it counts, so that their ids stay theirs."""
    by_json: bool = True
    """Whether what is written goes through JSON, as it does on the API server; half of the time that a pass takes."""

    def fork(self) -> "World":
        """Another world that goes on from here. What is in them is frozen: only the containers are copied."""
        parts = {name: value.copy() for name, value in vars(self).items() if isinstance(value, dict | list)}
        return replace(self, **parts)

    # --- what a user does -----------------------------------------------------------------------------------------------

    def apply(self, name: str, **spec: Any) -> None:
        """Create a job, or change its spec."""
        old = self.jobs.get(name)
        if old is None:
            metadata = Metadata(NAMESPACE, name, self._uid("job"), 1, self.now)
            self.jobs[name] = JobView(metadata, job_spec(**spec), TrainingJobStatus())
            return
        kept = old.spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
        metadata = replace(old.metadata, generation=old.metadata.generation + 1)
        self.jobs[name] = JobView(metadata, TrainingJobSpec.model_validate({**kept, **spec}), old.status)

    def serve(self, name: str = "mgmt-train-yard-nano", **spec: Any) -> None:
        """Create a service, or replace its spec."""
        old = self.services.get(name)
        made = TrainingServiceSpec.model_validate({"architecture": "yard-nano", **spec})
        metadata = old.metadata if old else Metadata(NAMESPACE, name, self._uid("svc"), 0, self.now)
        metadata = replace(metadata, generation=metadata.generation + 1)
        self.services[name] = ServiceView(metadata, made, old.status if old else TrainingServiceStatus())

    def limit(self, name: str = "team", **spec: Any) -> None:
        """Create a budget, or replace its spec."""
        old = self.budgets.get(name)
        metadata = old.metadata if old else Metadata(NAMESPACE, name, self._uid("tb"), 0, self.now)
        metadata = replace(metadata, generation=metadata.generation + 1)
        made = TrainingBudgetSpec.model_validate(spec)
        self.budgets[name] = BudgetView(metadata, made, old.status if old else TrainingBudgetStatus())

    def unserve(self, name: str) -> None:
        """Delete a service in the background: garbage collection takes its standby Jobs, the executions have other owners."""
        self._collect(self.services.pop(name).metadata.uid)

    def delete(self, name: str) -> None:
        """Delete a TrainingJob in the background: it is gone at once, garbage collection drains its children."""
        self._collect(self.jobs.pop(name).metadata.uid)

    def _collect(self, owner_uid: str) -> None:
        for job in list(self.attempt_jobs.values()):
            if job.owner_uid == owner_uid:
                self.delete_attempt_job(job)

    # --- what the operator does -----------------------------------------------------------------------------------------

    def snapshot(self, name: str) -> JobSnapshot:
        job = self.jobs[name]
        view = self.services.get(service_name_of(job.spec))
        return JobSnapshot(
            now=self.now,
            job=job,
            service=view,
            queue=admission.queue_place(self.service_snapshot(view.metadata.name), job) if view else QueuePlace(),
            jobs=tuple(self.attempt_jobs.values()),
            pods=tuple(
                pod
                for pod in self.pods.values()
                if pod.labels.get(LABEL_JOB) == name or pod.metadata.name in {a.pod_name for a in job.status.attempts}
            ),
            events=tuple(self.events),
            workloads=self.workloads,
            nodes=self.nodes,
            versions=tuple(self.versions.values()),
            start_job=self.jobs.get(job.spec.start_from.job or ""),
            refusals=self.refusals,
            budgets=tuple(self.budgets.values()),
            defaults=self.defaults,
        )

    def service_snapshot(self, name: str) -> ServiceSnapshot:
        return ServiceSnapshot(
            now=self.now,
            service=self.services[name],
            tally=self._tally(name),
            standby_jobs=tuple(
                job
                for job in self.attempt_jobs.values()
                if LABEL_STANDBY in job.labels and job.labels.get(LABEL_SERVICE) == name
            ),
            standby_template="" if self.template_refused or self._has_no_standby(name) else self.template,
            standby_refused=self.template_refused,
            events=tuple(self.events),
            refusals=self.refusals,
            nodes=self.nodes,
            defaults=self.defaults,
        )

    def _has_no_standby(self, name: str) -> bool:
        spec = self.services[name].spec
        return spec.queue.kueue_queue_name is not None or spec.instance.nodes > 1

    def _tally(self, service: str) -> Tally:
        """Made anew only where an object is another one than at the last look: nobody changes one."""
        seen = [*self.jobs.values(), *self.pods.values()]
        key = (service, *map(id, seen))
        if key not in self.tallies:
            self.tallies.clear()
            tally = Tally(
                (job for job in self.jobs.values() if service_name_of(job.spec) == service),
                (pod for pod in self.pods.values() if pod.labels.get(LABEL_SERVICE) == service),
            )
            self.tallies[key] = tally, seen
        return self.tallies[key][0]

    def reconcile(self, name: str, *, crash_before: int | None = None) -> JobPlan:
        """One pass over a job. `crash_before` n: the operator dies before its n-th step (0: the status write)."""
        return self.carry_out_plan(self.snapshot(name), crash_before=crash_before)

    def carry_out_plan(self, snapshot: JobSnapshot, *, crash_before: int | None = None) -> JobPlan:
        """Decide on a snapshot, which may be an old one, and do what the plan says, as the shell does."""
        name = snapshot.job.metadata.name
        plan = lifecycle.decide_job(snapshot)
        seen = {pod.metadata.name: pod.active_deadline_seconds for pod in snapshot.pods}
        for action in plan.actions:
            if isinstance(action, LowerDeadline):
                assert (before := seen[action.pod]) is None or action.seconds < before, "a deadline that is not lowered"
        if crash_before == 0 or not self._patch(snapshot.job, plan.status):
            return plan
        self.notes += [(name, note) for note in plan.events]
        for number, action in enumerate(plan.actions, 1):
            if crash_before == number:
                return plan
            if not self._carry_out(name, action):
                break
        return plan

    def write(self, name: str, status: TrainingJobStatus) -> None:
        """As the API server does: through JSON and the bounds of the schema."""
        if self.by_json:
            read_back = TrainingJobStatus.model_validate(status.to_dict())
            assert read_back.to_dict() == status.to_dict()
            status = read_back
        self.jobs[name] = replace(self.jobs[name], status=status)

    def _patch(self, observed: JobView, status: TrainingJobStatus) -> bool:
        """The loop's JSON Patch: tested on uid and revision; False when it is refused."""
        name = observed.metadata.name
        held = self.jobs.get(name)
        if held is None or held.metadata.uid != observed.metadata.uid:
            return False
        if held.status.revision != observed.status.revision:
            return False
        if status != observed.status:
            self.write(name, status.model_copy(update={"revision": (status.revision or 0) + 1}))
            self.on_write(held, self.jobs[name])
        return True

    def reconcile_service(self, name: str = "mgmt-train-yard-nano") -> None:
        self.carry_out_service_plan(self.service_snapshot(name))

    def carry_out_service_plan(self, snapshot: ServiceSnapshot, *, crash_before: int | None = None) -> None:
        """Decide on a snapshot, which may be an old one; the write is tested on the batch's revision."""
        name = snapshot.service.metadata.name
        plan = service.decide_service(snapshot)
        held = self.services.get(name)
        if held is None or held.metadata.uid != snapshot.service.metadata.uid:
            return
        batch, seen = held.status.admission, snapshot.service.status.admission
        if (batch.revision if batch else None) != (seen.revision if seen else None):
            return
        status = plan.status
        if self.by_json:
            status = TrainingServiceStatus.model_validate(plan.status.to_dict())
            assert status.to_dict() == plan.status.to_dict()
        self.notes += [(name, note) for note in plan.events]
        self.services[name] = replace(held, status=status)
        self.on_write(held, self.services[name])
        for action in plan.actions:
            if crash_before == 1:
                return
            self._carry_out_for_service(name, action)

    def _carry_out_for_service(self, name: str, action: CreateStandby | DeleteJob) -> None:
        if isinstance(action, DeleteJob):
            held = self.attempt_jobs.get(action.name)
            if held is not None and held.metadata.uid == action.uid:
                self.delete_attempt_job(held)
        elif action.name not in self.attempt_jobs:
            service_uid = self.services[name].metadata.uid
            labels = {LABEL_SERVICE: name, LABEL_STANDBY: self.template}
            made = AttemptJob(Metadata(NAMESPACE, action.name, self._uid("bj"), 1, self.now), labels, service_uid)
            self.attempt_jobs[action.name] = made
            pod = Metadata(NAMESPACE, f"{action.name}-x", self._uid("pod"), 1, self.now)
            self.pods[pod.name] = AttemptPod(pod, labels, made.metadata.uid, action.name)

    def _hand_over(self, job: JobView, action: HandOver) -> bool:
        """As the API server takes it: the Job's owner is tested, the pod's deadline only goes down."""
        held = self.attempt_jobs.get(action.attempt.job_name)
        if held is None or held.metadata.uid != action.attempt.job_uid:
            return False
        if held.owner_uid == action.service_uid:
            labels = {k: v for k, v in held.labels.items() if k != LABEL_STANDBY} | {LABEL_JOB: job.metadata.name}
            self.attempt_jobs[held.metadata.name] = replace(held, labels=labels, owner_uid=job.metadata.uid)
            self.created.append(CreateJob(action.attempt, action.run, Instance(), Execution(), 0))
        elif held.owner_uid != job.metadata.uid:
            return False
        pod = self.pods.get(action.attempt.pod_name or "")
        if pod is None or pod.metadata.uid != action.attempt.pod_uid:
            return False
        own = {LABEL_JOB: job.metadata.name, LABEL_JOB_UID: job.metadata.uid}
        own |= {LABEL_RUN: str(action.attempt.run), LABEL_ATTEMPT: str(action.attempt.number)}
        self.change(pod, labels={**pod.labels, **own}, active_deadline_seconds=action.active_deadline_seconds)
        return True

    def budget_snapshot(self, name: str) -> BudgetSnapshot:
        return BudgetSnapshot(self.now, self.budgets[name], tuple(self.services.values()), tuple(self.jobs.values()))

    def reconcile_budget(self, name: str = "team") -> None:
        self.carry_out_budget_plan(self.budget_snapshot(name))

    def carry_out_budget_plan(self, snapshot: BudgetSnapshot) -> None:
        """Decide on a snapshot, which may be an old one; the write is tested on the revision."""
        name = snapshot.budget.metadata.name
        plan = budget.decide_budget(snapshot)
        held = self.budgets.get(name)
        if held is None or held.metadata.uid != snapshot.budget.metadata.uid:
            return
        if held.status.revision != snapshot.budget.status.revision:
            return
        self.notes += [(name, note) for note in plan.events]
        if plan.status != snapshot.budget.status:
            new = plan.status.model_copy(update={"revision": (plan.status.revision or 0) + 1})
            status = TrainingBudgetStatus.model_validate(new.to_dict())
            assert status.to_dict() == new.to_dict()
            self.budgets[name] = replace(held, status=status)
            self.on_write(held, self.budgets[name])

    def settle(self) -> None:
        """Reconcile everything until nothing changes."""
        for _ in range(30):
            before = self._state()
            for name in list(self.jobs):
                self.reconcile(name)
            for name in list(self.services):
                self.reconcile_service(name)
            for name in list(self.budgets):
                self.reconcile_budget(name)
            if self._state() == before:
                return
        raise AssertionError("the operator does not come to rest")

    def _state(self) -> Any:
        parts = (self.jobs, self.services, self.budgets, self.versions, self.attempt_jobs, self.pods)
        return [dict(part) for part in parts]

    def _carry_out(self, name: str, action: Action) -> bool:
        job = self.jobs[name]
        match action:
            case CreateService():
                if action.name not in self.services:
                    self.serve(action.name, **action.spec)
            case CreateVersion():
                held = self.versions.get(action.name)
                if held is None:
                    metadata = Metadata(NAMESPACE, action.name, self._uid("mv"), 1, self.now)
                    self.versions[action.name] = VersionView(metadata, action.spec, ModelVersionStatus())
                elif (held.spec.job_uid, held.spec.run) != (action.spec.job_uid, action.spec.run):
                    return False
            case WriteVersionStatus():
                if action.name in self.versions and self.versions[action.name].metadata.uid == action.uid:
                    status = ModelVersionStatus.model_validate(action.status.to_dict())
                    self.versions[action.name] = replace(self.versions[action.name], status=status)
            case CreateJob():
                return self._create_job(job, action)
            case HandOver():
                return self._hand_over(job, action)
            case LowerDeadline():
                if (pod := self.pods.get(action.pod)) and pod.metadata.uid == action.uid:
                    if pod.active_deadline_seconds is not None and pod.active_deadline_seconds <= action.seconds:
                        return False  # an old leader's: what has been lowered meanwhile is not raised
                    self.pods[action.pod] = replace(pod, active_deadline_seconds=action.seconds)
            case DeletePod():
                if (pod := self.pods.get(action.pod)) and pod.metadata.uid == action.uid:
                    self._delete_pod(pod, action.grace_seconds)
            case DeleteJob():
                held_job = self.attempt_jobs.get(action.name)
                if held_job is not None and held_job.metadata.uid == action.uid:
                    self.delete_attempt_job(held_job)
            case DeleteTrainingJob():
                if job.metadata.uid == action.uid:
                    self.delete(name)
        return True

    def _create_job(self, job: JobView, action: CreateJob) -> bool:
        name = action.attempt.job_name
        held = self.attempt_jobs.get(name)
        if held is not None:
            return held.owner_uid == job.metadata.uid
        if (machine := action.instance.machine_type) and machine not in self.machine_types:
            self._refuse(
                "CreateJob", name, f"machineType {machine} is not in the chart's machineTypes (none is set up)"
            )
            return False
        self.created.append(action)
        labels = {
            LABEL_JOB: job.metadata.name,
            LABEL_JOB_UID: job.metadata.uid,
            LABEL_SERVICE: service_name_of(job.spec),
            LABEL_RUN: str(action.attempt.run),
            LABEL_ATTEMPT: str(action.attempt.number),
        }
        held_service = self.services.get(service_name_of(job.spec))
        queue = held_service.spec.queue.kueue_queue_name if held_service else None
        wanted = {LABEL_DEMAND: demand(held_service.spec, job.priority_class)} if held_service else {}
        made = AttemptJob(
            Metadata(NAMESPACE, name, self._uid("bj"), 1, self.now),
            labels | wanted | ({LABEL_QUEUE: queue} if queue else {}),
            job.metadata.uid,
            suspended=queue is not None,
            start_time=None if queue else self.now,
            completions=action.instance.nodes,
        )
        self.attempt_jobs[name] = made
        self.limits[made.metadata.uid] = action.active_deadline_seconds, action.execution.drain_seconds
        if not made.suspended:
            self._make_pods(made)
        return True

    def _refuse(self, action: str, name: str, message: str) -> None:
        tries = max((r.tries for r in self.refusals if (r.action, r.name) == (action, name)), default=0) + 1
        others = tuple(r for r in self.refusals if (r.action, r.name) != (action, name))
        self.refusals = (*others, Refusal(action, name, message, retry_time(self.now, tries), tries=tries))

    # --- what Kubernetes does -------------------------------------------------------------------------------------------

    def _make_pods(self, job: AttemptJob) -> None:
        deadline, grace = self.limits[job.metadata.uid]
        for index in range(job.completions):
            # A Job that is suspended and goes on makes pods of other names.
            metadata = Metadata(NAMESPACE, f"{job.metadata.name}-x{index or ''}", self._uid("pod"), 1, self.now)
            labels = {key: value for key, value in job.labels.items() if key not in (LABEL_QUEUE, LABEL_DEMAND)}
            self.pods[metadata.name] = AttemptPod(
                metadata,
                labels | ({LABEL_COMPLETION_INDEX: str(index)} if job.completions > 1 else {}),
                job.metadata.uid,
                job.metadata.name,
                active_deadline_seconds=deadline,
                grace_seconds=grace,
            )

    def admit(self, name: str) -> None:
        """Kueue has quota for the Job: it is unsuspended, and its pods are made."""
        job = replace(self.attempt_jobs[name], suspended=False, start_time=self.now)
        self.attempt_jobs[name] = job
        self._make_pods(job)

    def preempt(self, name: str) -> None:
        """Kueue takes the quota back: the Job is suspended, its pods are deleted and not missed (29-suspend-resume)."""
        self.attempt_jobs[name] = replace(self.attempt_jobs[name], suspended=True, start_time=None)
        self._delete_pods(self.attempt_jobs[name])

    def live_pod(self, name: str) -> AttemptPod | None:
        """The pod of the job that has not ended; of a gang the first."""
        return next(iter(self.live_pods(name)), None)

    def live_pods(self, name: str) -> list[AttemptPod]:
        """The pods of the job that have not ended."""
        uid = self.jobs[name].metadata.uid if name in self.jobs else None
        pods = [p for p in self.pods.values() if p.labels.get(LABEL_JOB) == name and not p.over]
        return [p for p in pods if uid is None or p.labels[LABEL_JOB_UID] == uid]

    def change(self, pod: AttemptPod, **changes: Any) -> AttemptPod:
        self.pods[pod.metadata.name] = replace(pod, **changes)
        return self.pods[pod.metadata.name]

    def wait_for(self, name: str, reason: str, message: str = "") -> None:
        """The kubelet has the pod, and its container waits."""
        pod = self.live_pod(name)
        assert pod
        waiting = ContainerView("trainer", waiting=Waiting(reason, message))
        self.change(pod, node="node-0", start_time=pod.start_time or self.now, containers=(waiting,))

    def run(self, name: str) -> None:
        """The trainer's container runs."""
        pod = self.live_pod(name)
        assert pod
        self.run_pod(pod)

    def run_pod(self, pod: AttemptPod) -> None:
        running = ContainerView("trainer", running=True, running_since=self.now, image_id="trainer@sha256:1")
        self.change(pod, node="node-0", phase="Running", start_time=pod.start_time or self.now, containers=(running,))

    def end(self, name: str, exit_code: int = 0, message: str = "", reason: str = "", **pod_changes: Any) -> None:
        """The trainer's container ends, the pod and then the Job with it."""
        pod = self.live_pod(name)
        assert pod
        self.end_pod(pod, exit_code, message, reason, **pod_changes)

    def end_pod(self, pod: AttemptPod, exit_code: int = 0, message: str = "", reason: str = "", **changes: Any) -> None:
        trainer = pod.trainer
        started = trainer.running_since if trainer else None
        word = reason or ("Completed" if exit_code == 0 else "Error")
        ended = ContainerView(
            "trainer", terminated=Terminated(exit_code, word, message, started, self.now), image_id="trainer@sha256:1"
        )
        phase = "Succeeded" if exit_code == 0 and "reason" not in changes else "Failed"
        changes = {"phase": phase, **changes}
        over = self.change(pod, containers=(ended,), **changes)
        job = self.attempt_jobs.get(pod.owner_name or "")
        if job is not None and job.metadata.uid == pod.owner_uid and not job.suspended:
            self._count(job, failed=phase == "Failed")
        if over.metadata.deletion_time is not None:
            del self.pods[pod.metadata.name]

    def _count(self, job: AttemptJob, *, failed: bool) -> None:
        """What the Job controller makes of a pod that has ended: the first one of a gang that fails ends the others
        (30-indexed-one-fails)."""
        failing = failed or job.condition("FailureTarget") is not None
        if failing:
            self._delete_pods(job)
        live = any(not pod.over for pod in self.pods.values() if pod.owner_uid == job.metadata.uid)
        if live and not failing:
            return
        word = "FailureTarget" if live else "Failed" if failing else "Complete"
        reason = "PodFailurePolicy" if failing else "CompletionsReached"
        condition = ObjectCondition(word, "True", reason, since=self.now)
        self.attempt_jobs[job.metadata.name] = replace(job, conditions=(condition,))

    def succeed(self, name: str, **result: Any) -> None:
        """The trainer publishes and exits 0."""
        self.end(name, 0, published(**result))

    def report(self, name: str, phase: Phase = Phase.TRAINING, **progress: Any) -> bool:
        """A report, taken as the intake takes it: only of the current attempt."""
        job = self.jobs[name]
        current = job.status.current
        pod = self.live_pod(name)
        if current is None or pod is None or current.pod_uid != pod.metadata.uid:
            return False
        made = Progress(phase=phase.value, updated_at=self.now, **progress)
        self.write(name, job.status.model_copy(update={"progress": made}))
        return True

    def kubelet(self) -> None:
        """Where the node is up: what was asked to end has ended by now, with exit code 75 (drained) or never having run."""
        for name in list(self.pods):
            pod = self.pods.get(name)
            node = self.nodes.get(pod.node or "") if pod else None
            if pod is None or pod.over or node is None or node.ready != "True":
                continue
            if pod.active_deadline_seconds == 1 or pod.metadata.deletion_time is not None:
                code, why = (75, "Error") if pod.running else (137, "ContainerStatusUnknown")
                self.end_pod(pod, code, reason=why, phase="Failed")

    def warm(self, name: str) -> AttemptPod:
        """The pod of a standby Job is warm."""
        pod = next(p for p in self.pods.values() if p.owner_name == name)
        running = ContainerView("trainer", running=True, running_since=self.now)
        ready = ObjectCondition("Ready", "True", since=self.now)
        return self.change(
            pod, node="node-0", phase="Running", start_time=self.now, containers=(running,), conditions=(ready,)
        )

    def tick(self, seconds: float = 1) -> None:
        self.now += timedelta(seconds=seconds)

    def lose_node(self) -> None:
        """Its kubelet falls silent."""
        self.nodes["node-0"] = NodeView("node-0", ready="Unknown", since=self.now)

    def _delete_pods(self, job: AttemptJob) -> None:
        for pod in list(self.pods.values()):
            if pod.owner_uid == job.metadata.uid and not pod.over:
                self._delete_pod(pod, pod.grace_seconds)

    def _delete_pod(self, pod: AttemptPod, grace: int) -> None:
        if pod.over or pod.node is None:
            self.pods.pop(pod.metadata.name)
            return
        when = self.now + timedelta(seconds=grace)
        old = pod.metadata.deletion_time
        self.change(pod, metadata=replace(pod.metadata, deletion_time=min(when, old) if old else when))

    def delete_attempt_job(self, job: AttemptJob) -> None:
        del self.attempt_jobs[job.metadata.name]
        for pod in list(self.pods.values()):
            if pod.owner_uid == job.metadata.uid:
                self._delete_pod(pod, pod.grace_seconds)

    def _uid(self, kind: str) -> str:
        self.uids += 1
        return f"{self.uids:04d}-{kind}"

    # --- what tests ask -------------------------------------------------------------------------------------------------

    def status(self, name: str) -> TrainingJobStatus:
        return self.jobs[name].status

    def executing(self) -> int:
        """Pods that take a slot."""
        return len({pod.owner_uid for pod in self.pods.values() if not pod.over})


def published(**changes: Any) -> str:
    """The termination message of a trainer that published version 1."""
    facts: dict[str, Any] = {
        "exit_code": 0,
        "reason": "Completed",
        "step": 300,
        "steps": 300,
        "training_seconds": 60,
        "manifestURI": "s3://vision/models/cells/v1/manifest.json",
        "metrics": {"mAP50": 0.871},
    }
    return Result.model_validate({**facts, **changes}).to_termination_message()
