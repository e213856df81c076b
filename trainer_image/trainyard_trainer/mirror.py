"""What an attempt writes while it runs, on storage as well: log, metrics and TensorBoard's events, every 25 s and at the end.

So that they are there when the pod is gone. Nothing waits for it but the end of the process, and that not for long; a copy that
fails is made the next time.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

from trainyard_trainer import events, history
from trainyard_trainer.errors import TrainerError
from trainyard_trainer.report import Reporter
from trainyard_trainer.store import Storage

SECONDS_BETWEEN = 25.0
PATIENCE = 10.0
LOG = "log.jsonl"
EVENTS = "events.tfevents"


class Mirror:
    """Copies the files of `folder` to `attempt_uri`, in a thread of its own."""

    def __init__(self, storage: Storage, attempt_uri: str, folder: Path, reporter: Reporter) -> None:
        self._storage = storage.with_patience(PATIENCE)
        self._uri, self._folder, self._reporter = attempt_uri, folder, reporter
        self._sent: dict[str, int] = {}
        self._read = 0
        self._failure = ""
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="mirror", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """The last copies; waits for them for a few seconds."""
        self._done.set()
        self._thread.join(1.5 * PATIENCE)

    def _run(self) -> None:
        over = False
        while not over:
            over = self._done.wait(SECONDS_BETWEEN)
            try:
                self.copy()
            except (TrainerError, OSError) as error:
                self._say(str(error))

    def copy(self) -> None:
        """Copies what has grown since the last time."""
        self._reporter.flush()
        self._append_events()
        for name in (history.FILE, EVENTS, LOG):
            path = self._folder / name
            size = path.stat().st_size if path.exists() else 0
            if size != self._sent.get(name, 0):
                self._storage.put_bytes(f"{self._uri}{name}", path.read_bytes())
                self._sent[name] = size

    def _append_events(self) -> None:
        """New whole lines of the metrics become events."""
        source, target = self._folder / history.FILE, self._folder / EVENTS
        if not source.exists():
            return
        with source.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        data = data[: data.rfind(b"\n") + 1]
        if not data:
            return
        # Imports protobuf: not before the first copy.
        with target.open("ab") as file:
            if self._read == 0:
                file.write(events.header(time.time()))
            file.writelines(events.records(history.parse(data)))
        self._read += len(data)

    def _say(self, message: str) -> None:
        """Once per cause; the line itself goes into the next copy."""
        if message != self._failure:
            self._failure = message
            self._reporter.line("mirror", message=message)
