"""What the cluster does not let the operator do: said in the job's status at once, and tried again less and less often.

Nothing tells the operator when the cause is gone (a quota raised, a webhook mended), so it asks again: after 1, 2, 4 … seconds,
at most every 30.
"""

import re
from collections.abc import Sequence
from datetime import datetime, timedelta
from math import ceil
from typing import TypeVar

from trainyard_api.trainingjob import JobState

from trainyard_operator.decide.case import Case, Draft
from trainyard_operator.decide.denials import MAX_DETAIL, Diagnosis, diagnose_denial
from trainyard_operator.decide.jobs import WAITING
from trainyard_operator.decide.model import (
    Action,
    CreateHeadless,
    CreateJob,
    CreateService,
    CreateStandby,
    CreateVersion,
    DeleteTrainingJob,
    HandOver,
    Refusal,
    ServiceAction,
    name_of,
)
from trainyard_operator.decide.subject import Subject
from trainyard_operator.status import OVER

_Action = TypeVar("_Action", bound=Action | ServiceAction)

LONGEST_WAIT_SECONDS = 30
MAKES = (CreateService, CreateVersion, CreateHeadless, CreateJob, CreateStandby, HandOver)

KINDS: dict[str, tuple[str, str]] = {
    "CreateJob": ("create Job", "jobs.batch"),
    "CreateStandby": ("create standby Job", "jobs.batch"),
    "CreateHeadless": ("create Service", "services"),
    "HandOver": ("hand over Job", "jobs.batch"),
    "CreateVersion": ("create ModelVersion", "modelversions.trainyard.dev"),
    "CreateService": ("create TrainingService", "trainingservices.trainyard.dev"),
    "WriteVersionStatus": ("write the status of ModelVersion", "modelversions.trainyard.dev"),
    "LowerDeadline": ("set the deadline of Pod", "pods"),
    "DeletePod": ("delete Pod", "pods"),
    "DeleteJob": ("delete Job", "jobs.batch"),
    "DeleteTrainingJob": ("delete TrainingJob", "trainingjobs.trainyard.dev"),
}
"""Action → what is done, and the resource as RBAC and quotas name it."""


def retry_time(now: datetime, tries: int) -> datetime:
    """When to try again after the `tries`-th refusal: a whole second, as the clock of decisions has no finer ones."""
    wait = min(2 ** min(tries - 1, 16), LONGEST_WAIT_SECONDS)
    due = (now + timedelta(seconds=wait)).timestamp()
    return datetime.fromtimestamp(ceil(due), now.tzinfo)


def with_refusals(case: Case, draft: Draft, actions: Sequence[Action]) -> tuple[Draft, tuple[Action, ...]]:
    """The draft that says what was refused, and the actions that are to be tried now. A final state keeps its own words."""
    kept, refused = sorted_out(actions, case.snapshot.refusals, case.now)
    told = next((refusal for action, refusal in refused if tells(draft.status.state, action)), None)
    if told is not None:
        found = diagnose_refusal(told, case.subject)
        draft = draft.say(draft.status.state, found.reason, found.message)
    return draft.look_at(*(refusal.retry_at for _, refusal in refused if refusal.retry_at > case.now)), kept


def sorted_out(
    actions: Sequence[_Action], refusals: Sequence[Refusal], now: datetime
) -> tuple[tuple[_Action, ...], tuple[tuple[_Action, Refusal], ...]]:
    """The actions, in order, that are to be tried now, and those of all `actions` that were refused, each with its refusal.

    What is made depends on what is made before it (the Job on its version), and the job itself goes last of all; everything
    else is done whatever was refused.
    """
    by_name = {(refusal.action, refusal.name): refusal for refusal in refusals}
    held: list[_Action] = []
    kept: list[_Action] = []
    refused: list[tuple[_Action, Refusal]] = []
    for action in actions:
        refusal = by_name.get((type(action).__name__, name_of(action)))
        if refusal is not None:
            refused.append((action, refusal))
        if refusal is not None and refusal.retry_at > now:
            held.append(action)
        elif not waits_for(action, held):
            kept.append(action)
    return tuple(kept), tuple(refused)


def waits_for(action: Action | ServiceAction, undone: Sequence[Action | ServiceAction]) -> bool:
    """Whether the action makes no sense before those that could not be done."""
    if isinstance(action, DeleteTrainingJob):
        return bool(undone)
    return isinstance(action, MAKES) and any(isinstance(other, MAKES) for other in undone)


def tells(state: JobState, action: Action) -> bool:
    """Whether a refusal of the action becomes the job's reason: not over the last words of a job that has ended, and not while
    it waits for something else than the action (clearing up, say), which must not keep it from its turn."""
    if state in OVER:
        return False
    return isinstance(action, MAKES) or state not in WAITING | {JobState.RERUN, JobState.CREATED}


# --- what it means ----------------------------------------------------------------------------------------------------------


def diagnose_refusal(refusal: Refusal, subject: Subject) -> Diagnosis:
    """One word and one sentence for it, with the object to look at and what to do."""
    doing, resource = KINDS[refusal.action]
    what = f"The operator cannot {doing} {refusal.name}"
    detail = _detail(refusal.message)
    if refusal.status == 0:
        mend = f" Mend {subject.field('machine_type')}, or the chart." if detail.startswith("machineType") else ""
        return Diagnosis("NotAllowed", f"{what}: {detail}.{mend}")
    if found := diagnose_denial(what, detail, subject):
        return found
    return _other(what, detail, resource, refusal, subject)


def _other(what: str, detail: str, resource: str, refusal: Refusal, subject: Subject) -> Diagnosis:
    if "is being terminated" in detail:
        return Diagnosis(
            "NamespaceTerminating",
            f"{what}: namespace {subject.namespace} is being deleted, nothing new can start in it.",
        )
    if "cannot find RESTMapping" in detail:
        return Diagnosis(
            "KindNotKnownYet",
            f"{what} yet: TrainingJobs are new to this API server, whose admission learns of new kinds every 30 seconds. It goes "
            "on by itself.",
            blocked=False,
        )
    if (" cannot " in detail and "User " in detail) or "cannot set blockOwnerDeletion" in detail:
        return Diagnosis(
            "RightMissing",
            f"{what}: its service account lacks a right ({detail}). Install the chart as it is, with namespace "
            f"{subject.namespace} in watchNamespaces if that is set; `kubectl auth can-i` checks it.",
        )
    if refusal.reason == "ForeignObject":
        return Diagnosis(
            "NameTaken", f"{what}: {detail}: kubectl delete {resource} {refusal.name} -n {subject.namespace}."
        )
    if refusal.status in (400, 413, 422):
        return Diagnosis(
            "Invalid",
            f"{what}, the API server finds it invalid: {detail}. Mend the field that it names in {subject.anything()}.",
        )
    return Diagnosis("Forbidden", f"{what}: {detail}.")


def _detail(message: str) -> str:
    """The API server's sentence without the call and without the object's own name before it."""
    text = re.sub(r"^[A-Z]+ /\S*: \d{3} ", "", message.strip())
    text = re.sub(r"^[\w.]+ \"[^\"]*\" is (forbidden|invalid): ", "", text)
    return text.rstrip(". ")[:MAX_DETAIL]
