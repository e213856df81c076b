"""`trainyard dataset merge|resize|split|convert`: new Pascal VOC zips from datasets that are there."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from trainyard_cli import datasetio as io
from trainyard_cli.datasetio import MaxBytes, OutputOption, Sources, To
from trainyard_cli.errors import CLIError
from trainyard_cli.output import Format

if TYPE_CHECKING:
    from trainyard_trainer.records import Finding
    from trainyard_trainer.voc_write import ZipWriter

EXAMPLES = 20


class ResizeKind(StrEnum):
    LETTERBOX = "Letterbox"
    STRETCH = "Stretch"
    CENTER_CROP = "CenterCrop"
    SHRINK = "Shrink"


class ForeignFormat(StrEnum):
    COCO = "coco"
    YOLO = "yolo"


def merge(sources: Sources, to: To, max_bytes: MaxBytes = io.NO_LIMIT, output: OutputOption = Format.TABLE) -> None:
    """Make one Pascal VOC zip of several sources. Images stay byte for byte; equal names get their source's number in front."""
    from trainyard_trainer import rewrite
    from trainyard_trainer.voc_write import zip_writer

    with io.phases() as progress, io.target(to, progress) as path, io.read(sources, max_bytes, progress) as dataset:
        with zip_writer(path) as writer:
            rewrite.merge(dataset, writer, lambda done, total: progress("Writing", done, total))
        result = result_of(to, path, writer, _lossy(dataset.findings), labels=list(dataset.labels))
    io.say(result, sentence(result, f"from {len(sources)} sources"), output)


def resize(
    sources: Sources,
    to: To,
    size: Annotated[str, typer.Option("--size", help="A side in pixels, or WIDTHxHEIGHT.")],
    kind: Annotated[
        ResizeKind,
        typer.Option(
            "--kind",
            help="As dataset.resize; Shrink keeps the proportions and enlarges nothing.",
            case_sensitive=False,
        ),
    ] = ResizeKind.LETTERBOX,
    quality: Annotated[int, typer.Option("--quality", min=50, max=100, help="Of the JPEGs that are written.")] = 92,
    max_bytes: MaxBytes = io.NO_LIMIT,
    output: OutputOption = Format.TABLE,
) -> None:
    """Bring all images and their boxes to another size: quicker to fetch and to train on."""
    from trainyard_trainer import rewrite
    from trainyard_trainer.voc_write import zip_writer

    wanted = parse_size(size)
    with io.phases() as progress, io.target(to, progress) as path, io.read(sources, max_bytes, progress) as dataset:
        with zip_writer(path) as writer:
            lost = rewrite.resize(
                dataset,
                wanted,
                rewrite.Kind(kind.value),
                writer,
                quality=quality,
                progress=lambda done, total: progress("Resizing", done, total),
            )
        result = result_of(to, path, writer, _lossy(dataset.findings), size=f"{wanted[0]}x{wanted[1]}", objectsCut=lost)
    cut = f"; {lost} objects were cut away" if lost else ""
    io.say(result, sentence(result, f"as {kind.value} {wanted[0]}x{wanted[1]}{cut}"), output)


def split(
    sources: Sources,
    to: To,
    train: Annotated[int, typer.Option("--train", min=1, max=100, help="Percent of images to train on.")] = 80,
    validation: Annotated[int, typer.Option("--validation", min=0, max=99, help="Percent for validation.")] = 10,
    test: Annotated[int, typer.Option("--test", min=0, max=99, help="Percent for the final test.")] = 10,
    max_validation: Annotated[int | None, typer.Option("--max-validation-images", min=1)] = None,
    max_test: Annotated[int | None, typer.Option("--max-test-images", min=1)] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same sides.")] = 0,
    max_bytes: MaxBytes = io.NO_LIMIT,
    output: OutputOption = Format.TABLE,
) -> None:
    """Draw the sides as a training would and write them down: ImageSets/Main/train.txt, val.txt and test.txt."""
    from trainyard_api.dataset import Split
    from trainyard_trainer import rewrite
    from trainyard_trainer import split as sides_of
    from trainyard_trainer.records import Side
    from trainyard_trainer.voc_write import zip_writer

    if train + validation + test != 100:
        raise CLIError(f"--train, --validation and --test sum up to {train + validation + test}; make it 100.")
    wish = Split(
        train_percent=train,
        validation_percent=validation,
        test_percent=test,
        max_validation_images=max_validation,
        max_test_images=max_test,
        seed=seed,
    )
    with io.phases() as progress, io.target(to, progress) as path, io.read(sources, max_bytes, progress) as dataset:
        sides = sides_of.draw(dataset.records, wish)
        with zip_writer(path) as writer:
            rewrite.split(dataset, sides, writer, lambda done, total: progress("Writing", done, total))
        counts = {rewrite.LIST_NAMES[side]: len(sides.of(side)) for side in Side if sides.of(side)}
        result = result_of(to, path, writer, (*_lossy(dataset.findings), *sides.findings), lists=counts)
    subsets = ", ".join(
        f"{side}: {{imageSet: {rewrite.LIST_NAMES[side]}}}" for side in Side if rewrite.LIST_NAMES[side] in counts
    )
    shown = ", ".join(f"{count} {name}" for name, count in counts.items())
    io.say(result, sentence(result, f"({shown})") + f"\nuse it with dataset.subsets: {{{subsets}}}", output)


