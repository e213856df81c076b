"""What the operator relies on from the API server, asked of the real one."""

import asyncio
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from trainyard_operator.cluster import (
    JOBS,
    PODS,
    TRAINING_JOBS,
    Cluster,
    ConflictError,
    ForeignObjectError,
    NotFoundError,
    RejectedError,
    Resource,
    StaleError,
    UnavailableError,
    error_of,
    status_operations,
)

from devcluster import Cluster as Devcluster


def training_job(namespace: str, name: str = "job") -> dict[str, Any]:
    return {
        "apiVersion": "trainyard.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "architecture": "yard-nano",
            "dataset": {"sources": [{"uri": "s3://vision/data.zip"}]},
            "output": {"uri": "s3://vision/models"},
        },
    }


def batch_job(namespace: str, name: str, owner: dict[str, Any]) -> dict[str, Any]:
    metadata = owner["metadata"]
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    container = {"name": "trainer", "image": "local/shell", "command": ["true"]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"namespace": namespace, "name": name, "ownerReferences": [reference]},
        "spec": {"suspend": True, "template": {"spec": {"restartPolicy": "Never", "containers": [container]}}},
    }


async def test_a_client_s_certificate_is_as_good_as_a_token(crds: Devcluster, tmp_path: Path):
    config = json.loads(crds.kubeconfig.read_text())
    certificate, key = (str(crds.layout.pki / f"admin.{ending}") for ending in ("crt", "key"))
    config["users"][0]["user"] = {"client-certificate": certificate, "client-key": key}
    (tmp_path / "kubeconfig").write_text(json.dumps(config))
    connection = await Cluster.connect(str(tmp_path / "kubeconfig"))
    try:
        assert await connection.list_all(TRAINING_JOBS, "default") == []
    finally:
        await connection.close()


async def test_creating_twice_adopts_what_the_same_owner_made(api: Cluster, namespace: str):
    owner = await api.create(TRAINING_JOBS, training_job(namespace))
    uid = owner["metadata"]["uid"]
    first, made = await api.create_or_adopt(JOBS, batch_job(namespace, "job-r0-a1", owner), owner_uid=uid)
    assert made
    second, made = await api.create_or_adopt(JOBS, batch_job(namespace, "job-r0-a1", owner), owner_uid=uid)
    assert not made
    assert second["metadata"]["uid"] == first["metadata"]["uid"]


async def test_creating_what_another_owner_has_is_an_error_that_says_so(api: Cluster, namespace: str):
    one = await api.create(TRAINING_JOBS, training_job(namespace, "one"))
    two = await api.create(TRAINING_JOBS, training_job(namespace, "two"))
    await api.create(JOBS, batch_job(namespace, "child", one))
    with pytest.raises(ForeignObjectError, match="belongs to somebody else"):
        await api.create_or_adopt(JOBS, batch_job(namespace, "child", two), owner_uid=two["metadata"]["uid"])


async def test_creating_what_is_being_deleted_waits(api: Cluster, namespace: str):
    owner = await api.create(TRAINING_JOBS, training_job(namespace))
    body = batch_job(namespace, "child", owner)
    body["metadata"]["finalizers"] = ["example.org/hold"]
    child = await api.create(JOBS, body)
    assert await api.delete(JOBS, namespace, "child", uid=child["metadata"]["uid"])
    with pytest.raises(ForeignObjectError, match="still being deleted"):
        await api.create_or_adopt(JOBS, batch_job(namespace, "child", owner), owner_uid=owner["metadata"]["uid"])
    await api.patch(JOBS, namespace, "child", [{"op": "remove", "path": "/metadata/finalizers"}])


async def test_deleting_names_the_uid_and_spares_a_namesake(api: Cluster, namespace: str):
    owner = await api.create(TRAINING_JOBS, training_job(namespace))
    wrong = "00000000-0000-0000-0000-000000000000"
    assert not await api.delete(TRAINING_JOBS, namespace, "job", uid=wrong)
    assert await api.get(TRAINING_JOBS, namespace, "job")
    assert await api.delete(TRAINING_JOBS, namespace, "job", uid=owner["metadata"]["uid"])
    assert await api.find(TRAINING_JOBS, namespace, "job") is None
    assert not await api.delete(TRAINING_JOBS, namespace, "job", uid=owner["metadata"]["uid"])


