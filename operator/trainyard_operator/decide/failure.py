"""Why an attempt ended, and what follows.

What Kubernetes shows of an end are independent facts: the pod's phase, reason and conditions, the container's exit code and
reason, the Job's condition, what the operator itself had asked for, what the trainer said (`OOMKilled` comes with exit code
137, 1 and 0; an evicted pod may be `Succeeded`). They are read together in one table of rules; the first that matches wins.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from trainyard_api.report import ExitCode
from trainyard_api.trainingjob import Attempt, AttemptResult, Cause

from trainyard_operator.decide.evidence import LOG_TAIL, EndFacts, Evidence, end_time, gather
from trainyard_operator.decide.kueue import why_taken_back
from trainyard_operator.decide.model import AttemptPod
from trainyard_operator.decide.nodes import is_lost, lost_time

MAX_TEXT = 4096
LATE_POD_SECONDS = 10


@dataclass(frozen=True)
class End:
    cause: Cause
    message: str
    exit_code: int | None = None
    end_time: datetime | None = None
    fenced: bool = False
    """Its container may still run somewhere: it can neither report nor publish any more."""
    result: AttemptResult | None = None


def classify_end(facts: EndFacts) -> End | None:
    """How the attempt ended; None while it has not."""
    if lost := lost_pod(facts):
        return _lost(facts, lost)
    if not _is_over(facts):
        return None
    evidence = gather(facts)
    for rule in RULES:
        if outcome := rule(evidence):
            cause, message = outcome
            return End(
                cause,
                message[:MAX_TEXT],
                exit_code=evidence.exit_code,
                end_time=end_time(facts),
                fenced=cause is Cause.LOST,
                result=evidence.result,
            )
    raise AssertionError("the last rule matches always")


def lost_pod(facts: EndFacts) -> AttemptPod | None:
    """A pod that has not ended and never will by itself: its node is gone, silent for long, or did not carry out a deletion."""
    return next((pod for pod in facts.pods if is_lost(pod, facts.nodes, facts.defaults, facts.now)), None)


def lost_at(facts: EndFacts) -> datetime | None:
    """When, as things stand, one of its pods will count as lost; None: nothing points to it."""
    times = [t for pod in facts.pods if (t := lost_time(pod, facts.nodes, facts.defaults, facts.now))]
    return min(times, default=None)


def late_pod_time(facts: EndFacts) -> datetime | None:
    """Until when the news of a finished Job's pod may still arrive: Jobs and pods are watched apart. None: it has, or need not."""
    finished = facts.job and facts.job.finished
    if not finished or facts.pods or facts.attempt.pod_uid is not None:
        return None
    return (finished.since or facts.now) + timedelta(seconds=LATE_POD_SECONDS)


# --- whether it is over ---------------------------------------------------------------------------------------------------


def _is_over(facts: EndFacts) -> bool:
    """Every pod has ended, and no further one will come."""
    job = facts.job
    if any(not pod.over for pod in facts.pods):
        return False
    if is_replaced(facts.attempt, facts.pods):
        return True
    if job is None:
        return facts.attempt.job_uid is not None
    if (late := late_pod_time(facts)) is not None:
        return facts.now >= late
    if job.finished or job.metadata.deletion_time:
        return True
    if len(facts.pods) >= job.completions:
        return True
    stopping = job.condition("FailureTarget") or job.condition("SuccessCriteriaMet")
    if facts.pods and stopping:
        return True
    return job.suspended and facts.attempt.start_time is not None


def is_replaced(attempt: Attempt, pods: tuple[AttemptPod, ...]) -> bool:
    """Whether the Job has another pod than the one that ran: it was suspended and let go again, and nobody here saw it."""
    if attempt.start_time is None or attempt.pod_uid is None:
        return False
    first = {pod.metadata.uid for pod in pods if pod.index == 0}
    return bool(first) and attempt.pod_uid not in first


def why_replaced(attempt: Attempt) -> tuple[Cause, str]:
    """Its pod began anew what the next attempt goes on with."""
    return (
        Cause.DISRUPTED,
        f"Pod {attempt.pod_name} is gone, and Job {attempt.job_name} has made another one: it was suspended and let go again "
        "meanwhile, as Kueue does.",
    )


def _lost(facts: EndFacts, pod: AttemptPod) -> End:
    record = facts.reported
    if record is not None and record.manifest_uri:
        said = record.message or "Trained; its node was lost after it had published."
        return End(Cause.COMPLETED, said, end_time=facts.now, fenced=True, result=record)
    node = (facts.nodes or {}).get(pod.node or "")
    if facts.nodes is not None and node is None:
        seen = f"Node {pod.node} is gone from the cluster"
    elif node is not None:
        seen = f"Node {pod.node} is not ready (Ready={node.ready})"
    else:
        seen = f"Node {pod.node} did not carry out the deletion of the pod"
    message = (
        f"{seen}; pod {pod.metadata.name} is given up as lost, and nothing it still does counts. "
        f"If the machine is gone for good, delete its Node object, or the pod stays."
    )
    return End(Cause.LOST, message, end_time=facts.now, fenced=True, result=facts.reported)


