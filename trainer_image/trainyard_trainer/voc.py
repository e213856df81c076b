"""Pascal VOC as it is found in the wild: sources to records, labels and findings. No torch.

`load` reads names, annotations and image headers; `Dataset.without` takes out what later turned out not to be decodable. Errors are
collected as far as possible, so that one look shows all of them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from trainyard_api.architectures import Task
from trainyard_api.dataset import Dataset as DatasetSpec
from trainyard_api.dataset import Unannotated, WithoutObjects

from trainyard_trainer import voc_boxes, voc_json, voc_labels, voc_layout, voc_tags, voc_xml
from trainyard_trainer.errors import BadData, Interrupted
from trainyard_trainer.records import Finding, Kind, Progress, Record, StopFlag, never, silent
from trainyard_trainer.voc_image import ImageFacts, Look
from trainyard_trainer.voc_layout import Layout, Pair
from trainyard_trainer.voc_source import Source
from trainyard_trainer.voc_warnings import dataset_warnings
from trainyard_trainer.voc_xml import Annotation

MIN_IMAGES = 10


@dataclass(frozen=True)
class Dataset:
    """What was read. `labels` in the order of score columns; `annotated` images and `stated` objects are what the files held, before repairs."""

    records: tuple[Record, ...]
    labels: tuple[str, ...]
    findings: tuple[Finding, ...]
    digest: str
    sources: tuple[Source, ...]
    layouts: tuple[Layout, ...]
    task: Task
    annotated: int
    stated: int
    max_repair_percent: int
    to_train: bool = True
    """Whether it has to do for a training; to score a model any image with truth does."""

    def read(self, record: Record) -> bytes:
        """The bytes of a record's image."""
        return self.sources[record.source].read(record.image)

    def of_kind(self, kind: Kind) -> list[Finding]:
        return [finding for finding in self.findings if finding.kind is kind]

    def without(self, corrupt: Mapping[int, Finding], repaired: Iterable[Finding] = ()) -> Dataset:
        """The dataset without some records, each with the reason; `repaired` are further findings.

        Raises BadData when too much is repaired or too little is left.
        """
        kept = tuple(record for index, record in enumerate(self.records) if index not in corrupt)
        changed = replace(self, records=kept, findings=self.findings + tuple(corrupt.values()) + tuple(repaired))
        changed.check()
        return changed

    def check(self) -> None:
        """Raises BadData for errors, too many lossy repairs, no labels, and what cannot be trained on: too few images or classes."""
        refuse(self.of_kind(Kind.ERROR))
        check_repairs(self)
        used = [record for record in self.records if record.annotation or record.tags]
        if self.to_train and len(used) < MIN_IMAGES:
            raise BadData(f"{len(used)} annotated images are too few to train on; at least {MIN_IMAGES} are needed.")
        if not self.labels:
            raise BadData(
                "no image has an object; annotate some, or check that the <object> elements are where they belong."
            )
        if self.to_train and self.task is Task.CLASSIFICATION and len(self.labels) < 2:
            raise BadData(f"classification needs at least two labels; all images are {', '.join(self.labels)!r}.")


