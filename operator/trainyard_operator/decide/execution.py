"""An attempt while it lives: what is observed goes into its ledger entry, and what should end it is found.

Order: first the intent (`ending`, with its cause) is written into the ledger, then, in the same or any later pass, the action
follows from it. A pod that runs is ended by lowering its deadline to one second (SIGTERM, full grace, exit code kept); what
never ran is deleted with its Job.
"""

from datetime import UTC, datetime, timedelta
from math import ceil

from trainyard_api.report import Phase
from trainyard_api.resolve import Contradiction
from trainyard_api.trainingjob import Attempt, Cause, Current, End, JobState

from trainyard_operator.decide.case import Case, Draft
from trainyard_operator.decide.denials import Diagnosis
from trainyard_operator.decide.diagnosis import diagnose
from trainyard_operator.decide.evidence import EndFacts
from trainyard_operator.decide.failure import is_replaced, late_pod_time, lost_at, why_replaced
from trainyard_operator.decide.jobs import has_checkpoint
from trainyard_operator.decide.kueue import (
    LABEL_DEMAND,
    LABEL_PRIORITY,
    LABEL_QUEUE,
    demand,
    why_taken_back,
    workload_of,
)
from trainyard_operator.decide.model import (
    LABEL_JOB,
    Action,
    AttemptJob,
    AttemptPod,
    CreateJob,
    DeleteJob,
    DeletePod,
    HandOver,
    LowerDeadline,
    Refusal,
)
from trainyard_operator.decide.refusals import diagnose_refusal
from trainyard_operator.decide.retry import GIVE_WAY
from trainyard_operator.decide.start import create_headless, create_job
from trainyard_operator.decide.tally import Slot, slot_of
from trainyard_operator.decide.versions import with_version
from trainyard_operator.status import text

TRAINING_PHASES = frozenset(
    {Phase.TRAINING, Phase.EVALUATING, Phase.SAVING, Phase.EXPORTING, Phase.UPLOADING, Phase.DONE}
)
DIAGNOSIS_SECONDS = 5
"""How often the events about a pod that does not start are looked at."""
SELDOM = timedelta(seconds=60)
"""How often at least, while a queueing engine holds it back."""
QUIET = timedelta(seconds=5)
"""How long a new attempt is left to start before its way there is told step by step."""
EXACT = timedelta(seconds=30)
"""How long an execution runs before its pod's deadline is lowered from that of the start to the exact one."""


def end_facts(case: Case, draft: Draft, attempt: Attempt) -> EndFacts:
    """What is known about the end of the attempt."""
    job = case.job_of(attempt)
    progress = draft.status.progress
    pods = pods_of(case, attempt)
    # What has run, or is over, says more than why it did not start.
    waits = not pods or not all(_has_run(pod) for pod in pods)
    found = diagnosis_of(case, attempt) if waits else None
    return EndFacts(
        attempt=attempt,
        job=job,
        pods=pods,
        now=case.now,
        subject=case.subject,
        reported=progress.result if progress else None,
        nodes=case.snapshot.nodes,
        diagnosis=found.message if found else "",
        workload=workload_of(job, case.snapshot.workloads) if job else None,
        defaults=case.snapshot.defaults,
    )


def pods_of(case: Case, attempt: Attempt) -> tuple[AttemptPod, ...]:
    job = case.job_of(attempt)
    return case.pods_of(job.metadata.uid if job else attempt.job_uid)


def diagnosis_of(case: Case, attempt: Attempt) -> Diagnosis | None:
    """Why the attempt does not run yet."""
    if case.job_of(attempt) is None and (refused := _refusal_of(case, attempt)):
        return diagnose_refusal(refused, case.subject)
    snapshot = case.snapshot
    return diagnose(case.job_of(attempt), pods_of(case, attempt), snapshot.events, case.subject, snapshot.workloads)


