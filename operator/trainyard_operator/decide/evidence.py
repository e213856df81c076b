"""What is known about an attempt that is over, each fact apart; `failure` reads them together."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from pydantic import ValidationError
from trainyard_api.report import RANK_LOST, Result
from trainyard_api.trainingjob import Attempt, AttemptResult

from trainyard_operator.decide.model import AttemptJob, AttemptPod, Defaults, NodeView, Terminated, WorkloadView
from trainyard_operator.decide.subject import Subject

LOG_TAIL = 600
"""Characters of a log tail that are repeated in a message."""


@dataclass(frozen=True)
class EndFacts:
    """What is known about one attempt; `pods` are those of its own Job only."""

    attempt: Attempt
    job: AttemptJob | None
    pods: tuple[AttemptPod, ...]
    now: datetime
    subject: Subject
    reported: AttemptResult | None = None
    """The result in its last report."""
    nodes: Mapping[str, NodeView] | None = None
    diagnosis: str = ""
    """Why its pod does not start, if it does not."""
    workload: WorkloadView | None = None
    """What Kueue says about its Job, where that is suspended."""
    defaults: Defaults = field(default_factory=Defaults)


@dataclass(frozen=True)
class Evidence:
    """The facts about an attempt that is over, each apart."""

    facts: EndFacts
    pod: AttemptPod | None
    """The pod whose end decides."""
    ended: Terminated | None
    """How its trainer container ended."""
    exit_code: int | None
    result: AttemptResult | None
    said: str
    """What the trainer said, as a sentence or the tail of its log."""
    deleted: bool

    @property
    def job_message(self) -> str:
        job = self.facts.job
        condition = job and (job.finished or job.condition("FailureTarget") or job.condition("SuccessCriteriaMet"))
        return condition.message if condition else ""

    @property
    def job_reason(self) -> str:
        job = self.facts.job
        condition = job and (job.finished or job.condition("FailureTarget"))
        return condition.reason if condition else ""

    @property
    def disruption(self) -> str | None:
        """Reason and message of DisruptionTarget."""
        for pod in self.facts.pods:
            if condition := pod.condition("DisruptionTarget"):
                return f"{condition.reason}: {condition.message}".rstrip(": ")
        if "has condition DisruptionTarget" in self.job_message:
            return "DisruptionTarget"
        return None

    @property
    def started(self) -> bool:
        """Whether its program ever ran."""
        if self.facts.attempt.start_time is not None:
            return True
        return self.ended is not None and self.ended.started_at is not None


def gather(facts: EndFacts) -> Evidence:
    """The evidence in the facts."""
    pod = _deciding_pod(facts.pods)
    container = pod.trainer if pod else None
    ended = container.terminated if container else None
    result = parse_result(ended.message) if ended else None
    if result is None or (result.manifest_uri is None and facts.reported and facts.reported.manifest_uri):
        result = facts.reported or result
    exit_code = ended.exit_code if ended else None
    evidence = Evidence(
        facts=facts,
        pod=pod,
        ended=ended,
        exit_code=exit_code,
        result=result,
        said=_said(ended, result),
        deleted=_deleted_by_somebody(facts, pod),
    )
    if exit_code is None and (match := re.search(r"failed with exit code (\d+)", evidence.job_message)):
        return replace(evidence, exit_code=int(match[1]))
    return evidence


def _deleted_by_somebody(facts: EndFacts, pod: AttemptPod | None) -> bool:
    """A Job keeps its pods: one that is not there any more was deleted, too."""
    if pod is None or facts.job is None:
        return True
    return pod.metadata.deletion_time is not None or facts.job.metadata.deletion_time is not None


def _deciding_pod(pods: tuple[AttemptPod, ...]) -> AttemptPod | None:
    """Of a gang the one that failed first by itself; the others only followed. Else that of rank 0."""

    def key(pod: AttemptPod) -> tuple[bool, bool, bool, str, int]:
        ended = pod.trainer.terminated if pod.trainer else None
        said = parse_result(ended.message) if ended else None
        # Times are whole seconds: who only lost another one often ends within the same.
        followed = said is not None and said.reason == RANK_LOST
        finished = ended.finished_at.isoformat() if ended and ended.finished_at else "9"
        failed = pod.phase == "Failed"
        deleted = failed and pod.metadata.deletion_time is not None
        return (not failed, deleted, followed, finished if failed else "", pod.index)

    return min(pods, key=key, default=None)


def parse_result(text: str) -> AttemptResult | None:
    """The trainer's `Result` in a termination message; None when it is something else (a tail of the log)."""
    try:
        return Result.model_validate_json(text).to_status()
    except ValidationError:
        return None


def _said(ended: Terminated | None, result: AttemptResult | None) -> str:
    if result is not None and result.message:
        return result.message.strip()
    if ended is None or not ended.message.strip() or parse_result(ended.message) is not None:
        return ""
    lines = [line.strip() for line in ended.message.strip().splitlines() if line.strip()]
    return " | ".join(lines[-4:])[-LOG_TAIL:]


def end_time(facts: EndFacts) -> datetime:
    """When the last of its trainers ended, as far as Kubernetes says it."""
    ended = [c.terminated.finished_at for p in facts.pods if (c := p.trainer) and c.terminated]
    return max((time for time in ended if time), default=facts.now)
