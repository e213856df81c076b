"""Whatever can be read by somebody who may not read Secrets holds no word of one."""

import base64
import json
import urllib.request

import pytest
from realyard import BUCKET, NAMESPACE, Yard

from demo.stage import SYSTEM, storage_secret

pytestmark = [pytest.mark.cluster, pytest.mark.training, pytest.mark.timeout(900)]

KEY, TOKEN, PASSWORD = "MarkedSecretKey0123456789", "MarkedSessionToken987654321", "MarkedPassword5551234"
LARGEST = 4 << 20


def objects(yard: Yard) -> str:
    """Every object of every kind but Secrets."""
    kinds = yard.cluster.kubectl("api-resources", "--verbs=list", "-o", "name").split()
    return yard.cluster.kubectl("get", ",".join(sorted(set(kinds) - {"secrets"})), "-A", "-o", "json", timeout=120)


def logs(yard: Yard) -> str:
    """Of every container, and of the nodes and the control plane, who put Secrets into pods; not of S3, which knows the keys."""
    every = ("-l", "no!=such", "--tail=-1", "--max-log-requests=100", "--ignore-errors")
    pods = [yard.cluster.kubectl("-n", namespace, "logs", *every) for namespace in (NAMESPACE, SYSTEM)]
    files = [file for file in yard.cluster.layout.logs.glob("*.log") if file.name != "s3.log"]
    return "".join([*pods, *(file.read_text(errors="replace") for file in files)])


def metrics(yard: Yard) -> str:
    listed = json.loads(yard.cluster.kubectl("-n", SYSTEM, "get", "pods", "-o", "json"))["items"]
    running = [pod["status"]["podIP"] for pod in listed if pod["status"]["phase"] == "Running"]
    assert running
    found = ""
    for address in running:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            f"http://{address}:8080/metrics"
        ) as answer:
            found += answer.read().decode()
    return found


def stored(yard: Yard) -> str:
    """What trainers wrote into storage."""
    listed = yard.s3.list_objects_v2(Bucket=BUCKET, Prefix="models").get("Contents", [])
    small = [each["Key"] for each in listed if each["Size"] < LARGEST]
    return "".join(yard.get(f"s3://{BUCKET}/{key}").decode(errors="replace") for key in small)


def test_no_value_of_a_secret_is_in_any_object_log_event_metric_or_file(yard: Yard, shapes: bytes):
    real = yard.cluster.s3
    address = real.endpoint.replace("http://", f"http://someone:{PASSWORD}@")
    wrong = {"AWS_SECRET_ACCESS_KEY": KEY, "AWS_SESSION_TOKEN": TOKEN, "AWS_ENDPOINT_URL": address}
    marked = storage_secret(real, NAMESPACE, "marked", **wrong)
    yard.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(marked))
    # Other tests' jobs have trained with good keys; this one is told what is wrong with its own.
    yard.apply("wrong-keys", yard.put("secrets.zip", shapes), dataset={"secretName": "marked"})
    refused = yard.finished("wrong-keys")
    assert (refused["state"], refused["reason"]) == ("Failed", "StorageDenied"), refused
    everything = {"objects": objects(yard), "logs": logs(yard), "metrics": metrics(yard), "storage": stored(yard)}
    assert "wrong-keys" in everything["objects"]
    assert "wrong-keys" in everything["logs"]
    assert "trainyard_" in everything["metrics"]
    for value in (KEY, TOKEN, PASSWORD, real.secret_access_key):
        for form in (value, base64.b64encode(value.encode()).decode().rstrip("=")):
            found = [where for where, text in everything.items() if form in text]
            assert not found, f"a secret value is in the {found}"