def _refusal_of(case: Case, attempt: Attempt) -> Refusal | None:
    """What keeps its Job from being made."""
    making = (refusal for refusal in case.snapshot.refusals if refusal.action == CreateJob.__name__)
    return next((refusal for refusal in making if refusal.name == attempt.job_name), None)


def observe(case: Case, draft: Draft, attempt: Attempt) -> Draft:
    """The ledger entry with the names, places and times that show by now, and whose reports are taken."""
    job, pods = case.job_of(attempt), pods_of(case, attempt)
    update: dict[str, object] = {}
    shown = _is_shown(case, attempt, pods)
    if job is not None and (shown or job.finished or job.suspended):
        update["job_uid"] = job.metadata.uid
    gang = job.completions if job else case.instance.nodes
    whole = sum(_has_run(pod) for pod in pods) >= gang
    first = min(pods, key=lambda pod: pod.index, default=None) if shown else None
    if first is not None and (gang == 1 or first.index == 0) and not is_replaced(attempt, pods):
        pod = first  # the one that reports
        update |= {"pod_name": pod.metadata.name, "pod_uid": pod.metadata.uid, "node": pod.node or attempt.node}
        if container := pod.trainer:
            ended = container.terminated
            started = container.running_since or (ended.started_at if ended else None)
            # (That of a standby is when it was taken.)
            # A gang has started when all of it runs: until then its time to start goes on.
            update["start_time"] = attempt.start_time or (started if whole else None)
            update["image"] = container.image_id or attempt.image
    progress = draft.status.progress
    if progress is not None and progress.phase in TRAINING_PHASES and attempt.training_start_time is None:
        update["training_start_time"] = progress.updated_at or case.now
    seen = attempt.model_copy(update=update)
    current = Current(attempt=seen.number, podUID=seen.pod_uid) if seen.pod_uid else None
    quiet = attempt.create_time + QUIET
    return draft.with_attempt(seen).set(current=current).look_at(quiet if not shown and case.now < quiet else None)


def _is_shown(case: Case, attempt: Attempt, pods: tuple[AttemptPod, ...]) -> bool:
    """Whether the names of what was made are worth a write of the status: not while all is on its way."""
    if attempt.pod_uid is not None or case.now >= attempt.create_time + QUIET or any(pod.over for pod in pods):
        return True
    if any(_has_run(pod) for pod in pods):
        return case.now >= _settled(case, pods)
    found = diagnosis_of(case, attempt)
    return found is not None and found.blocked


def _settled(case: Case, pods: tuple[AttemptPod, ...]) -> datetime:
    """When the first trainer that runs has been running for a while; at once where one has ended."""
    containers = [container for pod in pods if (container := pod.trainer)]
    ran = [container.running_since for container in containers if container.running_since]
    ended = any(container.terminated for container in containers)
    past = datetime.min.replace(tzinfo=UTC)
    return past if ended or not ran else min(ran) + timedelta(seconds=case.snapshot.defaults.settled_seconds)


def supervise(case: Case, draft: Draft, attempt: Attempt) -> Draft:
    """An attempt that has not ended: found out whether it should, started where it is not, and described."""
    wanted = ending(case, draft, attempt) if attempt.ending is None else None
    if wanted is not None:
        cause, message = wanted
        attempt = attempt.model_copy(update={"ending": cause, "ending_message": text(message), "ending_time": case.now})
        draft = draft.with_attempt(attempt)
    facts = end_facts(case, draft, attempt)
    draft = draft.look_at(lost_at(facts), late_pod_time(facts))
    if attempt.ending is not None:
        draft = draft.act(*ending_actions(case, attempt)).look_at(_finish_time(case, attempt))
        return _describe_ending(case, draft, attempt)
    if attempt.job_uid is None and case.job_of(attempt) is None:
        return _create(case, draft, attempt)
    draft = _hand_over(case, draft, attempt) if attempt.standby else draft
    draft = _with_exact_deadlines(case, draft, attempt)
    draft = draft.look_at(start_deadline(case, attempt), stall_deadline(case, draft, attempt))
    return _describe(case, draft, attempt)