def load(
    spec: DatasetSpec,
    task: Task,
    sources: Sequence[Source],
    *,
    known_labels: Sequence[str] = (),
    stop: StopFlag = never,
    progress: Progress = silent,
    strict: bool = True,
    to_train: bool = True,
) -> Dataset:
    """Reads and checks the sources. `known_labels` are those of the version that is continued: they keep their order.

    With `to_train=False` nothing is asked for or said that only matters to a training.

    Raises BadData; with `strict=False` only where nothing can be read at all, so that a report can show every finding.
    """
    reader = _Reader(spec, task, sources, stop, progress)
    findings: list[Finding] = []
    records: list[Record] = []
    labels_of: list[frozenset[str]] = []
    layouts = [voc_layout.find(source) for source in sources]
    reader.total = sum(len(layout.pairs) for layout in layouts)
    parsed = [reader.parse_all(index, layout) for index, layout in enumerate(layouts)]
    stated = sum(len(annotation.objects) for found in parsed for annotation in found.values())
    annotated = sum(len(found) for found in parsed)
    for index, (layout, by_stem) in enumerate(zip(layouts, parsed, strict=True)):
        # Each source by itself: one may count from 0 and another from 1.
        first_pixel, note = voc_boxes.origin(by_stem.values(), spec.limits.box_origin)
        own, found = reader.records(index, layout, by_stem, first_pixel)
        if note:
            findings.append(replace(note, file=sources[index].uri) if len(sources) > 1 else note)
        tagged, more = own, []
        if task is not Task.DETECTION:
            tagged, more = voc_tags.apply(own, layout, sources[index], index)
        if task is Task.TAGGING and spec.without_objects is WithoutObjects.SKIP:
            tagged, without = voc_tags.with_a_tag(tagged)
            more = [*more, *without]
        records.extend(tagged)
        labels_of.append(frozenset(label for record in tagged for label in voc_tags.all_labels(record)))
        place = f"{sources[index].uri.rstrip('/')}!" if len(sources) > 1 else ""
        findings.extend(replace(f, file=place + f.file) if f.file else f for f in (*layout.findings, *found, *more))
    labels, found = voc_labels.choose(spec, labels_of, known_labels, records)
    findings.extend(found)
    if task is Task.CLASSIFICATION:
        records, found = voc_tags.one_label_each(records)
        findings.extend(found)
    if spec.limits.max_images is not None and len(records) > spec.limits.max_images:
        findings.append(
            Finding(
                Kind.ERROR,
                "TooManyImages",
                f"{len(records):,} images, more than dataset.limits.maxImages ({spec.limits.max_images:,})",
            )
        )
    if to_train:
        findings.extend(dataset_warnings(records, labels, task))
        findings.extend(voc_labels.unasked_lists(spec, layouts))
    dataset = Dataset(
        tuple(records), labels, tuple(findings), digest(sources), tuple(sources), tuple(layouts), task, annotated, stated,
        spec.limits.max_repair_percent, to_train,
    )  # fmt: skip
    if strict:
        dataset.check()
    return dataset


def digest(sources: Sequence[Source]) -> str:
    """Changes when the data changes: the only source's own, or a hash over all of them."""
    if len(sources) == 1:
        return sources[0].digest
    return hashlib.sha256("\n".join(source.digest for source in sources).encode()).hexdigest()


def refuse(errors: Sequence[Finding], shown: int = 5) -> None:
    """Raises BadData with the first errors, when there are any."""
    if not errors:
        return
    text = "; ".join(str(finding) for finding in errors[:shown])
    more = f"; and {len(errors) - shown} more (trainyard dataset check lists them)" if len(errors) > shown else ""
    raise BadData(f"{text}{more}.")


def check_repairs(dataset: Dataset) -> None:
    """Raises BadData when more than `maxRepairPercent` of the images or of the objects lost something."""
    lossy = dataset.of_kind(Kind.LOSSY)
    images = len({finding.file for finding in lossy if finding.reason in IMAGE_REPAIRS})
    objects = sum(finding.reason not in IMAGE_REPAIRS for finding in lossy)
    for count, of, what in ((images, dataset.annotated, "images"), (objects, dataset.stated, "objects")):
        if of and 100 * count > dataset.max_repair_percent * of:
            kinds = Counter(f.reason for f in lossy if (f.reason in IMAGE_REPAIRS) == (what == "images"))
            first = next(f for f in lossy if f.reason in kinds)
            raise BadData(
                f"{count} of {of} {what} ({100 * count / of:.0f} %) needed a repair that loses or guesses something, more than"
                f" dataset.limits.maxRepairPercent ({dataset.max_repair_percent}): "
                + ", ".join(f"{n} x {reason}" for reason, n in kinds.most_common())
                + f"; the first: {first}."
            )


IMAGE_REPAIRS = frozenset({"ImageMissing", "ImageCorrupt", "ImageTruncated"})


