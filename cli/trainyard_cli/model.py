"""`trainyard model …`: the library of trained versions, and what can be done with one without training."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from trainyard_cli.errors import CLIError
from trainyard_cli.options import Context, Kubeconfig, Namespace, Output, cluster_of
from trainyard_cli.output import Format, dump, print_list, table, with_namespaces

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="List, compare, fetch, publish, evaluate trained versions, and use them on pictures and videos.",
)
Reference = Annotated[
    str, typer.Argument(metavar="VERSION", help="Name of a ModelVersion, or the folder or address of a version.")
]
References = Annotated[list[str], typer.Argument(metavar="VERSION...", help="Names, folders or addresses of versions.")]


def _connect(namespace: str | None, context: str | None, kubeconfig: str | None) -> Callable[[], Any]:
    """Connects when it is asked to: a version that is named by its address needs no cluster."""
    return lambda: cluster_of(namespace, context, kubeconfig)


@app.command("list")
def list_(
    model: Annotated[str | None, typer.Option("--model", help="Only versions of this model.")] = None,
    state: Annotated[str | None, typer.Option("--state", help="Only versions in this state.")] = None,
    everywhere: Annotated[bool, typer.Option("-A", "--all-namespaces", help="Of all namespaces.")] = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Output = Format.TABLE,
) -> None:
    """List model versions, by model and number."""
    from trainyard_cli.modelview import HEADER, row

    cluster = cluster_of(namespace, context, kubeconfig)
    items = [
        item
        for item in cluster.list("modelversions", everywhere)
        if model in (None, item["spec"]["model"])
        and (state is None or item.get("status", {}).get("state", "Training").lower() == state.lower())
    ]
    items.sort(key=lambda item: (item["metadata"]["namespace"], item["spec"]["model"], item["spec"]["version"]))

    def as_table() -> str:
        now = datetime.now(UTC)
        rows = [row(item, now) for item in items]
        return table(*with_namespaces(HEADER, rows, items)) if everywhere else table(HEADER, rows)

    where = "any namespace" if everywhere else f"namespace {cluster.namespace}"
    print_list(items, output, f"No such versions in {where}.", as_table)


@app.command()
def show(
    version: Reference,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Output = Format.TABLE,
) -> None:
    """Show a version: what it learned from, its scores, its files. An address shows its manifest."""
    from trainyard_cli.modelsource import find
    from trainyard_cli.modelview import page

    connect = _connect(namespace, context, kubeconfig)
    if "/" in version or Path(version).exists():
        manifest = dict(find(version, connect).version.manifest)
        print(dump(manifest, output if output is Format.JSON else Format.YAML))
        return
    item = connect().get("modelversions", version)
    print(dump(item, output) if output in (Format.JSON, Format.YAML) else page(item))


@app.command()
def compare(
    versions: References,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Output = Format.TABLE,
) -> None:
    """Put versions side by side: settings, scores, every label."""
    from trainyard_cli.modelsource import find
    from trainyard_cli.modelview import comparison

    connect = _connect(namespace, context, kubeconfig)
    found = [find(name, connect) for name in versions]
    told = comparison([(one.version.manifest, one.json("metrics.json")) for one in found])
    names = [one.version.name for one in found]
    if output in (Format.JSON, Format.YAML):
        columns = [{"version": name, **{key: values[i] for key, values in told}} for i, name in enumerate(names)]
        print(dump(columns, output))
    else:
        print(table(("", *names), [(name, *values) for name, values in told]))


@app.command()
def download(
    version: Reference,
    to: Annotated[
        Path | None, typer.Argument(metavar="[FOLDER]", help="Default: a folder of the version's name.")
    ] = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Fetch all files of a version, checked, under plain names, with a manifest that `predict` and `evaluate` read."""
    from trainyard_trainer.library import copy

    from trainyard_cli.modelsource import find
    from trainyard_cli.storage import here

    found = find(version, _connect(namespace, context, kubeconfig))
    folder = (to or Path(found.version.name)).resolve()
    for address in copy(found.version, found.storage, here(), folder.as_uri()):
        print(folder / address.rsplit("/", 1)[1])