# --- what should end it -----------------------------------------------------------------------------------------------------


def ending(case: Case, draft: Draft, attempt: Attempt) -> tuple[Cause, str] | None:
    """Cause and sentence of what the operator should end the attempt for; once it is decided, that stays."""
    if attempt.ending is not None:
        return attempt.ending, attempt.ending_message or ""
    spec, service = case.snapshot.job.spec, case.snapshot.service
    if spec.end is End.ABORT:
        return Cause.ABORTED, "Aborted: spec.end is Abort."
    if spec.end is End.FINISH and not attempt.finish:
        return Cause.FINISHED, "Asked to finish: spec.end is Finish."
    if spec.suspend and spec.end is not End.FINISH:
        return Cause.STOPPED, "Stopped: spec.suspend is true."
    if service is not None and service.spec.reset > attempt.reset:
        return Cause.RESET, f"TrainingService {case.service_name} was reset."
    if case.snapshot.queue.surplus and service is not None:
        most = service.spec.scaling.max_instances
        return Cause.SCALED_DOWN, (
            f"TrainingService {case.service_name} was scaled down to {most} instance{'s' * (most != 1)} "
            "(scaling.onScaleDown Drain); the job goes on when there is room."
        )
    if is_replaced(attempt, pods_of(case, attempt)):
        return why_replaced(attempt)
    if why := _withdrawn(case, attempt):
        return Cause.REQUEUED, why
    if blocked := _gives_way(case, attempt):
        return Cause.GAVE_WAY, (
            f"Not started within {GIVE_WAY.seconds} s, and other jobs wait for its instance of TrainingService "
            f"{case.service_name}: {blocked.message}"
        )
    start = start_deadline(case, attempt)
    if start is not None and start <= case.now:
        found = diagnosis_of(case, attempt)
        why = found.message if found else "the pod did not run"
        limit = case.execution.start_timeout_seconds
        return Cause.START_TIMED_OUT, f"Not started within {limit} s (startTimeoutSeconds): {why}"
    stall = stall_deadline(case, draft, attempt)
    if stall is not None and stall <= case.now:
        return Cause.STALLED, _stalled(case, draft)
    return None


def start_deadline(case: Case, attempt: Attempt) -> datetime | None:
    """When the attempt has to run at the latest; None: it does, or waits for a queueing engine, or the service that knows the
    limit is gone."""
    begun = _begun(case, attempt)
    if attempt.start_time is not None or begun is None or case.snapshot.service is None:
        return None
    return begun + timedelta(seconds=case.execution.start_timeout_seconds)


def _begun(case: Case, attempt: Attempt) -> datetime | None:
    """Since when it may start; None: a queueing engine holds it back, or has just let it go and the Job controller has not said since
    when."""
    job = case.job_of(attempt)
    if job is not None and (job.suspended or (job.start_time is None and job.condition("Suspended"))):
        return None
    return (job and (job.start_time or job.metadata.creation_time)) or attempt.create_time


def _gives_way(case: Case, attempt: Attempt) -> Diagnosis | None:
    """What keeps the attempt from starting, where other jobs would start in its place: its job has asked for what they have not."""
    begun = _begun(case, attempt)
    wanted = case.snapshot.queue.wanted
    if attempt.start_time is not None or not wanted or begun is None or case.now < begun + GIVE_WAY:
        return None
    found = diagnosis_of(case, attempt)
    return found if found is not None and found.blocked else None


