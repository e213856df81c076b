"""The goals of rangespec.yaml, held against the figures of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

Object = dict[str, Any]
FILE = Path(__file__).with_name("rangespec.yaml")


@dataclass(frozen=True)
class Goal:
    """A figure, by its path in the results, or its ratio to another one, and how much it may or must be."""

    what: str
    value: tuple[str, ...]
    over: tuple[str, ...] | None = None
    """The figure that it is divided by: of the same run, so that the machine's speed falls out."""
    most: float | None = None
    least: float | None = None
    unit: str = ""

    @property
    def bound(self) -> str:
        sign, bound = ("<=", self.most) if self.most is not None else (">=", self.least)
        return f"{sign} {bound:g} {self.unit}".rstrip()

    def reached(self, value: float) -> bool:
        return (self.most is None or value <= self.most) and (self.least is None or value >= self.least)


def goals(benchmark: str) -> list[Goal]:
    """The goals of a benchmark. Raises ValueError for a goal that could not be missed."""
    found = []
    for entry in yaml.safe_load(FILE.read_text())[benchmark]:
        paths = {name: tuple(map(str, entry[name])) for name in ("value", "over") if name in entry}
        goal = Goal(**entry | paths)
        if (goal.most is None) == (goal.least is None):
            raise ValueError(f"{FILE.name}: {goal.what}: give either `most` or `least`")
        found.append(goal)
    return found


def figure(results: Mapping[str, Any], path: Sequence[str]) -> float | None:
    """The number at `path`, None where the run has not measured it."""
    value: Any = results
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return value


def verdict(goal: Goal, results: Mapping[str, Any]) -> Object:
    """`{what, goal, value, verdict}`, the verdict being reached, missed or not measured."""
    value = figure(results, goal.value)
    if value is not None and goal.over:
        floor = figure(results, goal.over)
        value = round(value / floor, 3) if floor else None
    word = "not measured" if value is None else "reached" if goal.reached(value) else "missed"
    return {"what": goal.what, "goal": goal.bound, "value": value, "verdict": word}


def report(wanted: Sequence[Goal], results: Mapping[str, Any]) -> list[Object]:
    """Print every goal with what the run found; the same as data."""
    verdicts = [verdict(goal, results) for goal in wanted]
    for each in verdicts:
        value = "" if each["value"] is None else f"{each['value']:g}"
        print(f"{each['verdict']:<14}{each['what']:<76}{value:>12}   goal {each['goal']}")
    return verdicts


def missed(verdicts: Sequence[Object]) -> bool:
    return any(each["verdict"] == "missed" for each in verdicts)
