"""The parts of the demo that need no cluster. The rest is what tests/e2e does, with the same functions."""

from pathlib import Path

import pytest
from trainyard_api.trainingjob import TrainingJobSpec

from demo.__main__ import _job_name, manifest
from demo.stage import source_digest, split_uri


@pytest.mark.parametrize(
    ("dataset", "name"),
    [
        (None, "shapes"),
        (Path("x/bccd.zip"), "bccd"),
        (Path("Blood Cells (2).zip"), "blood-cells-2"),
        (Path("___.zip"), "own"),
        (Path("a" * 60 + ".zip"), "a" * 40),
    ],
)
def test_a_job_is_named_after_its_data(dataset: Path | None, name: str):
    assert _job_name(dataset) == name


def test_the_manifest_is_one_that_the_api_knows():
    body = manifest("shapes", 8)
    assert TrainingJobSpec.model_validate(body["spec"], extra="forbid").training.epochs == 8
    assert set(body["spec"]) == {"architecture", "dataset", "output", "training"}


def test_addresses_and_digests():
    assert split_uri("s3://vision/models/a/v1/x.png") == ("vision", "models/a/v1/x.png")
    assert source_digest() == source_digest()
    assert len(source_digest()) == 16
