"""`job watch`: a job's progress as it happens, on a terminal in place, elsewhere a line for each thing that is new."""

import sys
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

from trainyard_cli.errors import CLIError
from trainyard_cli.jobview import end_sentence, is_settled, metric, number, progress_line
from trainyard_cli.output import duration

Object = dict[str, Any]
LINE_SECONDS = 2.0
"""Least time between two lines that differ in their numbers only."""


def follow(name: str, changes: Iterable[Object | None], show: Callable[[Object], None]) -> Object:
    """Show every change until the job has come to its end; returns it as it then is."""
    for job in changes:
        if job is None:
            raise CLIError(f"{name} was deleted.")
        show(job)
        if is_settled(job):
            return job
    raise CLIError(f"The watch on {name} ended before the job did; try again.")


def watch(name: str, changes: Iterable[Object | None], plain: bool = False) -> bool:
    """Follow a job to its end on stdout; True when it succeeded."""
    if plain or not sys.stdout.isatty():
        job = follow(name, changes, Lines())
    else:
        job = _live(name, changes)
    print(end_sentence(job))
    return job["status"]["state"] == "Succeeded"


class Lines:
    """Prints a line when state or phase change, and otherwise at most every `LINE_SECONDS`; each new warning once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, say: Callable[[str], None] = print) -> None:
        self._clock, self._say = clock, say
        self._kind: tuple[object, ...] = ()
        self._line = ""
        self._at = float("-inf")
        self._warned: set[tuple[str, str]] = set()

    def __call__(self, job: Object) -> None:
        status = job.get("status", {})
        for warning in status.get("warnings", []):
            key = (warning["reason"], warning["message"])
            if key not in self._warned:
                self._warned.add(key)
                self._say(f"{_now()}  Warning {warning['reason']}: {warning['message']}")
        kind, line = (status.get("state"), status.get("progress", {}).get("phase")), progress_line(job)
        if line == self._line or is_settled(job):
            return
        if kind == self._kind and self._clock() - self._at < LINE_SECONDS:
            return
        self._kind, self._line, self._at = kind, line, self._clock()
        self._say(f"{_now()}  {line}")


def _now() -> str:
    return datetime.now().strftime("%H:%M:%S")


def _live(name: str, changes: Iterable[Object | None]) -> Object:
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(), auto_refresh=False, transient=False) as live:
        return follow(name, changes, lambda job: live.update(panel(job), refresh=True))


def panel(job: Object) -> Any:
    """A job as a rich panel: state, bar, numbers, the last warnings."""
    from rich.console import Group
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    status = job.get("status", {})
    progress, scores = status.get("progress", {}), status.get("metrics", {})
    state = status.get("state", "Created")
    colour = {"Succeeded": "green", "Failed": "red", "Aborted": "red", "Running": "cyan"}.get(state, "yellow")
    head = Text.assemble((state, f"bold {colour}"), f"  {progress.get('phase', '')}")
    latest, best = scores.get("latest", {}), scores.get("best", {})
    cells = [
        ("step", f"{progress['step']}/{progress.get('steps', '?')}" if "step" in progress else ""),
        ("epoch", f"{progress['epoch']}/{progress.get('epochs', '?')}" if "epoch" in progress else ""),
        ("loss", number(latest.get("loss"))),
        *[(entry[0], number(entry[1])) for entry in [metric(latest)] if entry],
        *[(f"best {entry[0]}", number(entry[1])) for entry in [metric(best)] if entry],
        ("images/s", number(progress.get("imagesPerSecond"), 1)),
        ("ETA", duration(progress.get("etaSeconds"))),
        ("attempt", status.get("summary", {}).get("attempt", "")),
    ]
    shown = [(label, value) for label, value in cells if value]
    # One line that wraps between numbers: a table would cut what a narrow terminal has no room for.
    numbers = Text("   ").join(Text.assemble((f"{label}\u00a0", "dim"), value) for label, value in shown)
    lines: list[Any] = [head]
    if progress.get("percent") is not None:
        bar = Table.grid(padding=(0, 1))
        bar.add_row(ProgressBar(total=100, completed=progress["percent"], width=50), f"{progress['percent']}%")
        lines.append(bar)
    lines.append(numbers)
    if message := progress.get("message") or status.get("message"):
        lines.append(Text(message, style="dim"))
    lines += [Text(f"{w['reason']}: {w['message']}", style="yellow") for w in status.get("warnings", [])[-3:]]
    return Panel(Group(*lines), title=job["metadata"]["name"], title_align="left", width=100)