def _withdrawn(case: Case, attempt: Attempt) -> str | None:
    """Why its place in Kueue's queue is given up: it would start what its service does not want, or not want so, any more."""
    job, service = case.job_of(attempt), case.snapshot.service
    if job is None or not job.suspended or attempt.start_time is not None or service is None:
        return None
    if service.spec.paused and LABEL_QUEUE in job.labels:
        return f"TrainingService {case.service_name} was paused before Kueue admitted the attempt."
    asked = job.labels.get(LABEL_DEMAND)
    if asked is None or asked == demand(service.spec, case.snapshot.job.priority_class):
        return None
    return (
        f"TrainingService {case.service_name}, or the job's label {LABEL_PRIORITY}, was changed before Kueue admitted the "
        "attempt; the next one is queued as they are now."
    )


def stall_deadline(case: Case, draft: Draft, attempt: Attempt) -> datetime | None:
    """When silence becomes a stall; None: not started, or uploading, which may take as long as it needs, or the service that
    knows the limit is gone."""
    progress = draft.status.progress
    if attempt.start_time is None or (progress is not None and progress.phase == Phase.UPLOADING):
        return None
    if case.snapshot.service is None:
        return None
    heard = [attempt.start_time, case.snapshot.reports_since, progress.updated_at if progress else None]
    last = max(time for time in heard if time is not None)
    return last + timedelta(seconds=case.execution.stall_timeout_seconds)


def _stalled(case: Case, draft: Draft) -> str:
    limit, progress = case.execution.stall_timeout_seconds, draft.status.progress
    if progress is None:
        return (
            f"No report within {limit} s of the trainer's start (stallTimeoutSeconds). Look at its log, and whether "
            "pods of this namespace may reach the operator's intake (a NetworkPolicy?)."
        )
    return (
        f"No report for {limit} s (stallTimeoutSeconds); the last one said {progress.phase}"
        f"{f' at step {progress.step}' if progress.step else ''}. Look at its log; if it was only slow, raise "
        f"{case.subject.field('stall_timeout_seconds')}."
    )


# --- how it is ended --------------------------------------------------------------------------------------------------------


def ending_actions(case: Case, attempt: Attempt) -> tuple[Action, ...]:
    """The actions that carry the intent out, until their effect shows."""
    job, pods = case.job_of(attempt), pods_of(case, attempt)
    live = [pod for pod in pods if not pod.over]
    if not live:
        return _delete(job)
    # Another pod than the one that ran would save its own beginning over that one's checkpoint, if it were given the time.
    if attempt.ending is Cause.ABORTED or is_replaced(attempt, pods):
        waiting = [pod for pod in live if pod.metadata.deletion_time is None or _slow(case, pod)]
        return tuple(DeletePod(pod.metadata.name, pod.metadata.uid, 1) for pod in waiting)
    if not any(_has_run(pod) for pod in live):
        return _delete(job)
    if (finish := _finish_time(case, attempt)) and finish > case.now:
        return ()
    return tuple(
        LowerDeadline(pod.metadata.name, pod.metadata.uid, 1)
        for pod in live
        if pod.metadata.deletion_time is None and (pod.active_deadline_seconds or 2) > 1
    )


def _finish_time(case: Case, attempt: Attempt) -> datetime | None:
    """A trainer that is asked to finish learns it by the answer to its report, and has the drain time to publish by itself."""
    if attempt.ending is not Cause.FINISHED or attempt.ending_time is None or attempt.start_time is None:
        return None
    return attempt.ending_time + timedelta(seconds=case.execution.drain_seconds)


def _slow(case: Case, pod: AttemptPod) -> bool:
    """Whether a deletion that is under way lets the pod live for more than a moment."""
    deleted = pod.metadata.deletion_time
    return deleted is not None and deleted > case.now + timedelta(seconds=5)


def _delete(job: AttemptJob | None) -> tuple[Action, ...]:
    if job is None or job.metadata.deletion_time is not None or job.finished:
        return ()
    return (DeleteJob(job.metadata.name, job.metadata.uid),)


def _has_run(pod: AttemptPod) -> bool:
    container = pod.trainer
    return container is not None and (container.running or container.terminated is not None)


