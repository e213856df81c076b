"""The HTTPS server that takes the trainers' reports and writes them into `status.progress`; any replica serves it, none holds state.

A report is taken when its token is bound to the pod of the job's current attempt. What is written is tested on exactly that,
on the job's uid, and on the sequence that was read, so that of reports that cross each other the newest stays, and one that
comes when the attempt is over is refused by the API server itself. Every refusal is a JSON object with `reason` and `message`:

401 no good token; 403 the token's pod is not this attempt's, or of another namespace; 404 no such job; 409 the job is over, the
attempt is not the current one, or the sequence goes back; 408 too slow; 413 too large; 422 not a report; 429 too soon; 503 try again.
"""

import asyncio
import logging
import ssl
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from typing import Any

from aiohttp import web
from pydantic import ValidationError
from trainyard_api.report import MAX_REPORT_BYTES, Answer, Phase, Report

from trainyard_operator import logs
from trainyard_operator.cluster import TRAINING_JOBS, Cluster, ClusterError, NotFoundError, Object, StaleError
from trainyard_operator.decide.parse import parse_time
from trainyard_operator.handover import Refusal, work_for
from trainyard_operator.metrics import Metrics
from trainyard_operator.reported import report_operations
from trainyard_operator.status import OVER
from trainyard_operator.tokens import Reporter, TokenError, Verifier

logger = logging.getLogger(__name__)

PATH = "/v1/reports"
STANDBY_PATH = "/v1/standby"
WAIT_SECONDS = 20
"""How long a warm instance waits for one answer."""
TRIES = 5
KEPT_SECONDS = 30.0
"""A connection without a whole head of a request is closed after this long, be it idle or slow."""
LINGERING_SECONDS = 1.0
"""For what still comes of a request that was answered early: a client that has not sent all reads no answer before."""
MAX_PODS = 20_000
VIEW_SECONDS = 5.0
"""How long a job need not be read again for a report that changes nothing in it. So much later at most a trainer hears that it is
to finish, or that its attempt is over; what is written is checked against the job as it is, always."""
VIEWED = ("run", "state", "current", "progress", "serviceName")
"""Fields of a job's status that are kept for that."""
BODY_SECONDS = 10.0
"""A report is at most 64 KiB: who takes longer holds a connection that others need."""


class Pace:
    """One accepted report per pod and interval. Held per replica: its loss allows one report more, nothing else."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._taken: OrderedDict[str, float] = OrderedDict()

    def wait(self, pod_uid: str) -> float:
        """Seconds until this pod's next report is taken; 0: now."""
        since = time.monotonic() - self._taken.get(pod_uid, float("-inf"))
        return max(0.0, self._seconds - since)

    def took(self, pod_uid: str) -> None:
        self._taken[pod_uid] = time.monotonic()
        self._taken.move_to_end(pod_uid)
        while len(self._taken) > MAX_PODS:
            self._taken.popitem(last=False)


