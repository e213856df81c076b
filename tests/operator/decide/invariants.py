"""What must hold in every history: at every write of a status, after every event, and whenever the operator has come to rest.

Nothing here asks the code under test what is right where counting by hand can tell: executions are counted by Jobs and ledgers, the
queue is sorted anew, a budget's books are kept a second time.
"""

from collections import Counter
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from trainyard_api.execution import Resources
from trainyard_api.resolve import resolved_execution
from trainyard_api.status import Condition, ConditionStatus
from trainyard_api.trainingbudget import Reservation
from trainyard_api.trainingjob import Attempt, Cause, End, JobState, TrainingJobStatus
from trainyard_api.trainingservice import OnScaleDown, TrainingServiceSpec
from trainyard_operator.decide import budget, lifecycle, service
from trainyard_operator.decide.execution import DIAGNOSIS_SECONDS
from trainyard_operator.decide.failure import is_replaced
from trainyard_operator.decide.jobs import WAITING, open_attempts, run_attempts
from trainyard_operator.decide.kueue import LABEL_DEMAND, demand
from trainyard_operator.decide.model import (
    AttemptPod,
    BudgetView,
    CreateHeadless,
    JobPlan,
    JobSnapshot,
    JobView,
    ServiceSnapshot,
    ServiceView,
)
from trainyard_operator.decide.retry import GIVE_WAY
from trainyard_operator.decide.tally import Slot, Tally, slot_of
from trainyard_operator.status import ACTIVE, AS_ASKED, TERMINAL

from tests.operator.decide.census import (
    Execution,
    batch,
    executions,
    is_queued,
    ledgers,
    limits,
    made_for,
    open_slots,
    queue,
    reserved_slot,
    runs,
    without_slot,
)
from tests.operator.decide.configuration import NO_IMAGE, NO_MACHINE, NO_NODE, SERVICE
from tests.operator.decide.world import Observed, World

DISRUPTIONS = frozenset(
    {
        Cause.DISRUPTED,
        Cause.INTERRUPTED,
        Cause.LOST,
        Cause.REFUSED,
        Cause.STORAGE_UNREACHABLE,
        Cause.VERSION_TAKEN,
        Cause.GAVE_WAY,
    }
)
"""Causes that `maxDisruptions` bounds, and whose time no budget pays for."""
HOUR = timedelta(hours=1)


