"""Starting, recognising and ending processes, so that none is left over and none of somebody else's is touched."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from devcluster.spec import ProcessRecord

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


def start(
    argv: Sequence[str], log: Path, cwd: Path, environment: Mapping[str, str], keep_open: Iterable[int] = ()
) -> subprocess.Popen[bytes]:
    """Starts a process in a group of its own, which the kernel kills when we die, however we die."""
    parent = os.getpid()

    def die_with_parent() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    with log.open("ab") as output:
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=dict(environment),
            pass_fds=tuple(keep_open),
            start_new_session=True,
            preexec_fn=die_with_parent,
        )


def record(pid: int) -> ProcessRecord | None:
    """How to recognise the process later; None when there is none (or only its entry, waiting for its parent)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in the second field may itself hold spaces and brackets.
    fields = stat[stat.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else ProcessRecord(pid=pid, start_ticks=int(fields[19]))


def is_alive(process: ProcessRecord | None) -> bool:
    return process is not None and record(process.pid) == process


def end(processes: Iterable[ProcessRecord], grace_seconds: float) -> None:
    """Ends each process: SIGTERM, after the grace SIGKILL for its whole group. Those that are gone do not matter."""
    alive = [process for process in processes if is_alive(process)]
    for process in alive if grace_seconds > 0 else ():
        send(process, signal.SIGCONT)
        send(process, signal.SIGTERM)
    wait_gone(alive, grace_seconds)
    for process in alive:
        if is_alive(process):
            send(process, signal.SIGKILL, group=True)
    wait_gone(alive, 5)


def send(process: ProcessRecord, number: signal.Signals, group: bool = False) -> None:
    """Sends a signal if the process is still the recorded one."""
    if is_alive(process):
        try:
            os.killpg(process.pid, number) if group else os.kill(process.pid, number)
        except ProcessLookupError:
            return


def wait_gone(processes: Iterable[ProcessRecord], seconds: float) -> bool:
    """True when all are gone within the time."""
    deadline = time.monotonic() + seconds
    left = list(processes)
    while left := [process for process in left if is_alive(process)]:
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.02)
    return True


def tail(path: Path, lines: int) -> str:
    """The last lines of a log, from its last 64 KiB."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 65536))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
    except FileNotFoundError:
        return ""
