"""Renders the reference of every field as Markdown: `python -m trainyard_api.reference FILE` (also `make crds`)."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic.alias_generators import to_camel

from trainyard_api import API_VERSION
from trainyard_api.architectures import ARCHITECTURES
from trainyard_api.crd import KINDS, Kind, Schema, root_schema
from trainyard_api.training import Augmentation, AugmentationPreset

_RANGES = (
    ("minimum", "≥"),
    ("maximum", "≤"),
    ("maxLength", "length ≤"),
    ("maxItems", "items ≤"),
    ("maxProperties", "entries ≤"),
)
_UNBOUNDED = 2**53 - 1


def markdown() -> str:
    """The whole page."""
    parts = [
        f"# Reference: {API_VERSION}\n\nRendered from the models by `make crds`; `kubectl explain tj.spec` says the same.\n",
        *(_kind(kind) for kind in KINDS),
        _architectures(),
        _presets(),
    ]
    return "\n".join(parts)


def _kind(kind: Kind) -> str:
    schema = root_schema(kind)
    spec, status = schema["properties"]["spec"], schema["properties"]["status"]
    return "\n".join(
        [
            f"## {kind.name} (`{kind.short}`)\n\n{schema['description']}\n",
            _table(("field", "type", "default", "bounds", "description"), _rows(spec, "", bounds=True)),
            f"### Status of a {kind.name}\n",
            _table(("field", "type", "description"), _rows(status, "", bounds=False)),
        ]
    )


def _rows(schema: Schema, path: str, *, bounds: bool) -> Iterator[tuple[str, ...]]:
    """One row per field, parents first."""
    for name, node in schema.get("properties", {}).items():
        here = f"{path}{name}"
        required = "**" if name in schema.get("required", ()) else ""
        text = node.get("description", "")
        if bounds:
            default = "" if node.get("type") == "object" else _default(node)
            yield f"{required}`{here}`{required}", _type(node), default, _bounds(node), text
        else:
            yield f"`{here}`", _type(node), text
        inner = node.get("items", node)
        yield from _rows(inner, f"{here}{'[]' if 'items' in node else ''}.", bounds=bounds)


def _type(node: Schema) -> str:
    if node.get("x-kubernetes-int-or-string"):
        return "integer or string"
    if "items" in node:
        return f"list of {_type(node['items'])}s"
    if "additionalProperties" in node:
        return f"map to {_type(node['additionalProperties'])}"
    if "enum" in node and node["type"] == "string":
        return ", ".join(f"`{value}`" for value in node["enum"])
    return node["type"]


def _default(node: Schema) -> str:
    value = node.get("default")
    return "" if value is None else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _bounds(node: Schema) -> str:
    said: list[str] = []
    for keyword, sign in _RANGES:
        value: Any = node.get(keyword)
        if value is not None and value != _UNBOUNDED:
            exclusive = node.get(f"exclusive{keyword.capitalize()}")
            said.append(f"{sign.replace('≥', '>').replace('≤', '<') if exclusive else sign} {value:,}")
    return ", ".join(said)


def _architectures() -> str:
    rows = (
        (
            f"`{entry.name}`",
            " or ".join(entry.tasks),
            f"{entry.parameters / 1e6:.1f} M",
            f"{entry.gflops:.1f}",
            str(entry.image_size),
            "needs a GPU" if entry.needs_gpu else str(entry.batch_cpu),
            str(entry.batch_gpu),
            f"{entry.learning_rate:g}",
            entry.description,
        )
        for entry in ARCHITECTURES.values()
    )
    return "## The catalogue\n\n" + _table(
        (
            "architecture",
            "task",
            "parameters",
            "GFLOP",
            "imageSize",
            "batchSize on CPU",
            "on GPU",
            "learningRate",
            "description",
        ),
        rows,
    )


def _presets() -> str:
    """What each preset of `augmentation` sets; 0 is off."""
    names = [name for name in Augmentation.model_fields if name not in ("preset", "off_last_percent")]
    rows = (
        (
            f"`{to_camel(name)}`",
            *(str(Augmentation.PRESETS[preset].get(name, 0) or "") for preset in AugmentationPreset),
        )
        for name in names
    )
    return "## The presets of `augmentation`\n\nEmpty is off; the units are those of the fields above.\n\n" + _table(
        ("field", *(f"`{preset}`" for preset in AugmentationPreset)), rows
    )


def _table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join("| " + " | ".join(_escaped(cell) for cell in line) + " |\n" for line in lines)


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|").replace("<", "&lt;")


def main(arguments: list[str]) -> int:
    path = Path(arguments[0] if arguments else "docs/reference.md")
    path.write_text(markdown())
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
