"""Which image is on which side. A pure function of the records, the wish and the sides that are known already.

Identical images stay together, known images keep their side, and every label is spread over the sides in proportion.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

import numpy as np
from trainyard_api.dataset import Split, Subset, Subsets

from trainyard_trainer.errors import BadData
from trainyard_trainer.records import Finding, Kind, Record, Side, Sides
from trainyard_trainer.voc_layout import Layout, list_names
from trainyard_trainer.voc_source import Source

FEW_IMAGES = 20

Known = Mapping[str, Side]
"""Sides of an earlier training, by the digest of the image."""


def draw(records: Sequence[Record], split: Split, known: Known | None = None) -> Sides:
    """Sides by percentages. Every side that is asked for gets at least one image; the same records and seed give the same sides."""
    groups = _groups(records)
    wanted = _wanted(len(records), split)
    sides: dict[Side, list[int]] = {side: [] for side in Side}
    free: list[list[int]] = []
    for group in groups:
        side = (known or {}).get(records[group[0]].digest)
        if side is None:
            free.append(group)
        else:
            sides[side].extend(group)
    for side, group in _stratified(records, free, wanted, sides, split.seed):
        sides[side].extend(group)
    return _finish(records, sides, known=known)


def name(
    records: Sequence[Record],
    subsets: Subsets,
    sources: Sequence[Source],
    layouts: Sequence[Layout],
    fetch: Callable[[str], bytes],
    known: Known | None = None,
) -> Sides:
    """Sides that the spec names one by one. `fetch` reads a `listURI`. Raises BadData for names without an image and images on two sides."""
    sides: dict[Side, list[int]] = {}
    for side, subset in ((Side.TRAIN, subsets.train), (Side.VALIDATION, subsets.validation), (Side.TEST, subsets.test)):
        sides[side] = [] if subset is None else _members(records, subset, side, sources, layouts, fetch)
    taken: dict[int, Side] = {}
    for side, members in sides.items():
        for index in members:
            if index in taken:
                raise BadData(
                    f"{records[index].image} is on two sides, {taken[index]} and {side}; change dataset.subsets so that each image"
                    " is on one."
                )
            taken[index] = side
    by_digest: dict[str, tuple[int, Side]] = {}
    for index, side in taken.items():
        digest = records[index].digest
        other, theirs = by_digest.setdefault(digest, (index, side))
        if theirs is not side:
            raise BadData(
                f"{records[index].image} ({side}) and {records[other].image} ({theirs}) are the same picture; remove one of them."
            )
        was = (known or {}).get(digest)
        if side is Side.TRAIN and was in (Side.TEST, Side.VALIDATION):
            raise BadData(
                f"{records[index].image} was a {was} image of the version that is continued; training on it would make its scores"
                " worthless. Leave it where it was in dataset.subsets."
            )
    return _finish(records, sides)


def of_list(
    name: str, records: Sequence[Record], sources: Sequence[Source], layouts: Sequence[Layout], asked: str
) -> list[int]:
    """Records in the list `name` under ImageSets/Main, of all sources that have it. Raises BadData where none does: `asked` is what
    names it."""
    lists = [(index, layout.lists[name]) for index, layout in enumerate(layouts) if name in layout.lists]
    if not lists:
        there = sorted({known for layout in layouts for known in layout.lists})
        raise BadData(f"{asked}: there is no ImageSets/Main/{name}.txt; there are {', '.join(there) or 'no lists'}.")
    found: list[int] = []
    for index, member in lists:
        found += _by_name(
            records, list_names(sources[index].read(member)), f"{member} in {sources[index].uri}", layouts, index
        )
    return sorted(set(found))


def to_json(records: Sequence[Record], sides: Sides) -> str:
    """The sides as they are recorded with a version: what `known_from_json` reads."""
    lists = {side.value: {records[i].digest: records[i].name for i in sides.of(side)} for side in Side}
    return json.dumps({"sides": lists}, ensure_ascii=False, indent=1, sort_keys=True)


def known_from_json(text: str | bytes) -> dict[str, Side]:
    """Digest to side. Raises BadData for anything that `to_json` did not write."""
    try:
        lists = {Side(side): members for side, members in json.loads(text)["sides"].items()}
        return {str(digest): side for side, members in lists.items() for digest in members}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadData(f"the recorded sides of the version that is continued cannot be read: {error!r}.") from error


def _groups(records: Sequence[Record]) -> list[list[int]]:
    """Indices of identical images together."""
    by_digest: dict[str, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        by_digest[record.digest].append(index)
    return list(by_digest.values())


def _wanted(total: int, split: Split) -> dict[Side, int]:
    """How many images each side shall have; what is over a cap goes to training."""
    wanted = {}
    for side, percent, cap in (
        (Side.VALIDATION, split.validation_percent, split.max_validation_images),
        (Side.TEST, split.test_percent, split.max_test_images),
    ):
        count = max(1, round(total * percent / 100)) if percent else 0
        wanted[side] = count if cap is None else min(count, cap)
    wanted[Side.TRAIN] = total - sum(wanted.values())
    if split.train_percent and wanted[Side.TRAIN] < 1:
        raise BadData(f"{total} images are too few for the asked split; no image is left to train on.")
    return wanted


def _stratified(
    records: Sequence[Record],
    groups: list[list[int]],
    wanted: Mapping[Side, int],
    taken: Mapping[Side, Sequence[int]],
    seed: int,
) -> list[tuple[Side, list[int]]]:
    """Iterative stratification (Sechidis et al., 2011): the rarest label first, each image to the side that lacks that label most."""
    random = np.random.default_rng(seed)
    order = [groups[i] for i in random.permutation(len(groups))]
    total = sum(wanted.values())
    room = {side: wanted[side] - len(taken[side]) for side in Side}
    share = {side: wanted[side] / total for side in Side}
    labels_of = [frozenset().union(*(records[i].labels for i in group)) or frozenset({""}) for group in order]
    left = Counter(label for labels in labels_of for label in labels)
    for side in Side:
        left.update(label for i in taken[side] for label in records[i].labels)
    lacking = {side: {label: share[side] * count for label, count in left.items()} for side in Side}
    for side in Side:
        for i in taken[side]:
            for label in records[i].labels:
                lacking[side][label] -= 1
    by_label: dict[str, list[int]] = defaultdict(list)
    for index, labels in enumerate(labels_of):
        by_label[min(labels, key=lambda label: (left[label], label))].append(index)
    placed: list[tuple[Side, list[int]]] = []
    for label in sorted(by_label, key=lambda label: (left[label], label)):
        for index in by_label[label]:
            group = order[index]
            open_sides = [side for side in Side if room[side] >= len(group)] or [Side.TRAIN]
            side = max(open_sides, key=lambda side: (lacking[side][label], room[side] / max(wanted[side], 1)))
            placed.append((side, group))
            room[side] -= len(group)
            for own in labels_of[index]:
                lacking[side][own] -= len(group)
    return placed


def _members(
    records: Sequence[Record],
    subset: Subset,
    side: Side,
    sources: Sequence[Source],
    layouts: Sequence[Layout],
    fetch: Callable[[str], bytes],
) -> list[int]:
    if subset.image_set is not None:
        return of_list(subset.image_set, records, sources, layouts, f"dataset.subsets.{side}.imageSet")
    if subset.list_uri is not None:
        return _by_name(records, list_names(fetch(subset.list_uri)), subset.list_uri, layouts)
    if subset.folder is not None:
        folder = subset.folder.strip("/") + "/"
        found = [
            i for i, r in enumerate(records)
            if r.image.removeprefix(layouts[r.source].root).startswith(folder) or f"/{folder}" in f"/{r.image.rsplit('/', 1)[0]}/"
        ]  # fmt: skip
        what = f"folder {subset.folder!r}"
    elif subset.pattern is not None:
        found = [i for i, r in enumerate(records) if fnmatchcase(PurePosixPath(r.image).name, subset.pattern)]
        what = f"pattern {subset.pattern!r}"
    else:
        labels = frozenset(subset.labels or ())
        found = [i for i, record in enumerate(records) if record.labels & labels]
        what = f"labels {sorted(labels)}"
    if not found:
        raise BadData(f"dataset.subsets.{side}: no image matches {what}; the first image is {records[0].image}.")
    return found


def _by_name(
    records: Sequence[Record], names: Sequence[str], place: str, layouts: Sequence[Layout], source: int | None = None
) -> list[int]:
    """Records of the names in a list; a name may have its extension. Raises BadData for one without an image."""
    index_of: dict[str, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        if source is None or record.source == source:
            path = PurePosixPath(record.image)
            for key in {path.stem, path.name, record.name}:
                index_of[key].append(index)
    # An image that is there and was left out (unannotated, corrupt) is no mistake of the list.
    there = {
        pair.stem for i, layout in enumerate(layouts) if source in (None, i) for pair in layout.pairs if pair.image
    }
    found: list[int] = []
    for line, wanted in enumerate(names, 1):
        indices = index_of.get(wanted) or index_of.get(PurePosixPath(wanted).name) or []
        if not indices and not {wanted, PurePosixPath(wanted).name, PurePosixPath(wanted).stem} & there:
            raise BadData(f"{place}: {wanted!r} (entry {line}) names no image; correct the list, or add the image.")
        found += indices
    return sorted(set(found))


def _finish(records: Sequence[Record], sides: Mapping[Side, Sequence[int]], known: Known | None = None) -> Sides:
    if not sides[Side.TRAIN]:
        raise BadData("no image is left to train on; give dataset.split.trainPercent or dataset.subsets.train more.")
    findings = []
    if len(records) < FEW_IMAGES:
        findings.append(
            Finding(
                Kind.WARNING, "FewImages", f"{len(records)} images; with fewer than {FEW_IMAGES} the scores say little"
            )
        )
    total = sum(map(len, sides.values()))
    if known is None and 100 * len(sides[Side.TRAIN]) < 79 * total:
        message = f"{len(sides[Side.TRAIN])} of {total} images are for training; 80 percent or more is usual"
        findings.append(Finding(Kind.WARNING, "SmallTrainingShare", message))
    if sides[Side.VALIDATION]:
        labels = {label for record in records for label in record.labels}
        there = {label for i in sides[Side.VALIDATION] for label in records[i].labels}
        if lacking := sorted(labels - there):
            message = f"no validation image has {', '.join(map(repr, lacking[:5]))}; its score will be missing"
            findings.append(Finding(Kind.WARNING, "LabelNotInValidation", message))
    return Sides(*(tuple(sorted(sides[side])) for side in Side), findings=tuple(findings))
