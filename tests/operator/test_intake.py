"""The intake over TLS, with tokens that the real API server bound to real pods, writing into the real status."""

import asyncio
import json
import random
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from typing import Any

import aiohttp
import jwt
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric import rsa
from trainyard_api.report import MAX_REPORT_BYTES
from trainyard_operator import tls
from trainyard_operator.cluster import PODS, TRAINING_JOBS, Cluster, StaleError
from trainyard_operator.intake import PATH, STANDBY_PATH, Intake, serve, server_context
from trainyard_operator.metrics import Metrics
from trainyard_operator.tokens import TokenError, Verifier

from devcluster.access import free_port


@dataclass
class Bench:
    """A job with a running attempt, the pod of it, and intakes that serve it."""

    api: Cluster
    namespace: str
    uid: str
    pod_uid: str
    urls: list[str]
    session: aiohttp.ClientSession

    async def token(self, pod: str = "attempt-1", audience: str = "trainyard.dev", seconds: int = 600) -> str:
        found = await self.api.get(PODS, self.namespace, pod)
        reference = {"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": found["metadata"]["uid"]}
        spec = {"audiences": [audience], "expirationSeconds": seconds, "boundObjectRef": reference}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        path = f"/api/v1/namespaces/{self.namespace}/serviceaccounts/default/token"
        return (await self.api.request("POST", path, body=body))["status"]["token"]

    def report(self, sequence: int = 1, **fields: Any) -> dict[str, Any]:
        identity = {"job": "job", "namespace": self.namespace, "uid": self.uid, "run": 0, "attempt": 1}
        return identity | {"sequence": sequence, "phase": "Training"} | fields

    async def post(self, body: Any, token: str | None, url: int = 0) -> tuple[int, dict[str, Any]]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with self.session.post(self.urls[url], data=data, headers=headers) as answer:
            return answer.status, await answer.json()

    async def status(self) -> dict[str, Any]:
        return (await self.api.get(TRAINING_JOBS, self.namespace, "job"))["status"]

    async def write(self, **fields: Any) -> dict[str, Any]:
        """Write as the operator's loop does."""
        while True:
            status = await self.status()
            revision = status.get("revision")
            operations: list[dict[str, Any]] = [
                {"op": "remove", "path": f"/status/{name}"}
                if value is None
                else {"op": "add", "path": f"/status/{name}", "value": value}
                for name, value in fields.items()
            ]
            operations.append({"op": "add", "path": "/status/revision", "value": (revision or 0) + 1})
            tests = {"/metadata/uid": self.uid, "/status/revision": revision}
            try:
                written = await self.api.patch_status(
                    TRAINING_JOBS, self.namespace, "job", tests=tests, operations=operations
                )
            except StaleError:
                continue
            return written["status"]


def pod(namespace: str, name: str) -> dict[str, Any]:
    container = {"name": "trainer", "image": "local/shell", "command": ["sleep", "600"]}
    # No node has this name: the pod stays as it is and costs nothing.
    spec = {"nodeName": "", "nodeSelector": {"none": "such"}, "containers": [container]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": namespace, "name": name}, "spec": spec}


def attempt(number: int, **fields: Any) -> dict[str, Any]:
    return {"number": number, "run": 0, "jobName": f"job-r0-a{number}", "createTime": "2026-01-01T00:00:00Z"} | fields


async def replica(api: Cluster, context: ssl.SSLContext, report_seconds: float) -> tuple[str, Any]:
    """One more intake; its address and what ends it."""
    port = free_port()
    intake = Intake(api, Verifier(api), Metrics(), report_seconds=report_seconds)
    runner = await serve(intake.application(), "127.0.0.1", port, context)
    return f"https://127.0.0.1:{port}{PATH}", runner


@pytest_asyncio.fixture
async def bench(api: Cluster, namespace: str, request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    """Three replicas without a pace; `@pytest.mark.parametrize("bench", [seconds], indirect=True)` sets one."""
    made = {
        "apiVersion": "trainyard.dev/v1alpha1",
        "kind": "TrainingJob",
        "metadata": {"namespace": namespace, "name": "job"},
        "spec": {
            "architecture": "yard-nano",
            "dataset": {"sources": [{"uri": "s3://vision/data.zip"}]},
            "output": {"uri": "s3://vision/models"},
        },
    }
    job = await api.create(TRAINING_JOBS, made)
    attempt_pod = await api.create(PODS, pod(namespace, "attempt-1"))
    await api.create(PODS, pod(namespace, "other"))
    files = tls.renewed({}, ["127.0.0.1"], datetime.now(UTC))
    context = server_context()
    tls.load_into(context, files)
    replicas = [await replica(api, context, getattr(request, "param", 0.0)) for _ in range(3)]
    trusting = ssl.create_default_context(cadata=files[tls.BUNDLE].decode())
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting)) as session:
        uid, pod_uid = job["metadata"]["uid"], attempt_pod["metadata"]["uid"]
        bench = Bench(api, namespace, uid, pod_uid, [url for url, _ in replicas], session)
        current = {"attempt": 1, "podUID": pod_uid}
        await bench.write(state="Preparing", run=0, attempts=[attempt(1)], current=current, summary={"attempt": "0/3"})
        yield bench
    for _, runner in replicas:
        await runner.cleanup()


