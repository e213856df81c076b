"""How every model of the API behaves: frozen, camelCase outside, snake_case inside, and what of it goes into a CRD schema."""

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel


class Model(BaseModel):
    """A frozen value with camelCase aliases.

    Unknown fields are ignored, so that an operator can read what a newer one wrote; `trainyard run` validates with
    `extra="forbid"` instead, as the API server's strict validation does.

    `schema_defaults = False` keeps the defaults of a class out of the CRD schema: a default inside a union, an override or a
    list item would break "exactly one", hide the service's value, or show as drift. The defaults below then hold when the
    operator resolves the spec, and the description names them.

    `cel_rules` are `x-kubernetes-validations` of the object: (rule, message) or (rule, message, fieldPath).
    """

    model_config = ConfigDict(
        frozen=True, alias_generator=to_camel, populate_by_name=True, extra="ignore", use_enum_values=False
    )

    schema_defaults: ClassVar[bool] = True
    cel_rules: ClassVar[tuple[tuple[str, ...], ...]] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON form with camelCase names, without what is unset (`None`)."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


# The string types that several resources share. Lengths and patterns become schema bounds.
DNSLabel = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
DNSSubdomain = Annotated[
    str,
    Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"),
]
ModelName = Annotated[str, Field(min_length=1, max_length=52, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
Quantity = Annotated[
    str,
    Field(
        min_length=1,
        max_length=32,
        pattern=r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$",
        json_schema_extra={"x-kubernetes-int-or-string": True},
    ),
]
Label = Annotated[str, Field(min_length=1, max_length=128)]
StorageURI = Annotated[
    str, Field(min_length=6, max_length=1024, pattern=r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?|file:///.*)$")
]
Seconds = Annotated[int, Field(ge=0, le=31_536_000)]
Percent = Annotated[int, Field(ge=0, le=100)]
