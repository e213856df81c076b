"""The dataset part of a TrainingJob: where it lies, how it is read, and which image is on which side."""

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, Field

from trainyard_api.base import DNSSubdomain, IntegerAsText, Label, Model, Percent, Quantity, StorageURI, matching, said


class LabelPolicy(StrEnum):
    UNION = "Union"
    IDENTICAL = "Identical"


class Unannotated(StrEnum):
    SKIP = "Skip"
    BACKGROUND = "Background"


class WithoutObjects(StrEnum):
    USE = "Use"
    SKIP = "Skip"


class BoxOrigin(StrEnum):
    AUTO = "Auto"
    ZERO = "0"
    ONE = "1"


class Resize(StrEnum):
    LETTERBOX = "Letterbox"
    STRETCH = "Stretch"
    CENTER_CROP = "CenterCrop"


SIZE = r"^[1-9][0-9]{1,3}x[1-9][0-9]{1,3}$"
ImageSize = Annotated[
    Annotated[int, Field(ge=32, le=4096)] | Annotated[str, Field(pattern=SIZE)],
    Field(
        union_mode="left_to_right",
        json_schema_extra={"x-kubernetes-int-or-string": True, "maxLength": 9}
        | said(
            f"type(self) == int ? self >= 32 && self <= 4096 : self.matches(r'{SIZE}')",
            "write a side of 32 to 4096 pixels such as 320, or WIDTHxHEIGHT such as 640x384",
        ),
    ),
]
Labels = Annotated[
    tuple[Label, ...],
    Field(min_length=1, max_length=1000, json_schema_extra={"x-kubernetes-list-type": "set"}),
]


class Source(Model):
    schema_defaults = False

    uri: StorageURI = Field(
        description="A zip object (s3://bucket/data.zip) or a prefix that ends in / (s3://bucket/folder/) with Annotations and JPEGImages below it."
    )


class Split(Model):
    """Percentages sum to 100; identical images never land on two sides."""

    schema_defaults = False

    train_percent: Percent = Field(
        default=80,
        description="Share of images to train on, in percent; default 80. A warning says so when it is under 80.",
    )
    validation_percent: Percent = Field(
        default=10, description="Share of images that choose the best model, in percent; default 10."
    )
    test_percent: Percent = Field(
        default=10, description="Share of images that are scored once, at the end, in percent; default 10."
    )
    max_validation_images: int | None = Field(
        default=None,
        ge=1,
        le=10_000_000,
        description="At most this many validation images; what is over goes to training.",
    )
    max_test_images: int | None = Field(
        default=None, ge=1, le=10_000_000, description="At most this many test images; what is over goes to training."
    )
    seed: int = Field(
        default=0,
        ge=0,
        le=2_147_483_647,
        description="Seed of the draw; default 0. The same data and seed give the same sides.",
    )


_LIST_NAME = r"^[^/]+$"


def _below_the_root(folder: str) -> str:
    if folder.startswith("/") or ".." in folder.split("/"):
        raise ValueError("write a folder below the dataset's root, with neither / at the front nor .. in it")
    return folder


class Subset(Model):
    """Which images form one side; exactly one of the fields."""

    schema_defaults = False

    image_set: str | None = Field(
        default=None,
        min_length=1,
        max_length=253,
        pattern=_LIST_NAME,
        description="A list under ImageSets/Main, without .txt.",
        json_schema_extra=matching(_LIST_NAME, "write the name of a list under ImageSets/Main such as train, no path"),
    )
    folder: Annotated[str, AfterValidator(_below_the_root)] | None = Field(
        default=None,
        min_length=1,
        max_length=1024,
        description="A folder below the dataset's root; its images form this side.",
        json_schema_extra=said(
            "!self.startsWith('/') && !self.matches(r'(^|/)[.][.](/|$)')",
            "write a folder below the dataset's root, with neither / at the front nor .. in it",
        ),
    )
    pattern: str | None = Field(
        default=None,
        min_length=1,
        max_length=253,
        description="A shell pattern (*, ?, [abc]) on image names, extension included.",
    )
    labels: Labels | None = Field(default=None, description="Images that have an object of one of these labels.")
    list_uri: StorageURI | None = Field(
        default=None, alias="listURI", description="A text object with one image name a line."
    )


class Subsets(Model):
    """The sides named one by one, instead of drawn."""

    schema_defaults = False

    train: Subset = Field(description="The images to train on.")
    validation: Subset | None = Field(default=None, description="The images that choose the best model.")
    test: Subset | None = Field(default=None, description="The images that are scored once, at the end.")


class DatasetLimits(Model):
    """Bounds that protect the instance; a dataset beyond them is refused before it is downloaded where that is possible."""

    max_bytes: Quantity = Field(default="2Gi", description="Largest sum of all sources, as a quantity.")
    max_images: int | None = Field(default=None, ge=1, le=100_000_000, description="At most this many images.")
    max_pixels: int = Field(
        default=64_000_000, ge=1024, le=1_000_000_000, description="At most this many pixels in one image."
    )
    max_repair_percent: Percent = Field(
        default=5,
        description="Fail when more than this share of annotations needed a repair that loses or guesses something.",
    )
    box_origin: Annotated[BoxOrigin, IntegerAsText] = Field(
        default=BoxOrigin.AUTO,
        description="Whether the first pixel is 0 or 1 in the boxes; Auto looks at the data.",
        json_schema_extra={"x-kubernetes-int-or-string": True, "maxLength": 4}
        | said("string(self) in ['Auto', '0', '1']", "write Auto, 0 or 1"),
    )


class Dataset(Model):
    sources: Annotated[tuple[Source, ...], Field(min_length=1, max_length=64)] = Field(
        description="Pascal VOC datasets; several are merged."
    )
    label_policy: LabelPolicy = Field(
        default=LabelPolicy.UNION,
        description="Union merges the labels of all sources; Identical fails unless all have the same.",
    )
    secret_name: DNSSubdomain | None = Field(
        default=None,
        description="Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, optionally AWS_SESSION_TOKEN, AWS_ENDPOINT_URL, AWS_REGION, AWS_CA_BUNDLE; default: the service's.",
    )
    labels: Labels | None = Field(
        default=None, description="The labels to learn, in this order; default: all that the data has, sorted."
    )
    split: Split | None = Field(
        default=None,
        description="How images are drawn for training, validation and test; default 80, 10 and 10 percent, seed 0.",
    )
    subsets: Subsets | None = Field(default=None, description="The sides named one by one, instead of split.")
    unannotated: Unannotated = Field(
        default=Unannotated.SKIP, description="Images without an annotation file: Skip, or take them as Background."
    )
    without_objects: WithoutObjects = Field(
        default=WithoutObjects.USE, description="Annotated images without an object: Use (background, no tag) or Skip."
    )
    limits: DatasetLimits = Field(default_factory=DatasetLimits, description="Bounds of the dataset.")
    image_size: ImageSize | None = Field(
        default=None,
        description="Input of the network in pixels: a side (320) or WIDTHxHEIGHT (640x384); default: the architecture's.",
    )
    resize: Resize = Field(
        default=Resize.LETTERBOX,
        description="How images are brought to the size: Letterbox keeps all, Stretch fills, CenterCrop cuts.",
    )
