"""What a training needs on a devcluster: the chart, a namespace, a bucket, a Secret. Each step may be repeated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from devcluster import Cluster, CommandError, S3Access
from devcluster.spec import Phase

ROOT = Path(__file__).resolve().parent.parent
CHART = ROOT / "helm" / "trainyard"
RELEASE, SYSTEM = "trainyard", "trainyard-system"
SECRET = "storage"  # noqa: S105 a name


def source_digest() -> str:
    """Changes with the operator's code."""
    sha = hashlib.sha256()
    for folder in ("operator/trainyard_operator", "crds/trainyard_api"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            sha.update(path.read_bytes())
    return sha.hexdigest()[:16]


# A devcluster's machine is small, and its GPUs exist in name only: its services train on CPU.
VALUES: dict[str, Any] = {
    "services": {
        "cpu": "500m",
        "memory": "4Gi",
        "sharedMemory": "512Mi",
        "secretNames": [SECRET],
        "template": {"instance": {"gpus": 0}},
    },
    # An image of a devcluster is the working tree: what changed there is a new image.
    "podAnnotations": {"trainyard.dev/source": source_digest()},
    # Pods of a devcluster share one network: each listens on its own address only.
    "extraEnv": [
        {"name": f"TRAINYARD_{part}_HOST", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
        for part in ("PROBE", "INTAKE")
    ],
}
Say = Callable[[str], None]
Object = dict[str, Any]


def bring_up(name: str, say: Say, **wanted: Any) -> Cluster:
    """The cluster `name` with a node and S3; one that broke is made anew."""
    status = Cluster(name).status()
    if status is not None and status.phase == Phase.CRASHED:
        say(f"    the cluster is broken ({status.message}); starting over")
        Cluster(name).stop()
    return Cluster.start(name, nodes=1, gpus=1, s3=True, say=say, **wanted)


def install(cluster: Cluster, values: Object = VALUES) -> None:
    """Install or upgrade the chart and wait until the operator is ready. Raises `CommandError`."""
    _clear_half_done(cluster)
    try:
        cluster.helm(
            "upgrade", "--install", RELEASE, str(CHART), "--namespace", SYSTEM, "--create-namespace",
            "--values", "-", "--wait", "--timeout", "180s", stdin=json.dumps(values), timeout=240,
        )  # fmt: skip
    except CommandError as error:
        pods = cluster.kubectl("-n", SYSTEM, "describe", "pods", check=False)
        logs = cluster.kubectl("-n", SYSTEM, "logs", f"deployment/{RELEASE}", "--tail=30", check=False)
        error.add_note(f"{pods[-3000:]}\nThe operator's log:\n{logs}")
        raise


def _clear_half_done(cluster: Cluster) -> None:
    """Helm refuses to go on after it was killed in the middle; definitions and jobs survive an uninstall."""
    answer = cluster.helm("status", RELEASE, "--namespace", SYSTEM, "--output", "json", check=False)
    if answer and json.loads(answer)["info"]["status"].startswith("pending"):
        cluster.helm("uninstall", RELEASE, "--namespace", SYSTEM, "--wait")


def give_storage(cluster: Cluster, namespace: str, bucket: str, secret: str = SECRET) -> Any:
    """The namespace, its Secret with the S3 server's credentials, and the bucket; returns a boto3 client."""
    objects = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}},
        storage_secret(cluster.s3, namespace, secret),
    ]
    for each in objects:
        cluster.kubectl("apply", "-f", "-", stdin=json.dumps(each))
    client = s3_client(cluster.s3)
    if bucket not in [each["Name"] for each in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket=bucket)
    return client


def storage_secret(access: S3Access, namespace: str, name: str = SECRET, **instead: str) -> Object:
    """The Secret as a manifest; `instead` replaces single entries, for tests of what is wrong."""
    environment = access.environment()
    data = {
        key: environment[key]
        for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_REGION")
    }
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "namespace": namespace},
        "stringData": data | instead,
    }


def s3_client(access: S3Access) -> Any:
    import boto3

    return boto3.client(
        "s3",
        endpoint_url=access.endpoint,
        aws_access_key_id=access.access_key_id,
        aws_secret_access_key=access.secret_access_key,
        region_name=access.region,
    )


def split_uri(uri: str) -> tuple[str, str]:
    """(bucket, key) of an s3:// address."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key
