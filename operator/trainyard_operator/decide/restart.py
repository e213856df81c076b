"""The next attempt in the pod of the one that failed (`rerunAsProcess`): its supervisor asks, and waits until the ledger says yes.

Both entries share Job and pod, the pod's time, and the slot; closing the one and opening the other is one write of the status. What
would not follow at once anyway (the last attempt that counts, a stop, a budget) is not answered: the pod then ends as any other.
"""

from datetime import timedelta

from trainyard_api.report import ExitCode, Phase
from trainyard_api.trainingjob import Attempt, AttemptResult, Cause, Current, JobState

from trainyard_operator.decide.case import Case, Draft
from trainyard_operator.decide.execution import ending, pods_of
from trainyard_operator.decide.failure import End
from trainyard_operator.decide.jobs import next_attempt
from trainyard_operator.decide.model import MAX_ATTEMPT_NUMBER
from trainyard_operator.decide.retry import Then, follow_up
from trainyard_operator.decide.settle import settle
from trainyard_operator.decide.start import may_start_again


def restarted(case: Case, draft: Draft, attempt: Attempt) -> Draft | None:
    """The draft with the failed attempt closed and the next one open; None: nobody asks, or it is not to be."""
    result = _asked(draft)
    live = [pod for pod in pods_of(case, attempt) if not pod.over and pod.metadata.deletion_time is None]
    if result is None or attempt.ending is not None or attempt.start_time is None or len(live) != 1:
        return None
    status = draft.status
    follow = follow_up(Cause.ERROR, case.execution, status.charged_attempts or 0, status.disruptions or 0)
    left = _time_left(case, attempt)
    wanted = follow.then is Then.RETRY and left > 0 and next_attempt(status) <= MAX_ATTEMPT_NUMBER
    if not wanted or not may_start_again(case) or ending(case, draft, attempt) is not None:
        return None
    end = End(Cause.ERROR, result.message, exit_code=result.exit_code, end_time=case.now, result=result)
    closed = settle(case, draft, attempt, end)
    number = next_attempt(status)
    again = Attempt(
        number=number,
        run=attempt.run,
        job_name=attempt.job_name,
        jobUID=attempt.job_uid,
        pod_name=live[0].metadata.name,
        podUID=live[0].metadata.uid,
        node=attempt.node,
        image=attempt.image,
        process=attempt.process + 1,
        create_time=case.now,
        start_time=case.now,
        reset=attempt.reset,
        timeout_seconds=left,
    )
    said = f"Attempt {attempt.number} failed: {result.message} Its process is started again in the same pod."
    return (
        closed.with_attempt(again)
        .set(
            attempt_count=number,
            next_attempt_time=None,
            current=Current(attempt=number, podUID=live[0].metadata.uid),
            progress=None,
            summary=None,
        )
        .say(JobState.PREPARING, "Restarting", said)
    )


def _asked(draft: Draft) -> AttemptResult | None:
    progress = draft.status.progress
    if progress is None or progress.phase != Phase.RESTARTING or progress.result is None:
        return None
    return progress.result if progress.result.exit_code == ExitCode.ERROR else None


def _time_left(case: Case, attempt: Attempt) -> int:
    """Seconds that the pod's attempts have together, less what is over."""
    assert attempt.start_time is not None
    given = attempt.timeout_seconds or case.execution.timeout_seconds
    return given - (case.now - attempt.start_time) // timedelta(seconds=1)
