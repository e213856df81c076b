"""Reads what the API server wrote down, bodies included, and says which promise was broken. It asks the operator nothing.

The audit log holds every version of a pod and of our own kinds, save those that an API server wrote in the instant in which it was
killed. Lists close these gaps: of pods now and then (`Glimpse`; what is not in a list is gone), of our own kinds in the end (`Last`).
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.operator.audit import requests

LIVES = ("Succeeded", "Failed", "Aborted")
"""States that a job leaves only by a higher `rerun`."""
UNCHARGED_TIME = {"Disrupted", "Interrupted", "Lost", "Refused", "StorageUnreachable", "VersionTaken"}
"""Causes of attempts whose training time no budget pays for."""
Object = dict[str, Any]
Slot = tuple[str, str, str]
"""Uid of the job, run, attempt."""


@dataclass(frozen=True)
class PodFact:
    """What one version of a pod says. `slot` None: a standby that no execution has taken; `rank`: which one of its execution's pods."""

    version: int
    uid: str
    slot: Slot | None
    rank: str
    service: str
    live: bool


@dataclass(frozen=True)
class Glimpse:
    """A list of the pods, made at `version`."""

    version: int
    facts: tuple[PodFact, ...]


@dataclass(frozen=True)
class Last:
    """What there is in the end."""

    jobs: Sequence[Object] = ()
    budgets: Sequence[Object] = ()


@dataclass(frozen=True)
class Expected:
    """What the one who made the history knows."""

    capacity: dict[str, int]
    """Slots by service."""
    ends: dict[str, set[str]]
    """The states in which a job may end, by its name."""
    deleted: set[str] = field(default_factory=set)
    """Names of the jobs that a user deleted: nothing of them is left, in whatever state they were."""


@dataclass
class Findings:
    broken: list[str] = field(default_factory=list)
    jobs: int = 0
    attempts: int = 0
    most_at_once: int = 0
    charged: int = 0
    training_seconds: int = 0
    states: Counter[str] = field(default_factory=Counter)
    causes: Counter[str] = field(default_factory=Counter)

    def breaks(self, sentence: str) -> None:
        if sentence not in self.broken:
            self.broken.append(sentence)


def observe(
    log: Path,
    start: int,
    namespace: str,
    expected: Expected,
    glimpses: Iterable[Glimpse] = (),
    last: Last | None = None,
) -> Findings:
    """Judge the history of a namespace from byte `start` of the audit log on."""
    pods: list[PodFact] = []
    jobs: list[Object] = []
    budgets: list[Object] = []
    made: Counter[str] = Counter()
    for request in requests(log, start):
        body = request.response
        if body is None or not 200 <= request.code < 300 or not request.writes or request.namespace != namespace:
            continue
        match body.get("kind"):
            case "Pod":
                pods += [fact] if (fact := pod_fact(body)) else []
            case "Job" if request.verb == "create":
                made[body["metadata"]["name"]] += 1
            case "TrainingJob":
                jobs.append(_slim(body))
            case "TrainingBudget":
                budgets.append(body)
    if last is not None:
        jobs += [_slim(job) for job in last.jobs]
        budgets += last.budgets
    findings = Findings(attempts=0)
    findings.broken += [f"Job {name} was made {count} times" for name, count in made.items() if count > 1]
    _judge_slots(pods, sorted(glimpses, key=lambda glimpse: glimpse.version), expected.capacity, findings)
    used = _judge_jobs(_in_order(jobs), expected, findings)
    if last is not None:
        left = expected.deleted & {job["metadata"]["name"] for job in last.jobs}
        findings.broken += [f"{name} was deleted and is still there" for name in sorted(left)]
    _judge_budgets(_in_order(budgets), used, findings)
    return findings


def pod_fact(pod: Object) -> PodFact | None:
    """None for a pod that is not the operator's."""
    metadata, labels = pod["metadata"], pod["metadata"].get("labels") or {}
    if "trainyard.dev/service" not in labels:
        return None
    slot = None
    if "trainyard.dev/job-uid" in labels:
        slot = (labels["trainyard.dev/job-uid"], labels["trainyard.dev/run"], labels["trainyard.dev/attempt"])
    rank = labels.get("batch.kubernetes.io/job-completion-index", "0")
    ended = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
    gone = bool(metadata.get("deletionTimestamp")) and metadata.get("deletionGracePeriodSeconds") == 0
    return PodFact(_version(pod), metadata["uid"], slot, rank, labels["trainyard.dev/service"], not (ended or gone))


# --- slots ------------------------------------------------------------------------------------------------------------------


def _judge_slots(pods: list[PodFact], glimpses: list[Glimpse], capacity: dict[str, int], findings: Findings) -> None:
    """Pods in the order of the cluster's history: no slot beyond the capacity, no job twice at once."""
    live: dict[str, PodFact] = {}
    over: set[str] = set()
    later = list(glimpses)
    for fact in [*sorted(pods, key=lambda fact: fact.version), PodFact(2**63, "", None, "", "", live=False)]:
        while later and later[0].version <= fact.version:
            _look(later.pop(0), live, over)
        if fact.live and fact.uid not in over:
            live[fact.uid] = fact
            _judge_moment(live, capacity, findings)
        elif not fact.live:
            over.add(fact.uid)
            live.pop(fact.uid, None)


def _look(glimpse: Glimpse, live: dict[str, PodFact], over: set[str]) -> None:
    seen = {fact.uid: fact for fact in glimpse.facts}
    for uid in [uid for uid in live if uid not in seen or not seen[uid].live]:
        over.add(uid)
        del live[uid]
    live.update((uid, fact) for uid, fact in seen.items() if fact.live and uid not in over)