@app.command()
def publish(
    version: Reference,
    to: Annotated[str, typer.Argument(metavar="ADDRESS", help="s3://bucket/folder, or a folder here.")],
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Copy a version to an address under plain names, as `output.publishURI` does; the manifest is written last."""
    from trainyard_trainer.library import copy

    from trainyard_cli.modelsource import find
    from trainyard_cli.run import address

    found = find(version, _connect(namespace, context, kubeconfig))
    written = copy(found.version, found.storage, found.storage, address(to))
    print(f"{found.version.name} published: {written[-1]}")


@app.command()
def predict(
    places: Annotated[list[Path], typer.Argument(metavar="PLACE...", help="Pictures, folders of pictures, videos.")],
    version: Annotated[
        list[str], typer.Option("--version", "-v", help="A version; repeat to see several side by side.")
    ],
    to: Annotated[Path, typer.Option("--to", help="Folder for the pictures and videos with boxes.")] = Path(
        "predictions"
    ),
    score: Annotated[
        int | None, typer.Option("--score", min=0, max=100, help="Least confidence in percent; default: the version's.")
    ] = None,
    voc: Annotated[
        Path | None,
        typer.Option(
            "--voc", help="Write the pictures with what the first version finds as a VOC zip, to be reviewed."
        ),
    ] = None,
    every: Annotated[int, typer.Option("--every", min=1, help="Of a video, only every so many frames.")] = 1,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Output = Format.TABLE,
) -> None:
    """Draw what versions see on pictures and videos."""
    from trainyard_cli.modelsource import find
    from trainyard_cli.predict import Wish, opened, run

    connect = _connect(namespace, context, kubeconfig)
    predictors = [opened(find(name, connect)) for name in version]
    quiet = output in (Format.JSON, Format.YAML)
    told = run(predictors, Wish(tuple(places), to, None if score is None else score / 100, voc, every), quiet=quiet)
    if quiet:
        print(dump(told, output))
        return
    found = sum(len(entry["found"]) for entry in told)
    typer.echo(
        f"{len(told)} pictures or frames, {found} found; drawn in {to}" + (f", annotations in {voc}" if voc else "")
    )


@app.command()
def evaluate(
    versions: References,
    dataset: Annotated[str, typer.Option("--dataset", help="A VOC zip or folder here, or an address.")],
    to: Annotated[Path, typer.Option("--to", help="Folder for report.html, metrics.json and failures.zip.")] = Path(
        "evaluation"
    ),
    image_set: Annotated[
        str | None, typer.Option("--image-set", help="Score only the images of this list under ImageSets/Main.")
    ] = None,
    job: Annotated[
        Path | None,
        typer.Option(
            "--job",
            help="A TrainingJob's file: its dataset.limits (boxOrigin, ...), unannotated and withoutObjects are taken.",
            exists=True,
        ),
    ] = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
    output: Output = Format.TABLE,
) -> None:
    """Score versions on any dataset: metrics, a report with annotations worth a second look, failures as VOC.

    Images that the version trained on are left out of the scores. With several versions, each image is shown to the first one
    that did not train on it. Any number of images will do, one of them included.
    """
    from trainyard_cli.evaluation import evaluate as score
    from trainyard_cli.evaluation import summary
    from trainyard_cli.modelsource import find
    from trainyard_cli.run import address, checked_spec, read_job

    if not versions:
        raise CLIError("Name a version.")
    connect = _connect(namespace, context, kubeconfig)
    settings = checked_spec(read_job(job)).dataset.model_dump(by_alias=True, exclude_unset=True) if job else None
    told = score(
        [find(name, connect) for name in versions],
        address(dataset),
        to,
        settings=settings,
        image_set=image_set,
        quiet=output is not Format.TABLE,
    )
    print(dump(told, output) if output in (Format.JSON, Format.YAML) else summary(told, to))
