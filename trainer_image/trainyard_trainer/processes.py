"""The supervisor of a node's processes: starts one per GPU, hands signals on, and ends with what decided the attempt. No torch.

Not torchrun: that exits with 1 whatever its workers return, and kills them 29 s after SIGTERM. Here a child's exit code and termination
message become those of the pod:

- In the ordinary case all ranks stop after the same step, and the pod ends as its first rank does, however long that one publishes.
- A rank that fails or dies ends the attempt: the others get some seconds to notice (they lose a connection), then they are killed.
  What counts is the rank that failed by itself, not those that lost it.
"""

from __future__ import annotations

import ctypes
import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from trainyard_api.report import ExitCode, Result
from trainyard_api.run import RUN_SPEC_ENV, STANDBY_ENV, RunSpec

from trainyard_trainer.errors import GPUOutOfMemory, RankLost
from trainyard_trainer.gang import Gang
from trainyard_trainer.place import (
    HALVINGS,
    LOCAL_PORT,
    LOCAL_RANK,
    SHARED_FOLDER,
    STARTED,
    SUPERVISOR,
    processes_per_node,
)
from trainyard_trainer.report import write_termination_message
from trainyard_trainer.restart import next_start

GRACE_SECONDS = 20.0
"""For the other ranks, after one has failed or the first has ended."""
FINE = (ExitCode.DONE, ExitCode.INTERRUPTED)
RANK_KILLED = "RankKilled"
TERMINATION_LOG = "TRAINYARD_TERMINATION_LOG"
PR_SET_PDEATHSIG = 1


@dataclass
class Supervisor:
    """The children of one node. `ended` has the exit code of each that is over, in the order in which they ended."""

    command: list[str]
    count: int
    folder: Path
    started: float
    grace: float = GRACE_SECONDS
    ended: dict[int, int] = field(default_factory=dict)
    stopped: bool = False
    halvings: int = 0
    called_off: bool = False
    """Whether its children were killed because all nodes begin again."""
    _children: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def run(self) -> Result:
        """Starts all and waits for their end."""
        ends: queue.SimpleQueue[tuple[int, int]] = queue.SimpleQueue()
        port = free_port()
        for rank in range(self.count):
            # A signal that comes meanwhile is handed on to the ones that are there, and to this one at once.
            child = subprocess.Popen(self.command, env=self._environment(rank, port))
            self._children.append(child)
            if self.stopped:
                child.send_signal(signal.SIGTERM)
            if self.called_off:
                child.kill()
            threading.Thread(target=lambda r=rank, c=child: ends.put((r, c.wait())), daemon=True).start()
        until: float | None = None
        while len(self.ended) < self.count:
            try:
                rank, code = ends.get(timeout=None if until is None else max(0.0, until - time.monotonic()))
            except queue.Empty:
                self._signal(signal.SIGKILL)
                until = None
                continue
            # Stopped before it could answer signals: nothing had begun.
            code = ExitCode.INTERRUPTED if self.stopped and code == -signal.SIGTERM else code
            self.ended[rank] = code
            if until is None and (rank == 0 or code not in FINE):
                until = time.monotonic() + self.grace
                if rank == 0 and code in FINE:
                    self._signal(signal.SIGTERM)
        return self._result()

    def stop(self, number: int, frame: FrameType | None) -> None:
        """SIGTERM and SIGINT are the children's to answer; a second SIGINT ends them at once."""
        again = self.stopped and number == signal.SIGINT
        self.stopped = True
        self._signal(signal.SIGKILL if again else signal.SIGTERM)

    def call_off(self) -> None:
        """Another node's process has no memory for its part of a batch; these stand in the middle of that batch."""
        self.called_off = True
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for rank, child in enumerate(self._children):
            if rank not in self.ended:
                with suppress(ProcessLookupError):
                    os.kill(child.pid, number)

    def _environment(self, rank: int, port: int) -> dict[str, str]:
        # A standby was told its RunSpec by the intake: its children read it here.
        inherited = {name: value for name, value in os.environ.items() if name != STANDBY_ENV}
        return inherited | {
            RUN_SPEC_ENV: str(self.folder / "run.json"),
            LOCAL_RANK: str(rank),
            LOCAL_PORT: str(port),
            SHARED_FOLDER: str(self.folder),
            STARTED: str(self.started),
            HALVINGS: str(self.halvings),
            SUPERVISOR: str(os.getpid()),
            TERMINATION_LOG: str(self._message(rank)),
        }

    def _message(self, rank: int) -> Path:
        return self.folder / f"result-{rank}.json"

    def _result(self) -> Result:
        """What decided: the first rank that failed by itself, else the first rank's end."""
        own = [self._told(rank, code) for rank, code in self.ended.items()]
        failures = [result for result in own if result.exit_code not in FINE]
        by_itself = [result for result in failures if result.reason != RankLost.default_reason]
        # A signal says the least, so a rank that could still say something goes before one that was killed.
        if by_itself and not self._published():
            return min(by_itself, key=lambda result: result.reason == RANK_KILLED)
        return self._told(0, self.ended[0])

    def _published(self) -> bool:
        """Whether the first rank has a completion record: then nothing else counts."""
        return self._told(0, self.ended[0]).manifest_uri is not None

    def _told(self, rank: int, code: int) -> Result:
        with suppress(OSError, ValueError):
            result = Result.model_validate_json(self._message(rank).read_bytes())
            if result.exit_code == code:
                return result
        if code == ExitCode.INTERRUPTED:
            return _stopped()
        how = f"ended with exit code {code}" if code >= 0 else f"was killed by {_signal_name(-code)}"
        hint = "; most likely memory ran out: ask for more of it" if code == -signal.SIGKILL else ""
        return Result(
            exit_code=ExitCode.ERROR,
            reason=RANK_KILLED,
            message=f"process {rank + 1} of {self.count} on {os.uname().nodename} {how}{hint}. The next attempt goes on from the last"
            " checkpoint.",
        )