async def test_a_report_of_the_current_attempt_is_written_into_the_status(bench: Bench):
    report = bench.report(
        percent=63,
        step=190,
        steps=300,
        epoch=19,
        epochs=30,
        etaSeconds=250,
        imagesPerSecond=21.5,
        metrics={"latest": {"loss": 1.25}, "best": {"mAP50": 0.8711}},
        dataset={"images": 10, "objects": 20},
        warnings=[{"reason": "TooFewExamples", "message": "ten images are few"}],
    )
    assert await bench.post(report, await bench.token()) == (200, {})
    status = await bench.status()
    progress = status["progress"]
    assert (progress["phase"], progress["step"], progress["sequence"]) == ("Training", 190, 1)
    assert progress["warnings"] == [{"reason": "TooFewExamples", "message": "ten images are few"}]
    assert datetime.fromisoformat(progress["updatedAt"])
    assert status["metrics"]["best"] == {"mAP50": 0.8711}
    assert status["dataset"]["objects"] == 20
    assert status["summary"] == {
        "attempt": "0/3",
        "progress": "63%",
        "epoch": "19/30",
        "step": "190/300",
        "eta": "4m10s",
        "metric": "mAP50 0.871",
    }
    assert status["revision"] == 1
    assert status["attempts"] == [attempt(1)]


async def test_the_answer_tells_what_the_user_asked_for(bench: Bench):
    finish = [{"op": "add", "path": "/spec/end", "value": "Finish"}]
    await bench.api.patch(TRAINING_JOBS, bench.namespace, "job", finish)
    assert await bench.post(bench.report(), await bench.token()) == (200, {"end": "Finish"})


async def test_who_is_not_the_pod_of_the_attempt_is_refused(bench: Bench):
    good = bench.report()

    async def refused(token: str | None, body: Any = good) -> tuple[int, str]:
        status, answer = await bench.post(body, token)
        assert answer["message"]
        return status, answer["reason"]

    assert await refused(None) == (401, "NoToken")
    assert await refused("nonsense") == (401, "BadToken")
    assert await refused(await bench.token(audience="https://kubernetes.default.svc")) == (401, "BadToken")
    own_key = rsa.generate_private_key(65537, 2048)
    real = await bench.token()
    claims = jwt.decode(real, options={"verify_signature": False})
    forged = jwt.encode(claims, own_key, "RS256", headers={"kid": jwt.get_unverified_header(real)["kid"]})
    assert await refused(forged) == (401, "BadToken")
    assert await refused(jwt.encode(claims, "secret" * 8, "HS256")) == (401, "BadToken")
    assert await refused(jwt.encode(claims, "", "none")) == (401, "BadToken")
    assert await refused(await bench.token("other")) == (403, "OtherPod")
    assert await refused(real, good | {"namespace": "default"}) == (403, "OtherNamespace")
    assert await refused(real, good | {"job": "nobody"}) == (404, "NoSuchJob")
    assert await refused(real, good | {"uid": "another"}) == (404, "OtherJob")
    assert "progress" not in await bench.status()