def _judge_moment(live: dict[str, PodFact], capacity: dict[str, int], findings: Findings) -> None:
    slots: dict[str, set[Slot]] = defaultdict(set)
    pods: dict[str, list[tuple[Slot, str]]] = defaultdict(list)
    for fact in live.values():
        if fact.slot is not None:
            slots[fact.service].add(fact.slot)
            pods[fact.slot[0]].append((fact.slot, fact.rank))
    findings.most_at_once = max(findings.most_at_once, sum(len(taken) for taken in slots.values()))
    for service, taken in slots.items():
        if len(taken) > capacity[service]:
            findings.breaks(f"{service}: {len(taken)} attempts at once, {capacity[service]} slots: {sorted(taken)}")
    for known in pods.values():
        if len({slot for slot, _ in known}) > 1 or len(set(known)) < len(known):
            findings.breaks(f"a job ran twice at once: {sorted(known)}")


# --- jobs and budgets -------------------------------------------------------------------------------------------------------


def _judge_jobs(jobs: list[Object], expected: Expected, findings: Findings) -> dict[tuple[str, int, int], int]:
    """None lost, none in a wrong final state, none that left one, none charged beyond its maximum, no end of an attempt changed.

    The training time that each attempt is to be paid with.
    """
    last: dict[str, Object] = {}
    ended: dict[tuple[str, int, int], Object] = {}
    for job in jobs:
        name, uid, status = job["name"], job["uid"], job["status"]
        before = last.get(uid, {"status": {}})["status"]
        state, run = status.get("state"), status.get("run") or 0
        if before.get("state") in LIVES and state != before["state"] and run <= (before.get("run") or 0):
            findings.breaks(f"{name} left {before['state']} for {state} without a rerun")
        charged, most = status.get("chargedAttempts") or 0, job["maxAttempts"]
        if charged > most:
            findings.breaks(f"{name}: {charged} attempts are charged, {most} are allowed")
        attempts = status.get("attempts") or []
        numbers = [(attempt.get("run") or 0, attempt["number"]) for attempt in attempts]
        if len(numbers) != len(set(numbers)):
            findings.breaks(f"{name}: an attempt is in the ledger twice: {numbers}")
        if sum("endTime" not in attempt for attempt in attempts) > 1:
            findings.breaks(f"{name}: two attempts are open: {numbers}")
        for number, attempt in zip(numbers, attempts, strict=True):
            if "endTime" in attempt and (was := ended.setdefault((uid, *number), attempt)) != attempt:
                findings.breaks(f"{name}: the end of attempt {number} was {was}, then {attempt}")
        last[uid] = job
    _judge_ends(last, expected, findings)
    findings.attempts = len(ended)
    findings.charged = sum(bool(attempt.get("charged")) for attempt in ended.values())
    findings.causes.update(attempt.get("cause", "") for attempt in ended.values())
    return {
        key: 0 if attempt.get("cause") in UNCHARGED_TIME else attempt.get("trainingSeconds") or 0
        for key, attempt in ended.items()
    }


def _judge_ends(last: dict[str, Object], expected: Expected, findings: Findings) -> None:
    ends = expected.ends
    findings.jobs = len(last)
    for job in last.values():
        name, status = job["name"], job["status"]
        state = status.get("state") or ""
        findings.states[state] += 1
        if state not in ends.get(name, ()) and name not in expected.deleted:
            wanted = " or ".join(sorted(ends.get(name, ())))
            findings.breaks(
                f"{name} is {state or 'nowhere'} ({status.get('reason')}: {status.get('message')}), not {wanted}"
            )
        if any("endTime" not in attempt for attempt in status.get("attempts") or ()):
            findings.breaks(f"{name} is {state}, and an attempt of it has not ended")
    lost = ends.keys() - {job["name"] for job in last.values()}
    findings.broken += [f"{name} was lost" for name in sorted(lost)]


def _judge_budgets(budgets: list[Object], used: dict[tuple[str, int, int], int], findings: Findings) -> None:
    """What was used is the sum of what each attempt used, each counted once; nothing is set aside beyond what there is, which a user may
    have lowered below what was set aside before; in the end nothing is."""
    status: Object = {}
    taken = 0
    for budget in budgets:
        status = budget.get("status") or {}
        before, used_now = taken, status.get("usedSeconds") or 0
        reserved = sum(reservation["seconds"] for reservation in status.get("reservations") or ())
        total, taken = 60 * budget["spec"]["trainingMinutes"], reserved + used_now
        if taken > max(total, before):
            findings.breaks(f"the budget has {total} s, {reserved} s are set aside and {used_now} s used")
    findings.training_seconds = sum(used.values())
    if budgets and (status.get("usedSeconds") or 0) != findings.training_seconds:
        findings.breaks(f"the budget says {status.get('usedSeconds')} s, the attempts {findings.training_seconds} s")
    if status.get("reservations"):
        findings.breaks(f"the budget still has time set aside: {status['reservations']}")


# --- reading ----------------------------------------------------------------------------------------------------------------


def _slim(job: Object) -> Object:
    metadata, status = job["metadata"], job.get("status") or {}
    kept = ("state", "run", "reason", "message", "chargedAttempts", "attempts")
    return {
        "metadata": {"resourceVersion": metadata.get("resourceVersion")},
        "name": metadata["name"],
        "uid": metadata["uid"],
        "maxAttempts": job["spec"]["policy"]["maxAttempts"],
        "status": {name: status[name] for name in kept if name in status},
    }


def _in_order(objects: list[Object]) -> list[Object]:
    return sorted(objects, key=_version)


def _version(obj: Object) -> int:
    return int(obj["metadata"].get("resourceVersion") or 0)