def supervise(spec: RunSpec, started: float, stopped: bool) -> Result:
    """All processes of this node, to their end. `started`: when the attempt began, on `time.monotonic`'s scale; `stopped`: whether it
    was asked to stop since. Where they may be started again (`maxProcessStarts`), an error is not their end. Nor is a GPU whose memory
    was too small for a part of a batch: all of them, on all nodes, begin again, with smaller parts."""
    halvings = 0
    gang = Gang.of(spec, dict(os.environ))
    with closing(gang) if gang else nullcontext():
        while True:
            supervisor, result = _one_round(spec, started, stopped, halvings, gang)
            if _lacks_memory(supervisor, result, gang):
                if supervisor.stopped:
                    result = _stopped()
                elif gang is None or gang.settled(halvings + 1, lambda s=supervisor: s.stopped):
                    halvings += 1
                    continue
                else:
                    result = _alone(supervisor, result)
            follows = next_start(spec, result, lambda s=supervisor: s.stopped)
            if follows is None:
                break
            spec, stopped = follows, supervisor.stopped
    write_termination_message(result)
    if supervisor.ended.get(0) != result.exit_code:
        # The first rank has told its own end; this one is another.
        print(json.dumps({"event": "result", **result.to_dict()}), flush=True)
    return result


def _one_round(
    spec: RunSpec, started: float, stopped: bool, halvings: int, gang: Gang | None
) -> tuple[Supervisor, Result]:
    """The processes of this node from their start to their end."""
    folder = Path(tempfile.mkdtemp(prefix=f"{spec.job}-"))
    # The very command that started this process: an image of one's own may have another than ours.
    command = [sys.executable, *sys.orig_argv[1:]]
    (folder / "run.json").write_text(json.dumps(spec.to_dict()), encoding="utf-8")
    supervisor = Supervisor(command, processes_per_node(spec), folder, started)
    supervisor.stopped, supervisor.halvings = stopped, halvings
    signal.signal(signal.SIGTERM, supervisor.stop)
    signal.signal(signal.SIGINT, supervisor.stop)
    if gang is not None:
        gang.begin(halvings, supervisor.call_off)
    try:
        return supervisor, supervisor.run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _lacks_memory(supervisor: Supervisor, result: Result, gang: Gang | None) -> bool:
    """Whether smaller parts of a batch could help: a process of this node says so, or of another one."""
    here = result.reason == GPUOutOfMemory.SMALLER_PARTS
    if gang is None:
        return here
    following = supervisor.halvings + 1
    if here:
        gang.ask(following)
    # Ranks that only lost others know no more than that: their supervisors have to hear what it was.
    lost = result.reason == RankLost.default_reason
    killed = supervisor.called_off and result.reason == RANK_KILLED
    return here or ((lost or killed) and (gang.begun(following) or not supervisor.stopped))


def _alone(supervisor: Supervisor, result: Result) -> Result:
    """The end of a node whose gang does not begin again."""
    if supervisor.stopped:
        return _stopped()
    if not supervisor.called_off:
        return result
    return Result(
        exit_code=ExitCode.ERROR,
        reason=RankLost.default_reason,
        message="another node's process ran out of GPU memory, and not all nodes could begin again with smaller parts of a batch.",
    )


def _stopped() -> Result:
    return Result(
        exit_code=ExitCode.INTERRUPTED, reason="Interrupted", message="asked to stop; there is no checkpoint yet."
    )


def end_with_parent() -> None:
    """Called by a child: it is killed when its supervisor is, so that none is left over."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != int(os.environ[SUPERVISOR]):
        os._exit(ExitCode.INTERRUPTED)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
