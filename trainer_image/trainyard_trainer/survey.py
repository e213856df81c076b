"""Everything there is to say about a dataset before it is trained on: `trainyard dataset check` and `stats`. No torch.

Unlike `prepare` it goes on after an error where it can, so that one look shows all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from trainyard_api.architectures import Architecture, Task
from trainyard_api.dataset import Dataset as DatasetSpec

from trainyard_trainer import pixels, report_data, voc
from trainyard_trainer.errors import TrainerError
from trainyard_trainer.fetch import fetch, quantity
from trainyard_trainer.prepare import Phase, PhaseProgress, choose_sides
from trainyard_trainer.records import Finding, Kind, Record, Sides
from trainyard_trainer.store import Storage
from trainyard_trainer.voc_warnings import near_duplicates

LOOK = 96
"""Long side at which pictures are decoded to see whether they can be."""
LEAST_OBJECT = 12
"""Pixels of the network's input that a small object should have."""
SIZES = (320, 416, 512, 640, 800, 1024)


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
    """`problem` is the sentence that a training would fail with, None when it would not."""

    dataset: voc.Dataset
    sides: Sides | None
    findings: tuple[Finding, ...]
    problem: str | None

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

    def advice(self, architecture: Architecture) -> dict[str, int]:
        """Input size, batch size and epochs to begin with."""
        images = len(self.sides.train) if self.sides else len(self.dataset.records)
        epochs = math.ceil(3000 * architecture.batch_cpu / max(images, 1))
        return {
            "imageSize": _advised_size(self.dataset.records, architecture.image_size),
            "batchSize": architecture.batch_cpu,
            "batchSizeGPU": architecture.batch_gpu,
            "epochs": min(300, max(20, epochs)),
        }

    def to_dict(self, architecture: Architecture) -> dict[str, Any]:
        """The whole survey for programs."""
        dataset = self.dataset
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
            "findings": report_data.grouped_json(self.findings),
            "advice": self.advice(architecture),
        }


def survey(
    spec: DatasetSpec,
    task: Task,
    storage: Storage,
    cache: Path,
    *,
    progress: PhaseProgress = lambda phase, done, total: None,
) -> Survey:
    """Reads, decodes and splits as a training would. Raises a TrainerError only where there is nothing to survey."""
    sources, found = fetch(
        [source.uri for source in spec.sources],
        storage,
        cache,
        max_bytes=quantity(spec.limits.max_bytes),
        progress=lambda done, total: progress(Phase.FETCHING, done, total),
    )
    dataset = voc.load(
        spec, task, sources, strict=False, progress=lambda done, total: progress(Phase.CHECKING, done, total)
    )
    _, verdict = pixels.build(dataset, LOOK, cache, progress=lambda done, total: progress(Phase.CACHING, done, total))
    findings = [*found, *dataset.findings, *verdict.corrupt.values(), *verdict.repaired]
    sides, problem = None, None
    try:
        good = [i for i in range(len(dataset.records)) if i not in verdict.corrupt]
        dataset = dataset.without(verdict.corrupt, verdict.repaired)
        sides = choose_sides(spec, dataset, storage, None)
        hashes = {new: verdict.hashes[old] for new, old in enumerate(good)}
        pairs = near_duplicates(hashes, {i: record.digest for i, record in enumerate(dataset.records)})
        findings += [*sides.findings, *report_data.likenesses(dataset.records, sides, pairs)]
    except TrainerError as error:
        problem = str(error)
    return Survey(dataset, sides, tuple(findings), problem)


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


def _advised_size(records: Sequence[Record], default: int) -> int:
    """The least size at which nine of ten objects have `LEAST_OBJECT` pixels, at least the architecture's."""
    shares = [
        min(o.box[2] - o.box[0], o.box[3] - o.box[1]) / max(r.width, r.height) for r in records for o in r.objects
    ]
    if len(shares) < 2:
        return default
    small = quantiles(shares, n=10)[0]
    wanted = LEAST_OBJECT / max(small, 1e-6)
    return max(default, next((size for size in SIZES if size >= wanted), SIZES[-1]))