def _with_exact_deadlines(case: Case, draft: Draft, attempt: Attempt) -> Draft:
    """The kubelet counts from the pod's start, image pulls included; the execution's time counts from the trainer's."""
    timeout = timedelta(seconds=attempt.timeout_seconds or case.execution.timeout_seconds)
    for pod in pods_of(case, attempt):
        container = pod.trainer
        if pod.over or pod.start_time is None or container is None or container.running_since is None:
            continue
        if attempt.standby and LABEL_JOB not in pod.labels:
            continue  # the hand-over sets it
        # The time of an attempt counts from its own start where that is not the container's.
        own = attempt.start_time if attempt.standby or attempt.process > 1 else None
        began = own or container.running_since
        exact = _deadline_seconds(case, attempt, pod.start_time, began)
        if pod.active_deadline_seconds is not None and pod.active_deadline_seconds <= exact:
            continue
        # Many executions are over before it matters, and it is a write of the pod that all its watchers see.
        due = began + min(EXACT, timeout / 2)
        if case.now < due:
            draft = draft.look_at(due)
        else:
            draft = draft.act(LowerDeadline(pod.metadata.name, pod.metadata.uid, exact))
    return draft


def _deadline_seconds(case: Case, attempt: Attempt, seen: datetime, began: datetime) -> int:
    """A pod's deadline, counted from when its kubelet saw it, for an execution that began at `began`."""
    waited = max(0, ceil((began - seen).total_seconds()))
    return waited + (attempt.timeout_seconds or case.execution.timeout_seconds)


# --- how it is started and described ----------------------------------------------------------------------------------------


def _create(case: Case, draft: Draft, attempt: Attempt) -> Draft:
    """The Job is not seen yet: made, with the version before it. Again and again, which is harmless."""
    draft = draft.look_at(start_deadline(case, attempt), case.now + timedelta(seconds=DIAGNOSIS_SECONDS))
    if other := case.foreign_job(attempt.job_name):
        going = other.metadata.deletion_time is not None
        message = f"Job {attempt.job_name} exists and belongs to another owner; " + (
            "the attempt starts when it is gone." if going else f"delete it: kubectl delete job {attempt.job_name}."
        )
        return draft.say(JobState.PREPARING, "PreviousJobTerminating", message)
    if pod := _draining(case, attempt):
        message = f"Its Job was deleted by somebody as soon as it was made; pod {pod.metadata.name} of it still drains."
        return draft.say(JobState.PREPARING, "PreviousJobTerminating", message)
    if case.snapshot.service is None:
        message = f"TrainingService {case.service_name} is gone; the attempt starts when it is there again."
        return draft.say(JobState.PREPARING, "ServiceNotFound", message)
    draft = with_version(case, draft)
    try:
        made = create_job(case, draft.status, attempt)
    except Contradiction as wrong:
        return draft.say(JobState.PREPARING, "ServiceMismatch", f"The attempt cannot start: {wrong}.")
    return draft.say(JobState.PREPARING, "Starting", "The pod is being created.").act(*create_headless(case), made)


def _hand_over(case: Case, draft: Draft, attempt: Attempt) -> Draft:
    """The standby's Job and pod become the attempt's: again and again, until both show it."""
    job, service = case.job_of(attempt), case.snapshot.service
    pod = next((pod for pod in pods_of(case, attempt) if pod.metadata.uid == attempt.pod_uid), None)
    if job is None or pod is None or pod.start_time is None or service is None or attempt.start_time is None:
        return draft
    if job.owner_uid == case.uid and pod.labels.get(LABEL_JOB) == case.name:
        return draft
    draft = with_version(case, draft)
    try:
        made = create_job(case, draft.status, attempt)
    except Contradiction as wrong:
        return draft.say(JobState.PREPARING, "ServiceMismatch", f"The attempt cannot start: {wrong}.")
    deadline = _deadline_seconds(case, attempt, pod.start_time, attempt.start_time)
    return draft.act(HandOver(attempt, made.run, service.metadata.uid, deadline))


