"""Whole-image labels: tagging lists under ImageSets/Main, and the one label of an image for classification."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from trainyard_trainer.records import Finding, Kind, Record
from trainyard_trainer.voc_layout import Layout, tagging_answers
from trainyard_trainer.voc_source import Source
from trainyard_trainer.voc_xml import Problem, clean_label


def all_labels(record: Record) -> frozenset[str]:
    """Every label that the record knows of, difficult objects and ignored answers included."""
    return frozenset(item.label for item in record.objects) | frozenset(label for label, _ in record.tags)


def apply(records: Sequence[Record], layout: Layout, source: Source, index: int) -> tuple[list[Record], list[Finding]]:
    """Records with the answers of the lists `<label>_<set>.txt` (1 yes, 0 ignored, -1 no); objects count as yes.

    Images with neither a list's answer nor an annotation are left out.
    """
    prefix = f"{index}/"
    stems = {record.name.removeprefix(prefix): record.name for record in records}
    tags: dict[str, dict[str, int]] = {name: {} for name in stems.values()}
    findings: list[Finding] = []
    for name, member in sorted(layout.lists.items()):
        answers = tagging_answers(source.read(member)) if "_" in name else None
        if answers is None:
            continue
        try:
            label = clean_label(name.rsplit("_", 1)[0], None)
        except Problem as problem:
            findings.append(Finding(Kind.ERROR, problem.reason, str(problem), member))
            continue
        for stem, value in answers.items():
            if stem in stems:
                tags[stems[stem]][label] = value
            else:
                findings.append(
                    Finding(Kind.ERROR, "ImageMissing", f"names {stem!r}, and there is no such image", member)
                )
    kept = []
    for record in records:
        answers = tags[record.name]
        for item in record.objects:
            answers.setdefault(item.label, 0 if item.difficult else 1)
        if answers or record.annotation:
            kept.append(replace(record, tags=tuple(sorted(answers.items()))))
    return kept, findings


def has_answers(layout: Layout, source: Source) -> bool:
    """Whether there are lists that say of images which labels they have."""
    return any("_" in name and tagging_answers(source.read(member)) for name, member in layout.lists.items())


def with_a_tag(records: Iterable[Record]) -> tuple[list[Record], list[Finding]]:
    """Records that have a label; the others are left out, as `withoutObjects: Skip` wants."""
    kept, findings = [], []
    for record in records:
        if record.labels:
            kept.append(record)
        else:
            place = record.annotation or record.image
            findings.append(Finding(Kind.WARNING, "WithoutObjects", "has no label; skipped", place))
    return kept, findings


def one_label_each(records: Iterable[Record]) -> tuple[list[Record], list[Finding]]:
    """For classification: every record with its one distinct label that is not difficult; others are errors or left out."""
    kept: list[Record] = []
    findings: list[Finding] = []
    for record in records:
        labels = sorted(record.labels)
        if len(labels) > 1:
            message = f"has the labels {', '.join(map(repr, labels))}; classification takes one an image: use tagging (task: Tagging)"
            findings.append(Finding(Kind.ERROR, "SeveralLabels", message, record.annotation or record.image))
        elif labels:
            kept.append(replace(record, tags=((labels[0], 1),)))
        else:
            findings.append(
                Finding(
                    Kind.WARNING,
                    "WithoutObjects",
                    "has no label that is not difficult; skipped",
                    record.annotation or record.image,
                )
            )
    return kept, findings
