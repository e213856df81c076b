"""Which fields of the schema have no behaviour in this release: using one is a warning, `NotYetSupported`, never silence.

To build one: delete its line. A field counts as used when its value differs from its default.
"""

from collections.abc import Iterable, Sequence

from pydantic import BaseModel

from trainyard_api.architectures import ARCHITECTURES, is_private
from trainyard_api.trainingjob import TrainingJobSpec
from trainyard_api.trainingservice import TrainingServiceSpec

NOT_YET_SUPPORTED = "NotYetSupported"
"""Reason of the warning."""

JOB_FIELDS: tuple[str, ...] = (
    "resources.nodes",
    "policy.rerunAsProcess",
)

SERVICE_FIELDS: tuple[str, ...] = (
    "instance.nodes",
    "execution.rerunAsProcess",
)


def unsupported_fields(spec: TrainingJobSpec | TrainingServiceSpec) -> list[str]:
    """The fields in use that this release does not carry out, as paths below `spec`, such as `startFrom.version`."""
    fields = JOB_FIELDS if isinstance(spec, TrainingJobSpec) else SERVICE_FIELDS
    unbuilt = [] if _is_built(spec.architecture) else ["architecture"]
    return unbuilt + [path for path in fields if _is_used(spec, path.split("."))]


def unsupported_sentence(fields: Iterable[str]) -> str:
    """The message of the warning, for the fields that `unsupported_fields` found."""
    return f"this release does not carry out {', '.join(f'spec.{name}' for name in fields)}; what is written there has no effect"


def _is_built(architecture: str) -> bool:
    known = ARCHITECTURES.get(architecture)
    return is_private(architecture) or (known is not None and known.built)


def _is_used(model: BaseModel, path: Sequence[str]) -> bool:
    """Whether the field is there and differs from its default."""
    for name, info in type(model).model_fields.items():
        if info.alias == path[0]:
            value: object = getattr(model, name)
            if len(path) > 1:
                return isinstance(value, BaseModel) and _is_used(value, path[1:])
            default: object = info.get_default(call_default_factory=True)
            return value is not None and value != default
    raise KeyError(f"{type(model).__name__} has no field {path[0]}")
