"""`trainyard dataset`: look at data before it is trained on, make small sets of it, bring it to storage.

Sources are a zip or a folder on this machine, `file://...` or `s3://...`; credentials for S3 come from the environment
(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, ...).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from trainyard_api.architectures import ARCHITECTURES, Task

from trainyard_cli.errors import CLIError
from trainyard_cli.output import Format, dump

if TYPE_CHECKING:
    from trainyard_trainer.store import Storage
    from trainyard_trainer.survey import Survey

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Check, count, make and upload Pascal VOC datasets.")

Sources = Annotated[
    list[str], typer.Argument(metavar="SOURCE...", help="A zip or folder here, or file:// or s3:// address.")
]
Labels = Annotated[
    str | None, typer.Option("--labels", help="The labels to learn, separated by commas, in their order.")
]
TaskOption = Annotated[Task, typer.Option("--task", help="What the data is for.", case_sensitive=False)]
ArchitectureOption = Annotated[str, typer.Option("--architecture", help="For the advice on size, batch and epochs.")]
MaxBytes = Annotated[str, typer.Option("--max-bytes", help="Largest sum of all sources, as a quantity.")]
OutputOption = Annotated[Format, typer.Option("-o", "--output", help="table, json or yaml.")]


@app.command()
def check(
    sources: Sources,
    labels: Labels = None,
    task: TaskOption = Task.DETECTION,
    architecture: ArchitectureOption = "yard-nano",
    max_bytes: MaxBytes = "2Gi",
    output: OutputOption = Format.TABLE,
) -> None:
    """Say what a training would find: labels, boxes, what was repaired, what is wrong and where. Exit code 1 when it would fail."""
    from trainyard_cli.datasetview import page

    found = _survey(sources, labels, task, max_bytes)
    known = _architecture(architecture)
    if output in (Format.JSON, Format.YAML):
        print(dump(found.to_dict(known), output))
    else:
        print(page(found, known))
    if found.problem:
        raise CLIError(f"this dataset cannot be trained on: {found.problem}")


@app.command()
def stats(
    sources: Sources,
    labels: Labels = None,
    task: TaskOption = Task.DETECTION,
    max_bytes: MaxBytes = "2Gi",
    output: OutputOption = Format.TABLE,
) -> None:
    """Count images, objects and sizes of boxes for each label."""
    from trainyard_cli.datasetview import label_table, totals

    found = _survey(sources, labels, task, max_bytes)
    if output in (Format.JSON, Format.YAML):
        whole = found.to_dict(_architecture("yard-nano"))
        print(
            dump({key: whole[key] for key in ("images", "objects", "labels", "imageSizes", "split", "digest")}, output)
        )
        return
    print(totals(found))
    print(label_table(found))


@app.command()
def synth(
    path: Annotated[Path, typer.Argument(help="The zip to write.")],
    images: Annotated[int, typer.Option("--images", min=1, max=100_000, help="How many images.")] = 120,
    size: Annotated[str, typer.Option("--size", help="WIDTHxHEIGHT of the images in pixels.")] = "320x240",
    labels: Annotated[int, typer.Option("--labels", min=1, help="How many labels.")] = 3,
    kind: Annotated[str, typer.Option("--kind", help="shapes or characters.")] = "shapes",
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same zip.")] = 0,
) -> None:
    """Make a small dataset of coloured shapes or characters, to try things out."""
    from trainyard_trainer.synth import Kind, write_zip

    try:
        width, height = (int(side) for side in size.lower().split("x"))
    except ValueError:
        raise CLIError(f"--size {size!r}: write WIDTHxHEIGHT, as 320x240.") from None
    if not (48 <= width <= 8192 and 48 <= height <= 8192):
        raise CLIError(f"--size {size}: sides are 48 to 8192 pixels.")
    if kind not in list(Kind):
        raise CLIError(f"--kind {kind!r}: write {' or '.join(Kind)}.")
    with _bar("Drawing", "images") as progress:
        names = write_zip(
            path, images=images, size=(width, height), labels=labels, kind=Kind(kind), seed=seed, progress=progress
        )
    print(f"{path}: {images} images of {width}x{height}, labels {', '.join(names)}, {path.stat().st_size:,} bytes")


@app.command()
def upload(
    source: Annotated[Path, typer.Argument(help="A zip, or a folder with Annotations and JPEGImages.", exists=True)],
    uri: Annotated[str, typer.Argument(help="s3://bucket/name.zip, or a prefix that ends in / for single files.")],
) -> None:
    """Bring a dataset to storage. A folder becomes one zip when the address does not end in /; buckets are never made."""
    from trainyard_trainer.store import parse

    storage = _storage()
    parse(uri)
    with tempfile.TemporaryDirectory() as folder:
        if source.is_dir() and uri.endswith("/"):
            _upload_files(storage, source, uri)
        else:
            path = _zipped(source, Path(folder)) if source.is_dir() else source
            target = f"{uri}{source.name}" if uri.endswith("/") else uri
            with _bar("Uploading", "bytes") as progress:
                storage.upload(path, target, progress=progress)
            print(f"{target}: {path.stat().st_size:,} bytes")


def _upload_files(storage: Storage, source: Path, uri: str) -> None:
    from trainyard_trainer.store import concurrently
    from trainyard_trainer.voc_source import is_junk

    files = [
        path
        for path in sorted(source.rglob("*"))
        if path.is_file() and not is_junk(path.relative_to(source).as_posix())
    ]
    with _bar("Uploading", "files") as progress:
        send = concurrently(lambda path: storage.upload(path, f"{uri}{path.relative_to(source).as_posix()}"), files, 16)
        for number, _ in enumerate(send, 1):
            progress(number, len(files))
    hint = "; one zip would be fetched many times faster (leave the / at the end away)" if len(files) > 1000 else ""
    print(f"{uri}: {len(files)} files{hint}")


def _zipped(source: Path, folder: Path) -> Path:
    import zipfile

    from trainyard_trainer.voc_source import is_junk

    path = folder / f"{source.resolve().name}.zip"
    files = [
        file
        for file in sorted(source.rglob("*"))
        if file.is_file() and not is_junk(file.relative_to(source).as_posix())
    ]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, _bar("Zipping", "files") as progress:
        for number, file in enumerate(files, 1):
            archive.write(file, file.relative_to(source).as_posix())
            progress(number, len(files))
    return path


def _survey(sources: list[str], labels: str | None, task: Task, max_bytes: str) -> Survey:
    from pydantic import ValidationError
    from trainyard_api.dataset import Dataset
    from trainyard_trainer.fetch import quantity
    from trainyard_trainer.survey import survey

    given: dict[str, Any] = {
        "sources": [{"uri": _uri(source)} for source in sources],
        "limits": {"maxBytes": max_bytes},
    }
    if labels:
        given["labels"] = [label.strip() for label in labels.split(",") if label.strip()]
    try:
        spec = Dataset.model_validate(given)
        quantity(max_bytes)
    except ValidationError as error:
        first = error.errors()[0]
        raise CLIError(f"{'.'.join(map(str, first['loc']))}: {first['msg']} ({first['input']!r}).") from None
    except ValueError as error:
        raise CLIError(f"--max-bytes: {error}.") from None
    with tempfile.TemporaryDirectory() as cache, _phases() as progress:
        return survey(spec, task, _storage(), Path(cache), progress=progress)


def _uri(source: str) -> str:
    """The address of a source; paths of this machine become `file://`."""
    if "://" in source:
        return source
    path = Path(source).expanduser().resolve()
    if not path.exists():
        raise CLIError(f"{source}: there is no such file or folder.")
    return path.as_uri()


def _storage() -> Storage:
    from trainyard_trainer.store import Storage

    return Storage(patience=10)


def _architecture(name: str):
    if name not in ARCHITECTURES:
        raise CLIError(f"there is no architecture {name!r}; trainyard architectures lists them.")
    return ARCHITECTURES[name]


@contextmanager
def _bar(what: str, unit: str) -> Iterator[Any]:
    """A progress bar on stderr, seen on terminals only."""
    with _phases(unit) as report:
        yield lambda done, total: report(what, done, total)


@contextmanager
def _phases(unit: str = "") -> Iterator[Any]:
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
            name = str(phase)
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done, total=total)

        yield report
