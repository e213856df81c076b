"""`model evaluate`: a detector's ONNX file against any dataset: metrics, a report, and its failures as a VOC zip. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainyard_cli.errors import CLIError
from trainyard_cli.output import table
from trainyard_cli.storage import here

if TYPE_CHECKING:
    from trainyard_trainer.boxpage import Seen
    from trainyard_trainer.metrics import BoxScores
    from trainyard_trainer.predictor import Predictor
    from trainyard_trainer.prepare import Prepared
    from trainyard_trainer.records import Record, Side

    from trainyard_cli.modelsource import Found

REPORT, METRICS, FAILURES = "report.html", "metrics.json", "failures.zip"


@dataclass(frozen=True)
class Judge:
    """A version that predicts, and the sides that it knows images on, by their digests."""

    predictor: Predictor
    sides: dict[str, Side]

    def trained_on(self, record: Record) -> bool:
        return self.sides.get(record.digest) == "train"


def evaluate(found: Sequence[Found], dataset: str, to: Path, *, quiet: bool = False) -> dict[str, Any]:
    """Scores `dataset` and writes report, metrics and failures into `to`. Returns the metrics.

    Each image is judged by the first version that did not train on it; those that all trained on are not scored.
    """
    from trainyard_trainer.metrics import box_scores

    judges = [_judge(one) for one in found]
    labels = judges[0].predictor.contract.labels
    prepared = _prepared(dataset, judges[0].predictor, quiet)
    seen = look(judges, prepared, quiet)
    held_out = [i for i, side in enumerate(seen.sides) if side != "train"]
    if not held_out:
        raise CLIError(
            f"All {len(seen.records)} images were trained on: scores on them would say nothing. Give it others."
        )
    scored = some(seen, held_out)
    threshold = _threshold(found[0])
    scores = box_scores(scored.truths, scored.found, len(labels), threshold)
    told = {
        "versions": [one.version.name for one in found],
        "dataset": dataset,
        "images": len(held_out),
        "trainedOn": len(seen.records) - len(held_out),
        "otherLabels": sorted(
            {item.label for record in prepared.dataset.records for item in record.objects} - set(labels)
        ),
        **_numbers(scores, labels),
    }
    to.mkdir(parents=True, exist_ok=True)
    (to / METRICS).write_text(json.dumps(told, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    (to / REPORT).write_text(_report(found, told, prepared, seen, scored, scores), encoding="utf-8")
    told["failures"] = write_failures(to / FAILURES, prepared, scored, scores.threshold)
    return told


def look(judges: Sequence[Judge], prepared: Prepared, quiet: bool = False) -> Seen:
    """What the versions say of every image. Side `train` means that all of them trained on it, `test` that the one who says it did not."""
    from rich.console import Console
    from rich.progress import track
    from trainyard_trainer.boxpage import Seen
    from trainyard_trainer.metrics import truth_of
    from trainyard_trainer.predictor import in_batches
    from trainyard_trainer.records import Side

    records = prepared.dataset.records
    chosen = [next((j for j in judges if not j.trained_on(record)), None) for record in records]
    parts: list[Seen] = []
    for judge in judges:
        members = [i for i, one in enumerate(chosen) if (one or judges[0]) is judge]
        index = {label: i for i, label in enumerate(judge.predictor.contract.labels)}
        batches = list(in_batches(members))
        console = Console(stderr=True)
        for batch in track(batches, judge.predictor.name, console=console, disable=quiet or not console.is_terminal):
            found = judge.predictor.detections(
                [prepared.pixels.image(i) for i in batch], [(records[i].width, records[i].height) for i in batch]
            )
            sides = tuple(Side.TRAIN if chosen[i] is None else Side.TEST for i in batch)
            parts.append(Seen(tuple(batch), tuple(truth_of(records[i], index) for i in batch), tuple(found), sides))
    return sum(parts, Seen((), (), (), ()))


def some(seen: Seen, members: Sequence[int]) -> Seen:
    from trainyard_trainer.boxpage import Seen

    columns = (seen.records, seen.truths, seen.found, seen.sides)
    return Seen(*(tuple(column[i] for i in members) for column in columns))  # pyright: ignore[reportArgumentType]


def write_failures(path: Path, prepared: Prepared, scored: Seen, threshold: float) -> dict[str, int]:
    """A VOC zip of the images with an error, as they are annotated; its lists `missed` and `wrong` say which error. Returns counts."""
    from trainyard_trainer.boxpage import errors
    from trainyard_trainer.voc_write import zip_writer

    lists: dict[str, list[str]] = {"missed": [], "wrong": []}
    failed = 0
    with zip_writer(path) as writer:
        for i, index in enumerate(scored.records):
            _, wrong, missed = errors(scored.truths[i], scored.found[i], threshold)
            if not wrong and not missed:
                continue
            record = prepared.dataset.records[index]
            stem = record.name.replace("/", "-")
            failed += 1
            data, size = prepared.dataset.read(record), (record.width, record.height)
            writer.add(stem, Path(record.image).suffix, data, size, record.objects)
            lists["missed"] += [stem] if missed else []
            lists["wrong"] += [stem] if wrong else []
        for name, members in lists.items():
            writer.add_list(name, members)
    return {"images": failed, **{name: len(members) for name, members in lists.items()}}


def summary(told: dict[str, Any], to: Path) -> str:
    """The result for people."""
    left_out = f" ({told['trainedOn']} more were trained on and left out)" if told["trainedOn"] else ""
    lines = [f"{', '.join(told['versions'])} on {told['images']} images{left_out}"]
    if told["otherLabels"]:
        lines.append(f"not among its labels, and not counted: {', '.join(told['otherLabels'])}")
    names = ("mAP50", "mAP50_95", "precision", "recall")
    rows = [("all labels", "", *(_short(told[name]) for name in names))]
    rows += [(one["label"], one["objects"], *(_short(one[name]) for name in names)) for one in told["labels"]]
    failures = told["failures"]
    return "\n".join(
        [
            *lines, "", table(("LABEL", "OBJECTS", *names), rows), "",
            f"{to / REPORT}", f"{to / METRICS}",
            f"{to / FAILURES}: {failures['images']} images, something missed in {failures['missed']}, wrong in {failures['wrong']}",
        ]
    )  # fmt: skip


def _judge(found: Found) -> Judge:
    from trainyard_trainer.split import known_from_json

    from trainyard_cli.predict import opened

    predictor = opened(found)
    if not predictor.finds_boxes:
        raise CLIError(f"{found.version.name} finds no boxes ({predictor.contract.task}); evaluate scores detectors.")
    return Judge(predictor, dict(known_from_json(found.fetch("dataset.json").read_bytes())))


def _prepared(dataset: str, predictor: Predictor, quiet: bool) -> Prepared:
    import sys

    from trainyard_api.architectures import Task
    from trainyard_api.dataset import Dataset
    from trainyard_trainer.prepare import prepare

    from trainyard_cli.modelsource import cache

    def progress(phase: Any, done: int, total: int) -> None:
        if not quiet and sys.stderr.isatty():
            end = "\n" if done == total else "\r"
            print(f"{phase}: {100 * done // max(1, total)} %  ", end=end, file=sys.stderr, flush=True)

    spec = Dataset.model_validate({"sources": [{"uri": dataset}]})
    storage, folder = here(), cache().parent / "datasets"
    return prepare(spec, Task.DETECTION, storage, folder, image_size=predictor.contract.size, progress=progress)


def _threshold(found: Found) -> float | None:
    """The confidence that the version's own precision and recall were measured at; None: the best one on this data."""
    metrics = found.json("metrics.json")
    return next((metrics[side]["threshold"] for side in ("validation", "test") if side in metrics), None)


