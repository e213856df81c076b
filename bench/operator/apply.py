"""How quickly an applied TrainingJob becomes a batch/v1 Job, and how quickly it trains: `make bench-apply`.

The first figure is the operator's own: 200 jobs one after the other on an idle operator, from the moment the API server is
sent the job to the moment a watch shows its Job; no node takes part. The second is the whole path with the real trainer on
one node, from the same moment to the first training step as the trainer's log has it, with a dataset of 60 small pictures from S3: cold, and where
a warm instance waits.
Prints a table, and as the last line one JSON object.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from datetime import datetime
from pathlib import Path
from typing import Any

import boto3
from observe import percentiles, session_at
from rangespec import goals, missed, report
from systems import operator_process
from trainyard_operator.cluster import JOBS, NAMESPACES, SECRETS, TRAINING_JOBS, TRAINING_SERVICES, Cluster, Resource
from trainyard_trainer.synth import write_zip

from devcluster import Cluster as Devcluster
from devcluster import processes

ROOT = Path(__file__).resolve().parents[2]
NAMESPACE = "bench"
Object = dict[str, Any]


async def measure(devcluster: Devcluster, api: Cluster, jobs: int, trainings: int) -> Object:
    """All figures; seconds."""
    await api.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    await service(api, "idle", {"gpus": 0}, maxInstances=10_000)
    await apply_to_job(api, "warm-up")  # the operator is still starting, and makes its first connections
    created = [await apply_to_job(api, f"apply-{number}") for number in range(jobs)]
    print(f"{jobs} jobs applied: {figures(created)} ms to their Jobs", file=sys.stderr)
    devcluster.grow(nodes=1, s3=True)
    uri = await asyncio.to_thread(store_dataset, devcluster)
    access = {key: value for key, value in devcluster.s3.environment().items() if key != "AWS_DEFAULT_REGION"}
    secret = {"apiVersion": "v1", "kind": "Secret", "stringData": access}
    await api.create(SECRETS, secret | {"metadata": {"namespace": NAMESPACE, "name": "storage"}})
    hardware = {"gpus": 0, "memory": "2Gi"}
    await service(api, "train", hardware, secret="storage", maxInstances=trainings)
    cold = [await apply_to_first_step(devcluster, api, f"train-{number}", "train", uri) for number in range(trainings)]
    await service(api, "warm", hardware, secret="storage", minInstances=1, maxInstances=1)
    warm = [await warm_to_first_step(devcluster, api, f"warm-{number}", uri) for number in range(trainings)]
    return {"apply_to_job": created, "apply_to_first_step": cold, "apply_to_first_step_warm": warm}


async def service(api: Cluster, name: str, instance: Object, *, secret: str | None = None, **scaling: Any) -> None:
    spec: Object = {"architecture": "yard-nano", "instance": instance, "scaling": scaling}
    if secret:
        spec["secretNames"] = [secret]
    metadata = {"namespace": NAMESPACE, "name": name}
    body = {"apiVersion": "trainyard.dev/v1alpha1", "kind": "TrainingService", "metadata": metadata, "spec": spec}
    await api.create(TRAINING_SERVICES, body)


def training_job(name: str, service: str, uri: str, **spec: Any) -> Object:
    metadata = {"namespace": NAMESPACE, "name": name}
    whole = {
        "architecture": "yard-nano",
        "serviceName": service,
        "dataset": {"sources": [{"uri": uri}], "imageSize": 64},
        "output": {"uri": "s3://bench/models"},
    } | spec
    return {"apiVersion": "trainyard.dev/v1alpha1", "kind": "TrainingJob", "metadata": metadata, "spec": whole}


async def apply_to_job(api: Cluster, name: str) -> float:
    """Seconds until a watch shows the job's first batch/v1 Job. The job is deleted again, so that the operator is idle."""
    body = training_job(name, "idle", "s3://bench/none.zip")
    label = f"trainyard.dev/job={name}"
    seconds, job = await timed(api, body, JOBS, label, lambda _: True)
    await api.delete(TRAINING_JOBS, NAMESPACE, name, uid=job["metadata"]["uid"])
    return seconds


async def warm_to_first_step(devcluster: Devcluster, api: Cluster, name: str, uri: str) -> float:
    """The same as `apply_to_first_step`, where a warm instance waits for the job."""
    async with asyncio.timeout(300), aclosing(watch(api, TRAINING_SERVICES, "", 0)) as services:
        async for seen in services:
            if seen["metadata"]["name"] == "warm" and (seen.get("status") or {}).get("standbyInstances"):
                break
    return await apply_to_first_step(devcluster, api, name, "warm", uri)