# --- the rules, first match wins ------------------------------------------------------------------------------------------

Outcome = tuple[Cause, str]
Rule = Callable[[Evidence], Outcome | None]


def _completed(e: Evidence) -> Outcome | None:
    """A completion record: the version is in storage, whatever else happened."""
    if e.result is not None and e.result.manifest_uri:
        return Cause.COMPLETED, e.result.message or "Trained."
    return None


def _asked_for(e: Evidence) -> Outcome | None:
    """What the operator itself asked for."""
    attempt = e.facts.attempt
    if attempt.ending is None:
        return None
    return attempt.ending, attempt.ending_message or f"Ended by the operator: {attempt.ending}."


def _replaced(e: Evidence) -> Outcome | None:
    return why_replaced(e.facts.attempt) if is_replaced(e.facts.attempt, e.facts.pods) else None


def _container_left_behind(e: Evidence) -> Outcome | None:
    """Kubernetes gave the pod up while its container ran: the node is gone, the container may still run there."""
    for pod in e.facts.pods:
        if pod.phase == "Failed" and pod.running:
            why = f" ({e.disruption})" if e.disruption else ""
            return (
                Cause.LOST,
                f"Node {pod.node} was lost with pod {pod.metadata.name} running on it{why}; nothing it still does counts.",
            )
    return None


def _disrupted(e: Evidence) -> Outcome | None:
    if e.disruption is None:
        return None
    node = f" on node {e.pod.node}" if e.pod and e.pod.node else ""
    return Cause.DISRUPTED, f"The pod{node} was taken away by the cluster ({e.disruption})."


def _over_its_disk_limit(e: Evidence) -> Outcome | None:
    """An eviction for the pod's own limit; one for the node's sake has DisruptionTarget."""
    if e.pod is None or e.pod.reason != "Evicted":
        return None
    return (
        Cause.DISK_FULL,
        f"{e.pod.message.rstrip('.')}. Raise {e.facts.subject.field('ephemeral_storage')}.",
    )


def _deadline(e: Evidence) -> Outcome | None:
    by_pod = e.pod is not None and e.pod.reason == "DeadlineExceeded"
    if not by_pod and e.job_reason != "DeadlineExceeded":
        return None
    if not e.started:
        why = e.facts.diagnosis or "it never ran"
        return Cause.START_TIMED_OUT, f"The pod did not start in time: {why}"
    return (
        Cause.TIMED_OUT,
        "The execution was longer than timeoutSeconds and did not end by itself in time. "
        f"Raise {e.facts.subject.field('timeout_seconds', instead=True)}, or train fewer epochs.",
    )


def _refused(e: Evidence) -> Outcome | None:
    """The kubelet turned the pod away: it never had a container."""
    if e.pod is None or e.pod.phase != "Failed" or e.pod.containers or not e.pod.reason:
        return None
    return Cause.REFUSED, f"Node {e.pod.node} refused the pod ({e.pod.reason}): {e.pod.message}"


def _never_started(e: Evidence) -> Outcome | None:
    if e.ended is None or e.ended.reason not in ("StartError", "ContainerCannotRun"):
        return None
    return (
        Cause.START_FAILED,
        f"The container could not be started: {e.ended.message.strip()[-LOG_TAIL:]}. "
        f"Check that {e.facts.subject.field('image')} is a trainer image.",
    )


def _documented_and_final(e: Evidence) -> Outcome | None:
    """What the trainer itself says is wrong, and no retry will mend; holds also when it was being deleted meanwhile."""
    codes = (ExitCode.BAD_SPEC, ExitCode.BAD_DATA, ExitCode.DISK_FULL, ExitCode.STORAGE_REFUSED)
    return _by_exit_code(e) if e.exit_code in codes else None


def _out_of_memory(e: Evidence) -> Outcome | None:
    if e.ended is None or e.ended.reason != "OOMKilled":
        return None
    return (
        Cause.OUT_OF_MEMORY,
        "The pod used more memory than its limit and was ended by the kernel (OOMKilled, exit code "
        f"{e.exit_code}). Raise {e.facts.subject.field('memory', instead=True)}, or lower "
        f"training.batchSize or dataset.imageSize.{_quote(e)}",
    )


