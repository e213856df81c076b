"""The whole path on real parts: kubectl apply, the operator as the chart installs it, the trainer in a pod, S3, a version."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from realyard import BUCKET, FINAL, NAMESPACE, Yard, sha256

pytestmark = [pytest.mark.cluster, pytest.mark.training, pytest.mark.timeout(900)]

INDEX = "batch.kubernetes.io/job-completion-index"
QUICK = [{"name": "TRAINYARD_ONNX", "value": "0"}, {"name": "OMP_NUM_THREADS", "value": "1"}]
FILES = {"model.safetensors", "model.onnx", "labels.txt", "metrics.json", "predictions.png"}

JUST_INSTALLED = "cannot find RESTMapping"
"""Of a refusal within the first half minute of the CRDs: until then the API server's admission may not know their kinds."""


@pytest.fixture(scope="module")
def trained(yard: Yard, shapes: bytes) -> dict[str, Any]:
    """The status of a job of three fields that was trained."""
    yard.apply("plain", yard.put("plain.zip", shapes), resources={"env": [{"name": "TRAINYARD_ONNX", "value": "1"}]})
    return yard.finished("plain")


def test_a_job_of_three_fields_succeeds(yard: Yard, trained: dict[str, Any]):
    assert (trained["state"], trained["reason"]) == ("Succeeded", "Completed"), trained.get("message")
    assert trained["version"] == "plain-v1"
    assert trained["serviceName"] == "mgmt-train-yard-nano"
    [attempt] = trained["attempts"]
    assert (attempt["cause"], attempt["exitCode"], attempt["charged"]) == ("Completed", 0, False)
    progress = trained["progress"]
    assert progress["step"] == progress["steps"] > 0
    assert progress["phase"] == "Done"
    for scores in ("best", "test"):
        assert 0 <= trained["metrics"][scores]["mAP50"] <= 1
    assert trained["dataset"]["images"] == 24
    assert sum(trained["dataset"][f"{side}Images"] for side in ("train", "validation", "test")) == 24
    conditions = {each["type"]: each["status"] for each in trained["conditions"]}
    assert conditions["Ready"] == conditions["Succeeded"] == "True"


def test_the_service_was_made_with_the_charts_defaults(yard: Yard, trained: dict[str, Any]):
    spec = yard.object("trainingservices", trained["serviceName"])["spec"]
    assert spec["secretNames"] == ["storage"]
    assert spec["instance"]["gpus"] == 0
    assert spec["scaling"]["maxInstances"] == 4


def test_the_version_is_ready_and_names_files_that_are_there(yard: Yard, trained: dict[str, Any]):
    version = yard.version_in("plain-v1", "Ready")
    status = version["status"]
    assert version["spec"]["jobName"] == "plain"
    assert "ownerReferences" not in version["metadata"]
    assert len(status["labels"]) == 2
    artifacts = {each["name"]: each for each in status["artifacts"]}
    assert set(artifacts) >= FILES
    for each in artifacts.values():
        data = yard.get(each["uri"])
        assert (len(data), sha256(data)) == (each["size"], each["sha256"]), each["name"]
    manifest = json.loads(yard.get(status["manifestURI"]))
    assert {each["name"]: each["sha256"] for each in manifest["files"]} == {
        name: each["sha256"] for name, each in artifacts.items()
    }
    assert yard.get(artifacts["predictions.png"]["uri"]).startswith(b"\x89PNG")


def test_the_story_is_told_by_events_and_the_job_is_kept_for_its_log(yard: Yard, trained: dict[str, Any]):
    yard.told("plain", "Preparing", "Running", "Succeeded")
    [pod] = yard.children("pods", "plain")
    assert pod["status"]["phase"] == "Succeeded"
    assert len(yard.children("jobs", "plain")) == 1
    log = yard.cluster.kubectl("-n", NAMESPACE, "logs", "-l", "trainyard.dev/job=plain", "--tail=-1")
    assert '"event": "step"' in log


def test_nothing_that_is_secret_is_anywhere_to_be_read(yard: Yard, trained: dict[str, Any]):
    key = yard.cluster.s3.secret_access_key
    told = yard.cluster.kubectl("-n", NAMESPACE, "get", "tj,tsvc,mv,jobs,pods,events", "-o", "yaml")
    told += yard.cluster.kubectl("-n", NAMESPACE, "logs", "-l", "trainyard.dev/job=plain", "--tail=-1")
    told += yard.cluster.kubectl("-n", "trainyard-system", "logs", "deployment/trainyard", "--tail=-1")
    told += "".join(
        yard.get(f"s3://{BUCKET}/{each}").decode(errors="replace") for each in yard.keys("models/plain/runs")
    )
    assert key not in told


def test_the_operators_log_has_no_refused_call_and_no_traceback(yard: Yard, trained: dict[str, Any]):
    log = yard.cluster.kubectl("-n", "trainyard-system", "logs", "deployment/trainyard", "--tail=-1")
    assert "leads now" in log
    assert "Traceback" not in log, log[-4000:]
    refused = [line for line in log.splitlines() if "forbidden" in line and JUST_INSTALLED not in line]
    assert refused == []