class Views:
    """What of each job a report is checked against, as it was read a moment ago; held per replica, its loss costs a read each."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._seen: OrderedDict[tuple[str, str], tuple[float, Object]] = OrderedDict()

    def get(self, report: Report) -> Object | None:
        seen = self._seen.get((report.namespace, report.job))
        return seen[1] if seen is not None and time.monotonic() - seen[0] < self._seconds else None

    def put(self, report: Report, job: Object) -> None:
        key = report.namespace, report.job
        spec, status = job["spec"], job.get("status") or {}
        self._seen[key] = (
            time.monotonic(),
            {
                "metadata": {"uid": job["metadata"]["uid"]},
                "spec": {name: spec[name] for name in ("end", "policy") if name in spec},
                "status": {name: status[name] for name in VIEWED if name in status},
            },
        )
        self._seen.move_to_end(key)
        while len(self._seen) > MAX_PODS:
            self._seen.popitem(last=False)

    def drop(self, report: Report) -> None:
        self._seen.pop((report.namespace, report.job), None)


class Bucket:
    """At most so many writes a second, with a second's worth in reserve."""

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._size = max(1.0, per_second)
        self._left = self._size
        self._at = time.monotonic()

    def take(self) -> bool:
        """Whether there is room for one write now."""
        now = time.monotonic()
        self._left = min(self._size, self._left + (now - self._at) * self._per_second)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class Intake:
    """Answers `POST /v1/reports` and `POST /v1/standby`."""

    def __init__(
        self,
        cluster: Cluster,
        verifier: Verifier,
        metrics: Metrics,
        *,
        report_seconds: float,
        writes_per_second: float = 50.0,
        refresh_seconds: float = 30.0,
        view_seconds: float = VIEW_SECONDS,
        stall_seconds: Callable[[str, str], float | None] = lambda namespace, service: None,
    ) -> None:
        """`writes_per_second`: of mere progress, by this replica, over all jobs. `stall_seconds`: after how much silence the jobs of
        a service (namespace, name) count as stalled, where that is known."""
        self._stall_seconds = stall_seconds
        self._cluster = cluster
        self._verifier = verifier
        self._metrics = metrics
        self._pace = Pace(report_seconds)
        self._views = Views(view_seconds)
        self._writes = Bucket(writes_per_second)
        self._refresh_seconds = refresh_seconds

    def application(self) -> web.Application:
        # aiohttp answers 413 by itself from here on; one byte more lets us answer in our own words.
        application = web.Application(client_max_size=MAX_REPORT_BYTES + 1)
        application.router.add_post(PATH, self._post)
        application.router.add_post(STANDBY_PATH, self._wait)
        return application

    async def _post(self, request: web.Request) -> web.Response:
        began = time.perf_counter()
        try:
            answer = await self._take(request)
            response, reason = web.json_response(answer.to_dict()), "Accepted"
        except Refusal as refusal:
            logger.info("report refused: %s %s: %s", refusal.status, refusal.reason, refusal)
            response, reason = _refused(refusal), refusal.reason
        self._metrics.reports.labels(str(response.status), reason).inc()
        self._metrics.report_seconds.observe(time.perf_counter() - began)
        return response

    async def _wait(self, request: web.Request) -> web.Response:
        """A warm instance waits for work: 200 with its RunSpec, 204 when there was none for a while."""
        try:
            text = await self._work(request)
            if text is None:
                response, reason = web.Response(status=204), "NoWork"
            else:
                response, reason = web.Response(text=text, content_type="application/json"), "Accepted"
        except Refusal as refusal:
            logger.info("hand-over refused: %s %s: %s", refusal.status, refusal.reason, refusal)
            response, reason = _refused(refusal), refusal.reason
        self._metrics.handovers.labels(str(response.status), reason).inc()
        return response

    async def _work(self, request: web.Request) -> str | None:
        reporter = await self._authenticate(request)
        try:
            return await work_for(self._cluster, reporter, seconds=WAIT_SECONDS)
        except ClusterError as error:
            message = f"the cluster does not answer: {error}"
            raise Refusal(503, "ClusterUnavailable", message, retry_after=1.0) from error

    async def _take(self, request: web.Request) -> Answer:
        # The token first: who is nobody gets no byte of his body parsed.
        reporter = await self._authenticate(request)
        report = await _read_report(request)
        if report.namespace != reporter.namespace:
            raise Refusal(
                403, "OtherNamespace", f"the token is of namespace {reporter.namespace}, not {report.namespace}"
            )
        if wait := self._pace.wait(reporter.pod_uid):
            raise Refusal(429, "TooSoon", f"the next report is taken in {wait:.2f} s; send it then", retry_after=wait)
        with logs.about(namespace=report.namespace, job=report.job, attempt=report.attempt):
            return await self._accept(report, reporter)

    async def _accept(self, report: Report, reporter: Reporter) -> Answer:
        """Check the report against the job, and write it. Raises `Refusal`.

        Most reports of many jobs are mere progress that is not written: for these, what was read a moment ago is enough. Nothing
        is written, and nobody refused, but by the job as it is now.
        """
        view, write = self._views.get(report), None
        if view is not None and _passes(view, report, reporter):
            write = self._worth_writing(view, report)
            if not write:
                return self._taken(view, reporter)
        try:
            for _ in range(TRIES):
                self._views.drop(report)
                job = await self._cluster.get(TRAINING_JOBS, report.namespace, report.job)
                check(job, report, reporter)
                if write is None:
                    write = self._worth_writing(job, report)
                try:
                    if write:
                        job = await self._write(job, report)
                except StaleError:
                    continue  # the loop or another report was faster: look again
                self._views.put(report, job)
                return self._taken(job, reporter)
        except NotFoundError as error:
            raise Refusal(404, "NoSuchJob", f"there is no TrainingJob {report.namespace}/{report.job}") from error
        except ClusterError as error:
            logger.warning("report of %s/%s: %s", report.namespace, report.job, error)
            raise Refusal(503, "ClusterUnavailable", "the cluster did not take the report", retry_after=1.0) from error
        raise Refusal(503, "Contended", "the job's status is being written all the time", retry_after=0.2)

    def _taken(self, job: Object, reporter: Reporter) -> Answer:
        self._pace.took(reporter.pod_uid)
        return Answer.model_validate({"end": job["spec"].get("end")})

    async def _authenticate(self, request: web.Request) -> Reporter:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Refusal(401, "NoToken", "send the pod's token as Authorization: Bearer")
        try:
            return await self._verifier.reporter(token.strip())
        except TokenError as error:
            raise Refusal(401, "BadToken", str(error)) from error
        except ClusterError as error:
            logger.warning("the cluster's keys cannot be read: %s", error)
            raise Refusal(503, "KeysUnavailable", "the token cannot be verified now", retry_after=1.0) from error

    def _worth_writing(self, job: Object, report: Report) -> bool:
        """Whether an accepted report is written now. What a decision or a user waits for always is; mere progress within the
        writes that the cluster is to bear, and at least every `refresh_seconds`, so that silence is never mistaken for a stall."""
        stall = self._stall_seconds(report.namespace, job["status"].get("serviceName") or "")
        due = is_due(job, report, self._cluster.clock.now(), self._refresh_seconds, stall)
        written = due or self._writes.take()
        self._metrics.progress_writes.labels("written" if written else "left").inc()
        return written

    async def _write(self, job: Object, report: Report) -> Object:
        status = job["status"]
        progress = status.get("progress")
        tests: dict[str, Any] = {"/metadata/uid": job["metadata"]["uid"], "/status/current": status["current"]}
        if progress is None:
            tests["/status/progress"] = None
        else:
            tests["/status/progress/sequence"] = progress.get("sequence")
        operations = report_operations(status, report, self._cluster.clock.now())
        return await self._cluster.patch_status(
            TRAINING_JOBS, report.namespace, report.job, tests=tests, operations=operations
        )


