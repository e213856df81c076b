"""`trainyard run`: the same manifest without a cluster."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from trainyard_cli.errors import CLIError
from trainyard_cli.run import address, spec_here
from trainyard_trainer.synth import write_zip


def job(**spec: object) -> dict:
    base = {
        "architecture": "yard-nano",
        "dataset": {"sources": [{"uri": "s3://vision/data.zip"}]},
        "output": {"uri": "s3://vision/models"},
    }
    return {
        "apiVersion": "trainyard.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"name": "shapes"},
        "spec": base | spec,
    }


def test_places_on_this_machine_become_addresses(tmp_path: Path) -> None:
    assert address(str(tmp_path)) == f"{tmp_path.as_uri()}/"
    assert address("s3://bucket/data.zip") == "s3://bucket/data.zip"


def test_the_spec_is_the_operators_with_its_defaults(tmp_path: Path) -> None:
    spec = spec_here(job(), "data.zip", str(tmp_path), None)
    assert (spec.attempt, spec.version, spec.resume_from) == (1, 1, ())
    assert spec.training.batch_size in (8, 32)
    assert spec.output_uri == f"{tmp_path.as_uri()}/"
    assert spec.uid == spec_here(job(), "data.zip", str(tmp_path), None).uid
    assert spec.uid != spec_here(job(training={"steps": 3}), "data.zip", str(tmp_path), None).uid


def test_this_machine_is_one_node(tmp_path: Path) -> None:
    spec = spec_here(job(resources={"nodes": 4}), "data.zip", str(tmp_path), None)
    assert (spec.nodes, spec.rendezvous) == (1, None)


def test_an_earlier_attempt_is_gone_on_from_and_a_version_is_not_made_twice(tmp_path: Path) -> None:
    spec = spec_here(job(), "data.zip", str(tmp_path), None)
    checkpoint = Path(spec.attempt_uri.removeprefix("file://")) / "checkpoints" / "latest.json"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.write_text("{}")
    again = spec_here(job(), "data.zip", str(tmp_path), None)
    assert (again.attempt, again.resume_from) == (2, (spec.attempt_uri,))
    manifest = Path(spec.version_uri.removeprefix("file://")) / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"uid": "another", "run": 0}))
    assert spec_here(job(), "data.zip", str(tmp_path), None).version == 2
    manifest.write_text(json.dumps({"uid": spec.uid, "run": 0}))
    assert spec_here(job(), "data.zip", str(tmp_path), None).version == 1


def test_a_version_that_is_continued_is_the_one_below_the_output(tmp_path: Path) -> None:
    spec = spec_here(job(startFrom={"version": 2}, model="cells"), "data.zip", str(tmp_path), None)
    assert spec.start.manifest_uri == f"{tmp_path.as_uri()}/cells/v2/manifest.json"
    assert spec.start.parent_version == "cells-v2"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trainig": {"epochs": 3}}, "trainig"),
        ({"training": {"epochs": 3, "steps": 4}}, "epochs"),
        ({"architecture": "yard-nanoo"}, "yard-nano"),
    ],
)
def test_what_the_api_server_would_refuse_is_refused_here(changes: dict, words: str, tmp_path: Path) -> None:
    with pytest.raises(CLIError, match=words):
        spec_here(job(**changes), "data.zip", str(tmp_path), None)


@pytest.mark.training
@pytest.mark.timeout(600)
def test_a_manifest_is_trained_here_and_the_second_time_only_told(tmp_path: Path) -> None:
    data, manifest, models = tmp_path / "data.zip", tmp_path / "job.yaml", tmp_path / "models"
    write_zip(data, images=30, size=(96, 64), labels=2)
    small = {
        "dataset": {"sources": [{"uri": "s3://vision/data.zip"}], "imageSize": 64},
        "training": {"steps": 3, "batchSize": 4},
    }
    manifest.write_text(yaml.safe_dump(job(**small)))
    models.mkdir()
    command = [
        sys.executable,
        "-m",
        "trainyard_cli.main",
        "run",
        str(manifest),
        "--dataset",
        str(data),
        "--to",
        str(models),
    ]
    first = subprocess.run([*command, "-o", "json"], capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    told = json.loads(first.stdout)
    assert told["reason"] == "Completed"
    assert {artifact["name"] for artifact in told["artifacts"]} >= {
        "model.safetensors",
        "model.onnx",
        "model-nms.onnx",
        "labels.txt",
    }
    second = subprocess.run(command, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    assert "shapes version 1" in second.stdout
    assert len(list(models.glob("shapes/v*"))) == 1


@pytest.mark.training
@pytest.mark.timeout(300)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_asked_to_end_it_saves_and_leaves_no_trainer_behind(number: signal.Signals, tmp_path: Path) -> None:
    data, manifest, models = tmp_path / "data.zip", tmp_path / "job.yaml", tmp_path / "models"
    write_zip(data, images=30, size=(96, 64), labels=2)
    dataset = {"sources": [{"uri": data.as_uri()}], "imageSize": 64}
    long = job(dataset=dataset, training={"steps": 100_000, "batchSize": 4}, output={"uri": models.as_uri()})
    manifest.write_text(yaml.safe_dump(long))
    command = [sys.executable, "-m", "trainyard_cli.main", "run", str(manifest)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    next(line for line in process.stderr if "100000 steps" in line)
    process.send_signal(number)
    assert "stopped: interrupted at step" in process.stderr.read().replace("\n", " ")
    assert process.wait() == 1
    assert list(models.glob("shapes/runs/*/attempts/1/log.jsonl")), "the trainer has written its last lines"