async def test_work_is_given_to_warm_pods_of_ours_alone(bench: Bench):
    bench.urls.append(bench.urls[0].replace(PATH, STANDBY_PATH))

    async def refused(token: str | None) -> tuple[int, str]:
        status, answer = await bench.post({}, token, url=-1)
        return status, answer["reason"]

    assert await refused(None) == (401, "NoToken")
    assert await refused(await bench.token("other", audience="https://kubernetes.default.svc")) == (401, "BadToken")
    token = await bench.token("other")
    assert await refused(token) == (403, "NoStandby")
    other = await bench.api.get(PODS, bench.namespace, "other")
    await bench.api.delete(PODS, bench.namespace, "other", uid=other["metadata"]["uid"], grace_seconds=0)
    assert await refused(token) == (410, "NoSuchPod")
    # Another pod of that name is not the one that the token is bound to.
    await bench.api.create(PODS, pod(bench.namespace, "other"))
    assert await refused(token) == (410, "NoSuchPod")


async def test_a_token_that_is_bound_to_no_pod_is_refused(bench: Bench):
    spec = {"audiences": ["trainyard.dev"], "expirationSeconds": 600}
    path = f"/api/v1/namespaces/{bench.namespace}/serviceaccounts/default/token"
    answer = await bench.api.request("POST", path, body={"kind": "TokenRequest", "spec": spec})
    status, refusal = await bench.post(bench.report(), answer["status"]["token"])
    assert (status, refusal["reason"]) == (401, "BadToken")
    assert "not bound to a pod" in refusal["message"]


async def test_only_the_current_attempt_of_a_job_that_is_not_over_may_report(bench: Bench):
    token = await bench.token()
    other = (await bench.api.get(PODS, bench.namespace, "other"))["metadata"]["uid"]

    async def refused(body: dict[str, Any]) -> tuple[int, str]:
        status, answer = await bench.post(body, token)
        return status, answer["reason"]

    ended = attempt(1, endTime="2026-01-01T00:01:00Z", cause="Error")
    await bench.write(attempts=[ended, attempt(2)], current={"attempt": 2, "podUID": other})
    assert await refused(bench.report()) == (409, "OtherAttempt")
    assert await refused(bench.report(attempt=2)) == (403, "OtherPod")
    assert await refused(bench.report(run=1)) == (409, "OtherAttempt")
    await bench.write(current=None, state="Rerun")
    assert await refused(bench.report()) == (409, "AttemptOver")
    # The pod runs before the operator has written so: not yet is no refusal.
    assert await refused(bench.report(attempt=2)) == (503, "NotYetCurrent")
    await bench.write(state="Succeeded")
    assert await refused(bench.report(attempt=2)) == (409, "AttemptOver")
    assert "progress" not in await bench.status()


async def test_what_is_too_large_or_no_report_is_refused_with_the_field(bench: Bench):
    token = await bench.token()
    large = json.dumps(bench.report(message="x" * MAX_REPORT_BYTES)).encode()
    assert (await bench.post(large, token))[0] == 413

    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(70):
            yield b" " * 1024

    headers = {"Authorization": f"Bearer {token}"}
    async with bench.session.post(bench.urls[0], data=chunks(), headers=headers) as answer:
        assert answer.status == 413
    for body, where in (
        (b"not json", "body"),
        (b"[]", "body"),
        (bench.report(phase="Dreaming"), "phase"),
        (bench.report(sequence=0), "sequence"),
        (bench.report(percent=101), "percent"),
    ):
        status, answer = await bench.post(body, token)
        assert (status, answer["reason"]) == (422, "NotAReport")
        assert answer["message"].startswith(f"{where}:")
    exact = bench.report(message="")
    padding = MAX_REPORT_BYTES - len(json.dumps(exact).encode())
    assert (await bench.post(json.dumps(exact).encode() + b" " * padding, token))[0] == 200