def check(job: Object, report: Report, reporter: Reporter) -> None:
    """Whether the report may be written into this job. Raises `Refusal`."""
    status = job.get("status") or {}
    current = status.get("current")
    if job["metadata"]["uid"] != report.uid:
        raise Refusal(404, "OtherJob", f"TrainingJob {report.job} was deleted and made again; this is not its attempt")
    run, number = status.get("run") or 0, report.attempt
    if current is None:
        ended = any(
            (a.get("run") or 0, a["number"]) == (report.run, number) and a.get("endTime")
            for a in status.get("attempts") or ()
        )
        if ended or status.get("state") in OVER:
            raise Refusal(
                409, "AttemptOver", f"attempt {number} of {report.job} is over; the job is {status.get('state')}"
            )
        # A quick trainer reports before the operator has seen its pod run.
        raise Refusal(503, "NotYetCurrent", f"attempt {number} is not known to run yet; send it again", retry_after=0.5)
    asks = (status.get("progress") or {}).get("phase") == Phase.RESTARTING and current["podUID"] == reporter.pod_uid
    if asks and run == report.run and number == current["attempt"] + 1:
        raise Refusal(503, "NotYetCurrent", f"attempt {number} is not decided yet; ask again", retry_after=0.5)
    if current["attempt"] != number or run != report.run:
        raise Refusal(409, "OtherAttempt", f"the current attempt is {current['attempt']} of run {run}, not {number}")
    if current["podUID"] != reporter.pod_uid:
        raise Refusal(403, "OtherPod", f"pod {reporter.pod_name} is not that of attempt {number}")
    last = (status.get("progress") or {}).get("sequence") or 0
    if report.sequence <= last:
        raise Refusal(409, "SequenceBack", f"report {report.sequence} comes after report {last}")


