"""One reporter for everything that is told outside: JSON lines on stdout and in `log.jsonl`, the intake, `metrics.jsonl`, the
termination message.

Telling never holds the training up: a thread sends the newest snapshot, at most one a second; those that flew by since the last
one are not told any more. One with a new phase or the final result is tried for a while; what cannot be delivered is dropped, the
next one is complete again.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainyard_api.report import MAX_REPORT_BYTES, Answer, Phase, Report, Result
from trainyard_api.run import Intake, RunSpec
from trainyard_api.status import DatasetSummary, Metrics, Warning_
from trainyard_api.trainingjob import End

from trainyard_trainer.poster import Poster, authorized

SECONDS_BETWEEN = 1.0
RETRY_SECONDS = 20.0
FIRST_PAUSE_SECONDS = 1.0
TIMEOUT_SECONDS = 10.0
MOST_WARNINGS = 32
REPORTS_OF_A_PROCESS = 100_000_000
"""More than it can have sent."""
DEFAULT_TERMINATION_LOG = "/dev/termination-log"


class Reporter:
    """Holds the snapshot; every method may be called from the loop and returns at once, save `close`."""

    def __init__(
        self,
        spec: RunSpec,
        metrics_path: Path | None = None,
        out: Any = None,
        log_path: Path | None = None,
        starts_before: int = 0,
    ) -> None:
        self._fields: dict[str, Any] = {
            "job": spec.job, "namespace": spec.namespace, "uid": spec.uid, "run": spec.run, "attempt": spec.attempt,
            "phase": Phase.STARTING,
        }  # fmt: skip
        self._out = out if out is not None else sys.stdout
        self._metrics = metrics_path.open("a", encoding="utf-8") if metrics_path else None
        self._log = log_path.open("a", encoding="utf-8") if log_path else None
        self._warnings: dict[str, Warning_] = {}
        # The first number is the supervisor's who asked whether this process may begin (`restart`); those of processes that were
        # started again within the attempt come after all that went before.
        self._sequence = 1 + starts_before * REPORTS_OF_A_PROCESS
        self._finish = threading.Event()
        self._sender = _Sender(spec.intake, self._answered) if spec.intake else None

    @property
    def known(self) -> Mapping[str, Any]:
        """The fields of the last report."""
        return self._fields

    @property
    def finish_asked(self) -> bool:
        """Whether an answer of the intake asked to publish now."""
        return self._finish.is_set()

    def phase(self, phase: Phase, message: str | None = None, percent: int | None = None) -> None:
        """A new phase, or the same one with a new message; where it changed, the next report is delivered for sure."""
        changed = phase is not self._fields["phase"]
        self._fields |= {"phase": phase, "message": message and message[:1024], "percent": percent}
        if changed:
            self.line("phase", phase=phase.value, message=message)
        self._tell(must=changed)

    def progress(self, **fields: Any) -> None:
        """Fields of `Report`, all that are known from now on; sent when a second has gone by."""
        self._fields |= fields
        self._tell(must=False)

    def metrics(self, metrics: Metrics) -> None:
        self._fields["metrics"] = metrics
        self._tell(must=False)

    def dataset(self, summary: DatasetSummary) -> None:
        self._fields["dataset"] = summary
        self._tell(must=False)

    def warn(self, reason: str, message: str) -> None:
        """A warning; a later one of the same reason replaces it."""
        before = self._warnings.get(reason)
        if (before and before.message == message) or (not before and len(self._warnings) >= MOST_WARNINGS):
            return
        self._warnings[reason] = Warning_(reason=reason, message=message[:4096])
        self._fields["warnings"] = tuple(self._warnings.values())
        self.line("warning", reason=reason, message=message)
        self._tell(must=False)

    @property
    def warnings(self) -> tuple[Warning_, ...]:
        return tuple(self._warnings.values())

    def line(self, event: str, **fields: Any) -> None:
        """One JSON line on stdout and in the log: what `kubectl logs` shows."""
        told = self._logged(event, fields)
        try:
            print(told, file=self._out, flush=True)
        except (OSError, ValueError):
            self._out = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 the reader of the log is gone for good

    def traceback(self, text: str) -> None:
        """Where an error came from: as it is on stderr, as a line in the log."""
        print(text, end="", file=sys.stderr, flush=True)
        self._logged("traceback", {"message": text})

    def record(self, kind: str, values: Mapping[str, Any]) -> None:
        """One line in `metrics.jsonl`: `kind` is `step` or `evaluation`."""
        if self._metrics is not None:
            self._metrics.write(json.dumps({"kind": kind, "time": round(time.time(), 3), **values}) + "\n")

    def flush(self) -> None:
        for file in (self._metrics, self._log):
            if file is not None:
                file.flush()

    def close(self, result: Result, seconds: float = 30.0, last: Callable[[], None] = lambda: None) -> None:
        """The termination message and the final report (delivered within `seconds`, if it can be).

        `last` is called once the result was said and its report is on its way.
        """
        write_termination_message(result)
        self._fields["result"] = result
        if result.manifest_uri is not None:
            self._fields |= {"phase": Phase.DONE, "message": result.message[:1024], "percent": 100}
        self.line("result", **result.to_dict())
        self._tell(must=True)
        self.flush()
        last()
        for file in (self._metrics, self._log):
            if file is not None:
                file.close()
        self._metrics = self._log = None
        if self._sender is not None:
            self._sender.close(seconds)

    def _logged(self, event: str, fields: Mapping[str, Any]) -> str:
        """The line, which is in the log by then."""
        told = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event}
        told |= {key: value for key, value in fields.items() if value is not None}
        text = json.dumps(told, ensure_ascii=False)
        if self._log is not None:
            with suppress(OSError, ValueError):
                self._log.write(text + "\n")
        return text

    def _tell(self, *, must: bool) -> None:
        if self._sender is None:
            return
        self._sequence += 1
        self._sender.put(Report(sequence=self._sequence, **self._fields), must)

    def _answered(self, answer: Answer) -> None:
        if answer.end is End.FINISH:
            self._finish.set()


class _Sender:
    """A thread that posts reports: each is a whole snapshot, so that the newest replaces one that was not sent yet."""

    def __init__(self, intake: Intake, answered: Any) -> None:
        self._intake, self._answered = intake, answered
        self._next: tuple[Report, bool] | None = None
        self._wake = threading.Condition()
        self._closing_at: float | None = None
        self._refused: str | None = None
        self._poster = Poster.to(intake, TIMEOUT_SECONDS)
        self._thread = threading.Thread(target=self._run, name="reporter", daemon=True)
        self._thread.start()

    def put(self, report: Report, must: bool) -> None:
        """`must`: it, or a newer one in its place, is tried until it is delivered, within limits."""
        with self._wake:
            self._next = report, must or (self._next is not None and self._next[1])
            self._wake.notify()

    def close(self, seconds: float) -> None:
        with self._wake:
            self._closing_at = time.monotonic() + seconds
            self._wake.notify()
        self._thread.join(seconds + 1)

    def _run(self) -> None:
        last = 0.0
        while True:
            with self._wake:
                while self._next is None and self._closing_at is None:
                    self._wake.wait()
                if self._next is None:
                    self._poster.close()
                    return
                # Wait out the second before taking: what comes meanwhile replaces what nobody needs.
                pause = last + SECONDS_BETWEEN - time.monotonic()
                if pause > 0:
                    self._wake.wait(pause)
                    continue
                (report, must), self._next = self._next, None
            self._deliver(report, must)
            last = time.monotonic()

    def _deliver(self, report: Report, must: bool) -> None:
        """Posts one report; an important one, or what is newer by then, again and again for a while, as long as the intake does not
        refuse it."""
        until, pause = time.monotonic() + (RETRY_SECONDS if must else 0.0), FIRST_PAUSE_SECONDS
        while True:
            retry = self._post(_body(report))
            closing = self._closing_at
            now = time.monotonic()
            if retry is None or now + pause >= (max(until, closing) if closing and report.result else until):
                return
            time.sleep(max(pause, retry))
            pause = min(pause * 2, 8.0)
            with self._wake:
                newer, self._next = self._next, None
            if newer is not None:
                report, must = newer
                until = max(until, time.monotonic() + (RETRY_SECONDS if must else 0.0))

    def _post(self, body: bytes) -> float | None:
        """None when it was taken or refused for good, else the seconds after which it may be tried again."""
        try:
            headers = authorized(self._intake)
        except OSError as error:
            self._say(f"the token {self._intake.token_path} cannot be read: {error.strerror}")
            return 1.0
        try:
            reply = self._poster.post(body, headers, MAX_REPORT_BYTES)
        except (OSError, ValueError) as error:
            self._say(f"the intake {self._intake.url} does not answer: {error}")
            return 0.0
        if reply.status == 429 or reply.status >= 500:
            return _seconds(reply.headers.get("Retry-After"))
        if reply.status >= 300:
            self._say(f"the intake refused a report ({reply.status}): {reply.body[:500].decode(errors='replace')}")
            return None
        self._refused = None
        try:
            self._answered(Answer.model_validate_json(reply.body or b"{}"))
        except ValueError:
            self._say("the intake's answer is not understood")
        return None

    def _say(self, what: str) -> None:
        """Once per cause: a report is not worth a log full of them."""
        if what != self._refused:
            self._refused = what
            print(json.dumps({"event": "reporting", "message": what}), file=sys.stderr, flush=True)


def write_termination_message(result: Result) -> None:
    """Where the kubelet looks for it (`TRAINYARD_TERMINATION_LOG` names another file); none on a laptop."""
    path = Path(os.environ.get("TRAINYARD_TERMINATION_LOG", DEFAULT_TERMINATION_LOG))
    try:
        if "TRAINYARD_TERMINATION_LOG" in os.environ or path.exists():
            path.write_text(result.to_termination_message(), encoding="utf-8")
    except OSError as error:
        print(json.dumps({"event": "reporting", "message": f"{path}: {error.strerror}"}), file=sys.stderr, flush=True)


def _body(report: Report) -> bytes:
    """At most 64 KiB: the scores per label go first, then the dataset's labels, then the warnings."""
    for slim in (
        {},
        {"metrics": report.metrics and _without_labels(report.metrics)},
        {"dataset": report.dataset and report.dataset.model_copy(update={"labels": ()})},
        {"warnings": ()},
    ):
        report = report.model_copy(update=slim)
        body = report.model_dump_json(by_alias=True, exclude_none=True).encode()
        if len(body) <= MAX_REPORT_BYTES:
            break
    return body


def _without_labels(metrics: Metrics) -> Metrics:
    slim = {
        name: scores.model_copy(update={"per_class": None})
        for name in ("latest", "best", "test")
        if (scores := getattr(metrics, name)) is not None
    }
    return metrics.model_copy(update=slim)


def _seconds(text: str | None) -> float:
    try:
        return min(float(text or 1.0), 10.0)
    except ValueError:
        return 1.0
