"""A job that wants to run: what keeps it waiting, and the opening of its next attempt once it is admitted."""

from dataclasses import replace
from datetime import timedelta

from trainyard_api.status import Condition, ConditionStatus
from trainyard_api.storage import attempt_job_name
from trainyard_api.trainingjob import Attempt, Cause, Current, End, JobState, TrainingJobStatus
from trainyard_api.trainingservice import StandbyInstance

from trainyard_operator.decide import budget
from trainyard_operator.decide.admission import SHOWN_POSITIONS, admitted, entry_of
from trainyard_operator.decide.case import Case, Draft
from trainyard_operator.decide.execution import QUIET, supervise
from trainyard_operator.decide.jobs import is_ready, next_attempt, run_attempts
from trainyard_operator.decide.model import MAX_ATTEMPT_NUMBER, AttemptPod
from trainyard_operator.decide.nodes import is_lost, lost_time
from trainyard_operator.decide.retry import limit_reached
from trainyard_operator.decide.scaling import capacity
from trainyard_operator.decide.settle import finished
from trainyard_operator.decide.start import blocker
from trainyard_operator.decide.tally import slot_of
from trainyard_operator.decide.versions import with_version

NEXT = timedelta(seconds=1)
"""When a job whose batch is about to be written looks again, should that fail."""


def queue_up(case: Case, draft: Draft) -> Draft:
    """Waiting, or the next attempt opened when the service's batch has it."""
    status = draft.status
    if status.state is JobState.RERUN and status.next_attempt_time and status.next_attempt_time > case.now:
        return draft.look_at(status.next_attempt_time)
    if block := blocker(case):
        if block.final:
            return finished(draft, JobState.FAILED, block.reason, block.message, case.now)
        draft = _waiting(case, draft).set(queue_position=None)
        draft = draft.say(JobState.QUEUED, block.reason, block.message)
        return draft.act(block.action) if block.action else draft
    if pod := _left_over(case, status):
        said = f"Pod {pod.metadata.name} of an earlier attempt has not ended yet; the next attempt starts when it has."
        lost = lost_time(pod, case.snapshot.nodes, case.snapshot.defaults, case.now)
        draft = _waiting(case, draft).set(queue_position=None).look_at(lost)
        return draft.say(JobState.QUEUED, "PreviousAttemptEnding", said)
    if next_attempt(status) > MAX_ATTEMPT_NUMBER:
        said = f"{MAX_ATTEMPT_NUMBER} attempts of this run have ended; raise spec.rerun for a new run."
        return finished(draft, JobState.FAILED, "TooManyAttempts", said, case.now)
    if limit := limit_reached(case.execution, status.charged_attempts or 0, status.disruptions or 0):
        last = run_attempts(status)[-1]
        cause, message = last.cause or Cause.ERROR, f"{last.message or ''} {limit}".strip()
        return finished(draft, JobState.FAILED, cause.value, message, case.now)
    if found := _shortage(case, draft):
        waiting = _waiting(case, draft).set(queue_position=None)
        return waiting.say(JobState.TRY_AGAIN_LATER, budget.SPENT, budget.said(found))
    if not _has_entry(case, draft):
        if _is_next(case):
            return replace(draft, untold=True).look_at(case.now + NEXT)
        return _describe(case, _waiting(case, draft))
    if not is_ready(case.snapshot.job.status):
        # An entry from before is still there. It holds once the job's written status says that it waits: the next look.
        return _describe(case, _waiting(case, draft)).look_at(case.now)
    limiting = budget.limiting(case.snapshot.budgets, case.service_name)
    if not all(budget.holds(each, case.snapshot.job, draft.status) for each in limiting):
        return _describe(case, _waiting(case, draft))  # until they have set its time aside
    return _open(case, draft)


def _left_over(case: Case, status: TrainingJobStatus) -> AttemptPod | None:
    """A pod of the job that lives although every attempt of the ledger has ended: it was seen too late. Fenced ones do not count."""
    fenced = {(attempt.run, attempt.number) for attempt in status.attempts if attempt.fenced}
    for pod in case.snapshot.pods:
        slot = slot_of(pod)
        mine = slot.job_uid == case.uid and (slot.run, slot.attempt) not in fenced
        if mine and not pod.over and not is_lost(pod, case.snapshot.nodes, case.snapshot.defaults, case.now):
            return pod
    return None


def _is_next(case: Case) -> bool:
    """Whether the job is new and its slot is free, so that the service's next batch has it: nothing to tell."""
    service, place, created = case.snapshot.service, case.snapshot.queue, case.snapshot.job.metadata.creation_time
    if service is None or service.spec.paused or place.full or created is None:
        return False
    return place.next and case.now < created + QUIET


