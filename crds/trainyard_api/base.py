"""How every model of the API behaves: frozen, camelCase outside, snake_case inside, and what of it goes into a CRD schema."""

from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue
from pydantic.alias_generators import to_camel


class Model(BaseModel):
    """A frozen value with camelCase aliases.

    Unknown fields are ignored, so that an operator can read what a newer one wrote; `trainyard run` validates with
    `extra="forbid"` instead, as the API server's strict validation does.

    `schema_defaults = False` keeps the defaults of a class out of the CRD schema: a default inside a union, an override or a
    list item would break "exactly one", hide the service's value, or show as drift. The defaults below then hold when the
    operator resolves the spec, and the description names them. What a schema alone cannot say is in `rules`.

    `atomic = True` says that objects of a class have one owner as a whole: the API server then keeps one entry of `managedFields` for
    it instead of one for each field.
    """

    model_config = ConfigDict(
        frozen=True, alias_generator=to_camel, populate_by_name=True, extra="ignore", use_enum_values=False
    )

    schema_defaults: ClassVar[bool] = True
    atomic: ClassVar[bool] = False

    def to_dict(self) -> dict[str, Any]:
        """The JSON form with camelCase names, without what is unset (`None`)."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def says_nothing(value: object) -> bool:
    """For `exclude_if` of a status' field: false, zero and empty are left out of the JSON form, as Go's `omitempty` does. Every value
    that an object has is paid for at each of its writes (docs/decisions/0033)."""
    return not value


Extra = dict[str, JsonValue]


def said(rule: str, sentence: str) -> Extra:
    """Schema of a value that must pass the CEL `rule`; `sentence` tells what to write instead."""
    return {"x-kubernetes-validations": [{"rule": rule, "message": sentence}]}


def matching(pattern: str, sentence: str) -> Extra:
    """Schema of a string that must match: the API server answers the sentence instead of the bare pattern."""
    return said(f"self.matches(r'{pattern}')", sentence)


def _written(value: object) -> object:
    """An integer as people write a quantity or a choice in YAML (`cpu: 4`), as the string that the models hold."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


IntegerAsText = BeforeValidator(_written)

# The string types that several resources share. Lengths and patterns become schema bounds.
DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
_DNS_SUBDOMAIN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
_QUANTITY = r"^([1-9][0-9]*(\.[0-9]+)?|0\.[0-9]*[1-9][0-9]*)(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
_S3_URI = r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^\x00-\x1f]*)?$"
_LABEL = r"^[^\x00-\x20\x7f]([^\x00-\x1f\x7f]*[^\x00-\x20\x7f])?$"
_NAME_SENTENCE = "write a name of lower-case letters, digits and -, that begins and ends with a letter or digit"

DNSLabel = Annotated[
    str, Field(min_length=1, max_length=63, pattern=DNS_LABEL, json_schema_extra=matching(DNS_LABEL, _NAME_SENTENCE))
]
DNSSubdomain = Annotated[
    str,
    Field(
        min_length=1,
        max_length=253,
        pattern=_DNS_SUBDOMAIN,
        json_schema_extra=matching(
            _DNS_SUBDOMAIN,
            "write the name of a Kubernetes object: lower-case letters, digits, - and ., beginning and ending with a letter or digit",
        ),
    ),
]
ModelName = Annotated[
    str, Field(min_length=1, max_length=52, pattern=DNS_LABEL, json_schema_extra=matching(DNS_LABEL, _NAME_SENTENCE))
]
Quantity = Annotated[
    str,
    IntegerAsText,
    Field(
        min_length=1,
        max_length=32,
        pattern=_QUANTITY,
        json_schema_extra={"x-kubernetes-int-or-string": True}
        | said(
            f"type(self) == int ? self > 0 : self.matches(r'{_QUANTITY}')",
            "write a quantity above 0, such as 4 or 500m for cpu, 512Mi or 2Gi for sizes",
        ),
    ),
]
Label = Annotated[
    str,
    Field(
        min_length=1,
        max_length=128,
        pattern=_LABEL,
        json_schema_extra=matching(_LABEL, "write a label without control characters and without blanks at its ends"),
    ),
]
StorageURI = Annotated[
    str,
    Field(
        min_length=6,
        max_length=1024,
        pattern=r"^(s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^\x00-\x1f]*)?|file:///[^\x00-\x1f]*)$",
        json_schema_extra=matching(
            _S3_URI,
            "write an S3 address such as s3://bucket/folder/ or s3://bucket/data.zip (file:// works with `trainyard run` alone)",
        ),
    ),
]
Seconds = Annotated[int, Field(ge=0, le=31_536_000)]
Percent = Annotated[int, Field(ge=0, le=100)]
Count = Annotated[int, Field(ge=0, le=2**53 - 1)]
"""The largest integer is the one up to which JSON is exact for everybody who reads it."""
