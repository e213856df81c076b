"""`trainyard dataset augment|preview`: augmented images as a dataset, and on a sheet to look at."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainyard_cli import datasetio as io
from trainyard_cli.datasetio import MaxBytes, OutputOption, Sources, To
from trainyard_cli.datasettools import parse_size, result_of, sentence
from trainyard_cli.errors import CLIError
from trainyard_cli.output import Format

if TYPE_CHECKING:
    from trainyard_api.dataset import Resize
    from trainyard_api.training import Augmentation

Preset = Annotated[str, typer.Option("--preset", help="None, Light, Default or Strong.")]
Strengths = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=STRENGTH", help="One augmentation over the preset, as rotate=20; repeatable."),
]
Job = Annotated[
    Path | None,
    typer.Option("--job", help="A TrainingJob's file: its augmentation, imageSize and resize are taken.", exists=True),
]
Size = Annotated[str | None, typer.Option("--size", help="Of the images: a side, or WIDTHxHEIGHT; default 320.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same images.")]
Every = Annotated[
    bool,
    typer.Option("--all", help="Of all images; default: those on the training side (lists in the data, else drawn)."),
]


def augment(
    sources: Sources,
    to: To,
    copies: Annotated[int, typer.Option("--copies", min=1, max=1000, help="Images to make of each one.")] = 1,
    preset: Preset = "Default",
    strengths: Strengths = None,
    job: Job = None,
    size: Size = None,
    seed: Seed = 0,
    every: Every = False,
    with_originals: Annotated[
        bool, typer.Option("--with-originals", help="Also all images as they are, and the sides as lists.")
    ] = False,
    max_bytes: MaxBytes = io.NO_LIMIT,
    output: OutputOption = Format.TABLE,
) -> None:
    """Write augmented images with their boxes as a Pascal VOC zip. A training augments by itself: this is for other programs, and to look."""
    from trainyard_trainer.voc_write import zip_writer

    samples = _samples()
    augmentation, wanted, resize = _settings(job, preset, strengths, size)
    with (
        io.phases() as progress,
        io.target(to, progress) as path,
        _prepared(samples, sources, wanted, max_bytes, every, progress) as prepared,
    ):
        with zip_writer(path) as writer:
            samples.write(
                prepared,
                writer,
                augmentation,
                wanted,
                copies,
                resize=resize,
                seed=seed,
                with_originals=with_originals,
                progress=lambda done, total: progress("Augmenting", done, total),
            )
        made = copies * len(prepared.sides.train)
        result = result_of(to, path, writer, (), created=made, augmentedFrom=len(prepared.sides.train))
    side = "all images" if every else "the training side"
    io.say(result, sentence(result, f"{made:,} of them made from {result['augmentedFrom']:,} images, {side}"), output)


def preview(
    sources: Sources,
    to: Annotated[str, typer.Option("--to", help="The PNG to write.")],
    count: Annotated[
        int, typer.Option("--samples", min=1, max=100, help="Images to show; with --each of every kind.")
    ] = 12,
    each: Annotated[bool, typer.Option("--each", help="A row for every augmentation alone.")] = False,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="NAME", help="A row for this augmentation alone; repeatable.")
    ] = None,
    preset: Preset = "Default",
    strengths: Strengths = None,
    job: Job = None,
    size: Size = None,
    seed: Seed = 0,
    every: Every = False,
    max_bytes: MaxBytes = io.NO_LIMIT,
    output: OutputOption = Format.TABLE,
) -> None:
    """Show augmented images with their boxes on one sheet: what a training would see, or what each augmentation does."""
    samples = _samples()
    augmentation, wanted, resize = _settings(job, preset, strengths, size)
    with (
        io.phases() as progress,
        io.target(to, progress) as path,
        _prepared(samples, sources, wanted, max_bytes, every, progress) as prepared,
    ):
        rows: dict[str, Any] = {}
        if each or only:
            alone = _alone(samples.one_by_one(), only or [])
            shown = min(count, 6, len(prepared.sides.train))
            picked = [s.record for s in _some(samples, prepared, augmentation, wanted, shown, resize, seed)]
            rows["as they are"] = list(samples.originals(prepared, wanted, picked, resize))
            for done, (title, one) in enumerate(alone.items(), 1):
                rows[title] = _some(samples, prepared, one, wanted, shown, resize, seed)
                progress("Painting", done, len(alone))
        else:
            found = _some(samples, prepared, augmentation, wanted, count, resize, seed)
            title = f"{augmentation.preset} at {wanted[0]}x{wanted[1]}, {resize}" + "".join(
                f", {text}" for text in strengths or ()
            )
            for start in range(0, len(found), 4):
                rows[title if start == 0 else " " * start] = found[start : start + 4]
        width, height = samples.sheet(path, rows, prepared.dataset.labels)
    result = {"target": to, "width": width, "height": height, "rows": [row.strip() for row in rows if row.strip()]}
    io.say(result, f"{to}: {sum(map(len, rows.values()))} images on {width}x{height} pixels", output)


@contextmanager
def _prepared(
    samples: ModuleType, sources: Any, wanted: tuple[int, int], max_bytes: str, every: bool, progress: Any
) -> Iterator[Any]:
    """The sources, read and decoded, with the images to augment on the training side."""
    with io.read(sources, max_bytes, progress) as dataset, tempfile.TemporaryDirectory() as cache:
        yield samples.ready(
            dataset, wanted, Path(cache), every=every, progress=lambda done, total: progress("Decoding", done, total)
        )


def _some(
    samples: ModuleType, prepared: Any, one: Augmentation, size: Any, count: int, resize: Any, seed: int
) -> list[Any]:
    return list(samples.samples(prepared, one, size, count, resize=resize, seed=seed))


def _samples() -> ModuleType:
    try:
        from trainyard_trainer import samples
    except ModuleNotFoundError as error:
        raise CLIError(
            f"this command paints with the trainer's code, which needs {error.name}: pip install 'trainyard[trainer]'."
        ) from error
    return samples


def _alone(known: dict[str, Augmentation], only: Sequence[str]) -> dict[str, Augmentation]:
    """The wanted rows of all. Raises CLIError for a name that is none."""
    names = {title.split(":")[0]: title for title in known}
    for name in only:
        if name not in names:
            raise CLIError(f"--only {name}: there is no such augmentation; there are {', '.join(names)}.")
    return {title: known[title] for name, title in names.items() if not only or name in only}


def _settings(
    job: Path | None, preset: str, strengths: Sequence[str] | None, size: str | None
) -> tuple[Augmentation, tuple[int, int], Resize]:
    """Augmentation, size and kind of resize: the job's where one is named, what is set here over it."""
    from pydantic import ValidationError
    from trainyard_api.dataset import Resize
    from trainyard_api.training import Augmentation

    from trainyard_cli.run import read_job

    given: dict[str, Any] = {"preset": preset}
    resize, wanted = Resize.LETTERBOX, size or "320"
    try:
        if job is not None:
            spec = dict(read_job(job).get("spec") or {})
            given = dict(spec.get("augmentation") or {})
            dataset = spec.get("dataset") or {}
            resize = Resize(dataset.get("resize", Resize.LETTERBOX))
            wanted = size or str(dataset.get("imageSize") or _size_of(spec))
        for text in strengths or ():
            name, _, value = text.partition("=")
            if not value.isdigit() or name in ("preset", "offLastPercent"):
                raise CLIError(f"--set {text!r}: write NAME=STRENGTH with a whole number, as rotate=20.")
            given[name] = int(value)
        return Augmentation.model_validate(given, extra="forbid"), parse_size(wanted), resize
    except ValidationError as error:
        first = error.errors()[0]
        raise CLIError(
            f"augmentation.{'.'.join(map(str, first['loc']))}: {first['msg']} ({first['input']!r})."
        ) from None
    except ValueError as error:
        raise CLIError(f"{job}: dataset.resize: {error}.") from None


def _size_of(spec: dict[str, Any]) -> int:
    from trainyard_api.architectures import ARCHITECTURES

    known = ARCHITECTURES.get(str(spec.get("architecture")))
    return known.image_size if known else 320