async def test_a_status_patch_lands_only_where_what_was_read_still_holds(api: Cluster, namespace: str):
    job = await api.create(TRAINING_JOBS, training_job(namespace))
    uid = job["metadata"]["uid"]
    assert job["status"] == {"observedGeneration": -1, "state": "Created"}

    async def write(revision: int | None, **fields: Any) -> dict[str, Any]:
        operations = [{"op": "add", "path": f"/status/{name}", "value": value} for name, value in fields.items()]
        operations.append({"op": "add", "path": "/status/revision", "value": (revision or 0) + 1})
        tests = {"/metadata/uid": uid, "/status/revision": revision}
        return await api.patch_status(TRAINING_JOBS, namespace, "job", tests=tests, operations=operations)

    assert (await write(None, state="Queued"))["status"]["revision"] == 1
    with pytest.raises(StaleError):
        await write(None, state="Failed")
    assert (await write(1, state="Preparing"))["status"]["state"] == "Preparing"
    with pytest.raises(StaleError):
        await api.patch_status(
            TRAINING_JOBS,
            namespace,
            "job",
            tests={"/metadata/uid": "another"},
            operations=[{"op": "add", "path": "/status/state", "value": "Failed"}],
        )
    with pytest.raises(RejectedError, match="state"):
        await write(2, state="NoSuchState")
    with pytest.raises(NotFoundError):
        await api.patch_status(TRAINING_JOBS, namespace, "nobody", tests={}, operations=[])


async def test_of_many_writers_at_one_revision_exactly_one_wins(api: Cluster, namespace: str):
    job = await api.create(TRAINING_JOBS, training_job(namespace))
    tests = {"/metadata/uid": job["metadata"]["uid"], "/status/revision": None}

    async def write(number: int) -> int | None:
        operations = [
            {"op": "add", "path": "/status/message", "value": f"writer {number}"},
            {"op": "add", "path": "/status/revision", "value": 1},
        ]
        try:
            await api.patch_status(TRAINING_JOBS, namespace, "job", tests=tests, operations=operations)
        except StaleError:
            return None
        return number

    winners = [number for number in await asyncio.gather(*map(write, range(16))) if number is not None]
    assert len(winners) == 1
    assert (await api.get(TRAINING_JOBS, namespace, "job"))["status"]["message"] == f"writer {winners[0]}"


async def test_lists_are_read_page_by_page_and_name_their_kind(api: Cluster, namespace: str):
    for number in range(7):
        await api.create(TRAINING_JOBS, training_job(namespace, f"job-{number}"))
    items, version = await api.list_at(TRAINING_JOBS, namespace, page=3)
    assert [item["metadata"]["name"] for item in items] == [f"job-{number}" for number in range(7)]
    assert {item["kind"] for item in items} == {"TrainingJob"}
    assert version >= max(int(item["metadata"]["resourceVersion"]) for item in items)


class WithoutStreams(Cluster):
    """Asks for streams in a way that the API server refuses as one does whose WatchList is off: 422."""

    refused = 0

    async def _send(self, method: str, url: str, *more: Any) -> Any:
        response = await super()._send(method, url.replace("NotOlderThan", "Exact"), *more)
        self.refused += response.status == 422
        return response


async def present(api: Cluster, namespace: str) -> tuple[list[str], int]:
    """Names of the jobs that are there, and the version at the end."""
    *events, last = [event async for event in api.present(TRAINING_JOBS, namespace)]
    assert {(kind, item["kind"], item["apiVersion"]) for kind, item in events} <= {
        ("ADDED", "TrainingJob", "trainyard.dev/v1alpha1")
    }
    assert last[0] == "BOOKMARK"
    return sorted(item["metadata"]["name"] for _, item in events), int(last[1]["metadata"]["resourceVersion"])


async def test_what_is_there_comes_as_a_stream_or_page_by_page(api: Cluster, namespace: str):
    without = WithoutStreams(api._api)
    assert await present(api, namespace) == ([], (await present(without, namespace))[1])
    made = [await api.create(TRAINING_JOBS, training_job(namespace, f"job-{number}")) for number in range(7)]
    newest = max(int(item["metadata"]["resourceVersion"]) for item in made)
    for connection in (api, without):
        names, version = await present(connection, namespace)
        assert (names, version >= newest) == ([f"job-{number}" for number in range(7)], True)
    assert without.refused == 1, "it asks once"


