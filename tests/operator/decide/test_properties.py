"""What must hold always, whatever happens in whatever order: hypothesis plays users, kubelets, crashes and stale leaders.

Few histories are long, written down as JSON at every step, and brought to their end; ten thousand fork from some of their own and
differ in what comes next, which is where decisions go wrong.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import Phase as Stage
from hypothesis import strategies as st
from trainyard_api.report import Phase
from trainyard_api.trainingbudget import Reservation
from trainyard_api.trainingjob import JobState
from trainyard_api.trainingservice import Scaling
from trainyard_operator.decide import admission, lifecycle
from trainyard_operator.decide.budget import charged_seconds
from trainyard_operator.decide.model import (
    LABEL_STANDBY,
    AttemptPod,
    BudgetSnapshot,
    Defaults,
    JobPlan,
    JobSnapshot,
    JobView,
    NodeView,
    ObjectCondition,
    ServiceSnapshot,
)
from trainyard_operator.decide.tally import Tally, slot_of
from trainyard_operator.status import TERMINAL

from tests.operator.decide.world import World

SERVICE = "mgmt-train-yard-nano"
NAMES = ("a", "b", "c")
CAPACITY = 2
BUDGET_MINUTES = 60  # three executions of 1,000 s, and a bit
MAX_ATTEMPTS, MAX_DISRUPTIONS = 2, 3
HISTORIES, TRUNKS = 10_000, 25
TRUNK_EVENTS, BRANCH_EVENTS = 40, 3
EXIT_CODES = (0, 1, 64, 65, 69, 73, 74, 75, 76, 77, 78, 79, 137)
Event = Callable[[], object]


@dataclass
class Play:
    """Three jobs, two slots, and a leader that may die before any step while an older one wakes up with what it knew."""

    world: World = field(default_factory=lambda: World(defaults=Defaults()))
    old_jobs: list[JobSnapshot] = field(default_factory=list)
    old_services: list[ServiceSnapshot] = field(default_factory=list)
    old_budgets: list[BudgetSnapshot] = field(default_factory=list)
    final: dict[str, tuple[str, int, JobState]] = field(default_factory=dict)
    lost: bool = False
    """Whether the node ever fell silent."""
    deleted: bool = False
    """Whether somebody else ever deleted a Job of the operator's."""
    jobs_deleted: bool = False
    used: dict[tuple[str, int, int], int] = field(default_factory=dict)
    """Training time that each ended attempt counts with."""
    reserved: set[Reservation] = field(default_factory=set)
    sums: bool = True
    """Whether the tally is looked at, too."""
    tally: Tally = field(default_factory=Tally)
    """Of the service, kept as its jobs and pods change."""
    counted: dict[str, JobView | AttemptPod] = field(default_factory=dict)

    def __post_init__(self) -> None:
        execution = {
            "maxAttempts": MAX_ATTEMPTS,
            "maxDisruptions": MAX_DISRUPTIONS,
            "backoffSeconds": 10,
            "startTimeoutSeconds": 120,
            "stallTimeoutSeconds": 100,
            "timeoutSeconds": 1000,
            "drainSeconds": 30,
        }
        self.world.limit("team", trainingMinutes=BUDGET_MINUTES, period="Total")
        self.world.serve(SERVICE, scaling={"maxInstances": CAPACITY, "minInstances": 1}, execution=execution)
        for priority, name in enumerate(NAMES):
            self.world.apply(name, policy={"priority": priority % 2})

    def fork(self) -> "Play":
        """Another history with the same past."""
        parts = {name: value.copy() for name, value in vars(self).items() if isinstance(value, dict | list | set)}
        forked = object.__new__(Play)
        vars(forked).update(vars(self) | parts | {"world": self.world.fork()})
        forked.sums = False
        return forked

    # --- everything that may happen now -----------------------------------------------------------------------------------

    def happen(self, chance: random.Random, *, settle: int = 3) -> None:
        """One event of those that are possible now."""
        possible = self.possible(chance.randrange(10_000), settle=settle)
        chance.choice(possible)()
        self.check()

    def possible(self, n: int, *, settle: int = 3) -> list[Event]:
        """The events that are possible now, the usual ones more than once; `n` varies their details."""
        world = self.world
        events: list[Event] = [world.settle] * settle
        events += [lambda: world.reconcile_service(SERVICE), lambda: world.tick((1, 11, 61, 130, 301, 3601)[n % 6])]
        events += [world.reconcile_budget, world.kubelet, self._node, lambda: self._service(n)]
        for name in NAMES:
            if name not in world.jobs:
                events.append(lambda name=name: world.apply(name))
                continue
            events += [lambda name=name: self._reconcile(name, n)] * 2
            events += self._by_user(name, n)
            events += self._in_cluster(name, n)
        events += [lambda name=name: world.warm(name) for name in self._cold()]
        if self.old_jobs:
            events.append(lambda: self._old_leader(n))
        return events

    def _by_user(self, name: str, n: int) -> list[Event]:
        world, spec = self.world, self.world.jobs[name].spec
        events: list[Event] = [
            lambda: world.apply(name, suspend=not spec.suspend),
            lambda: self._remember(name),
        ]
        if n % 3 == 0:
            events.append(lambda: world.apply(name, end=("Finish", "Abort", None)[n % 9 // 3]))
        if n % 7 == 0:
            events += [lambda: world.apply(name, rerun=spec.rerun + 1), lambda: self._delete(name)]
        return events

    def _in_cluster(self, name: str, n: int) -> list[Event]:
        world = self.world
        pod = world.live_pod(name)
        if pod is None or world.nodes["node-0"].ready != "True":
            return []
        if pod.node is None:
            return [lambda: world.run(name)] * 3
        if pod.trainer is None or not pod.trainer.running:
            return []
        phase = (Phase.FETCHING, Phase.TRAINING, Phase.UPLOADING)[n % 3]
        code, oom = EXIT_CODES[n % len(EXIT_CODES)], "OOMKilled" if n % 5 == 0 else ""
        events: list[Event] = [lambda: world.report(name, phase, step=5, checkpoint_step=5 if n % 2 else None)] * 3
        events += [lambda: world.end(name, code, "something", oom), lambda: world.succeed(name)]
        events += [lambda: self._evict(name), lambda: self._delete_child(name)]
        return events

    def _cold(self) -> list[str]:
        """Names of the standby Jobs whose pod does not run yet."""
        pods = [p for p in self.world.pods.values() if LABEL_STANDBY in p.labels and not p.over and p.node is None]
        return [pod.owner_name or "" for pod in pods]

    # --- how it happens ---------------------------------------------------------------------------------------------------

    def _reconcile(self, name: str, n: int) -> None:
        snapshot = self.world.snapshot(name)
        plan = lifecycle.decide_job(snapshot)
        if plan.look_again_at != self.world.now:
            self._is_idempotent(snapshot, plan)
        self.world.reconcile(name, crash_before=(None, None, 0, 1, 2)[n % 5])

    def _is_idempotent(self, snapshot: JobSnapshot, plan: JobPlan) -> None:
        again = lifecycle.decide_job(replace(snapshot, job=replace(snapshot.job, status=plan.status)))
        assert again.status == plan.status, "deciding on its own result changes something"
        assert again.actions == plan.actions, "an action does not follow again from the written status"
        assert again.events == (), "an event is emitted twice"

    def _remember(self, name: str) -> None:
        self.old_jobs.append(self.world.snapshot(name))
        self.old_services.append(self.world.service_snapshot(SERVICE))
        self.old_budgets.append(self.world.budget_snapshot("team"))

    def _old_leader(self, n: int) -> None:
        index = n % len(self.old_jobs)
        self.world.carry_out_plan(self.old_jobs[index])
        self.world.carry_out_service_plan(self.old_services[index])
        self.world.carry_out_budget_plan(self.old_budgets[index])

    def _service(self, n: int) -> None:
        held = self.world.services[SERVICE].spec
        changed = held.model_copy(
            update={
                "paused": n % 4 == 0,
                "reset": held.reset + (n % 11 == 0),
                "architecture": "resnet18" if n % 5 == 0 else "yard-nano",
            }
        )
        self.world.serve(SERVICE, **changed.to_dict())

    def _node(self) -> None:
        if self.world.nodes["node-0"].ready == "True":
            self.world.lose_node()
            self.lost = True
        else:
            self.world.nodes["node-0"] = NodeView("node-0", since=self.world.now)

    def _evict(self, name: str) -> None:
        pod = self.world.live_pod(name)
        assert pod
        target = ObjectCondition("DisruptionTarget", "True", "EvictionByEvictionAPI", "Eviction API: evicting")
        self.world.change(pod, conditions=(target,))
        self.world.end(name, 75)

    def _delete(self, name: str) -> None:
        self.jobs_deleted = True
        self.world.delete(name)

    def _delete_child(self, name: str) -> None:
        self.deleted = True
        for job in list(self.world.attempt_jobs.values()):
            if job.owner_uid == self.world.jobs[name].metadata.uid:
                self.world.delete_attempt_job(job)

    # --- what must hold ---------------------------------------------------------------------------------------------------

    def check(self) -> None:
        world = self.world
        if self.sums:
            self._sums_are_right()
        taken = admission.occupied(world.service_snapshot(SERVICE))
        if self.lost:
            # A pod of a deleted job that came back with its lost node may count again; nothing can be done about it.
            taken = frozenset(slot for slot in taken if slot.job_uid in {j.metadata.uid for j in world.jobs.values()})
        assert len(taken) <= CAPACITY, f"slots over capacity: {taken}"
        made = Counter((c.run.uid, c.attempt.run, c.attempt.number) for c in world.created)
        assert self.deleted or all(count == 1 for count in made.values()), f"an attempt was made twice: {made}"
        live = {(slot_of(pod), pod.owner_uid) for pod in world.pods.values() if not pod.over}
        assert len(live) == len({slot for slot, _ in live}), f"an attempt lives twice: {live}"
        for name, job in world.jobs.items():
            status = job.status
            assert (status.charged_attempts or 0) <= MAX_ATTEMPTS
            assert (status.disruptions or 0) <= MAX_DISRUPTIONS + 1
            assert sum(a.end_time is None for a in status.attempts) <= 1
            assert status.state is not JobState.UNSPECIFIED, status.message
            assert status.completion_time is None or status.current is None
            self._final_is_final(name)
            for attempt in status.attempts:
                if attempt.end_time is not None:
                    self.used[job.metadata.uid, attempt.run, attempt.number] = charged_seconds(attempt)
        team = world.budgets["team"].status
        held = {r.model_copy(update={"start_time": None}) for r in team.reservations}
        if held - self.reserved:
            # (An execution that outlasts its timeout may use more than was set aside: nothing new fits then.)
            total = world.budgets["team"].spec.training_minutes * 60
            assert sum(r.seconds for r in team.reservations) + team.used_seconds <= total, "more than there is"
        self.reserved = held

    def _sums_are_right(self) -> None:
        """What is kept as things come and go is what adding up everything anew gives."""
        jobs = {job.metadata.uid: job for job in self.world.jobs.values()}
        pods = {pod.metadata.uid: pod for pod in self.world.pods.values()}
        for uid, old in self.counted.items():
            if isinstance(old, JobView) and uid not in jobs:
                self.tally.drop_job(old)
            new = pods.get(uid)
            if isinstance(old, AttemptPod) and (new is None or new.labels != old.labels):
                self.tally.drop_pod(old)
        for job in jobs.values():
            self.tally.put_job(job)
        for pod in pods.values():
            self.tally.put_pod(pod)
        self.counted = {**jobs, **pods}
        anew = Tally(jobs.values(), pods.values())
        for name in ("held", "active", "suspects", "standby_pods", "waiting", "running", "starting", "queue_length"):
            assert getattr(self.tally, name) == getattr(anew, name), name
        assert list(self.tally.queue()) == list(anew.queue())
        assert {pod.metadata.uid for pod in self.tally.orphans()} == {pod.metadata.uid for pod in anew.orphans()}
        assert self.tally.oldest_reset() == anew.oldest_reset()

    def _final_is_final(self, name: str) -> None:
        job = self.world.jobs[name]
        uid, run, state = job.metadata.uid, job.status.run or 0, job.status.state
        old = self.final.get(name)
        if old and old[0] == uid:
            assert run > old[1] or state is old[2], f"{old[2]} → {state} without a rerun"
        if state in TERMINAL:
            self.final[name] = (uid, run, state)
        else:
            self.final.pop(name, None)

    def comes_to_rest(self) -> None:
        """When nothing goes wrong any more every job comes to its end, and nothing is left behind."""
        world = self.world
        world.nodes["node-0"] = NodeView("node-0", since=world.now)
        mended = world.services[SERVICE].spec.model_copy(update={"paused": False, "architecture": "yard-nano"})
        world.serve(SERVICE, **mended.to_dict())
        world.limit("team", trainingMinutes=10**6, period="Total")
        for name in list(world.jobs):
            world.apply(name, suspend=False, end=None)
        for _ in range(60):
            world.settle()
            world.tick(70)
            world.kubelet()
            for name in self._cold():
                world.warm(name)
            for name in list(world.jobs):
                pod = world.live_pod(name)
                if pod and pod.node is None:
                    world.run(name)
                elif pod and pod.trainer and pod.trainer.running:
                    world.succeed(name)
            self.check()
            if all(job.status.state in TERMINAL for job in world.jobs.values()):
                break
        for name, job in world.jobs.items():
            assert job.status.state in TERMINAL, (name, job.status.state, job.status.reason, job.status.message)
        world.serve(SERVICE, **mended.model_copy(update={"scaling": Scaling(idle_seconds=0)}).to_dict())
        for _ in range(3):
            world.tick(world.defaults.keep_finished_seconds + 1)
            world.settle()
            world.kubelet()
        team = world.budgets["team"].status
        assert team.reservations == ()
        assert self.jobs_deleted or team.used_seconds == sum(self.used.values())
        assert not world.attempt_jobs
        assert not any(not pod.over for pod in world.pods.values())


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 10_000)), min_size=20, max_size=120))
@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Stage.explicit, Stage.reuse, Stage.generate),
)
def test_whatever_happens(steps: list[tuple[int, int]]):
    play = Play()
    for which, n in steps:
        possible = play.possible(n)
        possible[which % len(possible)]()
        play.check()
    play.comes_to_rest()


@pytest.mark.training
@pytest.mark.timeout(900)
@given(st.integers(0, 2**32))
@example(951759324)
@settings(
    max_examples=TRUNKS, deadline=None, suppress_health_check=list(HealthCheck), phases=(Stage.explicit, Stage.generate)
)
def test_ten_thousand_histories(seed: int):
    """Each example is a history of 40 events, and after each event ten others that go on from there in another way."""
    chance = random.Random(seed)
    trunk = Play()
    trunk.world.by_json = False
    forks = -(-HISTORIES // (TRUNKS * TRUNK_EVENTS))
    for _ in range(TRUNK_EVENTS):
        trunk.happen(chance)
        for _ in range(forks):
            branch = trunk.fork()
            for _ in range(BRANCH_EVENTS):
                branch.happen(chance, settle=0)
