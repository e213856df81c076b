"""A process that failed is started again in its pod, as the next attempt, once the intake takes that attempt's reports.

The supervisor says that the process is gone, then asks with the next attempt's first report until it is taken. Whoever decides is the
operator: it counts, it knows of stops and limits. Without an answer the pod ends, and what follows is an attempt in another one.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import closing

from trainyard_api.report import LAST_SEQUENCE, MAX_REPORT_BYTES, RANK_LOST, Answer, ExitCode, Phase, Report, Result
from trainyard_api.run import Intake, RunSpec

from trainyard_trainer.poster import Poster, authorized
from trainyard_trainer.records import StopFlag

PATIENCE = 60.0
PAUSE_SECONDS = 0.5
TIMEOUT_SECONDS = 10.0


def next_start(spec: RunSpec, result: Result, stop: StopFlag) -> RunSpec | None:
    """The next attempt, which begins now in this pod; None: this one's end is the pod's."""
    crashed = result.exit_code == ExitCode.ERROR and result.reason != RANK_LOST
    if not crashed or spec.max_process_starts == 1 or stop():
        return None
    following = spec.model_copy(
        update={
            "attempt": spec.attempt + 1,
            "resume_from": (spec.attempt_uri, *spec.resume_from),
            "trained_seconds": spec.trained_seconds + result.training_seconds,
            "max_process_starts": spec.max_process_starts - 1,
        }
    )
    # Without an operator, on a laptop, there is nobody to ask.
    if spec.intake is not None and not _granted(spec.intake, spec, following, result, stop):
        return None
    line = {"event": "restart", "attempt": following.attempt, "message": result.message}
    print(json.dumps(line, ensure_ascii=False), flush=True)
    return following


def _granted(intake: Intake, spec: RunSpec, following: RunSpec, result: Result, stop: StopFlag) -> bool:
    """Whether the next attempt may begin here; asked until there is an answer."""
    gone = _report(spec, LAST_SEQUENCE, Phase.RESTARTING).model_copy(update={"result": result})
    first = _report(following, 1, Phase.STARTING)
    until = time.monotonic() + PATIENCE
    with closing(Poster.to(intake, TIMEOUT_SECONDS)) as poster:
        for report in (gone, first):
            while True:
                taken, finish = _post(poster, intake, report)
                if finish or stop() or time.monotonic() > until:
                    return False
                if taken is not None:
                    break
                time.sleep(PAUSE_SECONDS)
            if not taken:
                return False
    return True


def _report(spec: RunSpec, sequence: int, phase: Phase) -> Report:
    return Report(
        job=spec.job,
        namespace=spec.namespace,
        uid=spec.uid,
        run=spec.run,
        attempt=spec.attempt,
        sequence=sequence,
        phase=phase,
        message="The training's process failed and is started again in the same pod.",
    )


def _post(poster: Poster, intake: Intake, report: Report) -> tuple[bool | None, bool]:
    """Whether the report was taken (None: to be sent again), and whether the answer asks to publish what there is."""
    body = report.model_dump_json(by_alias=True, exclude_none=True).encode()
    try:
        reply = poster.post(body, authorized(intake), MAX_REPORT_BYTES)
        if reply.status < 300:
            return True, Answer.model_validate_json(reply.body or b"{}").end is not None
    except (OSError, ValueError):
        return None, False
    if reply.status == 429 or reply.status >= 500:
        return None, False
    said = reply.body[:500].decode(errors="replace")
    # It was taken before, and the answer was lost.
    taken = "SequenceBack" in said
    if not taken:
        print(json.dumps({"event": "no restart", "message": f"{reply.status}: {said}"}), file=sys.stderr, flush=True)
    return taken, False