def _runtime_lost_it(e: Evidence) -> Outcome | None:
    """The container runtime or the kubelet lost the container, and with it its exit code."""
    if e.ended is None or e.ended.reason not in ("Unknown", "ContainerStatusUnknown"):
        return None
    if not e.started and e.deleted:
        return Cause.INTERRUPTED, "The pod was deleted by somebody before it ran."
    return Cause.INTERRUPTED, f"The node lost track of the container ({e.ended.reason}).{_quote(e)}"


def _suspended(e: Evidence) -> Outcome | None:
    """A Job suspended after it ran: a queueing engine took the quota back."""
    job = e.facts.job
    if job is None or not job.suspended:
        return None
    return Cause.DISRUPTED, why_taken_back(job, e.facts.workload)


def _deleted(e: Evidence) -> Outcome | None:
    if not e.deleted:
        return None
    return Cause.INTERRUPTED, f"The pod or its Job was deleted by somebody.{_checkpoint_note(e)}"


def _by_exit_code(e: Evidence) -> Outcome | None:
    """The documented exit codes of the trainer."""
    if e.exit_code is None or e.exit_code not in EXIT_CODES:
        return None
    cause, sentence = EXIT_CODES[ExitCode(e.exit_code)]
    return (cause, e.said) if e.result is not None and e.said else (cause, sentence + _quote(e))


def _other_exit(e: Evidence) -> Outcome | None:
    if not e.exit_code:
        return None
    signals = {130: "signal 2 (SIGINT)", 134: "signal 6 (SIGABRT)", 135: "signal 7 (SIGBUS)", 137: "signal 9 (SIGKILL)"}
    signals |= {139: "signal 11 (SIGSEGV)", 143: "signal 15 (SIGTERM)"}
    if e.exit_code in signals:
        how = f"The trainer was ended by {signals[e.exit_code]}, exit code {e.exit_code}"
    else:
        how = f"The trainer failed with exit code {e.exit_code}"
    return Cause.ERROR, f"{how}.{_quote(e)}" if e.said else f"{how}; see its log."


def _no_record(e: Evidence) -> Outcome | None:
    if e.exit_code != 0:
        return None
    return Cause.INTERRUPTED, "The trainer exited with code 0 without having published a version." + _quote(e)


def _unexplained(e: Evidence) -> Outcome | None:
    return Cause.INTERRUPTED, f"The pod of Job {e.facts.attempt.job_name} ended, and Kubernetes does not say how."


RULES: tuple[Rule, ...] = (
    _completed,
    _asked_for,
    _replaced,
    _container_left_behind,
    _disrupted,
    _over_its_disk_limit,
    _deadline,
    _refused,
    _never_started,
    _documented_and_final,
    _out_of_memory,
    _runtime_lost_it,
    _suspended,
    _deleted,
    _by_exit_code,
    _other_exit,
    _no_record,
    _unexplained,
)

EXIT_CODES: dict[ExitCode, Outcome] = {
    ExitCode.BAD_SPEC: (Cause.INVALID_SPEC, "The trainer refused the job's settings; its log says which."),
    ExitCode.BAD_DATA: (Cause.INVALID_DATA, "The trainer refused the dataset; its log names file and line."),
    ExitCode.STORAGE_UNREACHABLE: (Cause.STORAGE_UNREACHABLE, "The storage could not be reached for a long time."),
    ExitCode.DISK_FULL: (
        Cause.DISK_FULL,
        "The trainer's disk is full or read-only. Raise instance.ephemeralStorage of the service, or check its cache.",
    ),
    ExitCode.STORAGE_REFUSED: (
        Cause.STORAGE_DENIED,
        "The storage refused: check the Secret's credentials, and that bucket and object exist.",
    ),
    ExitCode.INTERRUPTED: (Cause.INTERRUPTED, "The trainer was asked to end (SIGTERM) and saved what it had."),
    ExitCode.GPU_OUT_OF_MEMORY: (
        Cause.OUT_OF_MEMORY,
        "The GPU has too little memory, even for smaller batches. Lower training.batchSize or dataset.imageSize.",
    ),
    ExitCode.NOTHING_IN_TIME: (
        Cause.TIMED_OUT,
        "training.maxDurationSeconds was over before there was a model to publish. Raise it.",
    ),
    ExitCode.VERSION_TAKEN: (Cause.VERSION_TAKEN, "The storage already has this version; the next number is taken."),
    ExitCode.GPU_MISSING: (
        Cause.START_FAILED,
        "A GPU was asked for and none is visible in the pod. Check the node's driver and device plugin.",
    ),
}


def _quote(e: Evidence) -> str:
    return f" It said: {e.said}" if e.said else ""


def _checkpoint_note(e: Evidence) -> str:
    if e.exit_code == ExitCode.INTERRUPTED:
        return " It saved what it had."
    return "" if e.exit_code is None else f" Exit code {e.exit_code}."