def test_a_stopped_job_goes_on_from_its_checkpoint(yard: Yard, shapes: bytes):
    yard.apply(
        "paused", yard.put("paused.zip", shapes), training={"epochs": None, "steps": 40, "checkpointEverySteps": 5}
    )
    yard.until("paused", "past step 5", lambda status: status.get("progress", {}).get("step", 0) > 5)
    yard.edit("paused", suspend=True)
    stopped = yard.finished("paused")
    assert stopped["state"] == "Stopped", stopped
    at = stopped["attempts"][-1]["checkpointStep"]
    assert at > 5
    yard.version_in("paused-v1", "Stopped")
    yard.edit("paused", suspend=False)
    yard.until("paused", "going on", lambda status: status.get("state") not in FINAL)
    status = yard.finished("paused")
    assert status["state"] == "Succeeded", status.get("message")
    assert status["attempts"][-1]["resumedFromStep"] == at
    assert status["progress"]["step"] == 40
    assert (status["chargedAttempts"], status["version"]) == (0, "paused-v1")


@pytest.mark.usefixtures("only_gang")
def test_two_nodes_train_as_one_and_losing_one_ends_the_attempt(yard: Yard, shapes: bytes):
    yard.apply(
        "gang",
        yard.put("gang.zip", shapes),
        resources={"nodes": 2, "env": QUICK},
        training={"epochs": None, "steps": 5000, "batchSize": 4, "checkpointEverySteps": 5, "evaluateEverySteps": 5000},
        policy={"backoffSeconds": 0},
    )
    yard.until("gang", "past a checkpoint", lambda s: s.get("progress", {}).get("checkpointStep"))
    ranks = {pod["metadata"]["labels"][INDEX]: pod["metadata"]["name"] for pod in yard.children("pods", "gang")}
    assert sorted(ranks) == ["0", "1"]
    for process in processes_of(ranks["1"]):
        os.kill(process, signal.SIGKILL)
    yard.until(
        "gang", "training again", lambda s: len(s["attempts"]) == 2 and s["attempts"][1].get("trainingStartTime")
    )
    yard.edit("gang", end="Finish")
    status = yard.finished("gang")
    assert (status["state"], status["reason"]) == ("Succeeded", "FinishedEarly"), status.get("message")
    first, second, *_ = status["attempts"]
    assert (first["cause"], first["exitCode"], first["charged"]) == ("Error", 137, True), first
    assert "signal 9" in first["message"]
    assert second["resumedFromStep"] >= 5
    # (Where the machine is slow, what it has is published by one attempt more.)
    last = status["attempts"][-1]
    assert (last["cause"], status["chargedAttempts"]) == ("Completed", 1), status["attempts"]
    pods = yard.labelled("pods", f"trainyard.dev/job=gang,trainyard.dev/attempt={last['number']}")
    assert [pod["status"]["phase"] for pod in pods] == ["Succeeded", "Succeeded"]


def test_a_process_killed_by_signal_9_is_started_again_in_its_pod(yard: Yard, shapes: bytes):
    yard.apply(
        "killed",
        yard.put("killed.zip", shapes),
        resources={"env": QUICK},
        training={"epochs": None, "steps": 40, "checkpointEverySteps": 5, "evaluateEverySteps": 40},
        policy={"rerunAsProcess": True},
    )
    status = yard.until("killed", "past a checkpoint", lambda status: status.get("progress", {}).get("checkpointStep"))
    for process in processes_of(status["attempts"][0]["podName"], b"TRAINYARD_LOCAL_RANK=0"):
        os.kill(process, signal.SIGKILL)
    status = yard.finished("killed")
    assert status["state"] == "Succeeded", status.get("message")
    first, second = status["attempts"]
    assert (first["cause"], first["charged"], second["cause"], second["process"]) == ("Error", True, "Completed", 2)
    assert "SIGKILL" in first["message"]
    assert (second["jobName"], second["podUID"]) == (first["jobName"], first["podUID"])
    assert second["resumedFromStep"] >= 5
    assert len(yard.children("pods", "killed")) == 1


def processes_of(pod: str, with_variable: bytes = b"") -> list[int]:
    """Processes on this machine that run the trainer of a pod, those with a variable only; not the sandbox around it."""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            program = (folder / "cmdline").read_bytes().split(b"\0")[0]
            told = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        wanted = {f"TRAINYARD_POD_NAME={pod}".encode(), with_variable or told[0]}
        if folder.name.isdigit() and b"python" in program and wanted <= set(told):
            found.append(int(folder.name))
    assert found, f"no process of {pod}"
    return found


def test_a_rerun_makes_the_next_version(yard: Yard, trained: dict[str, Any]):
    yard.edit("plain", rerun=1)
    status = yard.until("plain", "run again", lambda s: s.get("run") == 1 and s.get("state") in FINAL)
    assert (status["state"], status["version"]) == ("Succeeded", "plain-v2"), status.get("message")
    yard.version_in("plain-v1", "Ready")


@pytest.fixture(scope="module", autouse=True)
def hurried(yard: Yard, shapes: bytes) -> None:
    """A job that has no time to finish, applied first since it takes all that it has."""
    yard.apply(
        "hurried", yard.put("hurried.zip", shapes), training={"epochs": 10_000},
        policy={"timeoutSeconds": 75, "drainSeconds": 50},
    )  # fmt: skip


def test_time_that_runs_out_publishes_the_best_so_far(yard: Yard):
    status = yard.finished("hurried")
    assert (status["state"], status["reason"]) == ("Succeeded", "TimeoutReached"), status.get("message")
    assert 0 < status["progress"]["step"] < 30_000
