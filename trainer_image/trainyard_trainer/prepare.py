"""All that one attempt needs of its data, in one call: fetch, read, decode, split, and what a person is told about it. No torch.

So it can run while torch is being imported.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trainyard_api.architectures import Task
from trainyard_api.dataset import Dataset as DatasetSpec
from trainyard_api.dataset import Split
from trainyard_api.report import Phase
from trainyard_api.status import DatasetSummary, LabelCount, Warning_

from trainyard_trainer import pixels, report_data, split, voc
from trainyard_trainer.fetch import fetch, quantity
from trainyard_trainer.pixels import PixelCache
from trainyard_trainer.records import Finding, Side, Sides, StopFlag, never
from trainyard_trainer.store import Storage
from trainyard_trainer.voc_warnings import label_counts, near_duplicates

PhaseProgress = Callable[[Phase, int, int], None]
"""Called with the phase, what is done of it, and its total: bytes while fetching, images while checking and caching."""


@dataclass(frozen=True)
class Prepared:
    """`dataset.records[i]` has its pixels in `pixels.image(i)`; `sides` are indices into both."""

    dataset: voc.Dataset
    sides: Sides
    pixels: PixelCache
    findings: tuple[Finding, ...]

    def of(self, side: Side) -> tuple[int, ...]:
        return self.sides.of(side)

    def warnings(self) -> tuple[Warning_, ...]:
        """What a user should know, one a reason, at most 16."""
        return report_data.warnings(self.findings)

    def summary(self) -> DatasetSummary:
        """For the report and the job's status."""
        dataset = self.dataset
        objects = label_counts(dataset.records, dataset.task)
        images = Counter(label for record in dataset.records for label in record.labels)
        return DatasetSummary(
            images=len(dataset.records),
            objects=sum(len(record.objects) for record in dataset.records),
            labels=tuple(LabelCount(label=x, objects=objects[x], images=images[x]) for x in dataset.labels[:200]),
            train_images=len(self.sides.train),
            validation_images=len(self.sides.validation),
            test_images=len(self.sides.test),
            digest=dataset.digest,
        )

    def to_json(self) -> str:
        """`dataset.json` of the run and of the version: summary, findings, and the side of every image (`split.known_from_json`)."""
        sides = json.loads(split.to_json(self.dataset.records, self.sides))
        summary = self.summary().to_dict()
        found = report_data.grouped_json(self.findings)
        return json.dumps({**summary, "findings": found, **sides}, ensure_ascii=False, indent=1)


def prepare(
    spec: DatasetSpec,
    task: Task,
    storage: Storage,
    cache: Path,
    *,
    image_size: tuple[int, int],
    known_labels: Sequence[str] = (),
    known_sides: split.Known | None = None,
    memory: int | None = None,
    shared: bool = False,
    to_train: bool = True,
    image_set: str | None = None,
    stop: StopFlag = never,
    progress: PhaseProgress = lambda phase, done, total: None,
) -> Prepared:
    """Raises a TrainerError that says what to do. `known_labels` and `known_sides` come from the version that is continued.

    `to_train=False`: to score a model, all images are on the test side, and few will do; `image_set` is the list of those that are
    taken, None for all.
    `image_size` is width and height of the network's input; `shared`: the pixels lie where other processes can map them. The same spec and data give the same records and sides.
    """
    sources, found = fetch(
        [source.uri for source in spec.sources],
        storage,
        cache,
        max_bytes=quantity(spec.limits.max_bytes),
        stop=stop,
        progress=lambda done, total: progress(Phase.FETCHING, done, total),
    )
    dataset = voc.load(
        spec,
        task,
        sources,
        known_labels=known_labels,
        to_train=to_train,
        stop=stop,
        progress=lambda done, total: progress(Phase.CHECKING, done, total),
    )
    if image_set is not None:
        members = split.of_list(image_set, dataset.records, dataset.sources, dataset.layouts, "the images to score")
        dataset = replace(dataset, records=tuple(dataset.records[index] for index in members))
    kept, verdict = pixels.build(
        dataset,
        max(image_size),
        cache,
        memory=memory,
        shared=shared,
        stop=stop,
        progress=lambda done, total: progress(Phase.CACHING, done, total),
    )
    hashes = verdict.hashes
    if verdict.corrupt or verdict.repaired:
        good = [i for i in range(len(dataset.records)) if i not in verdict.corrupt]
        dataset = dataset.without(verdict.corrupt, verdict.repaired)
        kept = kept.keep(good)
        hashes = {new: verdict.hashes[old] for new, old in enumerate(good)}
    everything = tuple(range(len(dataset.records)))
    sides = choose_sides(spec, dataset, storage, known_sides) if to_train else Sides((), test=everything)
    likenesses = near_duplicates(hashes, {i: record.digest for i, record in enumerate(dataset.records)})
    findings = (*found, *dataset.findings, *sides.findings, *report_data.likenesses(dataset.records, sides, likenesses))
    return Prepared(dataset, sides, kept, findings)


def choose_sides(spec: DatasetSpec, dataset: voc.Dataset, storage: Storage, known: split.Known | None) -> Sides:
    """By subsets where the spec has them, else by split."""
    if spec.subsets is not None:
        return split.name(dataset.records, spec.subsets, dataset.sources, dataset.layouts, storage.get_bytes, known)
    return split.draw(dataset.records, spec.split or Split(), known)
