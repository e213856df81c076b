"""What can happen to a node, done to a real one: it freezes, it goes on, its machine loses power.

`state` is the node's state folder (`--state`).
"""

import contextlib
import os
import shutil
import signal
from pathlib import Path

from devcluster.node.process import kill_run, start_ticks
from devcluster.node.settings import memory_folder


def write_identity(state: Path) -> None:
    """Writes down which process this node is."""
    (state / "node.pid").write_text(f"{os.getpid()} {start_ticks(os.getpid())}", "utf-8")


def freeze(state: Path) -> None:
    """The node's heartbeats stop and it does nothing more; its containers run on."""
    _signal(state, signal.SIGSTOP)


def thaw(state: Path) -> None:
    _signal(state, signal.SIGCONT)


def kill(state: Path) -> None:
    """The node and all its containers are gone at once, without a word."""
    _signal(state, signal.SIGKILL)
    kill_containers(state)


def kill_containers(state: Path) -> None:
    """Kills all containers of a node that is down, also those of pods that are being made."""
    for run in state.glob("pods/*/containers/*/*"):
        kill_run(run)
    shutil.rmtree(memory_folder(state), ignore_errors=True)


def _signal(state: Path, number: int) -> None:
    with contextlib.suppress(OSError, ValueError):
        pid, ticks = (int(word) for word in (state / "node.pid").read_text("utf-8").split())
        if start_ticks(pid) == ticks:
            os.kill(pid, number)