async def apply_to_first_step(devcluster: Devcluster, api: Cluster, name: str, service: str, uri: str) -> float:
    """Seconds until the first training step was taken, by the trainer's log; the status shows it some reports later."""
    body = training_job(name, service, uri, training={"epochs": 1})

    def trains(seen: Object) -> bool:
        status = seen.get("status") or {}
        if status.get("state") == "Failed":
            raise RuntimeError(f"{name} failed: {status.get('message')}")
        return seen["metadata"]["name"] == name and ((status.get("progress") or {}).get("step") or 0) >= 1

    seconds, job = await timed(api, body, TRAINING_JOBS, "", trains)
    applied = time.time() - seconds
    arguments = ("-n", NAMESPACE, "logs", f"-ltrainyard.dev/job={name}", "--tail=-1")
    log = await asyncio.to_thread(devcluster.kubectl, *arguments)
    lines = (json.loads(line) for line in log.splitlines() if line.startswith("{"))
    step = next(line for line in lines if line.get("event") == "step")
    taken = datetime.fromisoformat(step["time"]).timestamp() - applied
    print(f"{name}: first step after {taken:.2f} s, in the status after {seconds:.2f} s", file=sys.stderr)
    # What it goes on doing would be measured with the next one.
    await api.delete(TRAINING_JOBS, NAMESPACE, name, uid=job["metadata"]["uid"])
    return taken


async def timed(
    api: Cluster, body: Object, resource: Resource, label: str, wanted: Callable[[Object], bool]
) -> tuple[float, Object]:
    """Apply `body`; seconds until the watch shows what is wanted, and the applied job."""
    _, version = await api.list_at(resource, NAMESPACE, labels=label or None)
    stream = watch(api, resource, label, version)
    # The watch must be open before the clock starts: its first answer is asked for now and awaited later.
    upcoming = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.05)
    began = time.perf_counter()
    job = await api.create(TRAINING_JOBS, body)
    async with asyncio.timeout(300):
        while not wanted(await upcoming):
            upcoming = asyncio.ensure_future(anext(stream))
    seconds = time.perf_counter() - began
    await stream.aclose()
    return seconds, job


async def watch(api: Cluster, resource: Resource, label: str, version: int) -> AsyncGenerator[Object, None]:
    """The objects that a watch shows from `version` on."""
    query = {"watch": "true", "resourceVersion": str(version)} | ({"labelSelector": label} if label else {})
    async with (
        await session_at(api, read_bufsize=2**20) as session,
        session.get(resource.path(NAMESPACE), params=query) as answer,
    ):
        answer.raise_for_status()
        async for line in answer.content:
            yield json.loads(line)["object"]


def store_dataset(devcluster: Devcluster) -> str:
    """Put 60 small pictures with shapes into S3; their address."""
    access = devcluster.s3.environment()
    client = boto3.client(
        "s3",
        endpoint_url=access["AWS_ENDPOINT_URL"],
        aws_access_key_id=access["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=access["AWS_SECRET_ACCESS_KEY"],
        region_name=access["AWS_REGION"],
    )
    client.create_bucket(Bucket="bench")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shapes.zip"
        write_zip(path, images=60, size=(96, 72), labels=2, seed=7)
        client.upload_file(str(path), "bench", "shapes.zip")
    return "s3://bench/shapes.zip"


def figures(seconds: list[float]) -> Object:
    """p50, p99 and the extremes, in milliseconds."""
    extremes = {"min": round(1000 * min(seconds), 1), "max": round(1000 * max(seconds), 1)}
    return percentiles(seconds) | extremes | {"n": len(seconds)}


async def run(devcluster: Devcluster, jobs: int, trainings: int) -> Object:
    api = await Cluster.connect(str(devcluster.kubeconfig))
    try:
        return {name: figures(values) for name, values in (await measure(devcluster, api, jobs, trainings)).items()}
    finally:
        await api.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--trainings", type=int, default=3)
    parser.add_argument("--check", action="store_true", help="end with 1 when a goal of rangespec.yaml is missed")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        Devcluster.start("bench", state=Path(folder) / "cluster", owner=processes.record(os.getpid())) as devcluster,
    ):
        devcluster.define(ROOT / "crds")
        log = Path(folder) / "operator.log"
        with operator_process(devcluster, log, default_cpu="100m"):
            try:
                result = asyncio.run(run(devcluster, options.jobs, options.trainings))
            except BaseException:
                print(log.read_text()[-4000:], file=sys.stderr)
                raise
    print(f"{'milliseconds':<22}{'p50':>10}{'p99':>10}{'min':>10}{'max':>10}{'n':>6}")
    for name, row in result.items():
        print(f"{name:<22}{row['p50']:>10}{row['p99']:>10}{row['min']:>10}{row['max']:>10}{row['n']:>6}")
    verdicts = report(goals("apply"), result)
    figures = {"benchmark": "apply", "unit": "ms", "load_average": os.getloadavg()[0]} | result
    print(json.dumps(figures | {"goals": verdicts}))
    sys.exit(options.check and missed(verdicts))


if __name__ == "__main__":
    main()
