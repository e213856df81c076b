"""What a person is told about a dataset: findings grouped by reason, as warnings of a job, as JSON, and as lines of a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from trainyard_api.status import Warning_

from trainyard_trainer.records import Finding, Kind, Record, Side, Sides

MOST_WARNINGS = 16
EXAMPLES = 20


@dataclass(frozen=True, slots=True)
class Group:
    """Findings of one kind and reason; `first` is shown, `count` is how many there are."""

    kind: Kind
    reason: str
    count: int
    examples: tuple[Finding, ...]

    @property
    def first(self) -> Finding:
        return self.examples[0]

    def sentence(self) -> str:
        """The first finding, and how many more like it there are."""
        more = f" (and {self.count - 1} more like it)" if self.count > 1 else ""
        return f"{self.first}{more}"


def grouped(findings: Iterable[Finding], examples: int = EXAMPLES) -> list[Group]:
    """Groups in the order of how much they matter, then of how many they are."""
    found: dict[tuple[Kind, str], list[Finding]] = {}
    for finding in findings:
        found.setdefault((finding.kind, finding.reason), []).append(finding)
    order = list(Kind)
    groups = [Group(kind, reason, len(members), tuple(members[:examples])) for (kind, reason), members in found.items()]
    return sorted(groups, key=lambda group: (order.index(group.kind), -group.count, group.reason))


def warnings(findings: Iterable[Finding]) -> tuple[Warning_, ...]:
    """For the job's status: repairs that lost something, and warnings. Repairs that lost nothing are left to the report."""
    told = [group for group in grouped(findings) if group.kind in (Kind.LOSSY, Kind.WARNING)]
    return tuple(Warning_(reason=group.reason, message=group.sentence()[:1000]) for group in told[:MOST_WARNINGS])


def grouped_json(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """The groups with up to 20 examples each."""
    return [
        {
            "kind": group.kind.value,
            "reason": group.reason,
            "count": group.count,
            "examples": [{"file": f.file, "line": f.line, "message": f.message} for f in group.examples],
        }
        for group in grouped(findings)
    ]


def likenesses(records: Sequence[Record], sides: Sides, pairs: Sequence[tuple[int, int]]) -> list[Finding]:
    """One warning for pictures that look alike, worse when they are on different sides."""
    if not pairs:
        return []
    side_of = {index: side for side in Side for index in sides.of(side)}
    apart = [pair for pair in pairs if side_of.get(pair[0]) != side_of.get(pair[1])]
    first, second = (apart or list(pairs))[0]
    pictures = f"{len(pairs)} {'pair' if len(pairs) == 1 else 'pairs'} of images that look alike"
    named = f"{records[first].image} and {records[second].image}"
    message = (
        f"{pictures}, {len(apart)} on different sides ({named}): scores on such images are too good"
        if apart
        else f"{pictures}, all on the same side ({named})"
    )
    return [Finding(Kind.WARNING, "NearDuplicates", message)]
