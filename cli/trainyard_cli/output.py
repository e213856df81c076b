"""How results are printed: a table for people, JSON or YAML for programs."""

import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import yaml


class Format(StrEnum):
    TABLE = "table"
    WIDE = "wide"
    NAME = "name"
    JSON = "json"
    YAML = "yaml"


def table(header: Sequence[str], rows: Sequence[Sequence[object]], gap: int = 3) -> str:
    """Left-aligned columns as kubectl prints them; an empty cell is empty."""
    cells = [[str(cell) if cell is not None else "" for cell in row] for row in (header, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    lines = (" " * gap).join
    return "\n".join(
        lines(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells
    )


def dump(value: Any, form: Format) -> str:
    """`value` as JSON or YAML text, without a final line break."""
    if form is Format.JSON:
        return json.dumps(value, indent=2, ensure_ascii=False)
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).rstrip("\n")


def print_list(items: Sequence[dict[str, Any]], form: Format, none: str, as_table: Callable[[], str]) -> None:
    """A list of objects as kubectl prints one; `none` goes to stderr where there are none to see."""
    if form in (Format.JSON, Format.YAML):
        print(dump({"apiVersion": "v1", "kind": "List", "items": list(items)}, form))
    elif form is Format.NAME:
        print("\n".join(item["metadata"]["name"] for item in items))
    elif not items:
        print(none, file=sys.stderr)
    else:
        print(as_table())


def with_namespaces(
    header: Sequence[str], rows: Sequence[Sequence[object]], items: Sequence[dict[str, Any]]
) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
    """A table's header and rows with the namespace of each item in front."""
    named = [(item["metadata"]["namespace"], *cells) for item, cells in zip(items, rows, strict=True)]
    return ("NAMESPACE", *header), named


def duration(seconds: float | None) -> str:
    """`42s`, `4m10s`, `3h5m`, `2d4h`: the two largest units, as kubectl shows an age."""
    if seconds is None:
        return ""
    whole = max(0, int(seconds))
    if whole < 60:
        return f"{whole}s"
    for size, unit, below, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            rest = whole % size // below
            return f"{whole // size}{unit}" + (f"{rest}{small}" if rest else "")
    return ""


def age(timestamp: str | None, now: datetime) -> str:
    """Time since an RFC 3339 timestamp."""
    if not timestamp:
        return ""
    return duration((now - datetime.fromisoformat(timestamp).astimezone(UTC)).total_seconds())
