"""A seeded bad day: two operators behind the proxy, jobs of every fate, and in every round something that dies, breaks or is edited.

What is random is drawn from the seed alone, so that the same seed does the same things in the same order; when they meet the
operator is up to the machine.
"""

import asyncio
import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from trainyard_operator.cluster import (
    NAMESPACES,
    PODS,
    SECRETS,
    TRAINING_BUDGETS,
    TRAINING_JOBS,
    TRAINING_SERVICES,
    Cluster,
    ClusterError,
    ConflictError,
    NotFoundError,
    RejectedError,
)
from trainyard_trainer.synth import write_zip

from demo.stage import storage_secret
from devcluster import Cluster as Devcluster
from devcluster.access import free_port
from devcluster.node.process import Process
from tests.chaos.observer import Expected, Findings, Glimpse, Last, observe, pod_fact
from tests.chaos.proxy import Proxy
from tests.chaos.stepped import CLOCK_FILE
from tests.chaos.storage import BUCKET, Storage
from tests.operator.harness import Operator, Yard, leading

ROOT = Path(__file__).resolve().parents[2]
Object = dict[str, Any]
SERVICES: dict[str, Object] = {
    "cold": {"maxInstances": 3},
    "warm": {"maxInstances": 2, "minInstances": 1},
    "real": {"maxInstances": 1},
}
"""The last one trains; the others run what only keeps a trainer's contract."""
FAKE = ("cold", "warm")
TRAINS = "trains"
GANG = "gang"
TRAINING: Object = {
    "dataset": {"sources": [{"uri": f"s3://{BUCKET}/shapes.zip"}], "imageSize": 64},
    "output": {"uri": f"s3://{BUCKET}/models"},
    "training": {"steps": 8, "batchSize": 4, "checkpointEverySteps": 2},
}
CLOCK_STEPS = (-86_400, -5_400, -60, 60, 5_400, 86_400)
"""Seconds. Each is more than some time that an attempt is given."""
EXECUTION = {"drainSeconds": 3, "backoffSeconds": 0, "maxDisruptions": 500}
REAL_ENVIRONMENT = [{"name": "OMP_NUM_THREADS", "value": "1"}, {"name": "TRAINYARD_ONNX", "value": "0"}]
BUDGET = "team"
BUDGET_MINUTES = 10**6
OVER = {"Succeeded", "Failed", "Aborted"}

# What each attempt does, and the states in which such a job may end. An attempt that is disturbed is made again.
FATES: tuple[tuple[str, list[Object], set[str]], ...] = (
    ("succeeds", [{"steps": 3, "pause": 0.3}], {"Succeeded"}),
    ("long", [{"steps": 12, "pause": 0.3}], {"Succeeded"}),
    ("fails-once", [{"exit": 1}, {}], {"Succeeded"}),
    ("interrupted", [{"exit": 75}, {}], {"Succeeded"}),
    ("crashes", [{"kill": True}, {}], {"Succeeded"}),
    ("silent", [{"silent": 1}], {"Succeeded"}),
    ("bad-data", [{"exit": 65, "message": "a.xml:17: xmax 10 < xmin 40"}], {"Failed"}),
    ("hopeless", [{"exit": 1}], {"Failed"}),
    (GANG, [{"steps": 3, "pause": 0.3}], {"Succeeded"}),
    (TRAINS, [], {"Succeeded"}),
)


