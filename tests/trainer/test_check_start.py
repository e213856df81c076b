"""`trainyard dataset check --job` of a job that continues an earlier training says what that training would say."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from trainyard_api.dataset import Source
from trainyard_api.trainingjob import TrainingJobSpec
from trainyard_cli.startfrom import version_here
from trainyard_trainer.prepare import prepare
from trainyard_trainer.records import Side
from trainyard_trainer.report import Reporter
from trainyard_trainer.start import load_start
from trainyard_trainer.store import Storage
from trainyard_trainer.task import build_task
from trainyard_trainer.versions import parent_of

from tests.commands import Done
from tests.commands import dataset as run
from tests.trainer.conftest import Bucket
from tests.trainer.continued import Job
from tests.trainer.runs import dataset, publish_untrained, run_spec
from tests.trainer.vocfiles import good, zipped

OLD = ("cell", "dot")


def job_file(folder: Path, start: dict[str, Any], output: str | None = None, **fields: Any) -> Path:
    spec = {
        "architecture": "yard-nano",
        "model": "shapes",
        "dataset": {"sources": [{"uri": "s3://vision/elsewhere.zip"}], "imageSize": 64},
        "output": {"uri": output or (folder / "output").as_uri()},
        "startFrom": start,
        **fields,
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump({"kind": "TrainingJob", "metadata": {"name": "cells"}, "spec": spec}))
    return path


def told(done: Done) -> dict[str, Any]:
    assert done.stdout, done.stderr
    return json.loads(done.stdout)["startFrom"]


def version(folder: Path, architecture: str = "yard-nano", number: int = 1) -> Job:
    """`shapes-v1` below `output`, which learnt cells and dots."""
    job = Job(folder / "output" / "shapes" / f"v{number}", architecture, OLD)
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    job.version()
    return job


def test_a_version_with_the_same_labels_is_kept_whole(tmp_path: Path) -> None:
    version(tmp_path)
    data, job = zipped(good(20), tmp_path / "data.zip"), job_file(tmp_path, {"version": 1})
    done = run("check", data, "--job", job)
    assert done.returncode == 0, done.stderr
    assert "It starts from shapes-v1:\n  labels: cell, dot\n  all its weights are kept." in done.stdout
    assert told(run("check", data, "--job", job, "-o", "json")) == {
        "name": "shapes-v1", "labels": list(OLD), "knownImages": None, "warnings": [], "notFollowed": None, "problem": None,
    }  # fmt: skip


def test_without_start_from_nothing_is_said(tmp_path: Path) -> None:
    data, job = zipped(good(20), tmp_path / "data.zip"), job_file(tmp_path, {"weights": "None"})
    assert told(run("check", data, "--job", job, "-o", "json")) is None
    assert "starts from" not in run("check", data, "--job", job).stdout


def test_sides_labels_and_warnings_are_those_of_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 known images with other labels than the 12 new ones."""
    monkeypatch.setenv("TRAINYARD_ONNX", "0")
    known = dataset(tmp_path)
    before = publish_untrained(tmp_path, known)
    old, new = known.as_uri(), zipped(good(12, ("ant", "cell")), tmp_path / "new.zip").as_uri()
    fields = {"sources": [{"uri": old}, {"uri": new}], "imageSize": 64, "split": {"seed": 7}}
    report = json.loads(
        run(
            "check", "--job", job_file(tmp_path, {"version": 1}, before.output_uri, dataset=fields), "-o", "json"
        ).stdout
    )
    spec = run_spec(tmp_path, known, dataset=fields, start={"manifestURI": f"{before.version_uri}manifest.json"})
    parent = parent_of(spec, Storage())
    assert parent is not None
    trained = prepare(
        spec.dataset, spec.task, Storage(), tmp_path / "cache", image_size=(64, 64), known_labels=parent.labels,
        known_sides=parent.sides,
    )  # fmt: skip
    assert report["split"] == {side.value: len(trained.of(side)) for side in Side}
    assert [entry["label"] for entry in report["labels"]] == [*parent.labels, "ant", "cell"]
    task = build_task(spec, trained.dataset.labels, trained.dataset.records, (64, 64))
    reporter = Reporter(spec, out=io.StringIO())
    named = spec.model_copy(update={"start": spec.start.model_copy(update={"parent_version": "shapes-v1"})})
    load_start(named, parent, task, trained.dataset.labels, Storage(), tmp_path, reporter)
    start = report["startFrom"]
    assert start["warnings"] == [warning.to_dict() for warning in reporter.warnings]
    assert start["warnings"][0]["reason"] == "LabelsDifferFromPreviousVersion"
    assert "ant, cell start anew" in start["warnings"][0]["message"]
    assert start["knownImages"] == 40


