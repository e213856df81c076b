"""`trainyard dataset`: look at data before it is trained on, make small sets of it, bring it to storage.

Sources are a zip or a folder on this machine, `file://...` or `s3://...`; credentials for S3 come from the environment
(AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_ENDPOINT_URL, ...).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from trainyard_api.architectures import ARCHITECTURES, Architecture, Task, recommended

from trainyard_cli import datasetsamples, datasettools, startfrom
from trainyard_cli.datasetio import MaxBytes, OutputOption, Sources, bar, dataset_spec, ends_well, phases, say, storage
from trainyard_cli.errors import CLIError
from trainyard_cli.output import Format, dump

if TYPE_CHECKING:
    from trainyard_api.dataset import Dataset as Spec
    from trainyard_api.run import RunSpec
    from trainyard_api.trainingjob import TrainingJobSpec
    from trainyard_trainer.store import Storage
    from trainyard_trainer.survey import Survey
    from trainyard_trainer.versions import Parent

    from trainyard_cli.startfrom import Continued

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Check, count, make and upload Pascal VOC datasets.")

Labels = Annotated[
    str | None, typer.Option("--labels", help="The labels to learn, separated by commas, in their order.")
]
TaskOption = Annotated[Task, typer.Option("--task", help="What the data is for.", case_sensitive=False)]


@app.callback()
def _begin(context: typer.Context) -> None:
    context.with_resource(ends_well())


@app.command()
def check(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SOURCE...]", help="A zip or folder here, or file:// or s3:// address; default: the job's."
        ),
    ] = None,
    job: Annotated[
        Path | None,
        typer.Option(
            "--job", help="A TrainingJob's file: its dataset settings, task and architecture are taken.", exists=True
        ),
    ] = None,
    labels: Labels = None,
    task: Annotated[
        Task | None,
        typer.Option("--task", help="What the data is for; default: the job's, else Detection.", case_sensitive=False),
    ] = None,
    architecture: Annotated[
        str | None,
        typer.Option(
            "--architecture",
            help="For the advice on size, batch and epochs; default: the job's, else the one to begin the task with.",
        ),
    ] = None,
    pictures: Annotated[
        bool | None,
        typer.Option(
            "--pictures/--no-pictures",
            help="Fetch and decode pictures that lie on S3, or read their first bytes only; default: fetch up to 64 MiB.",
        ),
    ] = None,
    max_bytes: Annotated[
        str | None,
        typer.Option("--max-bytes", help="Largest sum of all sources, as a quantity; default: the job's, else 2Gi."),
    ] = None,
    output: OutputOption = Format.TABLE,
) -> None:
    """Say what a training would find: labels, boxes, what was repaired, what is wrong and where. Exit code 1 when it would fail.

    A training that differs from the default in its dataset settings finds other things: name its manifest with --job. Where that
    has startFrom, the version is looked at too.
    """
    from trainyard_cli.datasetview import page

    sources = sources or []
    if not sources and job is None:
        raise CLIError("name a SOURCE, or with --job the manifest of a job that has some.")
    begun: Continued | None = None
    if job is None:
        task, known = _suited(task, architecture)
        found = _survey(dataset_spec(sources, max_bytes, **_given(labels)), task, pictures)
    else:
        wanted, run, fields = _of_job(job, sources, task, architecture)
        known = ARCHITECTURES.get(run.architecture) or recommended(run.task)
        spec = dataset_spec(sources, max_bytes, **{**fields, **_given(labels)})
        run = run.model_copy(update={"dataset": spec})
        begun = startfrom.begin(wanted, run, storage())
        found = _survey(spec, run.task, pictures, begun.parent if begun else None)
        begun = startfrom.follow(begun, run, found, storage()) if begun else None
    if output in (Format.JSON, Format.YAML):
        print(dump({**found.to_dict(known), "startFrom": begun.to_dict() if begun else None}, output))
    else:
        print(page(found, known, begun))
    if found.problem:
        raise CLIError(f"this dataset cannot be trained on: {found.problem}")
    if begun and begun.problem:
        raise CLIError(f"this job cannot start from {begun.name}: {begun.problem}")


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

    # What is counted is in the annotations; pictures are needed for their sizes only.
    found = _survey(dataset_spec(sources, max_bytes, **_given(labels)), task, pictures=False)
    if output in (Format.JSON, Format.YAML):
        whole = found.to_dict(recommended(task))
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
    output: OutputOption = Format.TABLE,
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
    with bar("Drawing", "images") as progress:
        names = write_zip(
            path, images=images, size=(width, height), labels=labels, kind=Kind(kind), seed=seed, progress=progress
        )
    result = {"target": str(path), "images": images, "labels": list(names), "bytes": path.stat().st_size}
    text = f"{path}: {images} images of {width}x{height}, labels {', '.join(names)}, {result['bytes']:,} bytes"
    say(result, text, output)


@app.command()
def upload(
    source: Annotated[Path, typer.Argument(help="A zip, or a folder with Annotations and JPEGImages.", exists=True)],
    uri: Annotated[str, typer.Argument(help="s3://bucket/name.zip, or a prefix that ends in / for single files.")],
    output: OutputOption = Format.TABLE,
) -> None:
    """Bring a dataset to storage. A folder becomes one zip when the address does not end in /; buckets are never made."""
    from trainyard_trainer.store import parse

    target = storage()
    parse(uri)
    with tempfile.TemporaryDirectory() as folder:
        if source.is_dir() and uri.endswith("/"):
            count = _upload_files(target, source, uri)
            hint = "; one zip would be fetched many times faster (leave the / at the end away)" if count > 1000 else ""
            say({"target": uri, "files": count}, f"{uri}: {count} files{hint}", output)
        else:
            path = _zipped(source, Path(folder)) if source.is_dir() else source
            address = f"{uri}{source.name}" if uri.endswith("/") else uri
            with bar("Uploading", "bytes") as progress:
                target.upload(path, address, progress=progress)
            size = path.stat().st_size
            say({"target": address, "bytes": size}, f"{address}: {size:,} bytes", output)


for tool in (datasettools.merge, datasettools.resize, datasettools.split, datasettools.convert):
    app.command()(tool)
for tool in (datasetsamples.augment, datasetsamples.preview):
    app.command()(tool)


def _upload_files(target: Storage, source: Path, uri: str) -> int:
    """How many files were sent."""
    from trainyard_trainer.store import concurrently
    from trainyard_trainer.voc_source import is_junk

    files = [
        path
        for path in sorted(source.rglob("*"))
        if path.is_file() and not is_junk(path.relative_to(source).as_posix())
    ]
    with bar("Uploading", "files") as progress:
        send = concurrently(lambda path: target.upload(path, f"{uri}{path.relative_to(source).as_posix()}"), files, 16)
        for number, _ in enumerate(send, 1):
            progress(number, len(files))
    return len(files)


def _zipped(source: Path, folder: Path) -> Path:
    import zipfile

    from trainyard_trainer.voc_source import is_junk

    path = folder / f"{source.resolve().name}.zip"
    files = [
        file
        for file in sorted(source.rglob("*"))
        if file.is_file() and not is_junk(file.relative_to(source).as_posix())
    ]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, bar("Zipping", "files") as progress:
        for number, file in enumerate(files, 1):
            archive.write(file, file.relative_to(source).as_posix())
            progress(number, len(files))
    return path


def _given(labels: str | None) -> dict[str, Any]:
    """`dataset.labels`, where --labels names some."""
    given = [label.strip() for label in (labels or "").split(",") if label.strip()]
    return {"labels": given} if given else {}


def _of_job(
    job: Path, sources: list[str], task: Task | None, architecture: str | None
) -> tuple[TrainingJobSpec, RunSpec, dict[str, Any]]:
    """A manifest with what is set here over it, what its training is told, and its dataset settings; refused as a training would be."""
    from trainyard_api.execution import Instance
    from trainyard_api.resolve import Attempt, Contradiction, run_spec
    from trainyard_api.run import Start
    from trainyard_api.trainingservice import TrainingServiceSpec

    from trainyard_cli.run import address, checked_spec, read_job

    manifest = read_job(job)
    wanted = dict(manifest.get("spec") or {})
    over = {"task": task, "architecture": architecture}
    wanted |= {name: value for name, value in over.items() if value is not None}
    if sources:
        wanted["dataset"] = {
            **(wanted.get("dataset") or {}),
            "sources": [{"uri": address(source)} for source in sources],
        }
    spec = checked_spec({**manifest, "spec": wanted})
    name = str(manifest["metadata"]["name"])
    service = TrainingServiceSpec(architecture=spec.architecture, instance=Instance(gpus=1))
    start = Start() if spec.start_from.job else startfrom.version_here(spec, spec.model or name)
    try:
        run = run_spec(spec, service, Attempt(name=name, namespace="local", uid="0" * 32, start=start))
    except Contradiction as error:
        raise CLIError(f"{job}: {error}.") from None
    return spec, run, dict(wanted["dataset"])


def _suited(task: Task | None, architecture: str | None) -> tuple[Task, Architecture]:
    """Each as it is given, else as the other one has it. Raises CLIError for two that do not fit."""
    if architecture is None:
        task = task or Task.DETECTION
        return task, recommended(task)
    if architecture not in ARCHITECTURES:
        raise CLIError(f"there is no architecture {architecture!r}; trainyard architectures lists them.")
    known = ARCHITECTURES[architecture]
    if task not in (None, *known.tasks):
        raise CLIError(f"{architecture} cannot do {task}; set --task to {' or '.join(known.tasks)}.")
    return task or known.task, known


def _survey(spec: Spec, task: Task, pictures: bool | None, parent: Parent | None = None) -> Survey:
    from trainyard_trainer.survey import survey

    with tempfile.TemporaryDirectory() as cache, phases() as progress:
        return survey(spec, task, storage(), Path(cache), pictures=pictures, parent=parent, progress=progress)
