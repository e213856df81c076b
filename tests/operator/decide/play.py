"""Histories: everything that may happen to three jobs, their service and their budget, one event at a time and in any order.

Users and administrators write what they like (`configuration`), kubelets, nodes and Kueue do what they do, the operator dies before any
step, and an older leader wakes up with what it knew. `invariants` says what must hold meanwhile.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from trainyard_api.execution import Resources
from trainyard_api.report import Phase
from trainyard_api.trainingjob import AttemptResult
from trainyard_operator.decide import lifecycle
from trainyard_operator.decide.kueue import LABEL_QUEUE
from trainyard_operator.decide.model import (
    LABEL_STANDBY,
    AttemptJob,
    AttemptPod,
    BudgetSnapshot,
    Defaults,
    JobSnapshot,
    NodeView,
    ObjectCondition,
    ServiceSnapshot,
)
from trainyard_operator.status import TERMINAL

from tests.operator.decide.configuration import (
    BUDGET_VALUES,
    JOB_VALUES,
    NO_IMAGE,
    NO_NODE,
    SERVICE,
    SERVICE_VALUES,
    Configuration,
    budget_spec,
    edit,
    nested,
    service_spec,
)
from tests.operator.decide.invariants import Invariants
from tests.operator.decide.world import World, published

NAMES = ("a", "b", "c")
BUDGET = "team"
TIMES = (1, 1, 6, 11, 11, 61, 61, 130, 301, 3601)
EXIT_CODES = (0, 1, 64, 65, 69, 73, 74, 75, 76, 77, 78, 79, 137)
CRASHED = AttemptResult(exit_code=1, reason="RankKilled", message="process 1 of 1 was killed by SIGSEGV")
FRIENDLY: Configuration = {"architecture": "yard-nano", "paused": False, "execution.rerunAsProcess": False}
"""What an administrator mends so that every job comes to its end."""
Event = Callable[[], object]


@dataclass(frozen=True)
class Knowledge:
    """What a leader knew at a moment."""

    job: JobSnapshot
    service: ServiceSnapshot | None
    budget: BudgetSnapshot | None


@dataclass
class Play:
    world: World = field(default_factory=lambda: World(defaults=Defaults()))
    service: Configuration = field(default_factory=dict[str, Any])
    budget: Configuration = field(default_factory=dict[str, Any])
    jobs: tuple[Configuration, ...] = ({}, {}, {})
    reset: int = 0
    old: list[Knowledge] = field(default_factory=list)
    must: Invariants = field(init=False)

    def __post_init__(self) -> None:
        self.must = Invariants(self.world)
        self._serve()
        self._limit()
        for n, (name, configuration) in enumerate(zip(NAMES, self.jobs, strict=True)):
            self.world.apply(name, **nested({"policy.priority": n % 2, **configuration}))

    def fork(self) -> "Play":
        """Another history with the same past."""
        forked = object.__new__(Play)
        vars(forked).update(vars(self) | {"world": self.world.fork(), "old": self.old.copy()})
        forked.must = self.must.fork(forked.world)
        return forked

    def happen(self, chance: random.Random, *, settle: int = 6) -> None:
        """One event of those that are possible now."""
        possible = self.possible(chance.randrange(10_000), settle=settle)
        chance.choice(possible)()
        self.must.check()

    # --- everything that may happen now -----------------------------------------------------------------------------------

    def possible(self, n: int, *, settle: int = 6) -> list[Event]:
        """The events that are possible now, the usual ones more than once; `n` varies their details."""
        world = self.world
        events: list[Event] = [self._settle] * settle
        events += [lambda: world.tick(TIMES[n % len(TIMES)])] * 2 + [world.kubelet] * 2
        if n % 3 == 0 or world.nodes["node-0"].ready != "True":
            events.append(self._node)
        events += [lambda: self._edit_service(n)] * 2 + [lambda: self._scale(n), lambda: self._edit_budget(n)]
        if self._is_closed():
            events += [self._mend] * 4
        if SERVICE in world.services:
            events.append(self._reconcile_service)
        if BUDGET in world.budgets:
            events.append(world.reconcile_budget)
        for name in NAMES:
            if name not in world.jobs:
                events.append(lambda name=name: world.apply(name, **nested(edit(JOB_VALUES, n))))
                continue
            events += [lambda name=name: self._reconcile(name, n)] * 2
            events += self._by_user(name, n)
            events += self._in_cluster(name, n)
        events += [lambda name=name: world.warm(name) for name in self._cold()]
        events += self._by_kueue()
        if self.old:
            events.append(lambda: self._old_leader(n))
        return events

    def _by_user(self, name: str, n: int) -> list[Event]:
        world, spec = self.world, self.world.jobs[name].spec
        events: list[Event] = []
        if n % 3 == 0 or spec.suspend:
            events.append(lambda: world.apply(name, suspend=not spec.suspend))
        if n % 3 == 1:
            events.append(lambda: self._remember(name))
        if n % 5 == 0 or spec.end is not None:
            events.append(lambda: world.apply(name, end=(None, "Finish", None, "Abort")[n // 5 % 4]))
        if n % 5 == 1:
            policy = spec.policy.model_dump(mode="json", by_alias=True, exclude_unset=True)
            events.append(lambda: world.apply(name, policy=policy | {"priority": n % 4}))
        if n % 7 == 0:
            events += [lambda: world.apply(name, rerun=spec.rerun + 1), lambda: world.delete(name)]
        if n % 11 == 0:
            events.append(lambda: world.apply(name, ttlSecondsAfterFinished=(None, 600)[n % 2]))
        return events

    def _in_cluster(self, name: str, n: int) -> list[Event]:
        world = self.world
        pods = world.live_pods(name)
        if not pods or world.nodes["node-0"].ready != "True":
            return []
        pod = pods[n % len(pods)]
        if pod.node is None:
            return [lambda: self._start(name, pod)] * 4
        if not pod.running:
            return []
        phase = (Phase.FETCHING, Phase.TRAINING, Phase.UPLOADING)[n % 3]
        code, oom = EXIT_CODES[n % len(EXIT_CODES)], "OOMKilled" if n % 5 == 0 else ""
        events: list[Event] = [lambda: world.report(name, phase, step=5, checkpoint_step=5 if n % 2 else None)] * 3
        events += [lambda: world.end_pod(pod, code, "something", oom), lambda: self._succeed(name)]
        events += [lambda: self._evict(pod), lambda: self._delete_child(name)]
        if len(pods) == 1:
            events.append(lambda: world.report(name, Phase.RESTARTING, result=CRASHED))
        return events

    def _by_kueue(self) -> list[Event]:
        queued = [job for job in self.world.attempt_jobs.values() if LABEL_QUEUE in job.labels and not job.finished]
        events: list[Event] = [
            lambda job=job: self.world.preempt(job.metadata.name) for job in queued if not job.suspended
        ]
        return (
            events
            + [lambda job=job: self.world.admit(job.metadata.name) for job in queued if self._may_be_admitted(job)] * 4
        )

    def _may_be_admitted(self, job: AttemptJob) -> bool:
        """A Job that was taken back is inactive once its pods are gone."""
        return job.suspended and all(pod.owner_uid != job.metadata.uid for pod in self.world.pods.values())

    def _cold(self) -> list[str]:
        """Names of the standby Jobs whose pod does not run yet."""
        pods = [p for p in self.world.pods.values() if LABEL_STANDBY in p.labels and not p.over and p.node is None]
        return [pod.owner_name or "" for pod in pods]

    # --- how it happens: users and administrators -------------------------------------------------------------------------

    def _serve(self) -> None:
        self.world.serve(SERVICE, **service_spec(self.service), reset=self.reset)

    def _limit(self) -> None:
        self.world.limit(BUDGET, **budget_spec(self.budget))

    def _edit_service(self, n: int) -> None:
        if n % 13 == 0 and SERVICE in self.world.services:
            self.world.unserve(SERVICE)
            return
        self.service = {**self.service, **edit(SERVICE_VALUES, n)}
        self.reset += n % 11 == 0
        self._serve()

    def _scale(self, n: int) -> None:
        """The edit that is made most: more or fewer instances, drained or not."""
        scaling = {"scaling.maxInstances": n % 4, "scaling.onScaleDown": ("Wait", "Drain")[n // 4 % 2]}
        self.service = {**self.service, **scaling}
        self._serve()

    def _is_closed(self) -> bool:
        closed = any(self.service.get(field, value) != value for field, value in FRIENDLY.items())
        return closed or self.service.get("scaling.maxInstances") == 0 or SERVICE not in self.world.services

    def _mend(self) -> None:
        instances = self.service.get("scaling.maxInstances", 2)
        self.service = {**self.service, **FRIENDLY, "scaling.maxInstances": max(1, instances)}
        self._serve()

    def _edit_budget(self, n: int) -> None:
        if n % 5 == 0 and BUDGET in self.world.budgets:
            del self.world.budgets[BUDGET]
            return
        self.budget = {**self.budget, **edit(BUDGET_VALUES, n)}
        self._limit()

    # --- how it happens: the operator -------------------------------------------------------------------------------------

    def _settle(self) -> None:
        self.world.settle()
        self.must.at_rest()

    def _reconcile(self, name: str, n: int) -> None:
        snapshot = self.world.snapshot(name)
        plan = lifecycle.decide_job(snapshot)
        if plan.look_again_at != self.world.now:
            self.must.is_idempotent(snapshot, plan)
        self.world.reconcile(name, crash_before=(None, None, 0, 1, 2)[n % 5])

    def _reconcile_service(self) -> None:
        self.must.service_is_idempotent(self.world.service_snapshot(SERVICE))
        self.world.reconcile_service(SERVICE)

    def _remember(self, name: str) -> None:
        world = self.world
        service = world.service_snapshot(SERVICE) if SERVICE in world.services else None
        budget = world.budget_snapshot(BUDGET) if BUDGET in world.budgets else None
        self.old.append(Knowledge(world.snapshot(name), service, budget))

    def _old_leader(self, n: int) -> None:
        known = self.old[n % len(self.old)]
        self.must.stale = True
        self.world.carry_out_plan(known.job)
        if known.service is not None:
            scaling = known.service.service.spec.scaling
            self.must.capacity = scaling.max_instances * scaling.concurrency
            self.world.carry_out_service_plan(known.service)
        if known.budget is not None:
            self.world.carry_out_budget_plan(known.budget)
        self.must.stale = False

    # --- how it happens: the cluster --------------------------------------------------------------------------------------

    def _start(self, name: str, pod: AttemptPod) -> None:
        """The pod runs, where there is what it asks for."""
        wanted = self.world.jobs[name].spec.resources
        if wanted.node_selector == NO_NODE:
            why = "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector."
            self.world.change(pod, conditions=(ObjectCondition("PodScheduled", "False", "Unschedulable", why),))
        elif wanted.image == NO_IMAGE:
            self.world.wait_for(name, "ImagePullBackOff", "not found")
        else:
            self.world.run_pod(pod)

    def _succeed(self, name: str) -> None:
        """All of the execution exits 0, and the first of a gang publishes."""
        for pod in self.world.live_pods(name):
            self.world.end_pod(pod, 0, "" if pod.index else published())

    def _node(self) -> None:
        if self.world.nodes["node-0"].ready == "True":
            self.world.lose_node()
            self.must.lost = True
        else:
            self.world.nodes["node-0"] = NodeView("node-0", since=self.world.now)

    def _evict(self, pod: AttemptPod) -> None:
        target = ObjectCondition("DisruptionTarget", "True", "EvictionByEvictionAPI", "Eviction API: evicting")
        self.world.end_pod(self.world.change(pod, conditions=(target,)), 75)

    def _delete_child(self, name: str) -> None:
        self.must.deleted = True
        for job in list(self.world.attempt_jobs.values()):
            if job.owner_uid == self.world.jobs[name].metadata.uid:
                self.world.delete_attempt_job(job)

    # --- and then nothing goes wrong any more -----------------------------------------------------------------------------

    def comes_to_rest(self) -> None:
        """When nothing goes wrong any more every job comes to its end, and nothing is left behind."""
        world = self.world
        world.nodes["node-0"] = NodeView("node-0", since=world.now)
        self._mend()
        self.budget = {"trainingMinutes": 10**6}
        self._limit()
        for name in list(world.jobs):
            world.apply(name, suspend=False, end=None)
        for seconds in (70, 1000):
            for _ in range(60):
                self._go_on(seconds)
                if all(
                    job.status.state in TERMINAL
                    for job in world.jobs.values()
                    if seconds > 70 or job.spec.resources == Resources()
                ):
                    break
        for name, job in world.jobs.items():
            assert job.status.state in TERMINAL, (name, job.status.state, job.status.reason, job.status.message)
        self._nothing_is_left()

    def _go_on(self, seconds: int) -> None:
        """Everybody does his part, and time goes by."""
        world = self.world
        self._settle()
        world.tick(seconds)
        world.kubelet()
        for name in self._cold():
            world.warm(name)
        for job in list(world.attempt_jobs.values()):
            if self._may_be_admitted(job):
                world.admit(job.metadata.name)
        for name in NAMES:
            for pod in world.live_pods(name) if name in world.jobs else ():
                if pod.node is None:
                    self._start(name, pod)
        self._settle()
        for name in NAMES:
            if name in world.jobs and all(pod.running for pod in world.live_pods(name)):
                self._succeed(name)
        self.must.check()

    def _nothing_is_left(self) -> None:
        world = self.world
        self.service = {
            **self.service,
            "scaling.idleSeconds": 0,
            "scaling.minInstances": 0,
            "scaling.type": "Autoscale",
        }
        self._serve()
        for _ in range(3):
            world.tick(world.defaults.keep_finished_seconds + 1)
            world.settle()
            world.kubelet()
        assert world.budgets[BUDGET].status.reservations == ()
        assert not world.attempt_jobs
        assert not any(not pod.over for pod in world.pods.values())