@dataclass
class Play:
    """One day in a namespace of its own."""

    devcluster: Devcluster
    folder: Path
    seed: int
    rate: float = 0.05
    """Share of the operators' requests and watch events that meet a fault."""
    patience: float = 1200.0
    """Seconds for what an undisturbed cluster does in a few."""
    rare_every: int = 3
    """Rounds for one rare deed."""
    deeds: Counter[str] = field(default_factory=Counter)
    expected: Expected = field(
        default_factory=lambda: Expected({n: s["maxInstances"] for n, s in SERVICES.items()}, {})
    )

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.namespace = f"chaos-{self.seed}-{time.time_ns() % 10**6}"
        self.glimpses: list[Glimpse] = []
        self.operators: list[Operator] = []
        self._last = Last()
        self.rare = self.random.sample(RARE, len(RARE))
        self.storage = Storage(self.devcluster.s3)

    async def run(self, rounds: int, say: Callable[[str], None] = lambda _: None) -> Findings:
        """Play `rounds`, let the dust settle, and have the history judged."""
        log = self.devcluster.layout.logs / "audit.log"
        start = log.stat().st_size if log.exists() else 0
        self.api = await Cluster.connect(str(self.devcluster.kubeconfig), seconds=20)
        self.yard = Yard(self.api, self.namespace, None)
        self.proxy = Proxy(self.api.server, self.api.ssl_context, self.seed, self.rate)
        try:
            async with self._operators():
                for number in range(rounds):
                    deed = await self._round(number)
                    await self._glimpse()
                    say(f"seed {self.seed}, round {number + 1}/{rounds}: {deed}")
                self.proxy.rate = 0.0
                await self._at_rest()
            await self._glimpse()
        finally:
            await self.proxy.stop()
            await self.storage.stop()
            await self.api.close()
        findings = observe(log, start, self.namespace, self.expected, self.glimpses, self._last)
        trained = {
            job["metadata"]["name"]: job["status"]["state"]
            for job in self._last.jobs
            if job["spec"]["serviceName"] == "real"
        }
        self.storage.judge(trained, findings)
        return findings

    # --- the stage ----------------------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _operators(self) -> AsyncIterator[None]:
        port, storage_port = free_port(), free_port()
        await self.proxy.start(port)
        await self.storage.start(storage_port)
        await self._patiently(lambda: self._make(NAMESPACES, {"metadata": {"name": self.namespace}}))
        self.devcluster.kubectl("wait", "--for=create", "serviceaccount/default", "-n", self.namespace, timeout=120)
        for name in FAKE:
            scaling = SERVICES[name]
            await self._patiently(
                lambda name=name, scaling=scaling: self.yard.service(name, scaling=scaling, execution=EXECUTION)
            )
        await self._give_storage(storage_port)
        await self._patiently(lambda: self.yard.budget(BUDGET, trainingMinutes=BUDGET_MINUTES, period="Total"))
        kubeconfig = self._through_the_proxy(port)
        for name in ("first", "second"):
            operator = Operator(
                kubeconfig,
                self.namespace,
                self.folder / f"{name}.log",
                # Operators end when they must: a lost lease, a broken watch.
                restarted=True,
                identity=name,
                lease_seconds=10,
                request_seconds=5,
                # Watch events are dropped here, which no API server does: only lists can mend that.
                resync_seconds=4,
                lost_node_seconds=3600,
                keep_finished_seconds=60,
                module="tests.chaos.stepped",
                environment={CLOCK_FILE: str(self.folder / f"{name}.clock")},
            )
            self.operators.append(operator)
            operator.start()
        try:
            await leading(self.operators, self.patience)
            yield
        finally:
            for operator in self.operators:
                operator.kill()
                self.deeds["operator ended by itself"] += operator.restarts

    async def _give_storage(self, port: int) -> None:
        """A bucket with a few pictures, and the service that trains with them for good."""
        with contextlib.suppress(self.storage.client.exceptions.BucketAlreadyOwnedByYou):
            self.storage.client.create_bucket(Bucket=BUCKET)
        pictures = self.folder / "shapes.zip"
        write_zip(pictures, images=16, size=(96, 72), labels=2, seed=7)
        self.storage.client.upload_file(str(pictures), BUCKET, pictures.name)
        secret = storage_secret(self.devcluster.s3, self.namespace, AWS_ENDPOINT_URL=f"http://127.0.0.1:{port}")
        await self._patiently(lambda: self.api.create(SECRETS, secret))
        body = {
            "image": "trainyard/trainer:0.1.0",
            "instance": {"memory": "2Gi"},
            "scaling": SERVICES["real"],
            "execution": EXECUTION,
            "secretNames": [secret["metadata"]["name"]],
        }
        await self._patiently(lambda: self.yard.service("real", env=REAL_ENVIRONMENT, **body))

    def _through_the_proxy(self, port: int) -> Path:
        config = yaml.safe_load(self.devcluster.kubeconfig.read_text())
        config["clusters"][0]["cluster"] = {"server": f"http://127.0.0.1:{port}"}
        kubeconfig = self.folder / "through-the-proxy"
        kubeconfig.write_text(yaml.safe_dump(config))
        return kubeconfig

    async def _make(self, resource: Any, body: Object) -> None:
        await self.api.create(resource, {"apiVersion": resource.api_version, "kind": resource.kind} | body)

    async def _glimpse(self) -> None:
        found: list[Glimpse] = []

        async def look() -> None:
            items, version = await self.api.list_at(PODS, self.namespace)
            facts = (pod_fact(item) for item in items)
            found.append(Glimpse(version, tuple(fact for fact in facts if fact)))

        await self._patiently(look)
        self.glimpses += found

    # --- a round ------------------------------------------------------------------------------------------------------------

    async def _round(self, number: int) -> str:
        fate, attempts, states = self.random.choice(FATES)
        name = f"{fate}-{number}"
        policy = {"maxAttempts": 2 if fate == "hopeless" else 100, "priority": self.random.randrange(3)}
        service = self.random.choice(FAKE)
        self.expected.ends[name] = set(states)
        if fate == TRAINS:
            await self._patiently(lambda: self.yard.job(name, service="real", policy=policy, **TRAINING))
        else:
            nodes = {"nodes": 2} if fate == GANG else {}
            await self._patiently(
                lambda: self.yard.job(name, *attempts, service=service, policy=policy, resources=nodes)
            )
        # Every kind of the rare ones comes up before one comes again.
        turn, rest = divmod(number, self.rare_every)
        deed = self.rare[turn % len(self.rare)] if rest == 1 else self.random.choice(USUAL)
        word = deed.__name__.strip("_").replace("_", " ")
        self.deeds[word] += 1
        await deed(self)
        await asyncio.sleep(self.random.uniform(0.2, 1.5))
        return f"{name}, {word}"

    async def _kill_operator(self) -> None:
        operator = self.random.choice(self.operators)
        operator.kill()
        operator.start()

    async def _kill_leader(self) -> None:
        operator = await leading(self.operators, self.patience)
        operator.kill()
        operator.start()

    async def _edit(self) -> None:
        """A user writes what is his while the operator writes what is its."""
        name = self._any_job()
        priority, word = self.random.randrange(9), self.random.random()
        path = "/spec/policy/priority"
        await self._patiently(lambda: self.yard.edit(name, description=f"edited {word}"))
        await self._patiently(
            lambda: self.api.patch(
                TRAINING_JOBS, self.namespace, name, [{"op": "add", "path": path, "value": priority}]
            )
        )

    async def _stop_and_resume(self) -> None:
        name, pause = self._any_job(), self.random.uniform(0.0, 2.0)
        await self._patiently(lambda: self.yard.edit(name, suspend=True))
        await asyncio.sleep(pause)
        await self._patiently(lambda: self.yard.edit(name, suspend=False))

    async def _abort(self) -> None:
        name = self._any_job()
        self.expected.ends[name].add("Aborted")
        await self._patiently(lambda: self.yard.edit(name, end="Abort"))

    async def _finish(self) -> None:
        """What has a checkpoint publishes it; what has none has nothing to publish."""
        name = self._any_job()
        self.expected.ends[name] |= {"Canceled", "Succeeded"}
        await self._patiently(lambda: self.yard.edit(name, end="Finish"))

    async def _rerun(self) -> None:
        name = self._any_job()
        await self._patiently(lambda: self.yard.edit(name, rerun=1))

    async def _delete_job(self) -> None:
        """As `kubectl delete trainingjob` does; what runs is drained before it goes."""
        name = self._any_job()
        self.expected.deleted.add(name)
        await self._patiently(lambda: self.api.request("DELETE", TRAINING_JOBS.path(self.namespace, name)))

    async def _spend_budget(self) -> None:
        """There is no time left for anybody, until somebody gives some."""
        for minutes in (0, BUDGET_MINUTES):
            edit = [{"op": "replace", "path": "/spec/trainingMinutes", "value": minutes}]
            await self._patiently(lambda edit=edit: self.api.patch(TRAINING_BUDGETS, self.namespace, BUDGET, edit))
            await asyncio.sleep(self.random.uniform(0.0, 3.0))

    async def _delete_pod(self) -> None:
        """As `kubectl delete pod` and every drain of a node does."""
        pods: list[Object] = []

        async def look() -> None:
            pods[:] = await self.api.list_all(PODS, self.namespace, labels="trainyard.dev/service")

        await self._patiently(look)
        live = sorted(pod["metadata"]["name"] for pod in pods if (fact := pod_fact(pod)) and fact.live)
        if live:
            path = PODS.path(self.namespace, self.random.choice(live))
            await self._patiently(lambda: self.api.request("DELETE", path))

    async def _kill_trainer(self) -> None:
        """SIGKILL to the first process of a container."""
        pids = sorted(self._trainers())
        if pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.random.choice(pids), signal.SIGKILL)

    def _trainers(self) -> Iterator[int]:
        for run in self.devcluster.layout.node_state(0).glob("pods/*/containers/trainer/*"):
            process = Process.adopt(run)
            if process is not None and (pid := process.pid) is not None:
                yield pid

    async def _reset(self) -> None:
        """The service's reset ends all its executions; they run again and are not charged."""
        name = self.random.choice(sorted(SERVICES))
        count = self.deeds["reset"]
        await self._patiently(lambda: self.yard.patch_service(name, reset=count))

    async def _pause(self) -> None:
        name = self.random.choice(sorted(SERVICES))
        await self._patiently(lambda: self.yard.patch_service(name, paused=True))
        await asyncio.sleep(self.random.uniform(0.0, 2.0))
        await self._patiently(lambda: self.yard.patch_service(name, paused=False))

    async def _scale(self) -> None:
        """Down, which sends the youngest executions back to the queue, and up again."""
        most = SERVICES["cold"]["maxInstances"]
        for limit in (self.random.randrange(most), most):
            scaling = {"maxInstances": limit, "onScaleDown": "Drain"}
            await self._patiently(lambda scaling=scaling: self.yard.patch_service("cold", scaling=scaling))
            await asyncio.sleep(self.random.uniform(0.0, 2.0))

    async def _api_server(self) -> None:
        await asyncio.to_thread(self.devcluster.restart, "kube-apiserver")

    async def _etcd(self) -> None:
        await asyncio.to_thread(self.devcluster.restart, "etcd")

    async def _node(self) -> None:
        """The power of the node is cut, with every trainer on it."""
        await asyncio.to_thread(self.devcluster.kill_node, 0)
        await asyncio.to_thread(self.devcluster.restart_node, 0)

    async def _set_clock(self) -> None:
        """Of the machine of one operator, and so it stays until it is set again."""
        operator, wrong = self.random.choice(self.operators), self.random.choice(CLOCK_STEPS)
        operator.log.with_suffix(".clock").write_text(str(wrong))

    async def _fill_storage(self) -> None:
        """A training finds no room for what it wants to store, until somebody makes some."""
        name, seconds = f"{TRAINS}-where-all-is-full-{self.deeds['fill storage']}", self.random.uniform(0.5, 6.0)
        self.expected.ends[name] = {"Succeeded"}
        await self._patiently(lambda: self.yard.job(name, service="real", policy={"maxAttempts": 100}, **TRAINING))
        self.storage.refusal.clear()
        self.storage.full = True
        with contextlib.suppress(TimeoutError):  # the job may have come to nothing meanwhile
            async with asyncio.timeout(60):
                await self.storage.refusal.wait()
        await asyncio.sleep(seconds)
        self.storage.full = False

    def _any_job(self) -> str:
        """The youngest ones are the likeliest to live."""
        names = list(self.expected.ends)
        return names[-1 - min(int(self.random.expovariate(0.7)), len(names) - 1)]

    # --- waiting ------------------------------------------------------------------------------------------------------------

    async def _patiently(self, call: Callable[[], Awaitable[Any]]) -> None:
        """What a user does is repeated until the API server takes it; that it had taken it already is fine, a refusal too."""
        deadline = time.monotonic() + self.patience
        while True:
            try:
                await call()
                return
            except (ConflictError, NotFoundError, RejectedError):
                return
            except ClusterError:
                if time.monotonic() > deadline:
                    raise
            await asyncio.sleep(0.3)

    async def _at_rest(self) -> None:
        """Wait until every job has come to its end and nothing is held any more; the observer says what has not."""
        deadline = time.monotonic() + self.patience
        while time.monotonic() < deadline:
            try:
                if await self._is_at_rest():
                    return
            except ClusterError:
                pass
            await asyncio.sleep(0.3)

    async def _is_at_rest(self) -> bool:
        jobs = await self.api.list_all(TRAINING_JOBS, self.namespace)
        services = await self.api.list_all(TRAINING_SERVICES, self.namespace)
        budgets = await self.api.list_all(TRAINING_BUDGETS, self.namespace)
        self._last = Last(jobs, budgets)
        held = [budget for budget in budgets if (budget.get("status") or {}).get("reservations")]
        batches = [s for s in services if ((s.get("status") or {}).get("admission") or {}).get("jobs")]
        return all(_is_over(job) for job in jobs) and not held and not batches


def _is_over(job: Object) -> bool:
    spec, status = job["spec"], job["status"]
    if (
        (status.get("run") or 0) < spec.get("rerun", 0)
        or status.get("current")
        or "deletionTimestamp" in job["metadata"]
    ):
        return False
    return status["state"] in OVER or (status["state"] == "Canceled" and spec.get("end") == "Finish")


Deed = Callable[[Play], Awaitable[None]]
USUAL: tuple[Deed, ...] = (
    Play._kill_operator,
    Play._kill_leader,
    Play._edit,
    Play._stop_and_resume,
    Play._abort,
    Play._finish,
    Play._rerun,
    Play._delete_job,
    Play._spend_budget,
    Play._delete_pod,
    Play._kill_trainer,
    Play._reset,
    Play._pause,
    Play._scale,
)
RARE: tuple[Deed, ...] = (Play._api_server, Play._etcd, Play._node, Play._set_clock, Play._fill_storage)
