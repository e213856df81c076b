"""Renders the CRD YAML from the models: `python -m trainyard_api.crd [FOLDER …]` (also `make crds`).

Pydantic's JSON Schema becomes the structural schema that Kubernetes asks for: no `$ref`, no `null` in unions, one `type` per node,
bounds on everything, defaults only where the schema rules of the API allow one (`Model.schema_defaults`).
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, cast

import yaml

from trainyard_api import GROUP, VERSION
from trainyard_api.base import Model
from trainyard_api.modelversion import ModelVersion
from trainyard_api.rules import FIXED, FORBIDDEN, RULES, Rule
from trainyard_api.trainingbudget import TrainingBudget
from trainyard_api.trainingjob import TrainingJob
from trainyard_api.trainingservice import TrainingService

Schema = dict[str, Any]

_MAX_INTEGER = 2**53 - 1  # what every JSON reader keeps exact
_KEPT = frozenset(
    [
        "type",
        "description",
        "enum",
        "format",
        "pattern",
        "minLength",
        "maxLength",
        "minimum",
        "maximum",
        "minItems",
        "maxItems",
        "minProperties",
        "maxProperties",
        "required",
    ]
)


@dataclass(frozen=True)
class Column:
    """A printer column; `wide` ones show with `-o wide` only."""

    name: str
    path: str
    description: str
    type: str = "string"
    wide: bool = False

    def render(self) -> Schema:
        column = {"name": self.name, "type": self.type, "jsonPath": self.path, "description": self.description}
        return column | ({"priority": 1} if self.wide else {})


_AGE = Column("Age", ".metadata.creationTimestamp", "Since when it exists.", type="date")


@dataclass(frozen=True)
class Kind:
    """All of a CRD that is not its schema. `status` is the default of the whole status of a new object."""

    model: type[Model]
    plural: str
    short: str
    columns: tuple[Column, ...]
    selectable: tuple[str, ...]
    status: Mapping[str, Any]
    scale: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def name(self) -> str:
        return self.model.__name__

    @property
    def file_name(self) -> str:
        return f"{GROUP}_{self.plural}.yaml"


KINDS: tuple[Kind, ...] = (
    Kind(
        TrainingJob,
        "trainingjobs",
        "tj",
        (
            Column("State", ".status.state", "Where the job stands."),
            Column("Progress", ".status.summary.progress", "Share of the steps taken."),
            Column("Epoch", ".status.summary.epoch", "Passes over the training images, of how many."),
            Column("Metric", ".status.summary.metric", "Score of the best model so far."),
            Column("Attempt", ".status.summary.attempt", "Attempts that count, of how many."),
            Column("Service", ".status.serviceName", "The service that it runs on."),
            Column("Version", ".status.version", "The ModelVersion that it makes."),
            _AGE,
            Column("Step", ".status.summary.step", "Steps taken, of how many.", wide=True),
            Column("ETA", ".status.summary.eta", "Time left at the present speed.", wide=True),
            Column("Training Time", ".status.trainingSeconds", "Seconds spent training.", type="integer", wide=True),
            Column("Reason", ".status.reason", "Why it is in this state.", wide=True),
        ),
        (".status.state", ".status.serviceName", ".spec.architecture", ".spec.model"),
        {"observedGeneration": -1, "state": "Created"},
    ),
    Kind(
        TrainingService,
        "trainingservices",
        "tsvc",
        (
            Column("Architecture", ".spec.architecture", "The architecture that it trains."),
            Column("Instances", ".status.instances", "Instances that exist.", type="integer"),
            Column("Running", ".status.running", "Executions that run.", type="integer"),
            Column("Queued", ".status.queued", "Jobs that wait.", type="integer"),
            Column("Max", ".spec.scaling.maxInstances", "Most instances at once.", type="integer"),
            Column("Status", ".status.state", "Available, Degraded or Paused."),
            _AGE,
        ),
        (".status.state", ".spec.architecture"),
        {"observedGeneration": -1},
        {
            "specReplicasPath": ".spec.scaling.maxInstances",
            "statusReplicasPath": ".status.instances",
            "labelSelectorPath": ".status.selector",
        },
    ),
    Kind(
        TrainingBudget,
        "trainingbudgets",
        "tb",
        (
            Column("Minutes", ".spec.trainingMinutes", "Training time of one period.", type="integer"),
            Column("Period", ".spec.period", "How often it is renewed."),
            Column("Used", ".status.usedMinutes", "Minutes used in this period.", type="integer"),
            Column("Reserved", ".status.reservedMinutes", "Minutes set aside for what runs now.", type="integer"),
            Column("Remaining", ".status.remainingMinutes", "Minutes left in this period.", type="integer"),
            _AGE,
        ),
        (".spec.period",),
        {"observedGeneration": -1},
    ),
    Kind(
        ModelVersion,
        "modelversions",
        "mv",
        (
            Column("Model", ".spec.model", "The series of versions."),
            Column("Version", ".spec.version", "Its number.", type="integer"),
            Column("State", ".status.state", "Training, Stopped, Ready or Failed."),
            Column("Architecture", ".spec.architecture", "What it is."),
            Column("Metric", ".status.metric", "Its score on the validation images."),
            Column("Job", ".spec.jobName", "The TrainingJob that made it."),
            _AGE,
        ),
        (".status.state", ".spec.model", ".spec.jobName", ".spec.architecture"),
        {"observedGeneration": -1, "state": "Training"},
    ),
)


def custom_resource_definition(kind: Kind) -> Schema:
    """The CRD as a plain dict."""
    subresources: Schema = {"status": {}}
    if kind.scale:
        subresources["scale"] = dict(kind.scale)
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{kind.plural}.{GROUP}",
            "labels": {"app.kubernetes.io/name": "trainyard", "app.kubernetes.io/component": "crds"},
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": kind.name,
                "listKind": f"{kind.name}List",
                "plural": kind.plural,
                "singular": kind.name.lower(),
                "shortNames": [kind.short],
                "categories": ["trainyard"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": subresources,
                    "additionalPrinterColumns": [column.render() for column in kind.columns],
                    "selectableFields": [{"jsonPath": path} for path in kind.selectable],
                    "schema": {"openAPIV3Schema": root_schema(kind)},
                }
            ],
        },
    }


def root_schema(kind: Kind) -> Schema:
    """The structural schema of a whole object."""
    schema = _Renderer(kind.model).object_of(kind.model)
    spec, status = schema["properties"]["spec"], schema["properties"]["status"]
    spec["description"] = f"What is wanted of the {kind.name}."
    status["description"] = f"What the operator says of the {kind.name}; written by it alone."
    status["default"] = dict(kind.status)
    schema["properties"] = {
        "apiVersion": {"type": "string", "description": f"{GROUP}/{VERSION}"},
        "kind": {"type": "string", "description": kind.name},
        "metadata": {"type": "object"},
        **schema["properties"],
    }
    schema["required"] = ["spec"]
    return schema


class _Renderer:
    """Turns the JSON Schema of one root model into a structural schema."""

    def __init__(self, root: type[Model]) -> None:
        schema = root.model_json_schema(by_alias=True)
        self._definitions: dict[str, Schema] = schema.get("$defs", {}) | {root.__name__: schema}
        self._models = {model.__name__: model for model in _reachable(root)}

    def object_of(self, model: type[Model]) -> Schema:
        """The schema of an object of this model: properties, defaults and rules."""
        source = self._definitions[model.__name__]
        properties = {name: self.node(value) for name, value in source["properties"].items()}
        if model.schema_defaults:
            for name, value in defaults_of(model).items():
                properties[name]["default"] = value
        schema: Schema = {"type": "object", "description": " ".join((model.__doc__ or model.__name__).split())}
        if required := source.get("required"):
            schema["required"] = required
        schema["properties"] = properties
        if model.atomic:
            schema["x-kubernetes-map-type"] = "atomic"
        _add_rules(schema, *RULES.get(model, ()))
        if fixed := FIXED.get(model):
            for name in fixed.fields:
                _add_rules(properties[name], Rule("self == oldSelf", fixed.sentence, reason=FORBIDDEN))
                if name not in schema.get("required", ()) and "default" not in properties[name]:
                    # The rule above does not fire where the field is added or removed.
                    there = f"has(self.{name}) == has(oldSelf.{name})"
                    _add_rules(schema, Rule(there, fixed.sentence, path=f".{name}", reason=FORBIDDEN))
        return schema

    def node(self, source: Schema) -> Schema:
        """One node of JSON Schema as a structural one; what stands beside a `$ref` or a union wins over what is in it."""
        if "$ref" in source:
            name = source["$ref"].rsplit("/", 1)[1]
            inner = self.object_of(self._models[name]) if name in self._models else self.node(self._definitions[name])
            return self._beside(inner, source)
        if "allOf" in source and len(source["allOf"]) == 1:
            return self._beside(self.node(source["allOf"][0]), source)
        if "anyOf" in source:
            ways = [way for way in source["anyOf"] if way.get("type") != "null"]
            if len(ways) == 1:
                return self._beside(self.node(ways[0]), source)
        return self._beside({}, source)

    def _beside(self, inner: Schema, source: Schema) -> Schema:
        schema = inner | {
            key: value for key, value in source.items() if key in _KEPT or key.startswith("x-kubernetes-")
        }
        for json_schema, structural in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
            if json_schema in source:
                schema |= {structural: source[json_schema], json_schema: True}
        if "const" in source:
            schema["enum"] = [source["const"]]
        if "items" in source:
            schema["items"] = self.node(source["items"])
        if isinstance(source.get("additionalProperties"), dict):
            schema["additionalProperties"] = self.node(source["additionalProperties"])
        for value in source.get("patternProperties", {}).values():  # of a map whose keys have a pattern
            schema["additionalProperties"] = self.node(value)
        return _structural(schema)


def _structural(schema: Schema) -> Schema:
    """The node with what Kubernetes wants said, and without what a CEL rule says better."""
    schema = dict(schema)
    if "x-kubernetes-validations" in schema and "properties" not in schema:
        schema.pop("pattern", None)  # the rule answers with a sentence instead
    if schema.get("x-kubernetes-int-or-string"):
        for keyword in ("type", "enum", "minLength"):
            schema.pop(keyword, None)
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        schema.pop("additionalProperties", None)
    match schema.get("type"):
        case "integer":
            schema.setdefault("maximum", _MAX_INTEGER)
        case "array":
            schema.setdefault("x-kubernetes-list-type", "atomic")
        case _:
            pass
    return schema


def defaults_of(model: type[Model]) -> Schema:
    """What the API server fills in, by alias: no `null`, no empty list or object, nothing of `schema_defaults = False`.

    A default object is written in full, so that a CEL rule may read it.
    """
    values: Schema = {}
    for info in model.model_fields.values():
        if info.is_required():
            continue
        value = _plain(info.get_default(call_default_factory=True))
        if value is not None and value != [] and value != {}:
            values[str(info.alias)] = value
    return values


def _plain(value: object) -> object:
    if isinstance(value, Model):
        return (
            value.to_dict()
            if value.schema_defaults
            else value.model_dump(mode="json", by_alias=True, exclude_unset=True)
        )
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, tuple):
        return [_plain(item) for item in cast("tuple[object, ...]", value)]
    return value


def _reachable(root: type[Model]) -> set[type[Model]]:
    """Every model that the root's schema can name: all that exist are asked, as names are unique."""
    known: set[type[Model]] = set()
    waiting: list[type[Model]] = [Model]
    while waiting:
        for model in waiting.pop().__subclasses__():
            known.add(model)
            waiting.append(model)
    return known | {root}


