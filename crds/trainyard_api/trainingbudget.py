"""TrainingBudget: a limit on a team's training time."""

from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from trainyard_api.base import DNSLabel, Model
from trainyard_api.status import Condition, Word


class Period(StrEnum):
    DAY = "Day"
    WEEK = "Week"
    MONTH = "Month"
    TOTAL = "Total"


class TrainingBudgetSpec(Model):
    training_minutes: Annotated[int, Field(ge=0, le=100_000_000)] = Field(
        description="Training time of one period, in minutes."
    )
    period: Period = Field(
        default=Period.MONTH, description="Day, Week (from Monday) or Month in UTC, or Total: never renewed."
    )
    services: (
        Annotated[
            tuple[DNSLabel, ...],
            Field(min_length=1, max_length=64, json_schema_extra={"x-kubernetes-list-type": "set"}),
        ]
        | None
    ) = Field(default=None, description="The services that it limits; default: all of the namespace.")


class Reservation(Model):
    """Training time set aside for one execution."""

    schema_defaults = False

    job_name: Word = Field(description="Name of the job.")
    job_uid: Word = Field(alias="jobUID", description="Uid of the job.")
    attempt: int = Field(ge=1, description="Number of the attempt.")
    run: int = Field(default=0, ge=0, description="The run that it belongs to.")
    seconds: int = Field(ge=0, description="Seconds set aside.")
    start_time: datetime | None = Field(default=None, description="When its first training step was reported.")


class TrainingBudgetStatus(Model):
    """What is used and left."""

    schema_defaults = False

    observed_generation: int = Field(
        default=-1, ge=-1, description="Generation of the spec that the operator has seen; -1: none yet."
    )
    revision: int | None = Field(default=None, ge=0, description="Raised by every write.")
    period_start: datetime | None = Field(
        default=None, description="When the present period began; an execution counts in the period in which it ends."
    )
    used_seconds: int = Field(default=0, ge=0, description="Training time used in this period, exact.")
    used_minutes: int = Field(default=0, ge=0, description="Training time used in this period.")
    reserved_minutes: int = Field(default=0, ge=0, description="Set aside for what runs now.")
    remaining_minutes: int = Field(default=0, ge=0, description="Left in this period.")
    reservations: Annotated[tuple[Reservation, ...], Field(max_length=10_000)] = Field(
        default=(), description="Set aside, by execution."
    )
    conditions: Annotated[tuple[Condition, ...], Field(max_length=8)] = Field(
        default=(),
        description="Exhausted.",
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )


class TrainingBudget(Model):
    """A limit on a team's training time."""

    spec: TrainingBudgetSpec
    status: TrainingBudgetStatus | None = None
