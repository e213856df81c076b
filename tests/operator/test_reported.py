"""What a trainer says, of whatever image, either is refused as it comes or can be written into a job's status."""

from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from trainyard_api.report import Report, Result
from trainyard_api.trainingjob import AttemptResult, TrainingJobStatus
from trainyard_operator.decide.evidence import parse_result
from trainyard_operator.reported import report_operations

NOW = datetime(2026, 1, 1, tzinfo=UTC)
IDENTITY: dict[str, Any] = {
    "job": "a",
    "namespace": "vision",
    "uid": "u",
    "attempt": 1,
    "sequence": 1,
    "phase": "Training",
}
RESULT: dict[str, Any] = {"exitCode": 0, "reason": "Completed"}
NUMBERS = st.one_of(st.integers(-3, 300), st.sampled_from([2**31, 2**53, 2**63, 2**64, 10**30, -(2**64)]))
TEXTS = st.one_of(st.sampled_from(["", ".", "..", "a/b", "x" * 5000, "a\nb"]), st.text(max_size=20))
KINDS = (
    (NUMBERS, ("step", "steps", "epoch", "epochs", "stepsPerEpoch", "batchSize", "etaSeconds", "trainingSeconds")),
    (NUMBERS, ("checkpointStep", "resumedFromStep", "run", "attempt", "sequence", "imagesPerSecond", "percent")),
    (NUMBERS, ("exitCode", "version")),
    (TEXTS, ("message", "reason", "manifestURI", "datasetDigest", "job", "namespace", "uid")),
)
FIELDS = st.fixed_dictionaries({}, optional={name: kind for kind, names in KINDS for name in names})
NESTED = (
    lambda n: {"metrics": {"latest": {"step": n}}},
    lambda n: {"metrics": {"best": {"perClass": [{"label": "a", "images": n, "objects": n}]}}},
    lambda n: {
        "dataset": {"images": n, "objects": n, "trainImages": n, "labels": [{"label": "a", "objects": n, "images": n}]}
    },
    lambda n: {"result": RESULT | {"artifacts": [{"name": "a", "uri": "s3://b/a", "size": n}], "metrics": {"step": n}}},
)


def status_of(report: Report) -> dict[str, Any]:
    """The status after the report is written, as the API server reads it."""
    operations = orjson.loads(orjson.dumps(report_operations({}, report, NOW)))
    return {operation["path"].removeprefix("/status/"): operation["value"] for operation in operations}


@given(FIELDS, FIELDS)
def test_what_is_taken_as_a_report_can_be_written(fields: dict[str, Any], result: dict[str, Any]):
    try:
        report = Report.model_validate(IDENTITY | fields | {"result": RESULT | result})
    except ValidationError:
        return
    assert TrainingJobStatus.model_validate(status_of(report)).progress
    assert all(part not in ("", ".", "..") for part in (report.job, report.namespace)), (
        "names of objects are parts of paths"
    )


@given(st.sampled_from(NESTED), NUMBERS)
def test_so_can_the_numbers_within_it(nested: Any, number: int):
    try:
        report = Report.model_validate(IDENTITY | nested(number))
    except ValidationError:
        return
    status = status_of(report)
    assert TrainingJobStatus.model_validate(status).progress
    assert orjson.dumps(status), status
    assert abs(number) < 2**53, "JSON has no such integers"


@given(FIELDS)
def test_what_is_read_from_a_termination_message_can_be_written(fields: dict[str, Any]):
    result = parse_result(orjson.dumps(RESULT).decode()[:-1] + "".join(_member(item) for item in fields.items()) + "}")
    if result is not None:
        assert AttemptResult.model_validate(orjson.loads(orjson.dumps(result.to_dict()))) == result


def _member(item: tuple[str, Any]) -> str:
    name, value = item
    return f',"{name}":{value}' if isinstance(value, int) else f',"{name}":{orjson.dumps(value).decode()}'


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_speed_that_is_not_finite_is_left_out(number: float):
    report = Report.model_validate(IDENTITY | {"imagesPerSecond": number})
    assert "imagesPerSecond" not in status_of(report)["progress"]


def test_a_whole_result_is_cut_to_the_bounds():
    result = Result.model_validate(RESULT | {"message": "x" * 9000, "reason": "y" * 999})
    assert len(result.to_status().message) == 4096
