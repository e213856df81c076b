"""Using what this release does not carry out is a warning; a default never is."""

from typing import Any

import pytest
from trainyard_api.architectures import ARCHITECTURES
from trainyard_api.support import JOB_FIELDS, SERVICE_FIELDS, unsupported_fields, unsupported_sentence
from trainyard_api.trainingjob import TrainingJobSpec
from trainyard_api.trainingservice import TrainingServiceSpec

JOB: dict[str, Any] = {
    "architecture": "yard-nano",
    "dataset": {"sources": [{"uri": "s3://vision/bccd.zip"}]},
    "output": {"uri": "s3://vision/models"},
}
SERVICE: dict[str, Any] = {"architecture": "yard-nano"}
A_VALUE: dict[str, Any] = {
    "resources.nodes": 2,
    "policy.rerunAsProcess": True,
    "instance.nodes": 2,
    "execution.rerunAsProcess": True,
}


def with_value(base: dict[str, Any], path: str, value: object) -> dict[str, Any]:
    """The manifest with one field set; the rest stays."""
    name, _, rest = path.partition(".")
    return base | {name: with_value(base.get(name, {}), rest, value) if rest else value}


def test_a_plain_job_and_a_plain_service_use_nothing_that_is_missing() -> None:
    assert unsupported_fields(TrainingJobSpec.model_validate(JOB)) == []
    assert unsupported_fields(TrainingServiceSpec.model_validate(SERVICE)) == []


def test_defaults_written_out_are_no_use() -> None:
    job = TrainingJobSpec.model_validate(JOB)
    written = TrainingJobSpec.model_validate(job.model_dump(mode="json", by_alias=True))
    assert unsupported_fields(written) == []
    service = TrainingServiceSpec.model_validate(SERVICE)
    assert unsupported_fields(TrainingServiceSpec.model_validate(service.to_dict())) == []


@pytest.mark.parametrize("path", JOB_FIELDS)
def test_a_job_s_field_is_named(path: str) -> None:
    spec = TrainingJobSpec.model_validate(with_value(JOB, path, A_VALUE[path]))
    assert unsupported_fields(spec) == [path]


@pytest.mark.parametrize("path", SERVICE_FIELDS)
def test_a_service_s_field_is_named(path: str) -> None:
    spec = TrainingServiceSpec.model_validate(with_value(SERVICE, path, A_VALUE[path]))
    assert unsupported_fields(spec) == [path]


@pytest.mark.parametrize("name", [*ARCHITECTURES, "private/own"])
def test_an_architecture_is_named_until_the_trainer_has_it(name: str) -> None:
    built = name not in ARCHITECTURES or ARCHITECTURES[name].built
    spec = TrainingJobSpec.model_validate(JOB | {"architecture": name})
    assert unsupported_fields(spec) == ([] if built else ["architecture"])


def test_the_sentence_names_every_field() -> None:
    sentence = unsupported_sentence(["resources.nodes", "policy.rerunAsProcess"])
    assert sentence.startswith("this release does not carry out spec.resources.nodes, spec.policy.rerunAsProcess;")
