"""The committed CRDs are what the models say, and nothing in them is left open."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from trainyard_api.crd import KINDS, Kind, custom_resource_definition, root_schema, to_yaml
from trainyard_api.reference import markdown

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("crds", "helm/trainyard/files/crds")
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)


@kinds
@pytest.mark.parametrize("folder", FOLDERS)
def test_the_committed_file_is_what_the_models_render(kind: Kind, folder: str) -> None:
    assert (ROOT / folder / kind.file_name).read_text() == to_yaml(kind), "run `make crds` and commit what changed"


def test_the_committed_reference_is_what_the_models_render() -> None:
    assert (ROOT / "docs/reference.md").read_text() == markdown(), "run `make crds` and commit what changed"


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_file_is_left_over(folder: str) -> None:
    assert {path.name for path in (ROOT / folder).glob("*.yaml")} == {kind.file_name for kind in KINDS}


@kinds
def test_the_file_reads_back_as_it_was_meant(kind: Kind) -> None:
    assert yaml.load(to_yaml(kind), yaml.CSafeLoader) == custom_resource_definition(kind)


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node of a structural schema with its path, such as `.spec.dataset.sources[].uri`."""
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from nodes(inner, f"{path}.{name}")
    if "items" in schema:
        yield from nodes(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from nodes(schema["additionalProperties"], f"{path}{{}}")


def open_ends(path: str, node: dict[str, Any]) -> list[str]:
    """What the node leaves open: lengths, sizes, ranges."""
    wanted: tuple[str, ...] = ()
    if node.get("x-kubernetes-int-or-string"):
        wanted = ("maxLength", "x-kubernetes-validations")
    elif "enum" in node or path in (".apiVersion", ".kind", ".metadata"):
        wanted = ()
    elif node["type"] == "string" and "format" not in node:
        wanted = ("maxLength",)
    elif node["type"] == "array":
        wanted = ("maxItems", "x-kubernetes-list-type")
    elif node["type"] == "integer" or (node["type"] == "number" and path.startswith(".spec")):
        wanted = ("minimum", "maximum")
    elif node["type"] == "object" and "properties" not in node:
        wanted = ("maxProperties",)
    return [f"{path} has no {keyword}" for keyword in wanted if keyword not in node]


@kinds
def test_every_field_has_bounds(kind: Kind) -> None:
    assert [problem for path, node in nodes(root_schema(kind)) for problem in open_ends(path, node)] == []


@kinds
def test_every_field_has_a_description_that_says_something(kind: Kind) -> None:
    named = [(path, node) for path, node in nodes(root_schema(kind)) if not path.endswith(("[]", "{}", ".metadata"))]
    short = [path for path, node in named if len(node.get("description", "")) < 4]
    assert short == []


@kinds
def test_the_schema_is_structural(kind: Kind) -> None:
    for path, node in nodes(root_schema(kind)):
        assert not {"$ref", "$defs", "anyOf", "oneOf", "allOf", "const", "title", "propertyNames"} & node.keys(), path
        says_what_is_in_it = {
            "properties",
            "additionalProperties",
            "x-kubernetes-preserve-unknown-fields",
        } & node.keys()
        assert node.get("type") != "object" or path == ".metadata" or says_what_is_in_it, path
        assert ("type" in node) != bool(node.get("x-kubernetes-int-or-string")), path


@kinds
def test_no_default_stands_in_a_list_item(kind: Kind) -> None:
    assert [path for path, node in nodes(root_schema(kind)) if "default" in node and "[]" in path] == []


@pytest.mark.parametrize("part", ["training", "augmentation", "evaluation", "resources", "policy"])
def test_no_default_hides_the_service_s_value_or_breaks_a_union(part: str) -> None:
    spec = root_schema(KINDS[0])["properties"]["spec"]["properties"]
    unions = (spec[part], spec["dataset"]["properties"]["split"], spec["dataset"]["properties"]["subsets"])
    assert [path for node in unions for path, inner in nodes(node) if "default" in inner] == []


@kinds
def test_no_rule_loops_over_what_a_function_returns(kind: Kind) -> None:
    """Kubernetes 1.32 takes such a list to be as long as a request may be: the rule is too dear, and the whole file refused."""
    for path, node in nodes(root_schema(kind)):
        for rule in node.get("x-kubernetes-validations", []):
            assert not re.search(r"\)\.(all|exists|exists_one|filter|map)\(", rule["rule"]), path


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if kind.name in ("TrainingJob", "ModelVersion")], ids=lambda kind: kind.name
)
def test_what_never_changes_is_not_judged_again_at_every_write_of_a_status(kind: Kind) -> None:
    """Save in list items, which have no old value. A field of `self` costs the API server what `self` has of properties."""
    for path, node in nodes(root_schema(kind)):
        for rule in node.get("x-kubernetes-validations", []) if "properties" in node and "[]" not in path else []:
            assert "oldSelf" in rule["rule"], path


@kinds
def test_every_message_is_a_sentence_and_no_template(kind: Kind) -> None:
    text = to_yaml(kind)
    assert "{{" not in text
    for path, node in nodes(root_schema(kind)):
        for rule in node.get("x-kubernetes-validations", []):
            assert " " in rule["message"], path
            assert not rule["message"].endswith("."), path
