"""One run of a container: a bubblewrap process of its own session, which lives on when the node's process ends.

All that must be known after a restart of the node is in the run's folder:
  run.json     pid and start time (clock ticks) of bubblewrap, and when it was started
  status       what bubblewrap wrote: {"child-pid": N, ...} and at the end {"exit-code": N}
  log          standard output and error
  termination  the file behind terminationMessagePath
  oom          exists when a process of it was killed for memory
  layer/       the container's writable files
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from devcluster.node.sandbox import Sandbox, arguments, bubblewrap

MESSAGE_FILE_LIMIT = 4096
MESSAGE_LOG_LIMIT = 2048
MESSAGE_LOG_LINES = 80


@dataclass(frozen=True)
class Exit:
    """How a run ended; `code` None: it is gone, and nobody saw its end. `setup_error`: it never started, and why."""

    code: int | None
    finished_at: float
    out_of_memory: bool = False
    setup_error: str | None = None


class Process:
    """A run that has been started, by this process of the node or by an earlier one."""

    def __init__(self, folder: Path, monitor: int, ticks: int, started_at: float) -> None:
        self.folder = folder
        self.started_at = started_at
        self._monitor = monitor
        self._ticks = ticks
        self._popen: subprocess.Popen[bytes] | None = None
        self._exit: asyncio.Future[Exit] | None = None

    @classmethod
    def start(cls, folder: Path, sandbox: Sandbox, env: dict[str, str]) -> "Process":
        """Starts the sandbox; what goes wrong inside shows in the Exit, OSError only when there is no process at all."""
        sandbox.layer.mkdir(parents=True, exist_ok=True)
        with (folder / "log").open("ab") as log, (folder / "status").open("wb") as status:
            popen = subprocess.Popen(
                arguments(sandbox, status.fileno()),
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[status.fileno()],
                start_new_session=True,
            )
        process = cls(folder, popen.pid, start_ticks(popen.pid) or 0, time.time())
        process._popen = popen
        run = {"monitor": popen.pid, "ticks": process._ticks, "startedAt": process.started_at}
        (folder / "run.json").write_text(json.dumps(run), "utf-8")
        return process

    @classmethod
    def adopt(cls, folder: Path) -> "Process | None":
        """The run whose folder this is, running or not; None when it was never started."""
        try:
            run = json.loads((folder / "run.json").read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return cls(folder, run["monitor"], run["ticks"], run["startedAt"])

    @property
    def pid(self) -> int | None:
        """The machine's pid of the container's process 1; None when it is not known yet, or gone."""
        child = self._status().get("child-pid")
        return child if child and start_ticks(child) is not None and self._is_child(child) else None

    def exit_if_ended(self) -> Exit | None:
        """How the run ended, None while it goes on."""
        return None if start_ticks(self._monitor) == self._ticks else self._ended()

    async def started(self) -> None:
        """Waits until the container's own program runs as its process 1, or the run is over."""
        # Only a tracer is told of an exec, hence the polling.
        while not self._in_program() and start_ticks(self._monitor) == self._ticks and self._popen_alive():  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    async def wait(self) -> Exit:
        """How the run ended; may be called by several at once, and again."""
        if self._exit is None:
            self._exit = asyncio.get_running_loop().create_future()
            try:
                fd = os.pidfd_open(self._monitor)
            except ProcessLookupError:
                self._exit.set_result(self._ended())
            else:
                if self._popen is None and start_ticks(self._monitor) != self._ticks:
                    os.close(fd)
                    self._exit.set_result(self._ended())
                else:
                    asyncio.get_running_loop().add_reader(fd, self._on_exit, fd)
        return await asyncio.shield(self._exit)

    def signal(self, number: int) -> None:
        """Signals the container's process 1 (which, like any process 1, ignores TERM unless it has a handler)."""
        pid = self.pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        elif number == signal.SIGKILL and start_ticks(self._monitor) == self._ticks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._monitor, number)

    def message(self, policy: str, exit_code: int) -> str | None:
        """The termination message: the end of the file, or of the log when that was asked for; None for none."""
        data = _tail(self.folder / "termination", MESSAGE_FILE_LIMIT)
        if not data and policy == "FallbackToLogsOnError" and exit_code != 0:
            lines = _tail(self.folder / "log", MESSAGE_LOG_LIMIT).splitlines(keepends=True)
            data = b"".join(lines[-MESSAGE_LOG_LINES:])
        return data.decode("utf-8", "replace") or None

    def _on_exit(self, fd: int) -> None:
        asyncio.get_running_loop().remove_reader(fd)
        os.close(fd)
        if self._popen is not None:
            self._popen.wait()
        assert self._exit is not None
        if not self._exit.done():
            self._exit.set_result(self._ended())

    def _ended(self) -> Exit:
        status_file = self.folder / "status"
        status = self._status()
        finished = status_file.stat().st_mtime if status_file.exists() else time.time()
        out_of_memory = (self.folder / "oom").exists()
        if "exit-code" in status:
            return Exit(status["exit-code"], finished, out_of_memory)
        last_words = _tail(self.folder / "log", 1024).decode("utf-8", "replace").strip()
        if last_words.startswith("bwrap: "):
            return Exit(None, finished, setup_error=last_words)
        # Bubblewrap was killed: nobody will ever tell how the program in it ended, so it must not run on.
        child = status.get("child-pid")
        if child and _is_container_root(child):
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        return Exit(None, time.time(), out_of_memory)

    def _status(self) -> dict[str, int]:
        out: dict[str, int] = {}
        with contextlib.suppress(OSError, ValueError):
            for line in (self.folder / "status").read_text("utf-8").splitlines():
                out.update(json.loads(line))
        return out

    def _is_child(self, pid: int) -> bool:
        fields = _stat(pid)
        return fields is not None and int(fields[1]) == self._monitor

    def _in_program(self) -> bool:
        pid = self.pid
        with contextlib.suppress(OSError):
            return pid is not None and Path(f"/proc/{pid}/exe").readlink() != Path(bubblewrap()).resolve()
        return False

    def _popen_alive(self) -> bool:
        return self._popen is None or self._popen.poll() is None


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot: with the pid, its identity. None when it is gone."""
    fields = _stat(pid)
    return None if fields is None or fields[0] == "Z" else int(fields[19])


def kill_run(folder: Path) -> None:
    """Kills a run as a machine that loses power does: bubblewrap first, so that no exit code is written."""
    process = Process.adopt(folder)
    if process is None:
        return
    child = process._status().get("child-pid")
    if start_ticks(process._monitor) == process._ticks:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process._monitor, signal.SIGKILL)
    if child and _is_container_root(child):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the name: state, parent, ..."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()


def _is_container_root(pid: int) -> bool:
    """Whether the process is number 1 of a pid namespace below this one: guards against a pid that is used again."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines():
            if line.startswith("NSpid:"):
                pids = line.split()[1:]
                return len(pids) > 1 and pids[-1] == "1"
    return False


def _tail(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - limit))
            return file.read(limit)
    except OSError:
        return b""
