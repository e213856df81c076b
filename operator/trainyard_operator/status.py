"""Renders what a decision means for people and programs: conditions, printer columns. Plain functions that return new values.

The kstatus trio (`Ready`, `Reconciling`, `Stalled`) is what Flux and Argo CD wait on: exactly one of "ready", "reconciling" and
"stalled" holds. A job that ended as its user asked (stopped, canceled, aborted) is ready, or they would wait for ever.
"""

from collections.abc import Mapping
from datetime import datetime

from trainyard_api.modelversion import ModelVersionStatus, VersionState
from trainyard_api.status import Condition, ConditionStatus, Scores
from trainyard_api.trainingjob import AttemptResult, Cause, JobState, Summary, TrainingJobStatus
from trainyard_api.trainingservice import TrainingServiceStatus

MAX_TEXT = 4096

ACTIVE = frozenset({JobState.PREPARING, JobState.RUNNING, JobState.STOP_REQUESTED, JobState.STOPPING})
AS_ASKED = frozenset({JobState.STOPPED, JobState.CANCELED, JobState.ABORTED})
TERMINAL = frozenset({JobState.SUCCEEDED, JobState.FAILED, JobState.ABORTED})
OVER = TERMINAL | AS_ASKED
"""Nothing runs, and nothing starts unless somebody asks for it."""

ALWAYS = frozenset({"Admitted", "Ready"})
"""Conditions that are always there; another is from when it held for the first time, as those of a batch/v1 Job are."""
WHILE_HELD = frozenset({"Reconciling", "Stalled"})
"""Not those that kstatus calls abnormal: they are there only while they hold."""


def text(message: str) -> str:
    """Cut to the bound of a message."""
    return message if len(message) <= MAX_TEXT else message[: MAX_TEXT - 1] + "…"


# --- TrainingJob ------------------------------------------------------------------------------------------------------------


def render_job(
    old: TrainingJobStatus, new: TrainingJobStatus, generation: int, max_attempts: int, now: datetime
) -> TrainingJobStatus:
    """`new` with the conditions and the summary that follow from it; `old` is what was there, for transition times."""
    return new.model_copy(
        update={
            "observed_generation": generation,
            "conditions": job_conditions(old.conditions, new, generation, now),
            "summary": job_summary(new, max_attempts),
        }
    )


def job_conditions(
    old: tuple[Condition, ...], status: TrainingJobStatus, generation: int, now: datetime
) -> tuple[Condition, ...]:
    """The conditions of a job in its state: `Admitted`, `Ready`, and of the others those that say something."""
    state = status.state
    suspended = state in (JobState.STOPPED, JobState.CANCELED) or (
        state is JobState.CREATED and status.reason == "Suspended"
    )
    as_asked = state in AS_ASKED or suspended
    stalled = state in (JobState.FAILED, JobState.UNSPECIFIED)
    truths: dict[str, bool] = {
        "Admitted": (state in ACTIVE and status.reason != "NotAdmitted")
        or (state in TERMINAL and bool(status.attempts)),
        "Running": state is JobState.RUNNING,
        "Succeeded": state is JobState.SUCCEEDED,
        "Failed": state is JobState.FAILED,
        "Suspended": suspended,
        "Ready": state is JobState.SUCCEEDED or as_asked,
        "Reconciling": not (state is JobState.SUCCEEDED or as_asked or stalled),
        "Stalled": stalled,
    }
    shown = ALWAYS | {condition.type for condition in old} - WHILE_HELD
    truths = {type_: truth for type_, truth in truths.items() if truth or type_ in shown}
    reason = _word(status.reason or state.value)
    reasons = {"Ready": "Stopped"} if state in (JobState.STOPPED, JobState.CANCELED) else {}
    return conditions(old, truths, reason, status.message or "", generation, now, reasons)


def conditions(
    old: tuple[Condition, ...],
    truths: Mapping[str, bool],
    reason: str,
    message: str,
    generation: int,
    now: datetime,
    reasons: Mapping[str, str] | None = None,
) -> tuple[Condition, ...]:
    """One condition for each of `truths`; the transition time changes with the status only, and the message of one that does not
    hold is that of the whole."""
    before = {condition.type: condition for condition in old}
    made: list[Condition] = []
    for type_, truth in truths.items():
        value = ConditionStatus.TRUE if truth else ConditionStatus.FALSE
        previous = before.get(type_)
        word = (reasons or {}).get(type_, reason)
        since = previous.last_transition_time if previous is not None and previous.status is value else now
        wanted = (value, generation, since, word, message)
        if previous is not None and wanted == _content(previous):
            made.append(previous)
            continue
        made.append(
            Condition(
                type=type_,
                status=value,
                observed_generation=generation,
                last_transition_time=since,
                reason=word,
                message=message,
            )
        )
    return tuple(made)


