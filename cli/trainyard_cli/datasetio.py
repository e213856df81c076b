"""What the commands of `trainyard dataset` share: sources and targets by path or address, reading, progress bars, ending well."""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from trainyard_api.architectures import Task

from trainyard_cli.errors import CLIError
from trainyard_cli.output import Format, dump

if TYPE_CHECKING:
    from trainyard_api.dataset import Dataset as Spec
    from trainyard_trainer.store import Storage
    from trainyard_trainer.voc import Dataset
    from trainyard_trainer.voc_source import Source

Sources = Annotated[
    list[str], typer.Argument(metavar="SOURCE...", help="A zip or folder here, or file:// or s3:// address.")
]
To = Annotated[str, typer.Option("--to", help="The zip to write: a path here, or an s3:// address.")]
MaxBytes = Annotated[str, typer.Option("--max-bytes", help="Largest sum of all sources, as a quantity.")]
OutputOption = Annotated[Format, typer.Option("-o", "--output", help="table, json or yaml.")]
NO_LIMIT = "1Ti"
"""What the tools read at most: the data is the user's own, and only zip bombs are kept out."""
NO_LIMITS = {"maxBytes": NO_LIMIT, "maxPixels": 1_000_000_000, "maxRepairPercent": 100}
"""`dataset.limits` of what is not trained on."""


def uri(source: str) -> str:
    """The address of a source; paths of this machine become `file://`."""
    if "://" in source:
        return source
    path = Path(source).expanduser().resolve()
    if not path.exists():
        raise CLIError(f"{source}: there is no such file or folder.")
    return path.as_uri()


def storage() -> Storage:
    from trainyard_trainer.store import Storage

    return Storage(patience=10)


def dataset_spec(sources: Sequence[str], max_bytes: str | None, /, **fields: Any) -> Spec:
    """The dataset part of a job for these sources; without any and without `max_bytes`, those of `fields` hold.

    Raises CLIError with the field that is wrong.
    """
    from pydantic import ValidationError
    from trainyard_api.dataset import Dataset
    from trainyard_trainer.fetch import quantity

    given = {**fields, "limits": dict(fields.get("limits") or {})}
    if sources:
        given["sources"] = [{"uri": uri(source)} for source in sources]
    if max_bytes is not None:
        given["limits"]["maxBytes"] = max_bytes
    try:
        spec = Dataset.model_validate(given)
        quantity(spec.limits.max_bytes)
    except ValidationError as error:
        first = error.errors()[0]
        raise CLIError(f"{'.'.join(map(str, first['loc']))}: {first['msg']} ({first['input']!r}).") from None
    except ValueError as error:
        raise CLIError(f"--max-bytes: {error}.") from None
    return spec


@contextmanager
def opened(sources: Sequence[str], max_bytes: str, progress: Any) -> Iterator[tuple[Spec, list[Source]]]:
    """The sources, fetched into a folder that goes when the block ends."""
    from trainyard_trainer.fetch import fetch, quantity

    spec = dataset_spec(sources, max_bytes, unannotated="Background", limits=NO_LIMITS)
    with tempfile.TemporaryDirectory() as cache:
        found, _ = fetch(
            [source.uri for source in spec.sources],
            storage(),
            Path(cache),
            max_bytes=quantity(max_bytes),
            progress=lambda done, total: progress("Fetching", done, total),
        )
        yield spec, found


@contextmanager
def read(sources: Sequence[str], max_bytes: str, progress: Any) -> Iterator[Dataset]:
    """The sources as one dataset, repaired, images without annotation included; any number of images will do. Raises BadData."""
    from trainyard_trainer import voc
    from trainyard_trainer.records import Kind

    with opened(sources, max_bytes, progress) as (spec, found):
        dataset = voc.load(
            spec,
            Task.DETECTION,
            found,
            strict=False,
            progress=lambda done, total: progress("Reading", done, total),
        )
        voc.refuse(dataset.of_kind(Kind.ERROR))
        yield dataset


@contextmanager
def target(to: str, progress: Any) -> Iterator[Path]:
    """Where to write what shall be at `to`: the path itself, or a file that is uploaded when the block ended well."""
    if "://" not in to:
        path = Path(to).expanduser()
        if path.is_dir():
            raise CLIError(f"--to {to} is a folder; name the file to write, such as {path / 'data.zip'}.")
        yield path
        return
    from trainyard_trainer.store import parse

    at = parse(to)
    if at.is_prefix:
        raise CLIError(f"--to {to} ends in /; name the object to write, such as {to}data.zip.")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(at.key).name
        yield path
        storage().upload(path, to, progress=lambda done, total: progress("Uploading", done, total))


def say(result: dict[str, Any], text: str, output: Format) -> None:
    """The result for programs, or a text for people."""
    print(dump(result, output) if output in (Format.JSON, Format.YAML) else text)


@contextmanager
def bar(what: str, unit: str) -> Iterator[Any]:
    """A progress bar on stderr, seen on terminals only."""
    with phases(unit) as report:
        yield lambda done, total: report(what, done, total)


@contextmanager
def phases(unit: str = "") -> Iterator[Any]:
    """One bar after the other, by phase; `report(phase, done, total)`."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    columns = [TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    if unit == "bytes":
        columns.insert(3, TransferSpeedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, Any] = {}

        def report(phase: str, done: int, total: int) -> None:
            _leave_if_asked()
            name = str(phase)
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done, total=total)

        yield report


_asked_to_end: list[int] = []
"""Signals that have come. What a handler raises is lost in a finalizer and where compiled code calls back into Python (seen while
pictures are encoded), so the next progress raises it again."""


@contextmanager
def ends_well() -> Iterator[None]:
    """SIGTERM and Ctrl-C unwind, so that what is half-written is removed. Does nothing outside the main thread."""

    def leave(number: int, _: object) -> None:
        _asked_to_end.append(number)
        _leave_if_asked()

    try:
        before = {number: signal.signal(number, leave) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:
        yield
        return
    lost, sys.unraisablehook = sys.unraisablehook, _unless_asked(sys.unraisablehook)
    try:
        yield
    finally:
        sys.unraisablehook = lost
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked_to_end.clear()


def _unless_asked(tell: Callable[[Any], Any]) -> Callable[[Any], None]:
    """The hook for lost exceptions, silent about our own."""

    def hook(lost: Any) -> None:
        if not (_asked_to_end and lost.exc_type is SystemExit):
            tell(lost)

    return hook


def _leave_if_asked() -> None:
    if _asked_to_end:
        raise SystemExit(128 + _asked_to_end[0])
