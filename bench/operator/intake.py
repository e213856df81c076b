"""How many reports the intake takes on one core, how quickly it answers, and what it says to forged ones: `make bench-intake`.

A replica of the operator that does not lead, held to one core, takes reports of running attempts over TLS, with tokens that a
real API server bound to real pods. First a steady stream, from the moment each report is due to its answer; then as many as
it takes. Of the steady ones every tenth is followed by a forged one, of ten kinds in turn; who was believed shows in the
answers, and in the statuses afterwards. Prints a table, the goals of rangespec.yaml, and as the last line one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import ssl
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from forged import KINDS, Attempt, forge
from observe import percentiles, usage
from rangespec import goals, missed, report
from results import DISTURBED_PERCENT
from senders import Sender
from systems import OPERATOR_NAMESPACE, operator_process
from trainyard_operator import tls
from trainyard_operator.cluster import LEASES, NAMESPACES, PODS, TRAINING_JOBS, Cluster, Resource
from trainyard_operator.intake import PATH

from devcluster import Cluster as Devcluster
from devcluster import processes

NAMESPACE = "bench"
CORE = 0
PORT = 18443
FORGED_EVERY = 10
SENDERS = 32
ACCOUNTS = Resource("", "v1", "serviceaccounts", "ServiceAccount")
Object = dict[str, Any]


async def prepare(api: Cluster, count: int) -> list[Attempt]:
    """`count` jobs whose attempt runs in a pod of its own, with the token that this pod would have."""
    await api.create(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"namespace": NAMESPACE, "name": "default"}}
    await api.create(ACCOUNTS, account)
    gate = asyncio.Semaphore(16)

    async def one(number: int) -> Attempt:
        async with gate:
            return await attempt(api, f"job-{number}")

    return await asyncio.gather(*(one(number) for number in range(count)))


async def attempt(api: Cluster, name: str) -> Attempt:
    """A job as the operator would have left it when its first attempt began to run."""
    metadata = {"namespace": NAMESPACE, "name": name}
    container = {"name": "trainer", "image": "bench/trainer:1"}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}}
    dataset = {"sources": [{"uri": "s3://bench/data.zip"}]}
    spec = {"architecture": "yard-nano", "dataset": dataset, "output": {"uri": "s3://bench/models"}}
    body = {"apiVersion": "trainyard.dev/v1alpha1", "kind": "TrainingJob", "metadata": metadata, "spec": spec}
    pod_uid = (await api.create(PODS, pod))["metadata"]["uid"]
    uid = (await api.create(TRAINING_JOBS, body))["metadata"]["uid"]
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    entry = {"number": 1, "run": 0, "jobName": f"{name}-r0-a1", "createTime": created}
    status: Object = {
        "state": "Running",
        "run": 0,
        "revision": 1,
        "attempts": [entry],
        "current": {"attempt": 1, "podUID": pod_uid},
        "summary": {"attempt": "0/3"},
    }
    operations = [{"op": "add", "path": f"/status/{field}", "value": value} for field, value in status.items()]
    await api.patch_status(TRAINING_JOBS, NAMESPACE, name, tests={"/metadata/uid": uid}, operations=operations)
    good, other = [await token(api, name, pod_uid, audience) for audience in ("trainyard.dev", None)]
    return Attempt(NAMESPACE, name, uid, pod_uid, good, other)


async def token(api: Cluster, pod: str, pod_uid: str, audience: str | None) -> str:
    """A token bound to the pod; without `audience` for the API server, as every pod has one."""
    bound = {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": pod_uid}
    spec: Object = {"expirationSeconds": 3600, "boundObjectRef": bound}
    if audience:
        spec["audiences"] = [audience]
    path = ACCOUNTS.path(NAMESPACE, "default", "token")
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    return (await api.request("POST", path, body=body))["status"]["token"]


async def another_leads(api: Cluster) -> bytes:
    """Let the replica to come find a leader, and its certificate; the authority that signed this."""
    now = datetime.now(UTC)
    files = await tls.ensure_secret(api, OPERATOR_NAMESPACE, "trainyard-intake-tls", ["127.0.0.1"], now)
    renewed = now.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    spec = {"holderIdentity": "another", "leaseDurationSeconds": 86_400, "acquireTime": renewed, "renewTime": renewed}
    metadata = {"namespace": OPERATOR_NAMESPACE, "name": "trainyard-operator"}
    await api.create(
        LEASES, {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata, "spec": spec}
    )
    return files[tls.BUNDLE]


class Stream:
    """Reports of all attempts in turn, none of them twice a second: quicker than that, the intake would rightly refuse it."""

    sequences = itertools.count(1)
    """Of all streams: an attempt's reports count upwards from one stream to the next."""

    def __init__(self, attempts: list[Attempt], context: ssl.SSLContext, *, keep: bool) -> None:
        """`keep`: a connection serves many reports; else each report makes its own."""
        self._attempts = attempts
        self._senders: asyncio.Queue[Sender] = asyncio.Queue()
        for _ in range(SENDERS):
            self._senders.put_nowait(Sender("127.0.0.1", PORT, PATH, context, keep=keep))
        self.answers: Counter[str] = Counter()
        self.forged: Counter[str] = Counter()
        self.seconds: list[float] = []

    async def send(self, number: int, due: float) -> None:
        """The next report of the attempt whose turn it is; its time counts from when it was due."""
        each = self._attempts[number % len(self._attempts)]
        status, reason = await self._post(each.token, each.report(next(self.sequences)))
        self.answers[reason or str(status)] += 1
        if status == 200:
            self.seconds.append(time.perf_counter() - due)

    async def send_forged(self, number: int) -> None:
        kind = KINDS[number % len(KINDS)]
        mine = self._attempts[number % len(self._attempts)]
        other = self._attempts[(number + 1) % len(self._attempts)]
        bearer, body = forge(kind, mine, other, next(self.sequences) + 1_000_000)
        status, reason = await self._post(bearer, body)
        self.forged["accepted" if status < 400 else f"{kind}: {status} {reason}"] += 1

    async def _post(self, bearer: str | None, body: Object) -> tuple[int, str]:
        sender = await self._senders.get()
        try:
            return await sender.post(bearer, json.dumps(body).encode())
        finally:
            self._senders.put_nowait(sender)

    async def steady(self, rate: float, seconds: float) -> None:
        """`rate` a second, whether the ones before are answered or not."""
        began, tasks = time.perf_counter(), []
        for number in range(round(rate * seconds)):
            due = began + number / rate
            await asyncio.sleep(max(due - time.perf_counter(), 0))
            tasks.append(asyncio.create_task(self.send(number, due)))
            if number % FORGED_EVERY == 0:
                tasks.append(asyncio.create_task(self.send_forged(number // FORGED_EVERY)))
        await asyncio.gather(*tasks)

    async def all_it_takes(self, seconds: float) -> float:
        """As many as `SENDERS` connections bring through, each attempt once a second; reports accepted a second."""
        began, before, number = time.perf_counter(), len(self.seconds), 0

        async def work() -> None:
            nonlocal number
            while (now := time.perf_counter()) < began + seconds:
                mine, number = number, number + 1
                due = began + (mine // len(self._attempts)) * 1.05
                await asyncio.sleep(max(due - now, 0))
                await self.send(mine, max(due, now))

        await asyncio.gather(*(work() for _ in range(SENDERS)))
        return (len(self.seconds) - before) / (time.perf_counter() - began)


async def measure(devcluster: Devcluster, log: Path, options: argparse.Namespace) -> Object:
    api = await Cluster.connect(str(devcluster.kubeconfig))
    try:
        context = ssl.create_default_context(cadata=(await another_leads(api)).decode())
        attempts = await prepare(api, options.attempts)
        print(f"{len(attempts)} attempts are ready", file=sys.stderr, flush=True)
        with operator_process(devcluster, log) as process:
            os.sched_setaffinity(process.pid, {CORE})
            status = devcluster.status()
            assert status is not None
            servers = {each.name: each.process.pid for each in status.components if each.process}
            return await streams(api, attempts, context, servers | {"operator": process.pid}, options)
    finally:
        await api.close()


async def streams(
    api: Cluster, attempts: list[Attempt], context: ssl.SSLContext, pids: dict[str, int], options: argparse.Namespace
) -> Object:
    warm = Stream(attempts[:20], context, keep=False)
    await until_served(warm)
    await asyncio.sleep(2)  # its watches fill, and every attempt may report again
    pids |= {"client": os.getpid()}
    stream = Stream(attempts, context, keep=not options.reconnect)
    before = await usage(api, pids)
    await stream.steady(options.rate, options.seconds)
    cost = (await usage(api, pids)).since(before)
    answers, latencies = dict(stream.answers), percentiles(stream.seconds)
    sent = sum(answers.values())
    await asyncio.sleep(1.5)
    most = await stream.all_it_takes(options.seconds)
    believed = await believed_forgeries(api)
    return {
        "attempts": len(attempts),
        "connections": "one for each report" if options.reconnect else "kept",
        "rate": options.rate,
        "seconds": options.seconds,
        "answers": answers,
        "milliseconds": latencies,
        "perSecond": round(most, 1),
        "forgedSent": sum(stream.forged.values()),
        "forgedAccepted": max(stream.forged["accepted"], believed),
        "forged": dict(sorted(stream.forged.items())),
        "cpuMillisecondsPerReport": {name: round(1000 * used / sent, 2) for name, used in cost.cpu.items()},
        "requestsPerReport": round(cost.requests / sent, 2),
        "foreignPercent": cost.foreign_percent,
    }


async def until_served(stream: Stream) -> None:
    """Wait until a report is taken: the replica has its certificate and the cluster's keys by then."""
    async with asyncio.timeout(300):
        while not stream.seconds:
            try:
                await stream.send(0, time.perf_counter())
            except OSError:
                await asyncio.sleep(0.2)


async def believed_forgeries(api: Cluster) -> int:
    """Jobs in whose status a forged report has left its mark."""
    jobs = await api.list_all(TRAINING_JOBS, NAMESPACE)
    return sum("forged" in json.dumps(job.get("status") or {}) for job in jobs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attempts", type=int, default=800, help="running attempts, each with a pod and a token")
    parser.add_argument("--rate", type=float, default=500, help="reports a second of the steady stream")
    parser.add_argument("--seconds", type=float, default=20, help="how long each of the two streams lasts")
    parser.add_argument("--reconnect", action="store_true", help="a connection for each report; else they are kept")
    parser.add_argument("--check", action="store_true", help="end with 1 when a goal of rangespec.yaml is missed")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        log, owner = Path(folder) / "operator.log", processes.record(os.getpid())
        with Devcluster.start("bench", state=Path(folder) / "cluster", owner=owner, controllers=False) as devcluster:
            devcluster.define(Path(__file__).resolve().parents[2] / "crds")
            try:
                result = asyncio.run(measure(devcluster, log, options))
            except BaseException:
                print(log.read_text()[-4000:] if log.exists() else "", file=sys.stderr)
                raise
    for name, value in result.items():
        print(f"{name:<28}{json.dumps(value)}")
    if result["foreignPercent"] > DISTURBED_PERCENT:
        print(f"\nDisturbed by other processes: {result['foreignPercent']:.0f} % of the machine.")
    print()
    verdicts = report(goals("intake"), result)
    print(json.dumps({"benchmark": "intake", "loadAverage": os.getloadavg()[0]} | result | {"goals": verdicts}))
    sys.exit(options.check and missed(verdicts))


if __name__ == "__main__":
    main()