async def test_a_token_that_is_no_text_is_refused_as_any_other(bench: Bench):
    with pytest.raises(TokenError, match="no token"):
        await Verifier(bench.api).reporter("caf\udce9")  # how bytes of a header come that are not UTF-8


async def test_names_that_are_no_names_and_numbers_that_no_status_holds_are_refused(bench: Bench):
    token = await bench.token()
    for fields, where in (
        ({"job": "."}, "job"),
        ({"job": ""}, "job"),
        ({"step": -1}, "step"),
        ({"step": 10**30}, "step"),
        ({"result": {"exitCode": 999, "reason": "Error"}}, "result.exitCode"),
    ):
        status, answer = await bench.post(bench.report(**fields), token)
        assert (status, answer["reason"], answer["message"].split(":")[0]) == (422, "NotAReport", where)


async def test_a_sequence_that_goes_back_or_repeats_is_refused(bench: Bench):
    token = await bench.token()
    assert (await bench.post(bench.report(5), token))[0] == 200
    for sequence in (5, 4, 1):
        status, answer = await bench.post(bench.report(sequence, step=999), token, url=1)
        assert (status, answer["reason"]) == (409, "SequenceBack")
    assert (await bench.post(bench.report(6, step=7), token, url=2))[0] == 200
    assert (await bench.status())["progress"]["step"] == 7


@pytest.mark.parametrize("bench", [0.6], indirect=True)
async def test_a_pod_is_told_when_its_next_report_is_taken_and_loses_nothing(bench: Bench):
    token = await bench.token()
    assert (await bench.post(bench.report(1), token))[0] == 200
    final = bench.report(2, phase="Done", result={"exitCode": 0, "reason": "Completed", "manifestURI": "s3://vision/m"})
    status, answer = await bench.post(final, token)
    assert (status, answer["reason"]) == (429, "TooSoon")
    assert 0 < answer["retryAfterSeconds"] <= 0.6
    await asyncio.sleep(answer["retryAfterSeconds"])
    assert (await bench.post(final, token))[0] == 200
    result = (await bench.status())["progress"]["result"]
    assert (result["exitCode"], result["manifestURI"]) == (0, "s3://vision/m")


async def test_progress_that_is_not_written_needs_no_look_at_the_job_for_a_moment(bench: Bench):
    """And what needs one has it: an end, another pod, a change that is to be written."""
    intake = Intake(
        bench.api, Verifier(bench.api), Metrics(), report_seconds=0, writes_per_second=0.001, view_seconds=3
    )
    port = free_port()
    runner = await serve(intake.application(), "127.0.0.1", port, None)
    bench.urls.append(f"http://127.0.0.1:{port}{PATH}")
    token = await bench.token()
    # The first is news, the second takes the one write that is in reserve.
    assert [(await bench.post(bench.report(n, step=n), token, url=3))[0] for n in (1, 2, 3, 4)] == [200] * 4
    assert (await bench.status())["progress"]["step"] == 2
    await bench.write(current=None, state="Failed", attempts=[attempt(1, endTime="2026-01-01T00:01:00Z")])
    assert (await bench.post(bench.report(5), token, url=3))[0] == 200
    assert (await bench.post(bench.report(6), await bench.token("other"), url=3))[0] == 409
    assert (await bench.post(bench.report(7, phase="Saving"), token, url=3))[0] == 409
    # Who was refused is not believed for what was seen before.
    assert (await bench.post(bench.report(8), token, url=3))[0] == 409
    assert (await bench.status())["progress"]["step"] == 2
    await runner.cleanup()


