"""A survey of a dataset as a page of text."""

from __future__ import annotations

from trainyard_api.architectures import Architecture
from trainyard_trainer.records import Kind
from trainyard_trainer.survey import Survey

from trainyard_cli.output import table
from trainyard_cli.startfrom import Continued

_TITLES = {
    Kind.ERROR: "Wrong (a training would fail)",
    Kind.LOSSY: "Repaired, with something lost or guessed",
    Kind.REPAIRED: "Repaired, with nothing lost",
    Kind.WARNING: "Worth knowing",
}
_SHOWN = {Kind.ERROR: 20, Kind.LOSSY: 3, Kind.REPAIRED: 1, Kind.WARNING: 1}
"""How many findings of one reason are listed."""
_MOST = 8
"""Lines of a list; -o json has all of them."""


def page(survey: Survey, architecture: Architecture, continued: Continued | None = None) -> str:
    """Totals, labels, sizes of objects, findings with file and line, look-alikes, what is continued, what to add, advice, and the
    verdict."""
    parts = [totals(survey), label_table(survey), *_boxes(survey, architecture), *_findings(survey), *_alike(survey)]
    if continued:
        parts.append(_continuation(continued))
    if additions := survey.additions():
        more = f"\n  and {len(additions) - _MOST} more (-o json shows all)" if len(additions) > _MOST else ""
        parts.append("What to add:\n" + "\n".join(f"  {sentence}" for sentence in additions[:_MOST]) + more)
    advice = survey.advice(architecture)
    settings = (
        f"imageSize {advice.image_size}",
        f"batchSize {advice.batch_size} on CPU, {advice.batch_size_gpu} on GPU",
        f"epochs {advice.epochs}",
    )
    lines = [f"  {setting}: {reason}" for setting, reason in zip(settings, advice.reasons, strict=True)]
    parts.append("\n".join([f"To begin with ({architecture.name}):", *lines]))
    if not survey.decoded:
        parts.append(
            "Of the pictures only the first bytes were read. --pictures fetches and decodes them: damaged ones and look-alikes"
            f"{', and which images the version knows' if continued and continued.parent else ''}."
        )
    if survey.problem is None and not (continued and continued.problem):
        parts.append("This dataset can be trained on.")
    return "\n\n".join(parts)


def totals(survey: Survey) -> str:
    dataset = survey.dataset
    sizes = ", ".join(f"{w}x{h} ({count})" for (w, h), count in survey.image_sizes())
    lines = [
        ", ".join(source.uri for source in dataset.sources),
        f"{len(dataset.records)} images, {sum(len(r.objects) for r in dataset.records)} objects, {len(dataset.labels)} labels",
        f"sizes: {sizes or 'none'}",
    ]
    if survey.sides:
        sides = survey.sides
        lines.append(
            f"split: {len(sides.train)} training, {len(sides.validation)} validation, {len(sides.test)} test images"
        )
    return "\n".join(lines)


def label_table(survey: Survey) -> str:
    rows = survey.label_stats()
    most = max((row.objects for row in rows), default=0)
    return table(
        ("LABEL", "OBJECTS", "IMAGES", "DIFFICULT", "MEDIAN BOX", "AREA %", "SHARE"),
        [
            (
                row.label,
                row.objects,
                row.images,
                row.difficult or "",
                f"{row.width:g}x{row.height:g}" if row.objects else "",
                f"{row.smallest:g}-{row.largest:g}" if row.objects else "",
                "#" * max(1, round(20 * row.objects / most)) if most and row.objects else "",
            )
            for row in rows
        ],
    )


def _continuation(continued: Continued) -> str:
    """What a training says of `startFrom`."""
    if continued.unread:
        return f"What it starts from, {continued.name}, was not looked at: {continued.unread}"
    lines = [f"It starts from {continued.name}:"]
    if continued.labels:
        lines.append(f"  labels: {', '.join(continued.labels)}")
    if continued.known_images is not None:
        lines.append(f"  images that stay on the side where they were: {continued.known_images}")
    lines += [f"  {warning.reason}: {warning.message}" for warning in continued.warnings or ()]
    if continued.problem:
        lines.append(f"  a training would fail: {continued.problem}")
    elif continued.warnings is None:
        lines.append("  what is kept of it depends on the labels, and the data has faults.")
    elif not continued.warnings:
        lines.append("  all its weights are kept.")
    return "\n".join(lines)


def _boxes(survey: Survey, architecture: Architecture) -> list[str]:
    size = survey.advice(architecture).image_size
    bins = survey.box_bins(size)
    total = sum(count for _, count in bins)
    if not total:
        return []
    shown = ", ".join(f"{name} {100 * count / total:.0f} %" for name, count in bins if count)
    return [f"Objects by their shorter side, with images of {size} px: {shown}"]


def _alike(survey: Survey) -> list[str]:
    groups = survey.alike
    if not groups:
        return []
    lines = [
        f"  {', '.join(group.names[:4])}{f' and {len(group.names) - 4} more' if len(group.names) > 4 else ''}"
        f"{'   (on different sides)' if group.apart else ''}"
        for group in groups[:_MOST]
    ]
    if len(groups) > _MOST:
        lines.append(f"  and {len(groups) - _MOST} more groups (-o json names all)")
    return ["\n".join(["Images that look alike:", *lines])]


def _findings(survey: Survey) -> list[str]:
    parts = []
    groups = survey.groups()
    for kind, title in _TITLES.items():
        own = [group for group in groups if group.kind is kind]
        if not own:
            continue
        lines = [f"{title}:"]
        for group in own:
            shown = group.examples[: _SHOWN[kind]]
            lines += [f"  {finding}" for finding in shown]
            if group.count > len(shown):
                lines.append(
                    f"    and {group.count - len(shown)} more like {'it' if len(shown) == 1 else 'them'} ({group.reason})"
                )
        parts.append("\n".join(lines))
    return parts