def test_anchors_for_another_size_are_a_warning(tmp_path: Path) -> None:
    version(tmp_path, "ssdlite320-mobilenet-v3")
    job = job_file(tmp_path, {"version": 1}, architecture="ssdlite320-mobilenet-v3")
    done = run("check", zipped(good(20), tmp_path / "data.zip"), "--job", job)
    assert (done.returncode, "AnchorsFittedAnew: shapes-v1 has anchors for" in done.stdout) == (0, True), done.stderr


def test_a_private_version_on_s3_needs_the_credentials(tmp_path: Path, bucket: Bucket) -> None:
    for file in version(tmp_path).folder.iterdir():
        bucket.put(f"models/shapes/v1/{file.name}", file.read_bytes())
    job = job_file(tmp_path, {"modelVersion": "shapes-v1"}, f"{bucket.uri}/models")
    data = zipped(good(20), tmp_path / "data.zip")
    assert told(run("check", data, "--job", job, "-o", "json", **bucket.environment))["labels"] == list(OLD)
    wrong = bucket.environment | {"AWS_SECRET_ACCESS_KEY": "x" * 40}
    done = run("check", data, "--job", job, **wrong)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("What it starts from")]
    assert "shapes-v1, was not looked at: " in line
    assert "denied; check the keys" in line


@pytest.mark.parametrize(
    ("start", "why"),
    [
        ({"version": 9}, "output/shapes/v9/manifest.json does not exist."),
        ({"modelVersion": "other-v2"}, "output/other/v2/manifest.json does not exist."),
        ({"job": "other"}, "only a cluster knows where its files are."),
    ],
)
def test_what_cannot_be_read_is_one_sentence(tmp_path: Path, start: dict[str, Any], why: str) -> None:
    done = run("check", zipped(good(20), tmp_path / "data.zip"), "--job", job_file(tmp_path, start), "-o", "json")
    assert (done.returncode, told(done)["notFollowed"].endswith(why)) == (0, True), told(done)


def test_what_only_its_own_image_knows_is_said(tmp_path: Path) -> None:
    job = job_file(tmp_path, {"version": 1}, architecture="private/mine", task="Detection")
    done = run("check", zipped(good(20), tmp_path / "data.zip"), "--job", job)
    assert (done.returncode, "only the image of private/mine knows what fits" in done.stdout) == (0, True)


def test_a_start_that_would_fail_ends_with_1_and_the_sentence(tmp_path: Path) -> None:
    file = version(tmp_path, "yard-small").folder / "m.safetensors"
    data = zipped(good(20), tmp_path / "data.zip")
    done = run("check", data, "--job", job_file(tmp_path, {"version": 1}))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "cannot start from shapes-v1" in done.stderr
    assert "is a yard-small, this job trains yard-nano" in done.stderr
    assert "can be trained on" not in done.stdout
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    for given, words in (("0" * 64, f"has sha256 {sha256}, not {'0' * 64}"), (sha256, "tensors of")):
        done = run("check", data, "--job", job_file(tmp_path, {"uri": file.as_uri(), "sha256": given}))
        assert (done.returncode, words in done.stderr) == (1, True), done.stderr


def test_of_data_with_faults_only_the_faults_are_told(tmp_path: Path) -> None:
    version(tmp_path)
    done = run("check", zipped(good(4), tmp_path / "data.zip"), "--job", job_file(tmp_path, {"version": 1}))
    assert done.returncode == 1
    assert "what is kept of it depends on the labels" in done.stdout
    assert "cannot be trained on" in done.stderr


def test_a_version_is_looked_for_below_the_job_s_output() -> None:
    spec = {"architecture": "yard-nano", "dataset": {"sources": [Source(uri="s3://vision/x.zip")]}}
    for start, uri in (
        ({"version": 3}, "s3://vision/models/cells/v3/manifest.json"),
        ({"modelVersion": "other-v12"}, "s3://vision/models/other/v12/manifest.json"),
        ({"weights": "None"}, None),
        ({"modelVersion": "no-number"}, None),
    ):
        job = TrainingJobSpec.model_validate({**spec, "output": {"uri": "s3://vision/models"}, "startFrom": start})
        found = version_here(job, "cells")
        assert (found.manifest_uri if found else None) == uri
