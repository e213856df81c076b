"""What a change wakes, and what the caches believe of events that come late, twice or not at all."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from trainyard_operator.cache import Cache
from trainyard_operator.cluster import Cluster
from trainyard_operator.queue import WorkQueue
from trainyard_operator.settings import Settings
from trainyard_operator.shell import NotWatchingError, Shell
from trainyard_operator.watch import Key, Kind, Watch

Object = dict[str, Any]


def job(version: int, *, name: str = "job", uid: str = "u1", generation: int = 1, **status: Any) -> Object:
    spec = {
        "architecture": "yard-nano",
        "dataset": {"sources": [{"uri": "s3://vision/data.zip"}]},
        "output": {"uri": "s3://vision/models"},
    }
    metadata = {"namespace": "ns", "name": name, "uid": uid, "resourceVersion": str(version), "generation": generation}
    return {"metadata": metadata, "spec": spec, "status": {"observedGeneration": 1, "state": "Running"} | status}


def service(version: int, **spec: Any) -> Object:
    metadata = {"namespace": "ns", "name": "mgmt-train-yard-nano", "uid": "s1", "resourceVersion": str(version)}
    return {"metadata": metadata | {"generation": version}, "spec": {"architecture": "yard-nano"} | spec, "status": {}}


def pod(
    version: int,
    *,
    node: str | None = None,
    phase: str = "Pending",
    name: str = "job-r0-a1-x",
    labels: dict[str, str] | None = None,
) -> Object:
    labels = {"trainyard.dev/job": "job", "trainyard.dev/service": "mgmt-train-yard-nano"} | (labels or {})
    metadata = {"namespace": "ns", "name": name, "uid": name, "resourceVersion": str(version), "labels": labels}
    return {"metadata": metadata, "spec": {"nodeName": node} if node else {}, "status": {"phase": phase}}


def node(version: int, ready: str, heartbeat: str = "2026-01-01T00:00:00Z") -> Object:
    condition = {"type": "Ready", "status": ready, "lastHeartbeatTime": heartbeat}
    metadata = {"name": "node-0", "uid": "n0", "resourceVersion": str(version)}
    return {"metadata": metadata, "spec": {}, "status": {"conditions": [condition]}}


JOB = Key(Kind.JOB, "ns", "job")
SERVICE = Key(Kind.SERVICE, "ns", "mgmt-train-yard-nano")


@pytest.fixture
def watch() -> Watch:
    watch = Watch(WorkQueue(), nodes=True)
    watch.enabled = True
    return watch


async def woken(watch: Watch, cache: Cache[Any], obj: Object, *, deleted: bool = False) -> set[Key]:
    """The keys that one event puts on the queue."""
    watch.arrived(cache, obj, deleted=deleted)
    return await drained(watch)


async def drained(watch: Watch) -> set[Key]:
    keys: set[Key] = set()
    while len(watch.queue):
        key = await watch.queue.get()
        watch.queue.done(key)
        keys.add(key)
    return keys


async def test_progress_wakes_nobody_and_a_new_phase_wakes_the_job(watch: Watch):
    jobs = watch.caches.jobs
    training = {"phase": "Training", "step": 1}
    assert await woken(watch, jobs, job(1, progress=training)) == {JOB}
    assert await woken(watch, jobs, job(2, progress=training | {"step": 2})) == set()
    entry = jobs.entry(("ns", "job"))
    assert entry is not None
    assert entry.status is not None
    assert entry.status["progress"]["step"] == 2
    assert await woken(watch, jobs, job(3, progress={"phase": "Done", "step": 2})) == {JOB}
    assert await woken(watch, jobs, job(4, progress={"phase": "Done"}, revision=7)) == {JOB}
    assert await woken(watch, jobs, job(5, progress={"phase": "Done"}, revision=7, generation=2)) == {JOB}


async def test_another_priority_in_kueue_wakes_the_job_and_another_label_does_not(watch: Watch):
    jobs = watch.caches.jobs
    seen = job(1)
    await woken(watch, jobs, seen)
    for version, labels, keys in ((2, {"team": "a"}, set()), (3, {"kueue.x-k8s.io/priority-class": "urgent"}, {JOB})):
        changed = {"resourceVersion": str(version), "labels": labels}
        assert await woken(watch, jobs, seen | {"metadata": seen["metadata"] | changed}) == keys


async def test_late_events_take_nothing_back(watch: Watch):
    jobs = watch.caches.jobs
    await woken(watch, jobs, job(5, revision=2))
    assert await woken(watch, jobs, job(4, revision=1)) == set()
    view = jobs.get(("ns", "job"))
    assert view is not None
    assert view.status.revision == 2
    assert await woken(watch, jobs, job(6), deleted=True) == {JOB}
    # The object is gone: what was on its way still is no news, a namesake of another uid is.
    assert await woken(watch, jobs, job(5)) == set()
    assert len(jobs) == 0
    assert await woken(watch, jobs, job(7, uid="u2")) == {JOB}


async def test_who_takes_the_label_off_a_pod_that_runs_does_not_make_it_gone(watch: Watch):
    """The watch, which is by that label, calls it deleted; an answer from then on shows that it is not."""
    pods = watch.caches.pods
    running = {"node": "node-0", "phase": "Running"}
    await woken(watch, pods, pod(3, **running))
    await woken(watch, pods, pod(5, **running), deleted=True)
    assert len(pods) == 0
    assert pods.apply(pod(4, **running)) is None, "from before"
    assert pods.apply(pod(5, **running)) is not None
    assert len(pods) == 1


async def test_a_service_tells_those_who_wait_when_it_is_paused_and_not_when_it_counts(watch: Watch):
    services, jobs = watch.caches.services, watch.caches.jobs
    await woken(watch, services, service(1))
    await woken(watch, jobs, job(1, state="Queued"))
    await woken(watch, jobs, job(2, name="over", uid="u9", state="Succeeded"))
    assert await woken(watch, services, service(3, paused=True)) == {SERVICE, JOB}
    counted = service(3, paused=True)
    counted["metadata"]["resourceVersion"] = "4"
    counted["status"] = {"queued": 5}
    assert await woken(watch, services, counted) == {SERVICE}


async def test_a_pod_wakes_its_job_and_a_node_jobs_and_services_whose_pods_it_runs(watch: Watch):
    pods, nodes = watch.caches.pods, watch.caches.nodes
    assert await woken(watch, pods, pod(1)) == set(), "a step on its way is nothing to tell"
    assert await woken(watch, pods, pod(3, node="node-0", phase="Running")) == {JOB}
    assert await woken(watch, pods, pod(3, node="node-0", phase="Running")) == set()
    assert await woken(watch, nodes, node(4, "True")) == {JOB, SERVICE}
    assert await woken(watch, nodes, node(5, "True", "2026-01-01T00:05:00Z")) == set()
    assert await woken(watch, nodes, node(6, "Unknown")) == {JOB, SERVICE}
    await woken(watch, pods, pod(7, node="node-0", phase="Succeeded"))
    assert await woken(watch, nodes, node(8, "True")) == set()


async def test_a_service_is_woken_at_once_when_a_job_may_start_and_else_a_moment_later(watch: Watch):
    services, jobs, pods = watch.caches.services, watch.caches.jobs, watch.caches.pods
    await woken(watch, services, service(1, scaling={"maxInstances": 1}))
    await woken(watch, pods, pod(2, name="another"))
    assert await woken(watch, jobs, job(3, state="Created")) == {JOB}
    key = await asyncio.wait_for(watch.queue.get(), 5)
    watch.queue.done(key)
    assert key == SERVICE
    assert await woken(watch, pods, pod(4, name="another", phase="Succeeded")) == {JOB, SERVICE}


async def test_a_batch_wakes_its_jobs_and_who_is_in_it_needs_no_further_look_at_the_service(watch: Watch):
    services, jobs = watch.caches.services, watch.caches.jobs
    await woken(watch, services, service(1, scaling={"maxInstances": 9}))
    assert await woken(watch, jobs, job(2, state="Created")) == {SERVICE}, "the batch wakes the job"
    batch = service(1, scaling={"maxInstances": 9})
    batch["metadata"]["resourceVersion"] = "3"
    batch["status"] = {"admission": {"revision": 1, "jobs": [{"name": "job", "uid": "u1", "run": 0, "attempt": 1}]}}
    assert await woken(watch, services, batch) == {SERVICE, JOB}
    # Its place in the queue changes, and nobody can be admitted by that; another one can.
    later = job(4, state="Created", generation=2)
    later["spec"]["policy"] = {"priority": 5}
    assert await woken(watch, jobs, later) == {JOB}
    assert await woken(watch, jobs, job(5, name="other", uid="u2", state="Created")) == {SERVICE}
    key = await asyncio.wait_for(watch.queue.get(), 5)
    assert key == Key(Kind.JOB, "ns", "other"), "it is looked at also when no batch comes"


def version(number: int, state: str, *, uid: str = "u1", run: int = 0) -> Object:
    metadata = {"namespace": "ns", "name": "job-v1", "uid": "v1", "resourceVersion": str(number)}
    spec = {"model": "job", "version": 1, "jobName": "job", "jobUID": uid, "run": run}
    spec |= {"architecture": "yard-nano", "task": "Detection", "uri": "s3://vision/models/job/v1"}
    return {"metadata": metadata, "spec": spec, "status": {"state": state}}


async def test_a_version_that_the_job_has_announced_wakes_nobody_by_being_made(watch: Watch):
    versions = watch.caches.versions
    await woken(watch, watch.caches.jobs, job(1, run=0) | {"status": {"state": "Preparing", "version": "job-v1"}})
    assert await woken(watch, versions, version(2, "Training")) == set()
    assert await woken(watch, versions, version(3, "Ready")) == {JOB}
    assert await woken(watch, versions, version(4, "Ready"), deleted=True) == {JOB}
    taken = version(6, "Training", uid="another")
    taken["metadata"]["uid"] = "v2"
    assert await woken(watch, versions, taken) == {JOB}, "its name is another job's"


async def test_a_job_of_an_attempt_wakes_by_what_becomes_of_it_and_not_by_being_made(watch: Watch):
    attempt_jobs, made = watch.caches.attempt_jobs, pod(1, name="job-r0-a1")
    made |= {"spec": {}, "status": {}}
    assert await woken(watch, attempt_jobs, made) == set()
    suspended = pod(2, name="job-r0-a2") | {"spec": {"suspend": True}, "status": {}}
    assert await woken(watch, attempt_jobs, suspended) == {JOB}, "a queueing engine holds it"
    failed = pod(3, name="job-r0-a1") | {"spec": {}, "status": {"conditions": [{"type": "Failed", "status": "True"}]}}
    assert await woken(watch, attempt_jobs, failed) == {JOB}


async def test_what_has_ended_goes_before_what_starts_and_who_has_only_come_waits(watch: Watch):
    watch.arrived(watch.caches.jobs, job(1, name="new", uid="new", state="Created"))
    watch.arrived(watch.caches.pods, pod(2, labels={"trainyard.dev/job": "runs"}, phase="Running", name="runs-x"))
    watch.arrived(watch.caches.pods, pod(3, labels={"trainyard.dev/job": "ended"}, phase="Failed", name="ended-x"))
    assert [(await watch.queue.get()).name for _ in range(3)] == ["ended", "runs", "new"]


async def test_what_cannot_be_read_leaves_the_others_alone(watch: Watch, caplog: pytest.LogCaptureFixture):
    assert await woken(watch, watch.caches.jobs, job(1, state="FromTheFuture")) == set()
    assert "ns/job cannot be read" in caplog.text
    assert await woken(watch, watch.caches.jobs, job(2, name="other", uid="u2"))


async def test_a_list_corrects_what_a_watch_missed_and_keeps_what_is_newer(watch: Watch):
    jobs = watch.caches.jobs
    for number, name in ((1, "stays"), (2, "missed-deletion"), (9, "newer-than-the-list")):
        await woken(watch, jobs, job(number, name=name, uid=name))

    class Listed:
        async def present(self, *_: Any, **__: Any) -> AsyncIterator[tuple[str, Object]]:
            for number, name in ((1, "stays"), (4, "missed"), (3, "goes-meanwhile")):
                yield "ADDED", job(number, name=name, uid=name)
            yield "DELETED", job(5, name="goes-meanwhile", uid="goes-meanwhile")
            yield "BOOKMARK", {"metadata": {"resourceVersion": "5"}}

    corrections, version = await watch.relist(cast("Cluster", Listed()), jobs, None)
    assert (corrections, version) == (4, "5")
    assert sorted(name for _, name in jobs.names()) == ["missed", "newer-than-the-list", "stays"]
    assert await drained(watch) == {
        Key(Kind.JOB, "ns", name) for name in ("missed", "missed-deletion", "goes-meanwhile")
    }


async def test_nothing_is_woken_before_the_caches_are_complete():
    watch = Watch(WorkQueue(), nodes=True)
    assert await woken(watch, watch.caches.jobs, job(1)) == set()
    watch.wake_all()
    assert len(watch.queue) == 1


async def test_a_kind_that_was_not_found_at_the_start_ends_the_process(watch: Watch):
    shell = Shell(Cluster(None), watch, Settings())  # pyright: ignore[reportArgumentType] nothing is asked
    for name, opened in shell._opened.items():
        if name != "pods":
            opened.set()
    with pytest.raises(NotWatchingError, match=r"no watch of pods after 0 s; beginning anew"):
        await shell.watching(seconds=0.01)
    shell._opened["pods"].set()
    await shell.watching(seconds=0.01)


async def test_jobs_that_are_alike_share_what_is_kept_of_them(watch: Watch):
    condition = {"type": "Ready", "status": "False", "reason": "Waits", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    for number in range(2):
        alike = job(number + 1, name=f"job-{number}", uid=f"u{number}", conditions=[condition], message=f"{number}")
        watch.arrived(watch.caches.jobs, alike)
    one, other = (watch.caches.jobs.get(("ns", f"job-{number}")) for number in range(2))
    assert one
    assert other
    assert one.spec is other.spec
    assert one.status.conditions[0] is other.status.conditions[0]
    assert (one.status.message, other.status.message) == ("0", "1")