def _passes(job: Object, report: Report, reporter: Reporter) -> bool:
    try:
        check(job, report, reporter)
    except Refusal:
        return False
    return True


def is_due(
    job: Object, report: Report, now: datetime, refresh_seconds: float, service_stall_seconds: float | None = None
) -> bool:
    """Whether the report has news that may not wait for the next one: a phase, a warning, the first checkpoint, a result, or a
    sign of life after a while, long before the job would count as stalled."""
    status = job.get("status") or {}
    progress = status.get("progress")
    if progress is None or report.result is not None or progress.get("phase") != report.phase:
        return True
    if report.checkpoint_step is not None and progress.get("checkpointStep") is None:
        return True  # from here on a stop leaves something to go on from
    if len(report.warnings or ()) != len(progress.get("warnings") or ()):
        return True
    last = parse_time(progress.get("updatedAt"))
    own = ((job.get("spec") or {}).get("policy") or {}).get("stallTimeoutSeconds")
    stall = own or service_stall_seconds or float("inf")
    return last is None or (now - last).total_seconds() >= min(refresh_seconds, stall / 3)


async def _read_report(request: web.Request) -> Report:
    too_large = Refusal(413, "TooLarge", f"a report is at most {MAX_REPORT_BYTES} bytes")
    if (request.content_length or 0) > MAX_REPORT_BYTES:
        raise too_large
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await request.read()
    except web.HTTPRequestEntityTooLarge as error:
        raise too_large from error
    except TimeoutError as error:
        raise Refusal(408, "TooSlow", f"the report did not arrive within {BODY_SECONDS:.0f} s") from error
    except ConnectionError as error:
        raise Refusal(400, "Disconnected", "the connection broke off before the report was whole") from error
    if len(body) > MAX_REPORT_BYTES:
        raise too_large
    try:
        return Report.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise Refusal(422, "NotAReport", f"{where}: {first['msg']}") from error


def _refused(refusal: Refusal) -> web.Response:
    headers = {} if refusal.retry_after is None else {"Retry-After": f"{max(1, round(refusal.retry_after + 0.49))}"}
    body: dict[str, Any] = {"reason": refusal.reason, "message": str(refusal)}
    if refusal.retry_after is not None:
        body["retryAfterSeconds"] = round(refusal.retry_after, 3)
    return web.json_response(body, status=refusal.status, headers=headers)


async def serve(application: web.Application, host: str, port: int, context: ssl.SSLContext | None) -> web.AppRunner:
    """Start a server; `cleanup` ends it."""
    runner = web.AppRunner(
        application,
        access_log=None,
        handle_signals=False,
        keepalive_timeout=KEPT_SECONDS,
        lingering_time=LINGERING_SECONDS,
    )
    await runner.setup()
    await web.TCPSite(runner, host, port, ssl_context=context, reuse_address=True).start()
    return runner


def server_context() -> ssl.SSLContext:
    """TLS 1.2 and up; the certificate is loaded by `tls.load_into`, again whenever it was renewed."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
