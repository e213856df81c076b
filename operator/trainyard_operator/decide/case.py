"""What the parts of the job's state machine share: the case at hand, and the draft of its plan."""

from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from typing import Any

from trainyard_api.execution import Execution, Instance
from trainyard_api.resolve import resolved_execution
from trainyard_api.trainingjob import Attempt, JobState, TrainingJobStatus

from trainyard_operator.decide.jobs import service_name_of
from trainyard_operator.decide.model import Action, AttemptJob, AttemptPod, JobSnapshot
from trainyard_operator.decide.subject import Subject
from trainyard_operator.status import text

MAX_LISTED_ATTEMPTS = 20


@dataclass(frozen=True)
class Case:
    """A snapshot with what is resolved from it."""

    snapshot: JobSnapshot

    @property
    def now(self) -> datetime:
        return self.snapshot.now

    @property
    def name(self) -> str:
        return self.snapshot.job.metadata.name

    @property
    def namespace(self) -> str:
        return self.snapshot.job.metadata.namespace

    @property
    def uid(self) -> str:
        return self.snapshot.job.metadata.uid

    @property
    def model(self) -> str:
        return self.snapshot.job.spec.model or self.name

    @property
    def service_name(self) -> str:
        return service_name_of(self.snapshot.job.spec)

    @cached_property
    def execution(self) -> Execution:
        """The service's way of running, with the job's overrides; the API's defaults while there is no service."""
        if self.snapshot.service is None:
            return self.snapshot.job.spec.policy.over(Execution())
        return resolved_execution(self.snapshot.job.spec, self.snapshot.service.spec)

    @cached_property
    def subject(self) -> Subject:
        """Whom the sentences are about."""
        snapshot, service = self.snapshot, self.snapshot.service
        return Subject(
            self.namespace, self.service_name, snapshot.nodes, snapshot.job.spec, service.spec if service else None
        )

    @cached_property
    def instance(self) -> Instance:
        return self.subject.instance

    def job_of(self, attempt: Attempt) -> AttemptJob | None:
        """The attempt's batch/v1 Job: of its name and ours."""
        jobs = (job for job in self.snapshot.jobs if job.metadata.name == attempt.job_name)
        # A standby's Job is the service's until it is handed over: its uid says that it is the attempt's.
        return next((job for job in jobs if job.owner_uid == self.uid or job.metadata.uid == attempt.job_uid), None)

    def foreign_job(self, name: str) -> AttemptJob | None:
        """A Job of that name which is not ours."""
        jobs = self.snapshot.jobs
        return next((job for job in jobs if job.metadata.name == name and job.owner_uid != self.uid), None)

    @property
    def own_jobs(self) -> tuple[AttemptJob, ...]:
        return tuple(job for job in self.snapshot.jobs if job.owner_uid == self.uid)

    def pods_of(self, job_uid: str | None) -> tuple[AttemptPod, ...]:
        if job_uid is None:
            return ()
        return tuple(pod for pod in self.snapshot.pods if pod.owner_uid == job_uid)


@dataclass(frozen=True)
class Draft:
    """A plan in the making."""

    status: TrainingJobStatus
    actions: tuple[Action, ...] = ()
    looks: tuple[datetime, ...] = ()
    publishing: TrainingJobStatus | None = None
    """What the job's status will be once its ModelVersion is Ready: the version is written from it, before it."""
    untold: bool = False
    """Nothing is worth a write yet."""

    def set(self, **changes: Any) -> "Draft":
        """With these fields of the status changed."""
        return replace(self, status=self.status.model_copy(update=changes))

    def say(self, state: JobState, reason: str, message: str) -> "Draft":
        return self.set(state=state, reason=reason, message=text(message))

    def act(self, *actions: Action) -> "Draft":
        return replace(self, actions=self.actions + actions)

    def look_at(self, *times: datetime | None) -> "Draft":
        return replace(self, looks=self.looks + tuple(time for time in times if time is not None))

    def with_attempt(self, attempt: Attempt) -> "Draft":
        """With the ledger's entry of the same run and number replaced, or added."""
        attempts = self.status.attempts
        key = (attempt.run, attempt.number)
        if any((a.run, a.number) == key for a in attempts):
            made = tuple(attempt if (a.run, a.number) == key else a for a in attempts)
        else:
            made = (*attempts, attempt)[-MAX_LISTED_ATTEMPTS:]
        return self.set(attempts=made)
