"""The process: RunSpec in, exit code and termination message out.

    TRAINYARD_STANDBY=file python -m trainyard_trainer     waits for its RunSpec, warm
    python -m trainyard_trainer            reads /etc/trainyard/run.json, or the file that TRAINYARD_RUN_SPEC names

SIGTERM sets a flag; the training finishes its step, saves, uploads, and the process exits with 75. With several GPUs or nodes, and
where a failed process may be started again, this one is the supervisor of one child for each GPU, started with the same command.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from pydantic import ValidationError
from trainyard_api.report import ExitCode, Result
from trainyard_api.run import STANDBY_ENV, RunSpec

from trainyard_trainer import history
from trainyard_trainer.attempt import Attempt, failed, run_attempt
from trainyard_trainer.errors import BadSpec, DiskFull, GPUOutOfMemory, Interrupted, TrainerError
from trainyard_trainer.mirror import LOG, Mirror
from trainyard_trainer.place import ALONE, LOCAL_RANK, STARTED, Place, place_of
from trainyard_trainer.processes import end_with_parent, supervise
from trainyard_trainer.report import Reporter, write_termination_message
from trainyard_trainer.scratch import scratch
from trainyard_trainer.standby import wait_for_work
from trainyard_trainer.store import Storage

DEFAULT_SPEC = "/etc/trainyard/run.json"


class StopFlag:
    """Set by SIGTERM and SIGINT; a second SIGINT ends the process at once."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def __call__(self) -> bool:
        return self._event.is_set()

    def install(self) -> None:
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._event.is_set():
            os._exit(ExitCode.INTERRUPTED)
        self._event.set()


def main() -> None:
    stop = StopFlag()
    started: float | None = None
    try:
        if STANDBY_ENV in os.environ:
            spec = wait_for_work()
            if spec is None:
                sys.exit(ExitCode.DONE)
            started = time.monotonic()
            stop.install()
        else:
            stop.install()
            spec = read_spec(Path(os.environ.get("TRAINYARD_RUN_SPEC", DEFAULT_SPEC)))
        place = place_of(spec)
    except TrainerError as error:
        result = failed(error, {})
        write_termination_message(result)
        print(json.dumps({"event": "result", **result.to_dict()}), flush=True)
        sys.exit(result.exit_code)
    is_child = LOCAL_RANK in os.environ
    if place.world == 1 and spec.max_process_starts == 1 and not is_child:
        leave(run(spec, stop, started).exit_code)
    if not is_child:
        leave(supervise(spec, process_start() if started is None else started, stop()).exit_code)
    end_with_parent()
    leave(run(spec, stop, float(os.environ[STARTED]), place).exit_code)


def leave(code: int) -> NoReturn:
    """End at once: taking PyTorch down takes most of a second, and connections to ranks that are gone could hang or crash."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def read_spec(path: Path) -> RunSpec:
    """Raises BadSpec with file and field."""
    try:
        return RunSpec.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadSpec(
            f"the RunSpec {path} cannot be read ({error.strerror}); set TRAINYARD_RUN_SPEC to its path."
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise BadSpec(f"the RunSpec {path} is not valid at {where}: {first['msg']}.") from error


def process_start() -> float:
    """When this process began, on `time.monotonic`'s scale: interpreter and imports are part of the attempt's time."""
    now = time.monotonic()
    try:
        ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return now
    return now - age if 0 <= age < 60 else now


def run(spec: RunSpec, stop: StopFlag, started: float | None = None, place: Place = ALONE) -> Result:
    """One attempt to its end, told everywhere; every failure becomes a Result. `started`: on `time.monotonic`'s scale."""
    started = process_start() if started is None else started
    with scratch(spec) as folder:
        return _run(spec, stop, started, place, folder)


def _run(spec: RunSpec, stop: StopFlag, started: float, place: Place, folder: Path) -> Result:
    close: Callable[[], None] = lambda: None  # noqa: E731
    if place.leads:
        reporter = Reporter(spec, folder / history.FILE, log_path=folder / LOG, starts_before=place.halvings)
        close = Mirror(Storage.open(spec.secrets_path, "output"), spec.attempt_uri, folder, reporter).close
    else:
        reporter = quiet_reporter(spec, place)
    try:
        result = run_attempt(Attempt(spec, reporter, folder, stop, started, place))
    except TrainerError as error:
        result = failed(error, reporter.known)
    except Exception as error:
        result = failed(_as_trainer_error(error, stop), reporter.known)
        if result.exit_code == ExitCode.ERROR:
            reporter.traceback(traceback.format_exc())
    reporter.close(result, last=close)
    return result


def quiet_reporter(spec: RunSpec, place: Place) -> Reporter:
    """Of a process that is not the first: its result counts, everything else the first one tells. One of each pod writes a log."""
    out = sys.stdout if place.leads_node else open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 as long as the process
    return Reporter(spec.model_copy(update={"intake": None}), out=out)


def _as_trainer_error(error: Exception, stop: StopFlag) -> TrainerError:
    """What nobody foresaw; a full disk shows in many places."""
    if isinstance(error, OSError) and error.errno == 28:
        return DiskFull(f"a disk is full: {error.filename or error}; give the execution more ephemeral storage.")
    if type(error).__name__ == "OutOfMemoryError":
        return GPUOutOfMemory(
            f"out of GPU memory: {str(error)[:300]}; lower batchSize or imageSize, or take a larger GPU."
        )
    if stop():
        return Interrupted(f"asked to stop; on the way out: {type(error).__name__}: {error}")
    return TrainerError(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