class _Reader:
    """Reads one source after the other; holds what all of them need."""

    def __init__(
        self, spec: DatasetSpec, task: Task, sources: Sequence[Source], stop: StopFlag, progress: Progress
    ) -> None:
        self.spec, self.task, self.sources = spec, task, sources
        self.stop, self.progress = stop, progress
        self.done = self.total = 0
        self.has_answers = False

    def parse_all(self, index: int, layout: Layout) -> dict[str, Annotation]:
        """Annotations by stem."""
        found = {}
        for pair in layout.pairs:
            self._check()
            if pair.annotation is not None:
                data = self.sources[index].read(pair.annotation)
                parse = voc_json.parse if pair.annotation.lower().endswith(".json") else voc_xml.parse
                found[pair.stem] = parse(data, pair.annotation)
        return found

    def records(
        self, index: int, layout: Layout, annotations: Mapping[str, Annotation], first_pixel: int
    ) -> tuple[list[Record], list[Finding]]:
        records: list[Record] = []
        findings: list[Finding] = []
        self.has_answers = self.task is not Task.DETECTION and voc_tags.has_answers(layout, self.sources[index])
        for pair in layout.pairs:
            self._check()
            self.done += 1
            self.progress(self.done, self.total)
            annotation = annotations.get(pair.stem)
            if annotation is not None:
                findings.extend(annotation.findings)
            record = self._record(index, pair, annotation, first_pixel, findings)
            if record is not None:
                records.append(record)
        return records, findings

    def _record(
        self, index: int, pair: Pair, annotation: Annotation | None, first_pixel: int, findings: list[Finding]
    ) -> Record | None:
        if pair.image is None:
            assert pair.annotation is not None
            findings.append(
                Finding(Kind.LOSSY, "ImageMissing", "there is no image of this name; skipped", pair.annotation)
            )
            return None
        if annotation is None:
            if not self._use_unannotated(pair, findings):
                return None
            annotation = Annotation("")
        found = self.sources[index].look(pair.image, self.spec.limits.max_pixels)
        facts = found.facts
        if facts is None:
            findings.append(_unreadable(found, pair.image))
            return None
        _check_names(pair, annotation, facts, findings)
        objects, orientation, repaired = voc_boxes.place(annotation, facts, first_pixel)
        findings.extend(repaired if annotation.file else ())
        if not annotation.file:
            orientation = facts.orientation
        # Of an image network the lists may still have the answer.
        skip = self.task is Task.DETECTION and self.spec.without_objects is WithoutObjects.SKIP
        if annotation.file and not objects and skip:
            findings.append(Finding(Kind.WARNING, "WithoutObjects", "has no object; skipped", annotation.file))
            return None
        rotated = orientation >= 5
        return Record(
            name=f"{index}/{pair.stem}" if len(self.sources) > 1 else pair.stem,
            image=pair.image,
            annotation=pair.annotation,
            source=index,
            width=facts.height if rotated else facts.width,
            height=facts.width if rotated else facts.height,
            digest=found.digest,
            orientation=orientation,
            objects=objects,
        )

    def _use_unannotated(self, pair: Pair, findings: list[Finding]) -> bool:
        # Lists under ImageSets/Main are the annotation of a dataset for an image network.
        if self.has_answers:
            return True
        use = self.spec.unannotated is Unannotated.BACKGROUND and self.task is Task.DETECTION
        what = "taken as background" if use else "skipped"
        findings.append(
            Finding(
                Kind.WARNING, "AnnotationMissing", f"has no annotation; {what} (dataset.unannotated)", pair.image or ""
            )
        )
        return use

    def _check(self) -> None:
        if self.stop():
            raise Interrupted("asked to stop while checking the dataset; the next attempt starts over here.")


def _unreadable(look: Look, name: str) -> Finding:
    """Whatever has no picture's first bytes is a mistake to be told; bytes that were lost are a picture to be left out."""
    assert look.problem is not None
    lost = look.problem.reason == "ImageUnreadable" and look.begun
    kind, reason = (Kind.LOSSY, "ImageCorrupt") if lost else (Kind.ERROR, look.problem.reason)
    return Finding(kind, reason, f"{look.problem}{'; left out' if lost else ''}", name)


def _check_names(pair: Pair, annotation: Annotation, facts: ImageFacts, findings: list[Finding]) -> None:
    assert pair.image is not None
    extension = PurePosixPath(pair.image).suffix
    if not facts.fits_extension(extension):
        findings.append(
            Finding(Kind.REPAIRED, "ExtensionWrong", f"is {facts.format}, whatever its name says", pair.image)
        )
    if facts.mode not in ("RGB", "YCbCr"):
        findings.append(
            Finding(Kind.REPAIRED, "ColoursConverted", f"has mode {facts.mode}; converted to RGB", pair.image)
        )
    named = annotation.filename.replace("\\", "/").rsplit("/", 1)[-1]
    if annotation.file and named != PurePosixPath(pair.image).name:
        findings.append(
            Finding(
                Kind.REPAIRED,
                "FilenameWrong",
                f"<filename> is {named!r}; the image of the same stem is taken",
                annotation.file,
            )
        )
