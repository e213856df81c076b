"""Charts as inline SVG, in the page's own colours, so that they are right in the light and in the dark. No library, no script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trainyard_trainer.markup import Markup, tag

WIDTH, HEIGHT = 460, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 12, 34
MOST_POINTS = 300
COLOURS = 10
"""Classes `c0` to `c9` of the page's style."""


@dataclass(frozen=True)
class Series:
    """A curve: x ascending; values that are not finite are gaps."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]


def line_chart(
    title: str,
    series: Sequence[Series],
    x_label: str,
    *,
    y_range: tuple[float, float] | None = None,
    x_range: tuple[float, float] | None = None,
) -> Markup:
    """A figure with the curves and their names. Long curves are drawn as the means of 300 equal parts."""
    drawn = [thinned(one) for one in series if len(one.xs)]
    points = [(x, y) for one in drawn for x, y in zip(one.xs, one.ys, strict=True) if math.isfinite(y)]
    if not points:
        return Markup()
    x_axis = x_range or _range([x for x, _ in points])
    y_axis = y_range or _range([y for _, y in points])
    axes = _Axes(x_axis, y_axis)
    parts = [axes.grid(x_label)]
    for number, one in enumerate(drawn):
        parts.append(_curve(one, axes, number % COLOURS))
    svg = tag("svg", parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=title)
    names = [tag("span", one.name, class_=f"key k{number % COLOURS}") for number, one in enumerate(drawn)]
    legend = tag("div", names, class_="legend") if len(drawn) > 1 else None
    return tag("figure", tag("figcaption", title), svg, legend)


def bar_chart(title: str, bars: Sequence[tuple[str, float]]) -> Markup:
    """Horizontal bars with their values, in the order given."""
    most = max((value for _, value in bars), default=0) or 1
    rows = [
        tag(
            "div",
            tag("span", name, class_="name"),
            tag("span", tag("span", "", style=f"width:{100 * value / most:.2f}%"), class_="bar"),
            tag("span", f"{value:g}", class_="number"),
            class_="row",
        )
        for name, value in bars
    ]
    return tag("figure", tag("figcaption", title), tag("div", rows, class_="bars"))


def thinned(series: Series, most: int = MOST_POINTS) -> Series:
    """At most so many points: means of equal parts."""
    count = len(series.xs)
    if count <= most:
        return series
    xs, ys = [], []
    for i in range(most):
        part = slice(i * count // most, (i + 1) * count // most)
        finite = [y for y in series.ys[part] if math.isfinite(y)]
        xs.append(series.xs[part][-1])
        ys.append(sum(finite) / len(finite) if finite else math.nan)
    return Series(series.name, xs, ys)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from `low` to `high`."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class _Axes:
    """From values to the picture's coordinates."""

    x_range: tuple[float, float]
    y_range: tuple[float, float]

    def x(self, value: float) -> float:
        low, high = self.x_range
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def grid(self, x_label: str) -> list[Markup]:
        bottom = HEIGHT - BOTTOM
        parts = []
        for value in ticks(*self.y_range):
            y = round(self.y(value), 1)
            parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
            parts.append(tag("text", f"{value:.4g}", x=LEFT - 6, y=y + 4, text_anchor="end"))
        for value in ticks(*self.x_range):
            x = round(self.x(value), 1)
            parts.append(tag("line", x1=x, x2=x, y1=bottom, y2=bottom + 4, class_="axis"))
            parts.append(tag("text", f"{value:.6g}", x=x, y=bottom + 16, text_anchor="middle"))
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=bottom, y2=bottom, class_="axis"))
        parts.append(tag("text", x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 4, text_anchor="middle"))
        return parts


def _curve(series: Series, axes: _Axes, colour: int) -> list[Markup]:
    """Lines between neighbours that are finite, and a dot with its value for each point of a short curve."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(series.xs, series.ys, strict=True):
        if math.isfinite(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    parts = []
    for run in runs:
        text = " ".join(f"{axes.x(x):.1f},{axes.y(y):.1f}" for x, y in run)
        if len(run) > 1:
            parts.append(tag("polyline", points=text, class_=f"c{colour}"))
        if len(series.xs) <= 60:
            parts += [
                tag("circle", tag("title", f"{series.name} {y:.4g} at {x:g}"), cx=f"{axes.x(x):.1f}", cy=f"{axes.y(y):.1f}",
                    r=2.5, class_=f"d{colour}")
                for x, y in run
            ]  # fmt: skip
    return parts


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    if low == high:
        margin = abs(low) * 0.1 or 1.0
        return low - margin, high + margin
    return low, high
