"""What a report becomes in a job's status: pure functions from `Report` to JSON Patch operations."""

import math
from datetime import datetime
from typing import Any

from trainyard_api.report import Phase, Report
from trainyard_api.status import Metrics, Scores
from trainyard_api.trainingjob import Progress

Object = dict[str, Any]
RESTART_FIELDS = ("phase", "message", "result", "sequence", "updatedAt")
"""What the supervisor of a process that failed has to say."""


def report_operations(status: Object, report: Report, now: datetime) -> list[Object]:
    """The operations that write `report` over what `status` has; fields that a report lacks keep what an earlier one said."""
    progress = progress_of(report, now).to_dict()
    if report.phase is Phase.RESTARTING:
        # Its process is gone, and only that knew the numbers.
        progress = (status.get("progress") or {}) | {k: v for k, v in progress.items() if k in RESTART_FIELDS}
    operations: list[Object] = [{"op": "add", "path": "/status/progress", "value": finite(progress)}]
    if report.metrics is not None:
        merged = (status.get("metrics") or {}) | finite(report.metrics.to_dict())
        operations.append({"op": "add", "path": "/status/metrics", "value": merged})
    if report.dataset is not None:
        operations.append({"op": "add", "path": "/status/dataset", "value": report.dataset.to_dict()})
    summary = summary_of(report)
    if status.get("summary") is None:
        operations.append({"op": "add", "path": "/status/summary", "value": summary})
    else:
        operations += [
            {"op": "add", "path": f"/status/summary/{name}", "value": value} for name, value in summary.items()
        ]
    return operations


def progress_of(report: Report, now: datetime) -> Progress:
    """`status.progress`; `updatedAt` is when the report was taken, by the cluster's clock."""
    fields = {name: getattr(report, name) for name in Progress.model_fields if name in Report.model_fields}
    fields |= {"updated_at": now.replace(microsecond=0), "result": report.result and report.result.to_status()}
    if report.images_per_second is not None and not 0 <= report.images_per_second < math.inf:
        fields["images_per_second"] = None
    return Progress.model_validate(fields)


def summary_of(report: Report) -> dict[str, str]:
    """Texts for the printer columns; what a report does not know is absent."""
    summary: dict[str, str] = {}
    if report.percent is not None:
        summary["progress"] = f"{report.percent}%"
    if report.epoch is not None:
        summary["epoch"] = f"{report.epoch}/{report.epochs}" if report.epochs is not None else str(report.epoch)
    if report.step is not None:
        summary["step"] = f"{report.step}/{report.steps}" if report.steps is not None else str(report.step)
    if report.eta_seconds is not None:
        summary["eta"] = duration(report.eta_seconds)
    if report.metrics is not None and (metric := metric_of(report.metrics)):
        summary["metric"] = metric
    return summary


def metric_of(metrics: Metrics) -> str | None:
    """The one number that people ask for, of the best model so far, else of the latest: `mAP50 0.871`."""
    for scores in (metrics.test, metrics.best, metrics.latest):
        if scores is not None and (text := _score(scores)):
            return text
    latest = metrics.latest
    if latest is not None and latest.loss is not None and math.isfinite(latest.loss):
        return f"loss {latest.loss:.3f}"
    return None


def _score(scores: Scores) -> str | None:
    for name, value in (("mAP50", scores.map50), ("accuracy", scores.accuracy), ("mAP", scores.map)):
        if value is not None and math.isfinite(value):
            return f"{name} {value:.3f}"
    return None


def duration(seconds: int) -> str:
    """`45s`, `4m10s`, `2h05m`, `3d04h`."""
    minutes, second = divmod(max(0, seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d{hour:02}h"
    if hours:
        return f"{hours}h{minute:02}m"
    return f"{minutes}m{second:02}s" if minutes else f"{second}s"


def finite(value: Any) -> Any:
    """The value without numbers that are not finite: JSON has none, and no user can read one."""
    if isinstance(value, dict):
        kept = {k: finite(v) for k, v in value.items()}
        return {k: v for k, v in kept.items() if not (isinstance(v, float) and not math.isfinite(v))}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return value