def _numbers(scores: BoxScores, labels: Sequence[str]) -> dict[str, Any]:
    return {
        "mAP50": scores.map50, "mAP50_95": scores.map50_95, "precision": scores.precision, "recall": scores.recall,
        "threshold": scores.threshold,
        "labels": [
            {
                "label": label, "objects": int(scores.objects[i]), "mAP50": _finite(scores.average_precision[i, 0]),
                "mAP50_95": _finite(scores.average_precision[i].mean()), "precision": _finite(scores.label_precision[i]),
                "recall": _finite(scores.label_recall[i]),
            }
            for i, label in enumerate(labels)
        ],
    }  # fmt: skip


def _report(
    found: Sequence[Found], told: dict[str, Any], prepared: Prepared, seen: Seen, scored: Seen, scores: BoxScores
) -> str:
    from trainyard_trainer import boxpage, page

    first = found[0].version.manifest
    folds = ""
    if len(found) > 1:
        folds = f"{told['images']} images, each by a version that did not train on it, and {told['trainedOn']} that all of them did."
    sections = boxpage.sections(
        boxpage.Told(
            labels=first["labels"], records=prepared.dataset.records, pixels=prepared.pixels.image,
            scores={"this dataset": scores}, scored=scored, looked_at=seen, threshold=scores.threshold, folds=folds,
        )
    )  # fmt: skip
    names = ", ".join(told["versions"])
    facts = {
        "Versions": names,
        "Architecture": first["architecture"],
        "Dataset": told["dataset"],
        "Images": told["images"],
    }
    data = page.dataset(json.loads(prepared.to_json()))
    return page.page(f"{names} on {told['dataset'].rsplit('/', 1)[-1] or told['dataset']}", facts, [*sections, data])


def _finite(value: float) -> float | None:
    return float(value) if value == value else None


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
