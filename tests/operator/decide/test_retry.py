"""What follows an end: by cause, and by the limits of the policy."""

from datetime import timedelta

import pytest
from trainyard_api.execution import Execution
from trainyard_api.trainingjob import Cause
from trainyard_operator.decide.retry import Count, Then, backoff, follow_up

POLICY = Execution(max_attempts=3, max_disruptions=2, backoff_seconds=10)
FAIL_ON_RESET = Execution.model_validate({"onReset": "Fail"})
S = timedelta(seconds=1)

# cause, charged and disrupted attempts before it, policy, what follows, how it counts, after how long
ROWS = [
    (Cause.COMPLETED, 2, 2, POLICY, Then.SUCCEED, Count.FREE, 0 * S),
    (Cause.STOPPED, 2, 2, POLICY, Then.PAUSE, Count.FREE, 0 * S),
    (Cause.FINISHED, 2, 2, POLICY, Then.PAUSE, Count.FREE, 0 * S),
    (Cause.ABORTED, 0, 0, POLICY, Then.ABORT, Count.FREE, 0 * S),
    (Cause.ERROR, 0, 0, POLICY, Then.RETRY, Count.CHARGED, 10 * S),
    (Cause.ERROR, 1, 0, POLICY, Then.RETRY, Count.CHARGED, 20 * S),
    (Cause.ERROR, 2, 0, POLICY, Then.FAIL, Count.CHARGED, 0 * S),
    (Cause.OUT_OF_MEMORY, 0, 0, POLICY, Then.RETRY, Count.CHARGED, 10 * S),
    (Cause.STALLED, 0, 0, POLICY, Then.RETRY, Count.CHARGED, 10 * S),
    (Cause.START_TIMED_OUT, 2, 0, POLICY, Then.FAIL, Count.CHARGED, 0 * S),
    (Cause.TIMED_OUT, 0, 0, POLICY, Then.FAIL, Count.CHARGED, 0 * S),
    (Cause.INVALID_SPEC, 0, 0, POLICY, Then.FAIL, Count.CHARGED, 0 * S),
    (Cause.INVALID_DATA, 0, 0, POLICY, Then.FAIL, Count.CHARGED, 0 * S),
    (Cause.STORAGE_DENIED, 0, 0, POLICY, Then.FAIL, Count.CHARGED, 0 * S),
    (Cause.DISK_FULL, 0, 0, POLICY, Then.FAIL, Count.CHARGED, 0 * S),
    (Cause.DISRUPTED, 2, 1, POLICY, Then.RETRY, Count.DISRUPTION, 10 * S),
    (Cause.DISRUPTED, 0, 2, POLICY, Then.FAIL, Count.DISRUPTION, 0 * S),
    (Cause.LOST, 0, 0, POLICY, Then.RETRY, Count.DISRUPTION, 10 * S),
    (Cause.INTERRUPTED, 0, 2, POLICY, Then.FAIL, Count.DISRUPTION, 0 * S),
    (Cause.STORAGE_UNREACHABLE, 0, 0, POLICY, Then.RETRY, Count.DISRUPTION, 60 * S),
    (Cause.VERSION_TAKEN, 0, 0, POLICY, Then.RETRY, Count.DISRUPTION, 0 * S),
    (Cause.GAVE_WAY, 0, 0, POLICY, Then.RETRY, Count.DISRUPTION, 300 * S),
    (Cause.GAVE_WAY, 0, 1, POLICY, Then.RETRY, Count.DISRUPTION, 600 * S),
    (Cause.GAVE_WAY, 0, 2, POLICY, Then.FAIL, Count.DISRUPTION, 0 * S),
    (Cause.RESET, 2, 2, POLICY, Then.RETRY, Count.FREE, 0 * S),
    (Cause.RESET, 0, 0, FAIL_ON_RESET, Then.FAIL, Count.FREE, 0 * S),
    (Cause.DISRUPTED, 0, 0, FAIL_ON_RESET, Then.FAIL, Count.DISRUPTION, 0 * S),
    (Cause.LOST, 0, 0, FAIL_ON_RESET, Then.FAIL, Count.DISRUPTION, 0 * S),
    (Cause.INTERRUPTED, 0, 0, FAIL_ON_RESET, Then.RETRY, Count.DISRUPTION, 10 * S),
]


@pytest.mark.parametrize(("cause", "charged", "disruptions", "policy", "then", "count", "delay"), ROWS)
def test_what_follows(
    cause: Cause, charged: int, disruptions: int, policy: Execution, then: Then, count: Count, delay: timedelta
):
    follow = follow_up(cause, policy, charged, disruptions)
    assert (follow.then, follow.count, follow.delay) == (then, count, delay)


@pytest.mark.parametrize("cause", list(Cause))
def test_no_cause_is_retried_for_ever_without_a_deed_of_the_user(cause: Cause):
    follow = follow_up(cause, POLICY, 1000, 1000)
    assert follow.then is not Then.RETRY or cause in (Cause.RESET, Cause.SCALED_DOWN, Cause.REQUEUED)


@pytest.mark.parametrize(
    ("charged", "seconds"), [(0, 0), (1, 10), (2, 20), (3, 40), (9, 2560), (10, 3600), (100, 3600)]
)
def test_the_wait_doubles_up_to_an_hour(charged: int, seconds: int):
    assert backoff(POLICY, charged) == timedelta(seconds=seconds)


def test_a_limit_that_is_reached_is_named():
    assert "maxAttempts" in follow_up(Cause.ERROR, POLICY, 2, 0).exhausted
    assert "maxDisruptions" in follow_up(Cause.LOST, POLICY, 0, 2).exhausted
    assert "onReset" in follow_up(Cause.RESET, FAIL_ON_RESET, 0, 0).exhausted
