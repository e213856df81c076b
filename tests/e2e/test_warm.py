"""A warm instance takes a job over: real trainer, real control plane, the chart's rights and its policy."""

import json
import time

import pytest
from realyard import NAMESPACE, Yard

pytestmark = [pytest.mark.cluster, pytest.mark.training, pytest.mark.timeout(900)]


def test_a_warm_instance_trains_at_once(yard: Yard, shapes: bytes):
    uri = yard.put("warm.zip", shapes)
    service = {
        "architecture": "yard-nano",
        "instance": {"gpus": 0, "memory": "2Gi"},
        "scaling": {"minInstances": 1, "maxInstances": 1},
        "execution": {"drainSeconds": 30},
        "secretNames": ["storage"],
    }
    yard.create("TrainingService", "warm", service)
    deadline = time.monotonic() + 120
    while (status := yard.object("trainingservices", "warm").get("status", {})).get("standbyInstances") != 1:
        assert time.monotonic() < deadline, json.dumps(status, indent=1)
        time.sleep(0.2)
    began = time.time()
    yard.apply("warmed", uri, serviceName="warm", training={"epochs": 1})
    status = yard.finished("warmed")
    assert status["state"] == "Succeeded"
    [attempt] = status["attempts"]
    assert attempt["standby"]
    lines = [json.loads(line) for line in yard.get(attempt_log(yard, status)).splitlines()]
    steps = [line for line in lines if line.get("step") is not None and "loss" in line]
    first = float(steps[0]["time"])
    # (On a machine that does nothing else a second or two: what is left is to read the data.)
    assert first - began < 60
    # It is a pod of the job like any other.
    log = yard.cluster.kubectl("-n", NAMESPACE, "logs", "-ltrainyard.dev/job=warmed", "--tail=-1")
    assert '"event": "warm"' in log
    yard.cluster.kubectl("-n", NAMESPACE, "delete", "tsvc", "warm")


def attempt_log(yard: Yard, status: dict[str, object]) -> str:
    [key] = [key for key in yard.keys("models/warmed/runs/") if key.endswith("/attempts/1/metrics.jsonl")]
    return f"s3://vision/{key}"
