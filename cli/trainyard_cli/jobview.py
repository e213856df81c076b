"""How a TrainingJob is shown: table rows, one line of progress, and the sentence at its end. Pure functions of the object."""

from datetime import datetime
from typing import Any

from trainyard_cli.output import age, duration

Object = dict[str, Any]

ENDED = ("Succeeded", "Failed", "Aborted", "Stopped", "Canceled")
"""States that a job leaves only when its user asks for it."""

HEADER = ("NAME", "STATE", "PROGRESS", "EPOCH", "METRIC", "ATTEMPT", "SERVICE", "VERSION", "AGE")
WIDE_HEADER = (*HEADER, "STEP", "ETA", "TRAINING TIME", "REASON", "UID")


def row(job: Object, now: datetime, wide: bool = False) -> tuple[object, ...]:
    """The cells of `kubectl get tj`."""
    status, metadata = job.get("status", {}), job["metadata"]
    summary = status.get("summary", {})
    cells = (
        metadata["name"],
        status.get("state", "Created"),
        summary.get("progress"),
        summary.get("epoch"),
        summary.get("metric"),
        summary.get("attempt"),
        status.get("serviceName"),
        status.get("version"),
        age(metadata.get("creationTimestamp"), now),
    )
    if not wide:
        return cells
    return (
        *cells,
        summary.get("step"),
        summary.get("eta"),
        duration(status.get("trainingSeconds")),
        status.get("reason"),
        metadata["uid"],
    )


def is_settled(job: Object) -> bool:
    """Whether what status says is about the spec as it is now, and the job has come to its end."""
    status, metadata = job.get("status", {}), job["metadata"]
    seen = status.get("observedGeneration", -1) >= metadata.get("generation", 0)
    current = status.get("run", 0) >= job["spec"].get("rerun", 0)
    return seen and current and status.get("state") in ENDED


def number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def metric(scores: Object) -> tuple[str, float] | None:
    """The score that a person looks at first: (name, value)."""
    for name in ("mAP50", "accuracy", "mAP", "mAP50_95"):
        if scores.get(name) is not None:
            return name, scores[name]
    return None


def progress_line(job: Object) -> str:
    """`Running  Training  63%  step 190/300  epoch 19/30  loss 1.234  mAP50 0.871  ETA 4m10s`, as far as it is known."""
    status = job.get("status", {})
    progress, scores = status.get("progress", {}), status.get("metrics", {})
    state = status.get("state", "Created")
    parts = [state]
    if state not in ("Preparing", "Running", "Stopping", "StopRequested"):
        return f"{state}: {status['message']}" if status.get("message") else state
    if progress.get("phase"):
        parts.append(progress["phase"])
    if progress.get("percent") is not None:
        parts.append(f"{progress['percent']}%")
    for name, total in (("step", "steps"), ("epoch", "epochs")):
        if progress.get(name) is not None and progress.get(total):
            parts.append(f"{name} {progress[name]}/{progress[total]}")
    latest = scores.get("latest", {})
    if latest.get("loss") is not None:
        parts.append(f"loss {number(latest['loss'])}")
    if found := metric(latest) or metric(scores.get("best", {})):
        parts.append(f"{found[0]} {number(found[1])}")
    if progress.get("etaSeconds") is not None:
        parts.append(f"ETA {duration(progress['etaSeconds'])}")
    # The state's own message tells of the phase before, once there is one.
    if state == "Preparing" and (said := progress.get("message") if progress.get("phase") else status.get("message")):
        parts.append(said)
    return "  ".join(parts)


def end_sentence(job: Object) -> str:
    """What became of a job that has come to its end."""
    status, name = job.get("status", {}), job["metadata"]["name"]
    state, message = status.get("state"), status.get("message") or ""
    reason = f" ({status['reason']})" if status.get("reason") else ""
    if state != "Succeeded":
        return f"{name}: {state}{reason}: {message}".rstrip(": ")
    scores = status.get("metrics", {})
    said = [f"version {status.get('version')}"]
    for key, label in (("best", "validation"), ("test", "test")):
        if found := metric(scores.get(key, {})):
            said.append(f"{found[0]} {number(found[1])} on {label}")
    if status.get("trainingSeconds") is not None:
        said.append(f"trained for {duration(status['trainingSeconds'])}")
    return f"{name}: Succeeded{reason}: {', '.join(said)}"