def _add_rules(node: Schema, *rules: Rule) -> None:
    if rules:
        node["x-kubernetes-validations"] = [*node.get("x-kubernetes-validations", ()), *map(_validation, rules)]


def _validation(rule: Rule) -> Schema:
    """As Kubernetes writes it; a rule that is looked at `once` is true where there is an old value."""
    cel = f"oldSelf.hasValue() || ({rule.cel})" if rule.once else rule.cel
    rendered: Schema = {"rule": cel, "message": rule.message, "reason": rule.reason}
    if rule.path:
        rendered["fieldPath"] = rule.path
    return rendered | ({"optionalOldSelf": True} if rule.once else {})


def to_yaml(kind: Kind) -> str:
    """The committed file."""
    header = "# Rendered from trainyard_api by `make crds`; edit the models, not this file.\n"
    return header + yaml.dump(
        custom_resource_definition(kind), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True
    )


class _Dumper(yaml.SafeDumper):
    """Writes shared parts out each time: the API server reads no YAML anchors from people's tools alike."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def main(arguments: list[str]) -> int:
    """Writes one file per kind into each folder that is named."""
    for folder in map(Path, arguments or ["crds"]):
        folder.mkdir(parents=True, exist_ok=True)
        for kind in KINDS:
            path = folder / kind.file_name
            path.write_text(to_yaml(kind))
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
