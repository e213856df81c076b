"""Which labels are learnt, in which order, and what about them a person should know."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from trainyard_api.dataset import Dataset as DatasetSpec
from trainyard_api.dataset import LabelPolicy

from trainyard_trainer.records import Finding, Kind, Record
from trainyard_trainer.voc_layout import Layout
from trainyard_trainer.voc_xml import clean_label


def choose(
    spec: DatasetSpec, labels_of: Sequence[frozenset[str]], known: Sequence[str], records: Iterable[Record]
) -> tuple[tuple[str, ...], list[Finding]]:
    """Labels in the order of score columns, and what is wrong with them."""
    found = frozenset[str]().union(*labels_of)
    findings = _label_policy(spec, labels_of)
    if spec.labels is not None:
        declared = tuple(clean_label(label, None) for label in spec.labels)
        findings.extend(_undeclared(found, declared, records))
        for label in declared:
            if label not in found:
                near = get_close_matches(label, sorted(found), 1)
                hint = f"; the data has {near[0]!r}" if near else ""
                findings.append(
                    Finding(
                        Kind.ERROR, "LabelAbsent", f"the label {label!r} of dataset.labels is nowhere in the data{hint}"
                    )
                )
        return declared, findings
    new = sorted(found - set(known))
    if known and (new or set(known) - found):
        message = f"labels differ from the version that is continued: new {new or 'none'}, not in this data {sorted(set(known) - found) or 'none'}"
        findings.append(Finding(Kind.WARNING, "LabelsDifferFromPreviousVersion", message))
    folded = Counter(label.casefold() for label in found)
    for key in sorted(key for key, count in folded.items() if count > 1):
        same = sorted(label for label in found if label.casefold() == key)
        findings.append(
            Finding(
                Kind.WARNING,
                "LabelsDifferInCase",
                f"{' and '.join(map(repr, same))} differ only in case and are learnt apart",
            )
        )
    return (*known, *new), findings


def _undeclared(found: frozenset[str], declared: tuple[str, ...], records: Iterable[Record]) -> list[Finding]:
    findings = []
    missing = set(found) - set(declared)
    for record in records:
        for item in record.objects:
            if item.label in missing:
                missing.discard(item.label)
                near = get_close_matches(item.label, declared, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                message = f"the label {item.label!r} is not in dataset.labels{hint}"
                findings.append(
                    Finding(Kind.ERROR, "LabelUndeclared", message, record.annotation or "", item.line or None)
                )
    findings.extend(
        Finding(Kind.ERROR, "LabelUndeclared", f"the label {label!r} is not in dataset.labels")
        for label in sorted(missing)
    )
    return findings


def _label_policy(spec: DatasetSpec, labels_of: Sequence[frozenset[str]]) -> list[Finding]:
    """What differs between the sources: an error or a warning, by `labelPolicy`."""
    everything = frozenset[str]().union(*labels_of)
    findings = []
    for source, labels in zip(spec.sources, labels_of, strict=True):
        if lacking := sorted(everything - labels):
            identical = spec.label_policy is LabelPolicy.IDENTICAL
            effect = "dataset.labelPolicy is Identical" if identical else "its objects would count as background there"
            message = f"{source.uri} has no object labelled {', '.join(map(repr, lacking[:5]))}; {effect}"
            findings.append(Finding(Kind.ERROR if identical else Kind.WARNING, "LabelsDifferBetweenSources", message))
    return findings


def unasked_lists(spec: DatasetSpec, layouts: Sequence[Layout]) -> list[Finding]:
    names = sorted({name for layout in layouts for name in layout.lists} & {"train", "val", "trainval", "test"})
    if not names or spec.subsets is not None:
        return []
    message = f"the data brings the lists {', '.join(names)} in ImageSets/Main, which are not used; dataset.subsets names them as sides"
    return [Finding(Kind.WARNING, "ListsNotUsed", message)]