async def test_a_stream_that_breaks_off_is_no_list(api: Cluster, namespace: str):
    await api.create(TRAINING_JOBS, training_job(namespace))

    class Broken(Cluster):
        async def _watch(self, *asked: Any, **more: Any) -> AsyncGenerator[dict[str, Any]]:
            async for event in super()._watch(*asked, **more):
                yield event
                return

    with pytest.raises(UnavailableError, match="broke off"):
        await present(Broken(api._api), namespace)


async def test_no_answer_is_an_error_that_can_be_tried_again(api: Cluster, namespace: str):
    impatient = Cluster(api._api, seconds=0.000001)
    with pytest.raises(UnavailableError, match="no answer"):
        await impatient.get(PODS, namespace, "pod")


async def test_a_second_creation_is_a_conflict(api: Cluster, namespace: str):
    await api.create(TRAINING_JOBS, training_job(namespace))
    with pytest.raises(ConflictError):
        await api.create(TRAINING_JOBS, training_job(namespace))
    bad = training_job(namespace, "bad")
    bad["spec"]["dataset"]["sources"] = []
    with pytest.raises(RejectedError, match=r"spec\.dataset\.sources"):
        await api.create(TRAINING_JOBS, bad)


@pytest.mark.parametrize(
    ("status", "headers", "error", "retry_after"),
    [
        (429, {"Retry-After": "7"}, UnavailableError, 7.0),
        (410, {}, UnavailableError, None),  # the next page of a list that took too long: nothing a person could change
        (500, {}, UnavailableError, None),
        (504, {}, UnavailableError, None),
        (401, {}, UnavailableError, None),
        (403, {}, RejectedError, None),
        (413, {}, RejectedError, None),
        (404, {}, NotFoundError, None),
        (409, {}, ConflictError, None),
    ],
)
def test_answers_become_errors_by_what_can_be_done(status, headers, error, retry_after):
    made = error_of("GET", "/x", status, b'{"message": "because"}', headers)
    assert type(made) is error
    assert "because" in str(made)
    assert made.retry_after == retry_after
    assert type(error_of("GET", "/x", status, b"<html>", headers)) is error


def test_operations_touch_only_owned_fields_that_differ():
    old = {
        "state": "Queued",
        "progress": {"step": 1},
        "reason": "A",
        "warnings": [{"reason": "x"}],
        "summary": {"eta": "1s"},
    }
    new = {"state": "Running", "progress": {"step": 0}, "warnings": [], "artifacts": [], "summary": {"attempt": "1/3"}}
    owned = ["state", "reason", "warnings", "artifacts", "summary/attempt", "run"]
    assert status_operations(old, new, owned) == [
        {"op": "add", "path": "/status/state", "value": "Running"},
        {"op": "remove", "path": "/status/reason"},
        {"op": "remove", "path": "/status/warnings"},
        {"op": "add", "path": "/status/summary/attempt", "value": "1/3"},
    ]
    written = {"state": "Running", "progress": {"step": 1}, "summary": {"eta": "1s", "attempt": "1/3"}}
    assert status_operations(written, new, owned) == []


async def test_an_object_is_followed_until_it_is_gone(api: Cluster, namespace: str):
    body = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"namespace": namespace, "name": "a"},
        "data": {"n": "0"},
    }
    config_maps = Resource("", "v1", "configmaps", "ConfigMap")
    made = await api.create(config_maps, body)
    seen: list[str] = []
    async for state in api.states(config_maps, namespace, "a", seconds=30):
        seen.append(state["data"]["n"][:1])
        if len(seen) == 1:
            # Longer than what one line of a stream may usually be.
            await api.patch(config_maps, namespace, "a", [{"op": "replace", "path": "/data/n", "value": "1" * 200_000}])
        else:
            await api.delete(config_maps, namespace, "a", uid=made["metadata"]["uid"])
    assert seen == ["0", "1"]
    assert [state async for state in api.states(config_maps, namespace, "a", seconds=1)] == []
