"""Plays a recording of a real cluster to the classifier and the diagnosis, line by line, as a watching operator would see it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from trainyard_api.trainingjob import Attempt
from trainyard_operator.decide import parse
from trainyard_operator.decide.denials import Diagnosis
from trainyard_operator.decide.diagnosis import diagnose
from trainyard_operator.decide.evidence import EndFacts
from trainyard_operator.decide.failure import End, classify_end
from trainyard_operator.decide.model import AttemptJob, AttemptPod, Defaults, EventView, NodeView
from trainyard_operator.decide.subject import Subject

from tests.recordings import FOLDER, Recording, load

PARSERS: dict[str, Any] = {
    "Job": parse.parse_attempt_job,
    "Pod": parse.parse_pod,
    "Event": parse.parse_event,
    "Node": parse.parse_node,
}


@dataclass
class Seen:
    """What an operator that watched from the start has in its caches."""

    jobs: dict[str, AttemptJob] = field(default_factory=dict)
    pods: dict[str, AttemptPod] = field(default_factory=dict)
    events: dict[str, EventView] = field(default_factory=dict)
    nodes: dict[str, NodeView] = field(default_factory=dict)


@dataclass(frozen=True)
class Moment:
    """One attempt (a Job of the recording) after one watch event."""

    t: float
    job_name: str
    pods: tuple[AttemptPod, ...]
    job: AttemptJob | None
    end: End | None
    diagnosis: Diagnosis | None


def moments(name: str, defaults: Defaults | None = None, **facts: Any) -> Iterator[Moment]:
    """Every attempt of the recording after every watch event (with `between`, also just before it); `facts` go into `EndFacts`."""
    recording = load(name)
    began = _began(recording)
    seen = Seen()
    attempts: dict[str, Attempt] = {}
    for line in recording.timeline:
        if line.kind not in PARSERS:
            continue
        now = began + timedelta(seconds=line.t)
        for attempt in attempts.values() if facts.get("between") else ():
            yield _moment(recording, line.t, now, seen, attempt, defaults or Defaults(), facts)
        _take(seen, line.kind, line.type, line.object, now)
        for uid, job in seen.jobs.items():
            attempts.setdefault(
                uid,
                Attempt(number=1, job_name=job.metadata.name, jobUID=uid, create_time=now, **facts.get("attempt", {})),
            )
        for uid in attempts:
            attempts[uid] = _started(attempts[uid], seen, uid)
            yield _moment(recording, line.t, now, seen, attempts[uid], defaults or Defaults(), facts)


def first_ends(name: str, defaults: Defaults | None = None, **facts: Any) -> dict[str, Moment]:
    """For each attempt the first moment at which it was called ended: what a ledger would keep."""
    found: dict[str, Moment] = {}
    for moment in moments(name, defaults, **facts):
        if moment.end is not None:
            found.setdefault(moment.job_name, moment)
    return found


def _moment(
    recording: Recording,
    t: float,
    now: datetime,
    seen: Seen,
    attempt: Attempt,
    defaults: Defaults,
    facts: dict[str, Any],
) -> Moment:
    uid = attempt.job_uid or ""
    job = seen.jobs.get(uid)
    pods = tuple(pod for pod in seen.pods.values() if pod.owner_uid == uid)
    subject = Subject(recording.namespace, "mgmt-train-yard-nano")
    found = diagnose(job, pods, tuple(seen.events.values()), subject)
    end = classify_end(
        EndFacts(
            attempt=attempt,
            job=job,
            pods=pods,
            now=now,
            subject=subject,
            reported=facts.get("reported"),
            nodes=seen.nodes if facts.get("nodes", True) and seen.nodes else None,
            diagnosis=found.message if found else "",
            defaults=defaults,
        )
    )
    return Moment(t, attempt.job_name, pods, job, end, found)


def _take(seen: Seen, kind: str, type_: str, body: dict[str, Any], now: datetime) -> None:
    held: dict[str, Any] = {"Job": seen.jobs, "Pod": seen.pods, "Event": seen.events, "Node": seen.nodes}[kind]
    key = body["metadata"]["name"] if kind == "Node" else body["metadata"]["uid"]
    if type_ == "DELETED":
        held.pop(key, None)
        return
    view = PARSERS[kind](body)
    if isinstance(view, NodeView):
        # The recordings leave transition times out: a node's Ready changed when the watch said so.
        before = seen.nodes.get(key)
        view = replace(view, since=before.since if before and before.ready == view.ready else now)
    held[key] = view


def _started(attempt: Attempt, seen: Seen, uid: str) -> Attempt:
    """As the ledger does: the time at which the trainer's container was first seen to run."""
    if attempt.start_time is not None:
        return attempt
    for pod in seen.pods.values():
        container = pod.trainer
        if pod.owner_uid != uid or container is None:
            continue
        ended = container.terminated
        if started := container.running_since or (ended.started_at if ended else None):
            return attempt.model_copy(update={"start_time": started})
    return attempt


def _began(recording: Recording) -> datetime:
    raw = json.loads((FOLDER / f"{recording.scenario}.json").read_text("utf-8"))
    return parse.parse_time(raw["started"]) or datetime.min
