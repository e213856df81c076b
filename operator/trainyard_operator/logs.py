"""Structured logs: one JSON object a line, with the object that is being looked at and its attempt, wherever the line was written.

The object is a context variable: set where a worker takes a key or the intake a report, seen by every line below it.
"""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TextIO

_about: ContextVar[dict[str, str | int] | None] = ContextVar("about", default=None)


@contextmanager
def about(**fields: str | int | None) -> Iterator[None]:
    """Lines written within carry these fields, over those of the surroundings; None is left out."""
    given = {name: value for name, value in fields.items() if value is not None}
    token = _about.set({**(_about.get() or {}), **given})
    try:
        yield
    finally:
        _about.reset(token)


class JsonFormatter(logging.Formatter):
    """`time`, `level`, `logger`, `message`, what the line is about, and `error` with a traceback where there is one."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line: dict[str, str | int] = {
            "time": time,
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **(_about.get() or {}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """The same for the eye of a developer."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        found = _about.get()
        words = " ".join(f"{name}={value}" for name, value in (found or {}).items())
        return super().format(record) + (f" [{words}]" if words else "")


def set_up(level: str, form: str, stream: TextIO = sys.stderr) -> None:
    """Write logs of `level` and above to `stream`, as `json` or `text`."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Kopf writes bodies of objects into its lines.
    logging.getLogger("kopf").setLevel(logging.WARNING)
