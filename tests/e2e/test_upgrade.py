"""`helm upgrade` while a job runs: the operator of the next version takes it over, and the trainer notices nothing."""

import json
from typing import Any

import pytest
from realyard import NAMESPACE, Yard

from demo.stage import CHART, RELEASE, SYSTEM
from tests.operator.harness import FAKE_TRAINER, training_job

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

NEXT = "0.2.0"


def leader(yard: Yard) -> str:
    """Name of the operator's pod that decides."""
    lease = yard.cluster.kubectl("-n", SYSTEM, "get", "lease", "trainyard-operator", "-o", "json")
    return json.loads(lease)["spec"]["holderIdentity"]


def pods(yard: Yard, job: str) -> list[dict[str, Any]]:
    return yard.children("pods", job)


def test_the_next_version_takes_over_a_running_job(yard: Yard):
    service = {
        "apiVersion": "trainyard.dev/v1alpha1",
        "kind": "TrainingService",
        "metadata": {"name": "upgraded", "namespace": NAMESPACE},
        "spec": {
            "architecture": "yard-nano",
            "image": "local/python",
            "instance": {"gpus": 0, "cpu": "10m", "memory": "64Mi"},
            "scaling": {"maxInstances": 2},
            "env": [{"name": "PYTHONPATH", "value": str(FAKE_TRAINER)}],
        },
    }
    yard.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(service))
    endless = training_job(NAMESPACE, "endless", {"steps": 100_000, "pause": 0.5, "obeys": True}, service="upgraded")
    yard.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(endless))
    before = yard.until("endless", "in training", lambda status: (status.get("progress") or {}).get("step", 0) > 1)
    [pod], old = pods(yard, "endless"), leader(yard)
    yard.cluster.helm(
        "upgrade", RELEASE, str(CHART), "--namespace", SYSTEM, "--reuse-values", "--set", f"image.tag={NEXT}",
        "--set", f"services.env.OPERATOR_VERSION={NEXT}", "--wait", "--timeout", "180s", timeout=240,
    )  # fmt: skip
    # Behaviour is that of the next version: what starts now has its settings.
    later = training_job(NAMESPACE, "later", {"steps": 1}, service="upgraded")
    yard.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(later))
    assert yard.finished("later")["state"] == "Succeeded"
    new = leader(yard)
    assert new != old
    image = json.loads(yard.cluster.kubectl("-n", SYSTEM, "get", "pod", new, "-o", "json"))["spec"]["containers"][0][
        "image"
    ]
    assert image.endswith(f":{NEXT}")
    [started] = pods(yard, "later")
    assert {"name": "OPERATOR_VERSION", "value": NEXT} in started["spec"]["containers"][0]["env"]
    # The attempt that ran goes on: the same pod, its reports are taken, and nothing was made beside it.
    seen = yard.until("endless", "reported", lambda status: status["progress"]["step"] > before["progress"]["step"] + 2)
    assert (seen["state"], seen["current"]) == ("Running", before["current"])
    assert [each["metadata"]["uid"] for each in pods(yard, "endless")] == [pod["metadata"]["uid"]]
    # What a user asks for now reaches it through the new one.
    yard.edit("endless", end="Finish")
    status = yard.finished("endless")
    assert (status["state"], status["reason"]) == ("Succeeded", "FinishedEarly"), status.get("message")
    [attempt] = status["attempts"]
    assert (attempt["podUID"], attempt["cause"]) == (pod["metadata"]["uid"], "Completed")
    assert len(yard.children("jobs", "endless")) == 1