@dataclass
class Invariants:
    """Looks at a world as its history goes on, and remembers of it what later moments are compared with."""

    world: World
    stale: bool = False
    """Whether it is an old leader that writes: it goes by specs that have been edited since."""
    capacity: int = 0
    """The highest that anybody who writes goes by."""
    lost: bool = False
    """Whether the node ever fell silent."""
    deleted: bool = False
    """Whether somebody else ever deleted a Job of the operator's."""
    taken: set[Execution] = field(default_factory=set)
    sums: bool = True
    """Whether the tally is looked at, too."""
    tally: Tally = field(default_factory=Tally)
    """Of the service, kept as its jobs and pods change."""
    counted: dict[str, JobView | AttemptPod] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.world.on_write = self.written

    def fork(self, world: World) -> "Invariants":
        """Those of another history with the same past; without the tally, which is changed in place."""
        return replace(self, world=world, taken=self.taken.copy(), sums=False)

    # --- at every write ---------------------------------------------------------------------------------------------------

    def written(self, before: Observed, after: Observed) -> None:
        match before, after:
            case JobView(), JobView():
                self._job_written(before, after)
            case ServiceView(), ServiceView():
                self._service_written(before, after)
            case BudgetView(), BudgetView():
                self._budget_written(before, after)
            case _:
                raise AssertionError("an object became another one")

    def _job_written(self, before: JobView, after: JobView) -> None:
        old, new = before.status, after.status
        assert new.state is not JobState.UNSPECIFIED, new.message
        if old.state in TERMINAL:
            assert (new.run or 0) > (old.run or 0) or new.state is old.state, (
                f"{old.state} → {new.state} without a rerun"
            )
        _is_one_story(after)
        _is_counted(new)
        if self.stale:
            return
        if (new.run or 0, new.attempt_count or 0) > (old.run or 0, old.attempt_count or 0) and new.attempt_count:
            self._may_open(after)
        known = {(a.run, a.number): a for a in old.attempts}
        for attempt in new.attempts:
            seen = known.get((attempt.run, attempt.number), attempt.model_copy(update={"ending": None}))
            if attempt.ending is not None and seen.ending is None:
                self._may_end(after, attempt, attempt.ending)
            if attempt.end_time is not None and seen.end_time is None:
                self._has_ended(after, attempt)

    def _may_open(self, job: JobView) -> None:
        """An attempt is opened for who has a slot, the time of every budget, and an attempt left."""
        (attempt,) = open_attempts(job.status)
        execution = resolved_execution(job.spec, self.world.services[SERVICE].spec)
        assert (job.status.charged_attempts or 0) < execution.max_attempts, "more attempts than maxAttempts"
        assert (job.status.disruptions or 0) <= execution.max_disruptions, "more disruptions than maxDisruptions"
        assert not job.spec.suspend or job.spec.end is End.FINISH, "opened while it is suspended"
        if attempt.process > 1:
            return
        assert Execution(job.metadata.uid, attempt.job_name) in set(batch(self.world)), (
            "opened without an entry of the batch"
        )
        for each in limits(self.world):
            slots = map(reserved_slot, each.status.reservations)
            assert Slot(job.metadata.uid, attempt.run, attempt.number) in slots, "opened without time set aside"

    def _may_end(self, job: JobView, attempt: Attempt, cause: Cause) -> None:
        """What the operator ends, it ends for the reason that it names."""
        view = self.world.services.get(SERVICE)
        spec, now = job.spec, self.world.now
        match cause:
            case Cause.STOPPED:
                assert spec.suspend
            case Cause.ABORTED:
                assert spec.end is End.ABORT
            case Cause.FINISHED:
                assert spec.end is End.FINISH
            case Cause.RESET:
                assert view
                assert view.spec.reset > attempt.reset
            case Cause.SCALED_DOWN:
                assert view
                self._is_surplus(job, view.spec)
            case Cause.REQUEUED:
                assert view
                held = self.world.attempt_jobs[attempt.job_name]
                assert held.suspended, "Kueue has admitted it"
                assert view.spec.paused or held.labels[LABEL_DEMAND] != demand(view.spec, job.priority_class)
            case Cause.DISRUPTED:
                assert is_replaced(
                    attempt, tuple(p for p in self.world.pods.values() if p.owner_uid == attempt.job_uid)
                )
            case Cause.GAVE_WAY:
                others = (each for each in self.world.jobs.values() if each.metadata.uid != job.metadata.uid)
                going = sum(a.ending is not None for other in others for a in open_attempts(other.status))
                assert len(without_slot(self.world)) > going, "gave way to nobody"
                assert spec.resources != Resources()
                assert attempt.start_time is None
            case Cause.START_TIMED_OUT:
                assert view
                limit = timedelta(seconds=resolved_execution(spec, view.spec).start_timeout_seconds)
                assert attempt.create_time + limit <= now
                assert not runs(self.world, attempt), "it runs, all of it"
                assert not is_queued(self.world, attempt), "its time runs while Kueue has it wait"
            case Cause.STALLED:
                assert view
                limit = timedelta(seconds=resolved_execution(spec, view.spec).stall_timeout_seconds)
                heard = job.status.progress.updated_at if job.status.progress else None
                assert attempt.start_time
                assert max(attempt.start_time, heard or attempt.start_time) + limit <= now
            case _:
                raise AssertionError(f"the operator does not end an attempt for {cause}")

    def _has_ended(self, job: JobView, attempt: Attempt) -> None:
        """Of a gang nobody is left behind, save what was given up with its node; a process that starts again keeps its pod."""
        shared = any(other.job_uid == attempt.job_uid for other in open_attempts(job.status))
        live = [pod for pod in self.world.pods.values() if pod.owner_uid == attempt.job_uid and not pod.over]
        assert shared or attempt.fenced or not live, "ended before its pods"
        asked = attempt.ending is not None or attempt.start_time is not None
        assert asked or not is_queued(self.world, attempt), "ended while Kueue has it wait"

    def _is_surplus(self, job: JobView, spec: TrainingServiceSpec) -> None:
        """Drained only where that is asked for: the lowest priority first, of it the youngest."""
        assert spec.scaling.on_scale_down is OnScaleDown.DRAIN
        live = [
            (other.spec.policy.priority or 0, -attempt.create_time.timestamp(), other.metadata.uid)
            for other in self.world.jobs.values()
            for attempt in open_attempts(other.status)
            if attempt.ending is None or other is job
        ]
        waiting = len(set(batch(self.world)) - set(ledgers(self.world)))
        over = len(live) + waiting - spec.scaling.max_instances * spec.scaling.concurrency
        (place,) = [n for n, (_, _, uid) in enumerate(sorted(live)) if uid == job.metadata.uid]
        assert place < over, "another one should have been drained"

    def _service_written(self, before: ServiceView, after: ServiceView) -> None:
        spec, old, new = after.spec, before.status, after.status
        truths = _truths(new.conditions)
        assert truths["Paused"] == spec.paused or self.stale
        assert not (truths["Available"] and (truths["Paused"] or truths["Degraded"] or not new.capacity))
        had = {(e.uid, e.run, e.attempt) for e in (old.admission.jobs if old.admission else ())}
        entries = [e for e in (new.admission.jobs if new.admission else ()) if (e.uid, e.run, e.attempt) not in had]
        if self.stale or not entries:
            return
        assert not spec.paused, "admitted while the service is paused"
        kept = {e.uid for e in (new.admission.jobs if new.admission else ())} - {e.uid for e in entries}
        first = [job.metadata.name for job in queue(self.world, kept)]
        assert [entry.name for entry in entries] == first[: len(entries)], "not by priority, then age"

    def _budget_written(self, before: BudgetView, after: BudgetView) -> None:
        """The books are kept a second time: what is released is used, to the second, in the same write."""
        old, new = before.status, after.status
        had = {reserved_slot(r): r for r in old.reservations}
        has = {reserved_slot(r): r for r in new.reservations}
        assert len(has) == len(new.reservations), "set aside twice"
        spent = sum(self._spent(slot, r) for slot, r in had.items() if slot not in has)
        renewed = old.period_start is not None and new.period_start is not None and new.period_start > old.period_start
        assert new.used_seconds == spent + (0 if renewed else old.used_seconds), "what is released is not what was used"
        left = after.spec.training_minutes * 60 - new.used_seconds - sum(r.seconds for r in new.reservations)
        assert self.stale or new.remaining_minutes == max(0, left) // 60
        added = has.keys() - had.keys() - set(open_slots(self.world))
        if not self.stale and any(has[slot].seconds for slot in added):
            assert left >= 0, "more is set aside than there is"

    def _spent(self, slot: Slot, reservation: Reservation) -> int:
        """What an execution whose reservation is released has used."""
        job = next((job for job in self.world.jobs.values() if job.metadata.uid == slot.job_uid), None)
        for attempt in job.status.attempts if job else ():
            if (attempt.run, attempt.number) == (slot.run, slot.attempt):
                assert attempt.end_time is not None, "released while it runs"
                return 0 if attempt.cause in DISRUPTIONS else attempt.training_seconds
        if reservation.start_time is None:
            return 0
        assert job is None, "it trained, and no ledger knows it"
        return min(reservation.seconds, int((self.world.now - reservation.start_time).total_seconds()))

    # --- after every event ------------------------------------------------------------------------------------------------

    def check(self) -> None:
        if self.sums:
            self._sums_are_right()
        self._slots_are_not_exceeded()
        world = self.world
        made = Counter((c.run.uid, c.attempt.run, c.attempt.number) for c in world.created)
        assert self.deleted or all(count == 1 for count in made.values()), f"an attempt was made twice: {made}"
        live = {(slot_of(pod), pod.owner_uid) for pod in world.pods.values() if not pod.over}
        assert len(live) == len({slot for slot, _ in live}), f"an attempt lives twice: {live}"
        ended = {a.job_name for j in world.jobs.values() for a in open_attempts(j.status) if a.ending is None}
        for pod in world.pods.values():
            told = pod.active_deadline_seconds == 1 and not pod.over
            assert not (told and pod.owner_name in ended), "ended before its ledger says what for"
        for each in world.budgets.values():
            slots = set(map(reserved_slot, each.status.reservations))
            for job in world.jobs.values():
                for attempt in open_attempts(job.status):
                    slot = Slot(job.metadata.uid, attempt.run, attempt.number)
                    assert each.metadata.uid not in attempt.budget_uids or slot in slots, (
                        "it runs without time set aside"
                    )

    def _slots_are_not_exceeded(self) -> None:
        """More than the service may run at once there are only where its maximum was lowered, and none of them is new."""
        view = self.world.services.get(SERVICE)
        scaling = view.spec.scaling if view else None
        capacity = max(self.capacity, scaling.max_instances * scaling.concurrency if scaling else 0)
        self.capacity = 0
        taken = executions(self.world, orphans=not self.lost)
        assert len(taken) <= capacity or taken <= self.taken, f"executions over capacity {capacity}: {taken}"
        self.taken = taken

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

    # --- when the operator has come to rest -------------------------------------------------------------------------------

    def at_rest(self) -> None:
        """Nothing is left to do, and who waits waits for something that is really missing."""
        self._nothing_is_left_to_do()
        view = self.world.services.get(SERVICE)
        if view is None:
            return
        spec = view.spec
        capacity = spec.scaling.max_instances * spec.scaling.concurrency
        waiting = without_slot(self.world)
        full = len(executions(self.world)) >= capacity
        assert full or spec.paused or not waiting, f"a slot is free, and {waiting[0].metadata.name} waits"
        for place, job in enumerate(waiting):
            beyond = spec.queue.max_length is not None and place >= spec.queue.max_length
            assert (job.status.reason == "QueueFull") == beyond, (
                "who is beyond maxLength, and only who is, tries again later"
            )
        attempts = [(j, a) for j in self.world.jobs.values() for a in open_attempts(j.status) if a.ending is None]
        taken_back = [a.job_name for _, a in attempts if a.start_time is not None and is_queued(self.world, a)]
        assert not taken_back, "Kueue has taken it back, and it counts as running"
        if spec.scaling.on_scale_down is OnScaleDown.DRAIN:
            assert len(attempts) <= capacity, "not drained"
        if waiting and full and not spec.paused:
            for job, attempt in attempts:
                held = attempt.start_time is None and self._never_starts(job, attempt)
                assert not held, f"{job.metadata.name} cannot start and keeps its slot from {waiting[0].metadata.name}"
        self._budgets_are_given_back()

    def _nothing_is_left_to_do(self) -> None:
        """Neither now nor, as long as nothing happens, before the time at which the plan looks again."""
        world = self.world
        for name in world.jobs:
            snapshot = world.snapshot(name)
            plan = lifecycle.decide_job(snapshot)
            left = [action for action in plan.actions if not isinstance(action, CreateHeadless)]
            assert not left, f"always anew: {left}"
            again = lifecycle.decide_job(replace(snapshot, now=_just_before(plan.look_again_at, world.now)))
            assert (again.status, again.actions) == (plan.status, plan.actions), (
                f"nobody looks at {name} when it is due"
            )
        for name in world.services:
            seen = world.service_snapshot(name)
            planned = service.decide_service(seen)
            assert planned.actions == ()
            later = service.decide_service(replace(seen, now=_just_before(planned.look_again_at, world.now)))
            assert (later.status, later.actions) == (planned.status, ()), f"nobody looks at {name} when it is due"

    def _budgets_are_given_back(self) -> None:
        for each in limits(self.world):
            slots = set(map(reserved_slot, each.status.reservations))
            assert slots == set(open_slots(self.world)), "set aside is what runs, and nothing else"
            for job in self.world.jobs.values():
                if job.status.reason == budget.SPENT and len(self.world.budgets) == 1:
                    execution = resolved_execution(job.spec, self.world.services[SERVICE].spec)
                    needed = budget.needed_seconds(job.spec, job.status, execution)
                    reserved = sum(r.seconds for r in each.status.reservations)
                    left = each.spec.training_minutes * 60 - each.status.used_seconds - reserved
                    assert needed > left, f"{job.metadata.name} waits for time that there is"

    def _never_starts(self, job: JobView, attempt: Attempt) -> bool:
        """Whether it had its time, and asks for what there is not: for everybody to see on its pods, or refused."""
        wanted, (held, pods) = job.spec.resources, made_for(self.world, attempt)
        began = (held.start_time if held else None) or attempt.create_time
        if self.world.now < began + GIVE_WAY:
            return False
        if wanted.machine_type == NO_MACHINE:
            return held is None
        told = any(pod.condition("PodScheduled") is None and pod.conditions for pod in pods)
        told |= any(pod.trainer is not None and pod.trainer.waiting is not None for pod in pods)
        return told and (wanted.image == NO_IMAGE or wanted.node_selector == NO_NODE)

    # --- deciding twice ---------------------------------------------------------------------------------------------------

    def is_idempotent(self, snapshot: JobSnapshot, plan: JobPlan) -> None:
        again = lifecycle.decide_job(replace(snapshot, job=replace(snapshot.job, status=plan.status)))
        assert again.status == plan.status, "deciding on its own result changes something"
        assert again.actions == plan.actions, "an action does not follow again from the written status"
        assert again.events == (), "an event is emitted twice"

    def service_is_idempotent(self, snapshot: ServiceSnapshot) -> None:
        plan = service.decide_service(snapshot)
        again = service.decide_service(replace(snapshot, service=replace(snapshot.service, status=plan.status)))
        assert again.status == plan.status, "deciding on its own result changes something"
        assert again.actions == plan.actions, "an action does not follow again from the written status"
        assert again.events == (), "an event is emitted twice"