def convert(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A COCO or YOLO dataset: a zip, folder or address.")],
    to: To,
    form: Annotated[
        ForeignFormat | None, typer.Option("--from", help="coco or yolo; default: seen from the files.")
    ] = None,
    max_bytes: MaxBytes = io.NO_LIMIT,
    output: OutputOption = Format.TABLE,
) -> None:
    """Turn a COCO (JSON) or YOLO (text and YAML) dataset into a Pascal VOC zip; its train, val and test become lists."""
    from trainyard_trainer import coco, foreign, yolo
    from trainyard_trainer.voc_write import zip_writer

    with (
        io.phases() as progress,
        io.target(to, progress) as path,
        io.opened([source], max_bytes, progress) as (_, (opened,)),
    ):
        if form is ForeignFormat.COCO or (form is None and coco.find(opened)):
            data = coco.read(opened)
        elif form is ForeignFormat.YOLO or (form is None and yolo.find(opened)):
            data = yolo.read(opened)
        else:
            raise CLIError(
                f"{source} is neither COCO (a JSON file with images, annotations and categories) nor YOLO (data.yaml or"
                " classes.txt, and labels/*.txt); trainyard dataset check says what it is."
            )
        with zip_writer(path) as writer:
            findings = foreign.write(
                opened, data, writer, progress=lambda done, total: progress("Converting", done, total)
            )
        result = result_of(to, path, writer, findings, format=data.format, labels=list(data.labels))
    io.say(result, sentence(result, f"from {data.format}; labels {', '.join(data.labels[:10])}"), output)


def parse_size(text: str) -> tuple[int, int]:
    """`320` or `640x384`. Raises CLIError."""
    words = text.lower().split("x")
    if len(words) > 2 or not all(word.isdigit() and 16 <= int(word) <= 8192 for word in words):
        raise CLIError(
            f"--size {text!r}: write a side of 16 to 8192 pixels such as 320, or WIDTHxHEIGHT such as 640x384."
        )
    return int(words[0]), int(words[-1])


def result_of(to: str, path: Path, writer: ZipWriter, findings: Sequence[Finding], **more: Any) -> dict[str, Any]:
    """What a tool wrote, for programs; `more` are fields of its own."""
    return {
        "target": to,
        "images": writer.images,
        "objects": writer.objects,
        "bytes": path.stat().st_size,
        **more,
        "findings": len(findings),
        "examples": [str(finding) for finding in findings[:EXAMPLES]],
    }


def sentence(result: dict[str, Any], what: str) -> str:
    """What a tool wrote, for people."""
    text = f"{result['target']}: {result['images']:,} images, {result['objects']:,} objects, {result['bytes']:,} bytes, {what}"
    if not result["findings"]:
        return text
    shown = "\n".join(f"  {line}" for line in result["examples"][:5])
    more = f"\n  and {result['findings'] - 5} more (-o json shows {EXAMPLES})" if result["findings"] > 5 else ""
    return f"{text}\nrepaired, left out or worth knowing: {result['findings']}\n{shown}{more}"


def _lossy(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    from trainyard_trainer.records import Kind

    return tuple(finding for finding in findings if finding.kind is Kind.LOSSY)
