"""Everything there is to say about a dataset before it is trained on: `trainyard dataset check` and `stats`. No torch.

Unlike `prepare` it goes on after an error where it can, so that one look shows all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from trainyard_api.architectures import Architecture, Task
from trainyard_api.dataset import Dataset as DatasetSpec

from trainyard_trainer import pixels, report_data, voc
from trainyard_trainer.advice import Advice, Alike, additions, advise, alike, box_bins
from trainyard_trainer.errors import TrainerError
from trainyard_trainer.fetch import fetch, glance, plan_all, quantity
from trainyard_trainer.prepare import Phase, PhaseProgress, choose_sides
from trainyard_trainer.records import Finding, Kind, Record, Sides
from trainyard_trainer.store import Storage, parse
from trainyard_trainer.versions import Parent
from trainyard_trainer.voc_warnings import near_duplicates

LOOK = 96
"""Long side at which pictures are decoded to see whether they can be."""
LIGHT = 64 << 20
"""Bytes on S3 up to which everything is fetched and decoded, unless told otherwise."""


@dataclass(frozen=True)
class LabelStats:
    """`width` and `height` are medians in pixels of the originals; `smallest` and `largest` are areas in percent of the image."""

    label: str
    objects: int
    images: int
    difficult: int
    width: float
    height: float
    smallest: float
    largest: float


@dataclass(frozen=True)
class Survey:
    """`problem` is the sentence that a training would fail with, None when it would not; `decoded` tells whether the pictures were
    decoded, or only their first bytes read."""

    dataset: voc.Dataset
    sides: Sides | None
    findings: tuple[Finding, ...]
    problem: str | None
    alike: tuple[Alike, ...] = ()
    decoded: bool = True

    def groups(self) -> list[report_data.Group]:
        return report_data.grouped(self.findings)

    def label_stats(self) -> list[LabelStats]:
        """One a label, in the order of the labels."""
        return [_label_stats(self.dataset.records, label) for label in self.dataset.labels]

    def image_sizes(self) -> list[tuple[tuple[int, int], int]]:
        """The most frequent sizes with their counts."""
        counts: dict[tuple[int, int], int] = {}
        for record in self.dataset.records:
            counts[record.width, record.height] = counts.get((record.width, record.height), 0) + 1
        return sorted(counts.items(), key=lambda item: -item[1])[:5]

    def advice(self, architecture: Architecture) -> Advice:
        """Input size, batch size and epochs to begin with."""
        return advise(self.dataset.records, self.sides, architecture)

    def additions(self) -> list[str]:
        """What to annotate next, where a label is thin."""
        return additions(self.dataset.records, self.dataset.labels, self.dataset.task, self.sides)

    def box_bins(self, size: int) -> list[tuple[str, int]]:
        """Objects by their shorter side in pixels, at an input whose long side is `size`."""
        return box_bins(self.dataset.records, size)

    def to_dict(self, architecture: Architecture) -> dict[str, Any]:
        """The whole survey for programs."""
        dataset, advice = self.dataset, self.advice(architecture)
        return {
            "ok": self.problem is None,
            "problem": self.problem,
            "sources": [source.uri for source in dataset.sources],
            "digest": dataset.digest,
            "images": len(dataset.records),
            "objects": sum(len(record.objects) for record in dataset.records),
            "labels": [
                {
                    "label": s.label,
                    "objects": s.objects,
                    "images": s.images,
                    "difficult": s.difficult,
                    "medianWidth": s.width,
                    "medianHeight": s.height,
                    "smallestAreaPercent": s.smallest,
                    "largestAreaPercent": s.largest,
                }
                for s in self.label_stats()
            ],
            "imageSizes": [{"width": w, "height": h, "images": count} for (w, h), count in self.image_sizes()],
            "split": None
            if self.sides is None
            else {
                "train": len(self.sides.train),
                "validation": len(self.sides.validation),
                "test": len(self.sides.test),
            },
            "picturesDecoded": self.decoded,
            "findings": report_data.grouped_json(self.findings),
            "nearDuplicates": [{"images": list(group.names), "onDifferentSides": group.apart} for group in self.alike],
            "boxSizes": [{"shorterSide": name, "objects": count} for name, count in self.box_bins(advice.image_size)],
            "advice": {
                "imageSize": advice.image_size,
                "batchSize": advice.batch_size,
                "batchSizeGPU": advice.batch_size_gpu,
                "epochs": advice.epochs,
                "reasons": dict(zip(("imageSize", "batchSize", "epochs"), advice.reasons, strict=True)),
            },
            "additions": self.additions(),
        }


def survey(
    spec: DatasetSpec,
    task: Task,
    storage: Storage,
    cache: Path,
    *,
    pictures: bool | None = None,
    parent: Parent | None = None,
    progress: PhaseProgress = lambda phase, done, total: None,
) -> Survey:
    """Reads, decodes and splits as a training would, one that continues `parent`. Raises a TrainerError only where there is nothing to survey.

    With `pictures=False` those on S3 are neither fetched nor decoded, only their first bytes are read; None: from 64 MiB on.
    """
    max_bytes = quantity(spec.limits.max_bytes)
    plans = plan_all([source.uri for source in spec.sources], storage, max_bytes)
    remote = sum(plan.size for plan in plans if parse(plan.uri).scheme == "s3")
    decoded = remote <= LIGHT if pictures is None else pictures or not remote

    def fetching(done: int, total: int) -> None:
        progress(Phase.FETCHING, done, total)

    if decoded:
        uris = [source.uri for source in spec.sources]
        sources, found = fetch(uris, storage, cache, max_bytes=max_bytes, progress=fetching)
    else:
        sources, found = glance(
            plans, storage, max_bytes=max_bytes, max_pixels=spec.limits.max_pixels, progress=fetching
        )
    dataset = voc.load(
        spec,
        task,
        sources,
        strict=False,
        known_labels=parent.labels if parent else (),
        progress=lambda done, total: progress(Phase.CHECKING, done, total),
    )
    verdict = pixels.Verdict({}, (), {})
    if decoded:
        verdict = pixels.look(dataset, LOOK, progress=lambda done, total: progress(Phase.CACHING, done, total))
    good = [i for i in range(len(dataset.records)) if i not in verdict.corrupt]
    findings = [*found, *dataset.findings, *verdict.corrupt.values(), *verdict.repaired]
    left = replace(dataset, records=tuple(dataset.records[i] for i in good))
    sides, problem, groups = None, None, list[Alike]()
    try:
        dataset.without(verdict.corrupt, verdict.repaired)
        sides = choose_sides(spec, left, storage, parent.sides if parent else None)
        hashes = {new: verdict.hashes[old] for new, old in enumerate(good) if old in verdict.hashes}
        pairs = near_duplicates(hashes, {i: record.digest for i, record in enumerate(left.records)})
        findings += [*sides.findings, *report_data.likenesses(left.records, sides, pairs)]
        groups = alike(left.records, sides, pairs)
    except TrainerError as error:
        problem = str(error)
    return Survey(left, sides, tuple(findings), problem, tuple(groups), decoded)


def errors(survey: Survey) -> list[Finding]:
    """Every finding that a training would fail with by itself."""
    return [finding for finding in survey.findings if finding.kind is Kind.ERROR]


def _label_stats(records: Sequence[Record], label: str) -> LabelStats:
    own = [(item, record) for record in records for item in record.objects if item.label == label]
    widths = [item.box[2] - item.box[0] for item, _ in own]
    heights = [item.box[3] - item.box[1] for item, _ in own]
    shares = [100 * w * h / (r.width * r.height) for w, h, (_, r) in zip(widths, heights, own, strict=True)]
    return LabelStats(
        label,
        objects=len(own),
        images=len({record.name for _, record in own}) or sum(label in record.labels for record in records),
        difficult=sum(item.difficult for item, _ in own),
        width=round(median(widths), 1) if own else 0,
        height=round(median(heights), 1) if own else 0,
        smallest=round(min(shares), 3) if own else 0,
        largest=round(max(shares), 1) if own else 0,
    )