def _shortage(case: Case, draft: Draft) -> budget.Shortage | None:
    service = case.snapshot.service
    assert service is not None
    return budget.shortage(case.snapshot.budgets, case.snapshot.job, draft.status, service.spec, case.now)


def _has_entry(case: Case, draft: Draft) -> bool:
    """Whether the service's batch has the next attempt. Only a job whose written status says that it waits can use it: else the
    entry may be taken back."""
    service = case.snapshot.service
    return service is not None and admitted(service, replace(case.snapshot.job, status=draft.status))


def _waiting(case: Case, draft: Draft) -> Draft:
    status, place = draft.status, case.snapshot.queue
    shown = place.position if place.position and place.position <= SHOWN_POSITIONS else None
    return draft.set(
        queued_time=status.queued_time or case.now,
        queue_position=shown,
        next_attempt_time=None,
        completion_time=None,
    )


def _describe(case: Case, draft: Draft) -> Draft:
    service, name = case.snapshot.service, case.service_name
    assert service is not None
    limit = capacity(service.spec.scaling)
    if case.snapshot.queue.full:
        length = service.spec.queue.max_length
        said = f"The queue of TrainingService {name} is full (queue.maxLength {length}); the job enters it when there is room."
        return draft.say(JobState.TRY_AGAIN_LATER, "QueueFull", said)
    if service.spec.paused:
        said = (
            f"TrainingService {name} is paused: no new execution starts. `trainyard service resume {name}` ends that."
        )
        return draft.say(JobState.QUEUED, "ServicePaused", said)
    raised = service.spec.scaling.max_instances + 1
    scale = f"`kubectl scale tsvc/{name} -n {case.namespace} --replicas={raised}`"
    if limit == 0:
        said = f"TrainingService {name} has maxInstances 0 and takes no execution. {scale} changes that."
        return draft.say(JobState.QUEUED, "NoInstances", said)
    at_once = f"{limit} execution{'s' if limit > 1 else ''} at once"
    said = f"Waits for an instance of TrainingService {name}, which runs at most {at_once}; {scale} raises that."
    if degraded := _degraded(service.status.conditions):
        said += f" The service is degraded: {degraded.message}"
    return draft.say(JobState.QUEUED, "WaitingForInstance", said)


def _degraded(conditions: tuple[Condition, ...]) -> Condition | None:
    return next((c for c in conditions if c.type == "Degraded" and c.status is ConditionStatus.TRUE), None)


def _warm(case: Case, draft: Draft) -> StandbyInstance | None:
    """The warm instance that the batch gives the attempt."""
    assert case.snapshot.service is not None
    entry = entry_of(case.snapshot.service, replace(case.snapshot.job, status=draft.status))
    return entry.standby if entry else None


def _open(case: Case, draft: Draft) -> Draft:
    """The next attempt in the ledger, written before anything is made of it; the intake's fields are cleared for it."""
    status, spec = draft.status, case.snapshot.job.spec
    run, number = status.run or 0, next_attempt(status)
    service = case.snapshot.service
    warm = _warm(case, draft)
    attempt = Attempt(
        number=number,
        run=run,
        job_name=warm.job_name if warm else attempt_job_name(case.name, run, number),
        jobUID=warm.job_uid if warm else None,
        pod_name=warm.pod_name if warm else None,
        podUID=warm.pod_uid if warm else None,
        node=warm.node if warm else None,
        standby=warm is not None,
        start_time=case.now if warm else None,
        create_time=case.now,
        reset=service.spec.reset if service else 0,
        finish=spec.end is End.FINISH,
        timeout_seconds=case.execution.timeout_seconds,
        budgetUIDs=tuple(
            each.metadata.uid for each in budget.limiting(case.snapshot.budgets, case.service_name)[: budget.MAX_LISTED]
        ),
    )
    waited = int((case.now - status.queued_time).total_seconds()) if status.queued_time else 0
    draft = draft.with_attempt(attempt).set(
        attempt_count=number,
        start_time=status.start_time or case.now,
        queue_seconds=(status.queue_seconds or 0) + max(0, waited),
        queued_time=None,
        queue_position=None,
        next_attempt_time=None,
        completion_time=None,
        current=Current(attempt=number, podUID=warm.pod_uid) if warm else None,
        progress=None,
        summary=None,
    )
    # The warm instance's Job and pod are found by the ledger: they are handed over by the next look.
    draft = draft.look_at(case.now if warm else None)
    return supervise(case, with_version(case, draft), attempt)
