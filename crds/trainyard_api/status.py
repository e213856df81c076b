"""The parts of status that several resources share."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from trainyard_api.base import Count, Model

Text = Annotated[str, Field(max_length=4096)]
Word = Annotated[str, Field(max_length=253)]


class ConditionStatus(StrEnum):
    TRUE = "True"
    FALSE = "False"
    UNKNOWN = "Unknown"


class Condition(Model):
    """As `metav1.Condition`."""

    schema_defaults = False

    type: Annotated[str, Field(min_length=1, max_length=316)] = Field(description="What the condition is about.")
    status: ConditionStatus = Field(description="True, False or Unknown.")
    observed_generation: int | None = Field(
        default=None, ge=0, description="Generation of the spec that this speaks of."
    )
    last_transition_time: datetime = Field(description="When the status changed last.")
    reason: Annotated[
        str, Field(min_length=1, max_length=1024, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")
    ] = Field(description="The cause, as one word for programs.")
    message: Annotated[str, Field(max_length=32768)] = Field(
        default="", description="The cause, as a sentence for people."
    )


class Warning_(Model):
    """Something a user should know that does not stop the job."""

    schema_defaults = False

    reason: Word = Field(description="The cause, as one word for programs.")
    message: Text = Field(description="The cause and what to do, as a sentence.")


class LabelMetrics(Model):
    """Scores of one label; shares from 0 to 1."""

    schema_defaults = False

    label: Annotated[str, Field(max_length=128)] = Field(description="The label.")
    images: Count | None = Field(default=None, description="Images that have it.")
    objects: Count | None = Field(default=None, description="Objects that have it.")
    map50: float | None = Field(default=None, alias="mAP50", description="Average precision at IoU 0.5.")
    map50_95: float | None = Field(
        default=None, alias="mAP50_95", description="Average precision over IoU 0.5 to 0.95."
    )
    precision: float | None = Field(default=None, description="Precision at the best threshold.")
    recall: float | None = Field(default=None, description="Recall at the best threshold.")


class Scores(Model):
    """Numbers of a model at one moment; those that are not finite or not measured are left out."""

    schema_defaults = False
    atomic = True

    loss: float | None = Field(default=None, description="Training loss, averaged over the last steps.")
    box_loss: float | None = Field(default=None, description="Box part of the loss.")
    cls_loss: float | None = Field(default=None, description="Classification part of the loss.")
    dfl_loss: float | None = Field(default=None, description="Distribution focal part of the loss.")
    validation_loss: float | None = Field(default=None, description="Loss on the validation images.")
    learning_rate: float | None = Field(default=None, description="Learning rate of the last step.")
    map50: float | None = Field(default=None, alias="mAP50", description="Mean average precision at IoU 0.5.")
    map50_95: float | None = Field(
        default=None, alias="mAP50_95", description="Mean average precision over IoU 0.5 to 0.95."
    )
    map: float | None = Field(default=None, alias="mAP", description="Mean average precision of tags.")
    precision: float | None = Field(default=None, description="Precision at the threshold of the best F1.")
    recall: float | None = Field(default=None, description="Recall at the same threshold.")
    accuracy: float | None = Field(default=None, description="Share of images with the right class.")
    step: Count | None = Field(default=None, description="Step at which this was measured.")
    per_class: Annotated[tuple[LabelMetrics, ...], Field(max_length=50)] | None = Field(
        default=None,
        description="The 50 labels with the lowest scores.",
        json_schema_extra={"x-kubernetes-list-type": "atomic"},
    )


class Metrics(Model):
    """The latest and the best numbers of the running training."""

    schema_defaults = False
    atomic = True

    latest: Scores | None = Field(default=None, description="At the last report.")
    best: Scores | None = Field(default=None, description="Of the best model so far, by selectBy.")
    test: Scores | None = Field(default=None, description="Of the best model on the test images, at the end.")


class Artifact(Model):
    schema_defaults = False

    name: Word = Field(description="File name.")
    uri: Annotated[str, Field(max_length=2048)] = Field(description="Where it lies.")
    size: Count | None = Field(default=None, description="Bytes.")
    sha256: Annotated[str, Field(max_length=64)] | None = Field(default=None, description="Its checksum.")


class LabelCount(Model):
    schema_defaults = False

    label: Annotated[str, Field(max_length=128)] = Field(description="The label.")
    objects: Count = Field(description="Objects that have it.")
    images: Count = Field(description="Images that have it.")


class DatasetSummary(Model):
    """What the trainer found in the data."""

    schema_defaults = False
    atomic = True

    images: Count = Field(description="Images that are used.")
    objects: Count = Field(description="Annotated objects.")
    labels: Annotated[tuple[LabelCount, ...], Field(max_length=200)] = Field(
        default=(), description="Labels with their counts, the first 200."
    )
    train_images: Count = Field(default=0, description="Images to train on.")
    validation_images: Count = Field(default=0, description="Images that choose the best model.")
    test_images: Count = Field(default=0, description="Images scored at the end.")
    digest: Annotated[str, Field(max_length=128)] = Field(default="", description="Changes when the data changes.")
