"""What is not wrong with a dataset and still makes a poor model: too few examples, imbalance, boxes too small or too large, near-duplicates."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from trainyard_api.architectures import Task

from trainyard_trainer.records import Finding, Kind, Record

FEW_OBJECTS = 300
FEW_OBJECTS_IN_ALL = 1000
IMBALANCE = 10
SMALL_SHARE, LARGE_SHARE = 0.01, 0.9
NEAR, BANDS = 8, 9
"""Bits of 144 by which the perceptual hashes of near-duplicates differ at most (other pictures differ in 32 and more)."""


def dataset_warnings(records: Sequence[Record], labels: Sequence[str], task: Task) -> list[Finding]:
    """Warnings of the whole dataset, each with the number it speaks of."""
    counts = label_counts(records, task)
    found = [*_few(counts, labels), *_imbalance(counts)]
    if task is Task.DETECTION:
        found.extend(_box_sizes(records))
    return found


def label_counts(records: Sequence[Record], task: Task) -> Counter[str]:
    """Objects of each label without the difficult ones; images of each label where the whole image is labelled."""
    if task is Task.DETECTION:
        return Counter(item.label for record in records for item in record.objects if not item.difficult)
    return Counter(label for record in records for label in record.labels)


def near_duplicates(hashes: Mapping[int, int], digests: Mapping[int, str]) -> list[tuple[int, int]]:
    """Pairs of records whose pictures look alike though their files differ; hashes that are nearly flat say nothing.

    Two hashes that differ in at most 8 bits agree in at least one of 9 bands of 16: only those are compared.
    """
    bands: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, value in hashes.items():
        if 14 <= value.bit_count() <= 130:
            for band in range(BANDS):
                bands[band, (value >> (16 * band)) & 0xFFFF].append(index)
    pairs = set()
    for members in bands.values():
        # A band that very many share is a plain background, not a likeness.
        for i, first in enumerate(members if len(members) <= 200 else ()):
            for second in members[i + 1 :]:
                if digests[first] != digests[second] and (hashes[first] ^ hashes[second]).bit_count() <= NEAR:
                    pairs.add((first, second))
    return sorted(pairs)


def _few(counts: Counter[str], labels: Sequence[str]) -> list[Finding]:
    found = []
    few = [(label, counts[label]) for label in labels if counts[label] < FEW_OBJECTS]
    if few:
        shown = ", ".join(f"{label!r} {count}" for label, count in few[:5]) + (", ..." if len(few) > 5 else "")
        message = f"{len(few)} of {len(labels)} labels have fewer than {FEW_OBJECTS} examples ({shown}); annotate more of them"
        found.append(Finding(Kind.WARNING, "FewExamples", message))
    if (total := counts.total()) < FEW_OBJECTS_IN_ALL:
        message = f"{total} examples in all; below {FEW_OBJECTS_IN_ALL} a model seldom gets good"
        found.append(Finding(Kind.WARNING, "FewExamplesInAll", message))
    return found


def _imbalance(counts: Counter[str]) -> list[Finding]:
    present = [(count, label) for label, count in counts.items() if count]
    if len(present) < 2:
        return []
    (least, rare), (most, common) = min(present), max(present)
    if most <= IMBALANCE * least:
        return []
    message = (
        f"{common!r} has {most} examples, {rare!r} has {least}: {most / least:.0f} times fewer; annotate more of it, or set"
        " training.classWeights to {balanced: true}"
    )
    return [Finding(Kind.WARNING, "ClassImbalance", message)]


def _box_sizes(records: Sequence[Record]) -> list[Finding]:
    small = large = total = 0
    for record in records:
        for item in record.objects:
            x1, y1, x2, y2 = item.box
            shares = (x2 - x1) / record.width, (y2 - y1) / record.height
            total += 1
            small += min(shares) < SMALL_SHARE
            large += max(shares) > LARGE_SHARE
    found = []
    if small:
        message = f"{small} of {total} boxes are under 1 % of the image's side; raise dataset.imageSize, or cut the images into tiles"
        found.append(Finding(Kind.WARNING, "BoxesTooSmall", message))
    if large:
        message = f"{large} of {total} boxes are over 90 % of the image's side; objects that fill the image suit classification better"
        found.append(Finding(Kind.WARNING, "BoxesTooLarge", message))
    return found