async def test_a_sign_of_life_is_written_before_the_service_calls_it_a_stall(bench: Bench):
    """Also by what was seen of the job a moment ago, and when there is no room for mere progress."""
    intake = Intake(
        bench.api,
        Verifier(bench.api),
        Metrics(),
        report_seconds=0,
        writes_per_second=0.001,
        view_seconds=600,
        stall_seconds=lambda _, service: 1.5 if service == "impatient" else None,
    )
    port = free_port()
    runner = await serve(intake.application(), "127.0.0.1", port, None)
    bench.urls.append(f"http://127.0.0.1:{port}{PATH}")
    token = await bench.token()
    await bench.write(serviceName="impatient")
    async with asyncio.timeout(10):
        for number in count(1):
            assert (await bench.post(bench.report(number, step=number), token, url=3))[0] == 200
            if (await bench.status())["progress"]["step"] > 2:
                break
    await runner.cleanup()


async def test_a_token_that_is_known_is_verified_again_with_the_keys_that_are_read_anew(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
):
    verifier = Verifier(bench.api)
    token = await bench.token()
    known = await verifier.reporter(token)
    assert known.pod_uid == bench.pod_uid
    assert await verifier.reporter(token) == known
    issuer, keys = await verifier._read()
    other = jwt.PyJWK.from_json(jwt.algorithms.RSAAlgorithm.to_jwk(rsa.generate_private_key(65537, 2048).public_key()))

    async def rotated() -> tuple[str, dict[str | None, jwt.PyJWK]]:
        return issuer, dict.fromkeys(keys, other)

    monkeypatch.setattr(verifier, "_read", rotated)
    assert await verifier.reporter(token) == known
    monkeypatch.setattr(verifier, "_read_at", float("-inf"))
    with pytest.raises(TokenError, match="does not verify"):
        await verifier.reporter(token)


async def test_numbers_that_are_not_finite_are_left_out(bench: Bench):
    body = json.dumps(bench.report(metrics={"latest": {"loss": float("nan"), "learningRate": 0.01}}))
    assert (await bench.post(body.encode(), await bench.token()))[0] == 200
    assert (await bench.status())["metrics"] == {"latest": {"learningRate": 0.01}}


async def test_a_pod_that_is_gone_still_holds_a_token_but_its_attempt_is_not_current_any_more(bench: Bench):
    token = await bench.token()
    await bench.api.delete(PODS, bench.namespace, "attempt-1", uid=bench.pod_uid, grace_seconds=0)
    assert (await bench.post(bench.report(), token))[0] == 200
    await bench.write(current=None, state="Failed", attempts=[attempt(1, endTime="2026-01-01T00:01:00Z")])
    assert (await bench.post(bench.report(2), token))[0] == 409


async def test_ten_writers_at_once_beside_the_loop_lose_no_field_and_overwrite_no_ledger(bench: Bench):
    token = await bench.token()
    sequences = list(range(1, 101))
    random.Random(0).shuffle(sequences)
    taken: set[int] = set()
    revisions = 40

    async def reporter(number: int) -> None:
        for sequence in sequences[number::10]:
            metrics = {"latest": {"loss": float(sequence)}}
            report = bench.report(sequence, step=sequence, percent=sequence, metrics=metrics)
            while True:
                status, answer = await bench.post(report, token, url=number % 3)
                if status != 503:
                    break
            assert status in (200, 409), answer
            if status == 200:
                taken.add(sequence)

    async def loop() -> None:
        for number in range(2, revisions + 2):
            ledger = [attempt(n, message=f"written {number}") for n in range(1, number % 20 + 2)]
            await bench.write(attempts=ledger, message=f"revision {number}")

    await asyncio.gather(loop(), *(reporter(number) for number in range(10)))
    status = await bench.status()
    newest = max(taken)
    assert newest == 100
    progress, latest = status["progress"], status["metrics"]["latest"]
    # One report wrote all of it: nothing is mixed from two.
    assert (progress["sequence"], progress["step"], latest["loss"]) == (newest, newest, newest)
    assert status["summary"] == {"attempt": "0/3", "progress": "100%", "step": "100", "metric": "loss 100.000"}
    assert status["revision"] == revisions + 1
    assert status["message"] == f"revision {revisions + 1}"
    assert {a["message"] for a in status["attempts"]} == {f"written {revisions + 1}"}
    assert status["current"] == {"attempt": 1, "podUID": bench.pod_uid}