def _draining(case: Case, attempt: Attempt) -> AttemptPod | None:
    """A pod of this very attempt whose Job is gone: two of one attempt would write to one place."""
    slot = Slot(case.uid, attempt.run, attempt.number)
    return next((pod for pod in case.snapshot.pods if slot_of(pod) == slot and not pod.over), None)


def _describe(case: Case, draft: Draft, attempt: Attempt) -> Draft:
    progress, job = draft.status.progress, case.job_of(attempt)
    if job is not None and job.suspended and attempt.start_time is not None:
        state = JobState.PREPARING if attempt.training_start_time is None else JobState.RUNNING
        why = why_taken_back(job, workload_of(job, case.snapshot.workloads))
        return draft.say(state, Cause.DISRUPTED, f"{why} It has {case.execution.drain_seconds} s to save a checkpoint.")
    if attempt.training_start_time is not None:
        where = f" on node {attempt.node}" if attempt.node else ""
        return draft.say(JobState.RUNNING, "Training", f"Attempt {attempt.number} trains{where}.")
    pods = pods_of(case, attempt)
    if not _is_shown(case, attempt, pods) and any(_has_run(pod) for pod in pods):
        return draft.look_at(_settled(case, pods))
    if attempt.start_time is None and (found := diagnosis_of(case, attempt)):
        draft = draft.look_at(_next_diagnosis(case, attempt))
        quiet = draft.status.reason in ("Starting", found.reason) and case.now < attempt.create_time + QUIET
        if quiet and not found.blocked:
            return draft
        return draft.say(JobState.PREPARING, found.reason, found.message)
    if progress is not None:
        said = f"{progress.phase}: {progress.message}" if progress.message else f"{progress.phase}."
        return draft.say(JobState.PREPARING, progress.phase, said)
    if attempt.process > 1 and draft.status.reason == "Restarting":
        return draft
    return draft.say(
        JobState.PREPARING, "Started", f"The trainer runs on node {attempt.node} and has not reported yet."
    )


def _next_diagnosis(case: Case, attempt: Attempt) -> datetime:
    """Soon; the longer a queueing engine holds it back, the later: that it is let go is seen at once."""
    job, often = case.job_of(attempt), timedelta(seconds=DIAGNOSIS_SECONDS)
    if job is None or not job.suspended:
        return case.now + often
    return case.now + min(max(often, (case.now - attempt.create_time) / 10), SELDOM)


def _describe_ending(case: Case, draft: Draft, attempt: Attempt) -> Draft:
    assert attempt.ending is not None
    message = attempt.ending_message or ""
    if attempt.ending is not Cause.STOPPED:
        state = (
            draft.status.state if draft.status.state in (JobState.RUNNING, JobState.PREPARING) else JobState.PREPARING
        )
        if attempt.training_start_time is not None:
            state = JobState.RUNNING
        return draft.say(state, "Finishing" if attempt.ending is Cause.FINISHED else attempt.ending.value, message)
    if not _told(case, attempt):
        return draft.say(JobState.STOP_REQUESTED, "Suspended", "Asked to stop; the instance is told next.")
    saved = "" if has_checkpoint(draft.status) else " There is no checkpoint yet."
    limit = case.execution.drain_seconds
    return draft.say(JobState.STOPPING, "Suspended", f"Told to stop; saving a checkpoint within {limit} s.{saved}")


def _told(case: Case, attempt: Attempt) -> bool:
    """Whether the end shows on the attempt's objects."""
    job = case.job_of(attempt)
    if job is None or job.metadata.deletion_time is not None:
        return True
    return any(p.metadata.deletion_time or p.active_deadline_seconds == 1 for p in pods_of(case, attempt) if not p.over)