def _content(condition: Condition) -> tuple[ConditionStatus, int | None, datetime, str, str]:
    return (
        condition.status,
        condition.observed_generation,
        condition.last_transition_time,
        condition.reason,
        condition.message,
    )


def job_summary(status: TrainingJobStatus, max_attempts: int) -> Summary | None:
    """The printer columns: those of the intake as they are, and the attempt."""
    kept = status.summary or Summary()
    attempt = None
    if status.attempt_count:
        spent = (status.charged_attempts or 0) + (0 if status.state is JobState.FAILED else 1)
        attempt = f"{min(spent, max_attempts)}/{max_attempts}"
    summary = kept.model_copy(update={"attempt": attempt})
    return summary if summary != Summary() else None


def final_summary(old: Summary | None, result: AttemptResult) -> Summary:
    """What the columns show of a finished training."""
    step = f"{result.step}/{result.steps}" if result.step is not None and result.steps else old and old.step
    return Summary(
        progress="100%",
        epoch=old.epoch if old else None,
        step=step or None,
        metric=metric_word(result.metrics) or (old.metric if old else None),
        attempt=old.attempt if old else None,
    )


def metric_word(scores: Scores | None) -> str | None:
    """`mAP50 0.871`: the score that people compare."""
    if scores is None:
        return None
    for name, value in (("mAP50", scores.map50), ("mAP", scores.map), ("accuracy", scores.accuracy)):
        if value is not None:
            return f"{name} {value:.3f}"
    return None


def _word(reason: str) -> str:
    """A condition's reason, which must be CamelCase-like."""
    kept = "".join(c for c in reason if c.isalnum() or c in "_,:").strip("_,:0123456789")
    return kept or "Unknown"


# --- ModelVersion -----------------------------------------------------------------------------------------------------------


def render_version(
    old: ModelVersionStatus, new: ModelVersionStatus, generation: int, now: datetime
) -> ModelVersionStatus:
    ready = new.state is VersionState.READY
    reason = _word(new.reason or new.state.value)
    return new.model_copy(
        update={
            "observed_generation": generation,
            "conditions": conditions(old.conditions, {"Ready": ready}, reason, new.message or "", generation, now),
        }
    )


# --- TrainingService --------------------------------------------------------------------------------------------------------


def render_service(
    old: TrainingServiceStatus,
    new: TrainingServiceStatus,
    generation: int,
    *,
    paused: bool,
    degraded: tuple[str, str] | None,
    now: datetime,
) -> TrainingServiceStatus:
    """`new` with conditions; `degraded` is reason and message."""
    state = "Degraded" if degraded else "Paused" if paused else "Available"
    available = not paused and new.capacity > 0 and degraded is None
    said = "No new execution starts; running ones go on." if paused else f"At most {new.capacity} at once."
    if new.capacity == 0 and not paused:
        said = "maxInstances is 0: no execution starts."
    word = "Paused" if paused else "Available" if new.capacity else "ZeroInstances"
    made = conditions(
        old.conditions, {"Available": available}, degraded[0] if degraded else word, said, generation, now
    )
    made += conditions(
        old.conditions,
        {"Degraded": degraded is not None},
        degraded[0] if degraded else "AsExpected",
        degraded[1] if degraded else "",
        generation,
        now,
    )
    made += conditions(
        old.conditions, {"Paused": paused}, "Paused" if paused else "NotPaused", said if paused else "", generation, now
    )
    return new.model_copy(update={"observed_generation": generation, "state": state, "conditions": made})


SUCCESS_MESSAGES: dict[str, str] = {
    "Completed": "Trained to the end.",
    "EarlyStopped": "Stopped early: the validation scores did not get better any more.",
    "MaxDurationReached": "training.maxDurationSeconds was reached; the best model so far is published.",
    "TimeoutReached": "The execution's time was over; the best model so far is published.",
    "FinishedEarly": "Finished early, as asked; the best model so far is published.",
}


def success_message(result: AttemptResult | None, version: str | None) -> str:
    """The sentence of a job that succeeded."""
    reason = result.reason if result and result.reason in SUCCESS_MESSAGES else Cause.COMPLETED.value
    scores = " ".join(
        f"{side} {word}."
        for side, word in (
            ("Validation", metric_word(result.metrics) if result else None),
            ("Test", metric_word(result.test) if result else None),
        )
        if word
    )
    return " ".join(part for part in (SUCCESS_MESSAGES[reason], f"Version {version} is ready.", scores) if part)
