"""`model evaluate`: ONNX files against any dataset: metrics, a report, and the failures as a VOC zip. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainyard_cli.errors import CLIError
from trainyard_cli.output import table
from trainyard_cli.storage import here

if TYPE_CHECKING:
    from trainyard_trainer.predictor import Predictor
    from trainyard_trainer.prepare import Prepared
    from trainyard_trainer.records import Record, Side

    from trainyard_cli.modelsource import Found

SCORES = ("mAP50", "mAP50_95", "mAP", "accuracy", "precision", "recall")
REPORT, METRICS, FAILURES = "report.html", "metrics.json", "failures.zip"


@dataclass(frozen=True)
class Judge:
    """A version that predicts, and the sides that it knows images on, by their digests."""

    predictor: Predictor
    sides: dict[str, Side]

    def trained_on(self, record: Record) -> bool:
        return self.sides.get(record.digest) == "train"


@dataclass(frozen=True)
class Outcome:
    """What came of it: numbers for `metrics.json`, sections of the report, and per scored image (its record, whether something
    was wrong, whether something was missed)."""

    numbers: dict[str, Any]
    sections: list[Any]
    errors: list[tuple[int, bool, bool]]


def evaluate(
    found: Sequence[Found],
    dataset: str,
    to: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    image_set: str | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Scores `dataset` and writes report, metrics and failures into `to`. Returns the metrics.

    `settings` is the dataset part of a job: what it says about how data is read holds here too. `image_set` is the list of the images
    to score, None for all.

    Each image is judged by the first version that did not train on it; those that all trained on are not scored.
    """
    from trainyard_cli.imageevaluation import judged_images

    judges = [_judge(one) for one in found]
    contract = judges[0].predictor.contract
    if any(
        (judge.predictor.contract.labels, judge.predictor.contract.task) != (contract.labels, contract.task)
        for judge in judges
    ):
        raise CLIError(
            "The versions have other labels or another task: evaluate them one by one, and compare the metrics."
        )
    prepared = _prepared(dataset, judges[0].predictor, settings or {}, image_set, quiet)
    if not prepared.dataset.records:
        raise CLIError(f"No image of the list {image_set} has an annotation to be scored against.")
    turns = list(in_turns(judges, prepared, quiet))
    scored = sum(len(turn.members) for turn in turns if not turn.trained_on)
    if not scored:
        raise CLIError(
            f"All {len(prepared.dataset.records)} images were trained on: scores on them would say nothing. Give it others."
        )
    threshold = _threshold(found[0])
    judged = judged_boxes if judges[0].predictor.finds_boxes else judged_images
    outcome = judged(turns, prepared, contract.labels, threshold, len(found) > 1)
    told = {
        "versions": [one.version.name for one in found],
        "dataset": dataset,
        **({"imageSet": image_set} if image_set else {}),
        "images": len(outcome.errors),
        "trainedOn": len(prepared.dataset.records) - scored,
        "otherLabels": sorted(
            {label for record in prepared.dataset.records for label in record.labels} - set(contract.labels)
        ),
        **outcome.numbers,
    }
    to.mkdir(parents=True, exist_ok=True)
    (to / METRICS).write_text(json.dumps(told, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    (to / REPORT).write_text(_page(found, told, prepared, outcome.sections), encoding="utf-8")
    told["failures"] = write_failures(to / FAILURES, prepared, outcome.errors)
    return told


@dataclass(frozen=True)
class Turn:
    """Images that one version looks at, a batch at a time; `trained_on`: every version trained on them."""

    judge: Judge
    members: tuple[int, ...]
    trained_on: bool

    @property
    def side(self) -> Side:
        from trainyard_trainer.records import Side

        return Side.TRAIN if self.trained_on else Side.TEST


def in_turns(judges: Sequence[Judge], prepared: Prepared, quiet: bool = False) -> Iterator[Turn]:
    """All images, each with the first version that did not train on it (else with the first of all), with a bar that shows how far."""
    from rich.console import Console
    from rich.progress import track
    from trainyard_trainer.predictor import in_batches

    chosen = [next((j for j in judges if not j.trained_on(record)), None) for record in prepared.dataset.records]
    turns = []
    for judge in judges:
        turns += [
            Turn(judge, tuple(batch), False) for batch in in_batches([i for i, j in enumerate(chosen) if j is judge])
        ]
    nobody = [i for i, j in enumerate(chosen) if j is None]
    turns += [Turn(judges[0], tuple(batch), True) for batch in in_batches(nobody)]
    console = Console(stderr=True)
    yield from track(turns, "looking", console=console, disable=quiet or not console.is_terminal)


def judged_boxes(
    turns: Iterable[Turn], prepared: Prepared, labels: Sequence[str], threshold: float | None, several: bool
) -> Outcome:
    """Of detectors."""
    from trainyard_trainer import boxpage
    from trainyard_trainer.metrics import box_scores, truth_of

    records, index = prepared.dataset.records, {label: i for i, label in enumerate(labels)}
    seen = scored = boxpage.Seen((), (), (), ())
    for turn in turns:
        sizes = [(records[i].width, records[i].height) for i in turn.members]
        found = turn.judge.predictor.detections([prepared.pixels.image(i) for i in turn.members], sizes)
        truths = tuple(truth_of(records[i], index) for i in turn.members)
        part = boxpage.Seen(turn.members, truths, tuple(found), (turn.side,) * len(turn.members))
        seen += part
        scored = scored if turn.trained_on else scored + part
    scores = box_scores(scored.truths, scored.found, len(labels), threshold)
    folds = ""
    if several:
        unseen = len(seen.records) - len(scored.records)
        folds = f"{len(scored.records)} images, each by a version that did not train on it, and {unseen} that all of them did."
    told = boxpage.Told(
        labels=labels, records=records, pixels=prepared.pixels.image, scores={"this dataset": scores}, scored=scored,
        looked_at=seen, threshold=scores.threshold, folds=folds,
    )  # fmt: skip
    errors = []
    for record, truth, found in zip(scored.records, scored.truths, scored.found, strict=True):
        _, wrong, missed = boxpage.errors(truth, found, scores.threshold)
        errors.append((record, wrong > 0, missed > 0))
    return Outcome(scores.details(labels), boxpage.sections(told), errors)


def write_failures(path: Path, prepared: Prepared, errors: Iterable[tuple[int, bool, bool]]) -> dict[str, int]:
    """A VOC zip of the images with an error, as they are annotated; its lists `missed` and `wrong` say which error. Returns counts."""
    from trainyard_trainer.voc_write import zip_writer

    lists: dict[str, list[str]] = {"missed": [], "wrong": []}
    failed = 0
    with zip_writer(path) as writer:
        for index, wrong, missed in errors:
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
    names = [name for name in SCORES if name in told]
    rows = [("all labels", "", *(_short(told[name]) for name in names))]
    for one in told["labels"]:
        rows.append((one["label"], one.get("objects", one.get("images")), *(_short(one.get(name)) for name in names)))
    failures = told["failures"]
    return "\n".join(
        [
            *lines, "", table(("LABEL", "EXAMPLES", *names), rows), "",
            f"{to / REPORT}", f"{to / METRICS}",
            f"{to / FAILURES}: {failures['images']} images, something missed in {failures['missed']}, wrong in {failures['wrong']}",
        ]
    )  # fmt: skip


def _judge(found: Found) -> Judge:
    from trainyard_trainer.split import known_from_json

    from trainyard_cli.predict import opened

    return Judge(opened(found), dict(known_from_json(found.fetch("dataset.json").read_bytes())))


READ_BY = ("unannotated", "withoutObjects")
"""Settings of a dataset that say how it is read, `limits` aside. Labels are the version's, and there are no sides."""


def _prepared(
    dataset: str, predictor: Predictor, settings: Mapping[str, Any], image_set: str | None, quiet: bool
) -> Prepared:
    import sys

    from trainyard_api.architectures import Task
    from trainyard_trainer.prepare import prepare

    from trainyard_cli.datasetio import NO_LIMITS, dataset_spec
    from trainyard_cli.modelsource import cache

    def progress(phase: Any, done: int, total: int) -> None:
        if not quiet and sys.stderr.isatty():
            end = "\n" if done == total else "\r"
            print(f"{phase}: {100 * done // max(1, total)} %  ", end=end, file=sys.stderr, flush=True)

    fields = {name: settings[name] for name in READ_BY if name in settings}
    spec = dataset_spec([dataset], None, **fields, limits={**NO_LIMITS, **(settings.get("limits") or {})})
    return prepare(
        spec,
        Task(predictor.contract.task),
        here(),
        cache().parent / "datasets",
        image_size=predictor.contract.size,
        to_train=False,
        image_set=image_set,
        progress=progress,
    )


def _threshold(found: Found) -> float | None:
    """The confidence that the version's own precision and recall were measured at; None: the best one on this data."""
    metrics = found.json("metrics.json")
    return next((metrics[side].get("threshold") for side in ("validation", "test") if side in metrics), None)


def _page(found: Sequence[Found], told: dict[str, Any], prepared: Prepared, sections: list[Any]) -> str:
    from trainyard_trainer import page

    names = ", ".join(told["versions"])
    architecture = found[0].version.manifest["architecture"]
    facts = {
        "Versions": names, "Architecture": architecture, "Dataset": told["dataset"], "Image set": told.get("imageSet"),
        "Images": told["images"],
    }  # fmt: skip
    data = page.dataset(json.loads(prepared.to_json()))
    return page.page(f"{names} on {told['dataset'].rsplit('/', 1)[-1] or told['dataset']}", facts, [*sections, data])


def _short(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
