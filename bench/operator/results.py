"""What a run found, for people: a table of all systems with the ratios of ours to each, and the runs that were disturbed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Object = dict[str, Any]
DISTURBED_PERCENT = 5.0
"""Above this share of the machine for others, times are theirs as much as ours."""
RATIO_UNITS = (
    "seconds",
    "milliseconds",
    "cpuMillisecondsPerObject",
    "requestsPerObject",
    "perSecond",
    "operatorMiB",
)


def flattened(row: Mapping[str, Any], prefix: str = "") -> Object:
    """`{"seconds": {"job": 1}}` as `{"seconds: job": 1}`."""
    flat: Object = {}
    for key, value in row.items():
        flat |= flattened(value, f"{prefix}{key}: ") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def ratios(results: Mapping[str, Any], ours: str) -> Object:
    """`ratios[case][figure][peer]`: our figure in terms of the peer's, for every figure that both have."""
    found: Object = {}
    for case, row in results.get(ours, {}).items():
        for figure, value in flattened(row).items():
            if figure.split(":")[0] not in RATIO_UNITS:
                continue
            for peer, rows in results.items():
                theirs = flattened(rows.get(case, {})).get(figure)
                if peer != ours and theirs:
                    found.setdefault(case, {}).setdefault(figure, {})[peer] = round(value / theirs, 2)
    return found


def table(results: Mapping[str, Any], against: Mapping[str, Any]) -> None:
    """All figures, a column for each system and then one for each ratio."""
    peers = [name for name in results if any(name in row for case in against.values() for row in case.values())]
    for case in dict.fromkeys(case for rows in results.values() for case in rows):
        heads = [*(f"{name:>14}" for name in results), *(f"{'ours/' + name:>19}" for name in peers)]
        print(f"\n{case:<42}" + "".join(heads))
        flat = {name: flattened(rows[case]) for name, rows in results.items() if case in rows}
        for figure in dict.fromkeys(figure for row in flat.values() for figure in row):
            cells = [f"{flat.get(name, {}).get(figure, ''):>14}" for name in results]
            shares = against.get(case, {}).get(figure, {})
            print(f"{figure:<42}" + "".join([*cells, *(f"{shares.get(name, ''):>19}" for name in peers)]).rstrip())


def disturbed(results: Mapping[str, Any]) -> str:
    """A line that names the runs in which others used the machine."""
    named = [
        f"{name} {case} ({row['foreignPercent']:.0f} % of the machine)"
        for name, rows in results.items()
        for case, row in rows.items()
        if row.get("foreignPercent", 0) > DISTURBED_PERCENT
    ]
    if not named:
        return "Disturbed by other processes: no run."
    return f"Disturbed by other processes, so that times say little: {', '.join(named)}."
