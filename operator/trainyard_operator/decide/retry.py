"""What follows the end of an attempt: one table by cause, then the limits of the policy."""

from dataclasses import dataclass
from datetime import timedelta
from enum import Enum, auto

from trainyard_api.execution import Execution, OnReset
from trainyard_api.trainingjob import Cause

MAX_BACKOFF = timedelta(hours=1)
STORAGE_DELAY = timedelta(seconds=60)
GIVE_WAY = timedelta(minutes=5)
"""How long an execution that cannot start keeps its slot from others, and its job's first pause afterwards."""


class Then(Enum):
    SUCCEED = auto()
    RETRY = auto()
    """Another attempt, after `delay`."""
    FAIL = auto()
    PAUSE = auto()
    """As the user asked: stopped, to be resumed or finished."""
    ABORT = auto()


class Count(Enum):
    """What an attempt of a cause is counted as."""

    CHARGED = auto()
    DISRUPTION = auto()
    """Uncharged; `maxDisruptions` bounds them, so that no uncharged loop is endless."""
    FREE = auto()
    """Each needs a deed of the user's, which bounds them."""


@dataclass(frozen=True)
class FollowUp:
    then: Then
    count: Count
    delay: timedelta = timedelta()
    exhausted: str = ""
    """A sentence about the limit that was reached, when it is the limit that fails the job."""


RETRIED: dict[Cause, Count] = {
    Cause.ERROR: Count.CHARGED,
    Cause.OUT_OF_MEMORY: Count.CHARGED,
    Cause.STALLED: Count.CHARGED,
    Cause.START_TIMED_OUT: Count.CHARGED,
    Cause.START_FAILED: Count.CHARGED,
    Cause.DISRUPTED: Count.DISRUPTION,
    Cause.INTERRUPTED: Count.DISRUPTION,
    Cause.LOST: Count.DISRUPTION,
    Cause.REFUSED: Count.DISRUPTION,
    Cause.STORAGE_UNREACHABLE: Count.DISRUPTION,
    Cause.VERSION_TAKEN: Count.DISRUPTION,
    Cause.GAVE_WAY: Count.DISRUPTION,
    Cause.RESET: Count.FREE,
    Cause.SCALED_DOWN: Count.FREE,
    Cause.REQUEUED: Count.FREE,
}
NEVER_RETRIED = frozenset(
    {Cause.TIMED_OUT, Cause.INVALID_SPEC, Cause.INVALID_DATA, Cause.STORAGE_DENIED, Cause.DISK_FULL}
)
ON_RESET = frozenset({Cause.RESET, Cause.DISRUPTED, Cause.LOST})
"""Causes that `onReset: Fail` turns into a failure of the job."""


def follow_up(cause: Cause, execution: Execution, charged: int, disruptions: int) -> FollowUp:
    """What follows an attempt that ended by `cause`, after `charged` and `disruptions` earlier ones of the run."""
    match cause:
        case Cause.COMPLETED:
            return FollowUp(Then.SUCCEED, Count.FREE)
        case Cause.STOPPED | Cause.FINISHED:
            return FollowUp(Then.PAUSE, Count.FREE)
        case Cause.ABORTED:
            return FollowUp(Then.ABORT, Count.FREE)
        case _ if cause in NEVER_RETRIED:
            return FollowUp(Then.FAIL, Count.CHARGED)
        case _:
            return _retry(cause, execution, charged, disruptions)


def backoff(execution: Execution, charged: int) -> timedelta:
    """Wait after the `charged`-th charged attempt: doubled with each, at most an hour."""
    if charged < 1:
        return timedelta()
    seconds = execution.backoff_seconds * 2 ** min(charged - 1, 30)
    return min(timedelta(seconds=min(seconds, 3600)), MAX_BACKOFF)


def limit_reached(execution: Execution, charged: int, disruptions: int) -> str | None:
    """Why no attempt may follow any more, as a sentence: a limit may have been lowered while the next one waited."""
    if charged >= execution.max_attempts:
        return f"{charged} of {execution.max_attempts} attempts that count (maxAttempts) have ended."
    if disruptions > execution.max_disruptions:
        return _too_many(disruptions, execution)
    return None


def _too_many(disruptions: int, execution: Execution) -> str:
    return f"{disruptions} attempts were lost to disruptions; maxDisruptions allows {execution.max_disruptions}."


def _retry(cause: Cause, execution: Execution, charged: int, disruptions: int) -> FollowUp:
    count = RETRIED[cause]
    if cause in ON_RESET and execution.on_reset is OnReset.FAIL:
        return FollowUp(Then.FAIL, count, exhausted="onReset is Fail.")
    match count:
        case Count.CHARGED:
            if charged + 1 >= execution.max_attempts:
                limit = execution.max_attempts
                said = f"This was attempt {charged + 1} of {limit} that count (maxAttempts)."
                return FollowUp(Then.FAIL, count, exhausted=said)
            return FollowUp(Then.RETRY, count, backoff(execution, charged + 1))
        case Count.DISRUPTION:
            if disruptions >= execution.max_disruptions:
                return FollowUp(Then.FAIL, count, exhausted=_too_many(disruptions + 1, execution))
            return FollowUp(Then.RETRY, count, _pause(cause, execution, disruptions))
        case Count.FREE:
            return FollowUp(Then.RETRY, count)


def _pause(cause: Cause, execution: Execution, disruptions: int) -> timedelta:
    match cause:
        case Cause.GAVE_WAY:
            return min(GIVE_WAY * 2 ** min(disruptions, 30), MAX_BACKOFF)
        case Cause.STORAGE_UNREACHABLE:
            return STORAGE_DELAY
        case Cause.VERSION_TAKEN:
            return timedelta()
        case _:
            return backoff(execution, 1)
