"""What a TrainingJob says about itself: its service, its attempts, whether it waits and in which order."""

from datetime import UTC, datetime

from trainyard_api.execution import Resources
from trainyard_api.trainingjob import Attempt, JobState, TrainingJobSpec, TrainingJobStatus
from trainyard_api.trainingservice import default_service_name

from trainyard_operator.decide.model import JobView

WAITING = frozenset({JobState.QUEUED, JobState.TRY_AGAIN_LATER})
READY_REASONS = frozenset({"WaitingForInstance", "QueueFull", "ServicePaused", "NoInstances"})
"""Reasons of a waiting job that nothing but a slot is missing to; the others do not hold up who comes after."""

Order = tuple[int, datetime, str]
"""Priority, highest first, then age, then name."""


def service_name_of(spec: TrainingJobSpec) -> str:
    """The TrainingService that a job runs on, existing or not."""
    return spec.service_name or default_service_name(spec.architecture)


def run_attempts(status: TrainingJobStatus) -> tuple[Attempt, ...]:
    """The listed attempts of the present run, oldest first."""
    return tuple(attempt for attempt in status.attempts if attempt.run == (status.run or 0))


def open_attempts(status: TrainingJobStatus) -> tuple[Attempt, ...]:
    """Those that have not ended: at most one, unless something is wrong."""
    return tuple(attempt for attempt in status.attempts if attempt.end_time is None)


def has_checkpoint(status: TrainingJobStatus) -> bool:
    """Whether an attempt of this run saved a checkpoint."""
    progress = status.progress.checkpoint_step if status.progress else None
    return progress is not None or any(a.checkpoint_step is not None for a in run_attempts(status))


def next_attempt(status: TrainingJobStatus) -> int:
    """Number of the attempt that would start next in this run."""
    return (status.attempt_count or 0) + 1


def next_execution(job: JobView) -> tuple[int, int]:
    """Run and attempt that would start next. Before anything is written to a job, its run is the one that its spec asks for."""
    run = job.status.run if job.status.run is not None else job.spec.rerun
    return run, next_attempt(job.status)


def is_new(status: TrainingJobStatus) -> bool:
    """Whether nothing has been written to it yet."""
    return status.state is JobState.CREATED and status.revision is None


def is_ready(status: TrainingJobStatus) -> bool:
    """Whether a job's written status says that nothing but a slot is missing: only then an entry of the batch holds for it.

    A new one counts: with a slot free, that it waits is never written. What else it lacks takes the entry back, by a write.
    """
    return is_new(status) or (status.state in WAITING and status.reason in READY_REASONS)


def is_waiting(job: JobView) -> bool:
    """Whether the job is to be put into a batch: ready, and by the spec as it is now."""
    if is_new(job.status):
        wanted = not job.spec.suspend and job.spec.end is None
    else:
        wanted = job.status.observed_generation == job.metadata.generation and is_ready(job.status)
    return wanted and job.metadata.deletion_time is None


def stands_apart(spec: TrainingJobSpec) -> bool:
    """Whether the job may not start where others of its service do: it has an instance, or Secrets, of its own."""
    return spec.resources != Resources() or bool(spec.dataset.secret_name or spec.output.secret_name)


def queue_order(job: JobView) -> Order:
    """Priority, then age."""
    created = job.metadata.creation_time or datetime.max.replace(tzinfo=UTC)
    return -(job.spec.policy.priority or 0), created, job.metadata.name
