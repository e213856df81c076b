"""HTML and SVG as values: `tag("td", text, class_="number")`. All text is escaped, what is marked up stays as it is.

So that no label, file name or message of a dataset can become markup, whatever it holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

VOID = frozenset({"img", "meta", "br", "line", "rect", "circle", "polyline", "path"})


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element. Attributes: a last underscore goes, inner ones become hyphens; None leaves one out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID and not children:
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{join(children)}</{name}>")


def join(children: object) -> Markup:
    """Text, markup, numbers, and lists of them one after the other; None is nothing."""
    if children is None:
        return Markup()
    if isinstance(children, Markup):
        return children
    if isinstance(children, Iterable) and not isinstance(children, str):
        return Markup("".join(join(child) for child in children))
    return Markup(escape(str(children)))


def table(header: Iterable[object], rows: Iterable[Iterable[object]]) -> Markup:
    """A table; numbers stand to the right."""
    head = tag("tr", [tag("th", cell) for cell in header])
    body = [tag("tr", [_cell(cell) for cell in row]) for row in rows]
    return tag("div", tag("table", tag("thead", head), tag("tbody", body)), class_="scroll")


def _cell(value: object) -> Markup:
    if isinstance(value, float):
        return tag("td", f"{value:.3f}", class_="number")
    return tag("td", value, class_="number" if isinstance(value, int) else None)