# --- one object -------------------------------------------------------------------------------------------------------------


def _is_one_story(job: JobView) -> None:
    """State, ledger, times and conditions of one status say the same."""
    status = job.status
    truths = _truths(status.conditions)
    suspended = status.state in (JobState.STOPPED, JobState.CANCELED) or (
        status.reason == "Suspended" and (status.state is JobState.CREATED)
    )
    assert truths.get("Running", False) == (status.state is JobState.RUNNING)
    assert truths.get("Succeeded", False) == (status.state is JobState.SUCCEEDED)
    assert truths.get("Failed", False) == (status.state is JobState.FAILED)
    assert truths.get("Suspended", False) == suspended
    assert truths["Ready"] == (status.state in AS_ASKED | {JobState.SUCCEEDED} or suspended)
    abnormal = [truths[type_] for type_ in ("Reconciling", "Stalled") if type_ in truths]
    assert abnormal == [True] * (not truths["Ready"]), (
        "kstatus: exactly one holds, and what is abnormal is there only then"
    )
    assert {c.observed_generation for c in status.conditions} == {status.observed_generation}
    opened = open_attempts(status)
    assert len(opened) <= 1, "two attempts at once"
    assert bool(opened) == (status.state in ACTIVE), f"{status.state} with open attempts {opened}"
    assert (status.completion_time is not None) or status.state not in TERMINAL
    assert status.completion_time is None or (status.current is None and status.state not in ACTIVE | WAITING)
    assert status.next_attempt_time is None or status.state is JobState.RERUN
    assert (status.queued_time is not None) == (status.state in WAITING)
    assert status.queue_position is None or status.state in WAITING
    assert status.current is None or opened


def _is_counted(status: TrainingJobStatus) -> None:
    """Every attempt of the run is in the ledger once, and the counts are those of the ledger."""
    attempts = run_attempts(status)
    count = status.attempt_count or 0
    assert [a.number for a in attempts] == list(range(count - len(attempts) + 1, count + 1))
    if len(attempts) == count:
        assert (status.charged_attempts or 0) == sum(a.charged or False for a in attempts)
        assert (status.disruptions or 0) == sum(a.cause in DISRUPTIONS for a in attempts)


def _truths(conditions: tuple[Condition, ...]) -> dict[str, bool]:
    return {condition.type: condition.status is ConditionStatus.TRUE for condition in conditions}


def _just_before(due: datetime | None, now: datetime) -> datetime:
    """The last second at which nothing is due, or an hour on; who looks every few seconds is never late."""
    later = min(due or now + HOUR, now + HOUR) - timedelta(seconds=1)
    return now if later < now + timedelta(seconds=DIAGNOSIS_SECONDS) else later
