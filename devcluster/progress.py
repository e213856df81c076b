"""One line on standard error that says what a long step does, how far it is and how long it has taken."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

TERMINAL_SECONDS = 0.2
LOG_SECONDS = 15.0
"""How often a line is written where standard error is no terminal, as in continuous integration."""


class Progress:
    """Counts the steps of one task. A terminal's line is rewritten in place; elsewhere one is written now and then."""

    def __init__(self, title: str, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.title = title
        self.total: int | None = None
        """Steps that there are at most; a cached build takes fewer."""
        self._stream = stream or sys.stderr
        self._clock = clock
        self._started = clock()
        self._shown = float("-inf")
        self._done = 0
        self._terminal = self._stream.isatty()

    def __enter__(self) -> Progress:
        print(f"==> {self.title}", file=self._stream, flush=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        end = "done" if error is None else "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        self._write(f"    {end} after {self._elapsed()}", last=True)

    def step(self, what: str) -> None:
        """One more step, named `what`."""
        fetching = what.startswith("go: downloading ")
        self._done += 0 if fetching else 1
        now = self._clock()
        if now - self._shown >= (TERMINAL_SECONDS if self._terminal else LOG_SECONDS):
            self._shown = now
            of = f"{self._done}/{self.total} packages" if self.total else "fetching modules"
            self._write(f"    {self._elapsed():>6}  {of}  {what.removeprefix('go: downloading ')}")

    def _elapsed(self) -> str:
        minutes, seconds = divmod(int(self._clock() - self._started), 60)
        return f"{minutes}:{seconds:02}"

    def _write(self, text: str, last: bool = False) -> None:
        if self._terminal:
            self._stream.write(f"\r\x1b[K{text[:118]}" + ("\n" if last else ""))
        else:
            self._stream.write(text + "\n")
        self._stream.flush()
