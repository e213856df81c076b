"""Which changes of a job's status are Events: what happened, and every new cause for which it does not go on; not each new number."""

import re

from trainyard_api.trainingjob import Attempt, Cause, JobState, TrainingJobStatus

from trainyard_operator.decide.deletion import DELETION_BLOCKED
from trainyard_operator.decide.diagnosis import BLOCKED_REASONS
from trainyard_operator.decide.model import Note
from trainyard_operator.decide.scheduling import complaints
from trainyard_operator.decide.warnings import TOO_SLOW

BAD_REASONS = BLOCKED_REASONS | {DELETION_BLOCKED}
HELD_REASONS = frozenset(
    {
        "JobSuspended",
        "NotAdmitted",
        "PreviousJobTerminating",
        "SchedulingGated",
        "ServiceMismatch",
        "ServiceNotFound",
    }
)
"""Nothing is broken, and the attempt waits for somebody."""
CHANGING = re.compile(r'"[^"]*"|(?<![\w-])\d[\w.:/+-]*|\b[0-9a-f]{12,}\b')
"""What differs between two sentences about the same cause: quoted names (of a pod that is made anew), numbers with their units,
times, addresses, hashes; not the digits of a name (`s3`, `gpu-1`)."""


def job_events(old: TrainingJobStatus, new: TrainingJobStatus) -> tuple[Note, ...]:
    """One Event for an attempt that ended, one for a training that will not end in time, and one for a new state or a new cause
    within it, the steps of an attempt that starts as it should not among them."""
    ended = (attempt for attempt in new.attempts if attempt.end_time and attempt not in old.attempts)
    # That the last one completed is what the job's success says.
    notes = tuple(_ended(attempt) for attempt in ended if new.state is not JobState.SUCCEEDED)
    notes += tuple(
        Note(w.reason, w.message, warning=True) for w in new.warnings if w.reason == TOO_SLOW and w not in old.warnings
    )
    same = new.state is old.state
    if (same and _cause(old) == _cause(new)) or (notes and new.state is JobState.RERUN):
        return notes
    bad = new.state in (JobState.FAILED, JobState.UNSPECIFIED) or new.reason in BAD_REASONS
    reason = new.reason if same and new.reason else new.state.value
    return (*notes, Note(reason, new.message or "", warning=bad))


def _cause(status: TrainingJobStatus) -> tuple[str | None, frozenset[str]]:
    """What an Event tells of a state: the reason and, of one that keeps the job from going on, what its sentence says of it."""
    if status.reason in BAD_REASONS or status.reason in HELD_REASONS:
        said = status.message or ""
        return status.reason, complaints(said) or frozenset({CHANGING.sub("", said)})
    # A step on its way, which the status shows, is none.
    return None if status.state is JobState.PREPARING else status.reason, frozenset()


def _ended(attempt: Attempt) -> Note:
    cause = attempt.cause or Cause.ERROR
    calm = cause in (Cause.COMPLETED, Cause.STOPPED, Cause.FINISHED, Cause.ABORTED, Cause.SCALED_DOWN, Cause.REQUEUED)
    return Note(f"Attempt{cause.value}", f"Attempt {attempt.number} ended: {attempt.message}", warning=not calm)
