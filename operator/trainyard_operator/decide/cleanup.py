"""What is left of ended attempts: kept for a day for `kubectl logs`, then deleted; what should not be there goes at once."""

from datetime import datetime, timedelta

from trainyard_api.trainingjob import Attempt

from trainyard_operator.decide.case import Case, Draft
from trainyard_operator.decide.model import AttemptJob, AttemptPod, DeleteJob, DeleteTrainingJob, LowerDeadline

COUNTING_SECONDS = 60
"""Time for the Job controller to count an ended pod; a Job that is not finished after it never will be."""


def clean_up(case: Case, draft: Draft) -> Draft:
    """The draft with what has to go, and when to look for the next."""
    for job in case.own_jobs:
        if job.metadata.deletion_time is None:
            draft = _clean_job(case, draft, job)
    return _time_to_live(case, draft)


def _clean_job(case: Case, draft: Draft, job: AttemptJob) -> Draft:
    # Of attempts that shared a pod the last one speaks for their Job.
    attempt = next((a for a in reversed(draft.status.attempts) if a.job_name == job.metadata.name), None)
    if attempt is not None and attempt.end_time is None:
        return draft
    pods = case.pods_of(job.metadata.uid)
    live = tuple(pod for pod in pods if not pod.over)
    if attempt is not None and attempt.fenced:
        return _clean_fenced(case, draft, job, live)
    if live:
        return draft.act(DeleteJob(job.metadata.name, job.metadata.uid))
    goes = _goes_at(case, job, attempt)
    if goes <= case.now:
        return draft.act(DeleteJob(job.metadata.name, job.metadata.uid))
    return draft.look_at(goes)


def _goes_at(case: Case, job: AttemptJob, attempt: Attempt | None) -> datetime:
    ended = attempt.end_time if attempt and attempt.end_time else None
    if job.finished is None:
        if job.suspended or attempt is None:
            return case.now
        return (ended or case.now) + timedelta(seconds=COUNTING_SECONDS)
    since = ended or job.finished.since or job.metadata.creation_time or case.now
    return since + timedelta(seconds=case.snapshot.defaults.keep_finished_seconds)


def _clean_fenced(case: Case, draft: Draft, job: AttemptJob, live: tuple[AttemptPod, ...]) -> Draft:
    """A lost attempt: its Job goes when its pods are really gone; a container that came back with its node is ended."""
    if not live:
        return draft.act(DeleteJob(job.metadata.name, job.metadata.uid))
    nodes = case.snapshot.nodes or {}
    back = [pod for pod in live if pod.node and (node := nodes.get(pod.node)) and node.ready == "True"]
    return draft.act(
        *(
            LowerDeadline(pod.metadata.name, pod.metadata.uid, 1)
            for pod in back
            if pod.metadata.deletion_time is None and (pod.active_deadline_seconds or 2) > 1
        )
    )


def _time_to_live(case: Case, draft: Draft) -> Draft:
    ttl, ended = case.snapshot.job.spec.ttl_seconds_after_finished, draft.status.completion_time
    if ttl is None or ended is None:
        return draft
    goes = ended + timedelta(seconds=ttl)
    if goes > case.now:
        return draft.look_at(goes)
    return draft.act(DeleteTrainingJob(case.name, case.uid))
