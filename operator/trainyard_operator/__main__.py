"""Runs one replica: every replica takes reports, the one that holds the Lease decides.

Crash-only: nothing has to be saved, so ending is the answer to everything that goes wrong for good (a lost lease, a watch
that broke), and whoever starts next goes on from what is written in the cluster.
"""

import argparse
import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Sequence

from trainyard_api.run import Intake as IntakeAddress

from trainyard_operator import logs, tls
from trainyard_operator.cluster import SECRETS, Cluster, ClusterError
from trainyard_operator.events import Recorder
from trainyard_operator.intake import PATH, Intake, serve, server_context
from trainyard_operator.lease import Lease, LeaseLostError
from trainyard_operator.metrics import Metrics
from trainyard_operator.probes import Heartbeat, Probes
from trainyard_operator.queue import WorkQueue
from trainyard_operator.reconcile import Reconciler
from trainyard_operator.settings import SETTINGS_FILE, Settings, SettingsError, load_settings
from trainyard_operator.shell import Shell
from trainyard_operator.tokens import Verifier
from trainyard_operator.watch import Key, Watch

logger = logging.getLogger("trainyard_operator")

CERTIFICATE_SECONDS = 30.0
"""How often a renewed certificate is looked for; the leader renews it when due."""


class Certificate:
    """The intake's certificate as this replica has it."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self._cluster = cluster
        self._settings = settings
        self._files: dict[str, bytes] = {}
        self.context = server_context()
        self.loaded = asyncio.Event()

    @property
    def bundle(self) -> str | None:
        """PEM of the authorities that a trainer must trust."""
        return self._files[tls.BUNDLE].decode() if self._files else None

    async def renew(self) -> None:
        """Make what is missing or due; the leader's part."""
        if self._settings.intake_certificate_dir is None:
            hosts = [self._settings.intake_hostname]
            self._load(
                await tls.ensure_secret(
                    self._cluster,
                    self._settings.namespace,
                    self._settings.intake_secret,
                    hosts,
                    self._cluster.clock.now(),
                )
            )

    async def follow(self, *, leads: asyncio.Event) -> None:
        """Keep up with renewals, for ever."""
        while True:
            try:
                if leads.is_set():
                    await self.renew()
                await self._read()
            except ClusterError as error:
                logger.warning("the intake's certificate: %s", error)
            await asyncio.sleep(CERTIFICATE_SECONDS if self.loaded.is_set() else 1.0)

    async def _read(self) -> None:
        folder = self._settings.intake_certificate_dir
        if folder is not None:
            self._load(await asyncio.to_thread(tls.read_folder, folder))
        else:
            found = await self._cluster.find(SECRETS, self._settings.namespace, self._settings.intake_secret)
            self._load(tls.secret_data(found))

    def _load(self, files: dict[str, bytes]) -> None:
        if files == self._files or not {tls.BUNDLE, tls.CERTIFICATE, tls.KEY} <= files.keys():
            return
        tls.load_into(self.context, files)
        self._files = files
        self.loaded.set()


class Operator:
    """The parts of one replica and the order in which they start."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self._cluster = cluster
        self._settings = settings
        self._metrics = Metrics()
        self._heartbeat = Heartbeat(self._metrics)
        self._probes = Probes(
            self._metrics,
            self._heartbeat,
            clock=cluster.clock,
            watch_seconds=settings.watch_server_seconds + 2 * settings.watch_inactivity_seconds,
        )
        self._certificate = Certificate(cluster, settings)
        self._queue: WorkQueue[Key] = WorkQueue()
        self._watch = Watch(self._queue, nodes=settings.watch_nodes)
        self._probes.watches(self._watch)
        self._shell = Shell(cluster, self._watch, settings)
        self._watching = asyncio.Event()
        self._leads = asyncio.Event()
        self._led_before_watching = False
        self._lease = Lease(
            cluster, settings.namespace, settings.lease_name, settings.identity, seconds=settings.lease_seconds
        )

    async def run(self) -> None:
        """Serve and, when it is this replica's turn, decide. Ends only by an exception."""
        settings = self._settings
        await serve(self._probes.application(), settings.probe_host, settings.probe_port, None)
        self._probes.taking_reports = self._certificate.loaded.is_set
        async with asyncio.TaskGroup() as group:
            begin(
                group,
                heartbeat=self._heartbeat.run(),
                certificate=self._certificate.follow(leads=self._leads),
                intake=self._take_reports(),
                watch=self._follow(),
                leader=self._lead(),
            )

    async def release(self) -> None:
        """Let another replica take over at once."""
        if self._leads.is_set():
            await self._lease.release()

    async def _take_reports(self) -> None:
        await self._certificate.loaded.wait()
        settings = self._settings
        intake = Intake(
            self._cluster,
            Verifier(self._cluster),
            self._metrics,
            report_seconds=settings.report_seconds,
            writes_per_second=settings.progress_writes_per_second / settings.replicas,
            refresh_seconds=settings.progress_refresh_seconds,
            stall_seconds=self._stall_seconds,
        )
        await serve(intake.application(), settings.intake_host, settings.intake_port, self._certificate.context)
        logger.info("taking reports on port %d", settings.intake_port)

    def _stall_seconds(self, namespace: str, service: str) -> float | None:
        """As every replica's own watch has it."""
        view = self._watch.caches.services.get((namespace, service))
        return view.spec.execution.stall_timeout_seconds if view is not None else None

    async def _lead(self) -> None:
        await self._lease.acquire()
        self._leads.set()
        async with asyncio.TaskGroup() as group:
            begin(group, lease=self._lease.hold(), decide=self._decide())

    async def _follow(self) -> None:
        """Watch, whether this replica leads or not: who takes over has warm caches, and decides as soon as it may."""
        await self._lease.tried.wait()
        self._led_before_watching = self._leads.is_set()
        async with asyncio.TaskGroup() as group:
            begin(group, kopf=self._shell.run())
            await self._shell.started.wait()
            _end_on_signals(self)  # Kopf has put its own handlers in their place, which take seconds to end
            await self._shell.watching()
            self._watching.set()

    async def _decide(self) -> None:
        settings, watch, queue = self._settings, self._watch, self._queue
        self._probes.leads(queue)
        leading = self._cluster.fenced(self._lease.holds)
        recorder = Recorder(leading, settings.identity)
        reconciler = Reconciler(leading, watch, recorder, self._metrics, settings, self._intake_address)
        await self._watching.wait()
        await self._certificate.renew()
        await self._certificate.loaded.wait()
        # Read after the lease was taken: whatever the leader before had written is in it, or will be refused.
        if not self._led_before_watching:
            await watch.resync(self._cluster, settings.watch_namespaces)
        # What is known by now stays: no collection of garbage has to go through all of it again.
        gc.collect()
        gc.freeze()
        watch.enabled = True
        watch.wake_all()
        logger.info("%s", f"{len(watch.caches.jobs)} jobs, {len(watch.caches.services)} services: deciding")
        self._metrics.leader.set(1)
        async with asyncio.TaskGroup() as group:
            workers = queue.work(reconciler, settings.workers, Key.logged)
            begin(group, events=recorder.run(), workers=workers, resync=self._resync(watch))

    async def _resync(self, watch: Watch) -> None:
        while True:
            await asyncio.sleep(self._settings.resync_seconds)
            try:
                corrections = await watch.resync(self._cluster, self._settings.watch_namespaces)
            except ClusterError as error:
                logger.warning("the periodic list failed: %s", error)
                continue
            self._metrics.resync_corrections.inc(corrections)
            watch.wake_all()

    def _intake_address(self) -> IntakeAddress:
        return IntakeAddress(url=self._settings.intake_url.rstrip("/") + PATH, ca_pem=self._certificate.bundle)


def begin(group: asyncio.TaskGroup, **parts: Awaitable[None]) -> None:
    """Begin parts of the replica, each a task of its name: what one of them raises ends the process then and there.

    To unwind is to wait until every other task has taken its cancellation, and Kopf waits for its own, and for all begun after it,
    without a limit: a replica that had lost its lease could stay for minutes, answer its probes and do nothing.
    """
    for name, part in parts.items():
        group.create_task(_or_end(part), name=name)


async def _or_end(part: Awaitable[None]) -> None:
    try:
        await part
    except Exception as error:
        _log_end(error)
        _exit(1)


def _end_on_signals(operator: Operator) -> None:
    """On SIGTERM and SIGINT: give the lease back and end. There is nothing else to finish, and no reason to wait."""
    loop = asyncio.get_running_loop()
    ending: list[asyncio.Task[None]] = []

    async def end() -> None:
        try:
            async with asyncio.timeout(5):
                await operator.release()
        finally:
            _exit(0)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: ending or ending.append(asyncio.create_task(end())))


def _exit(code: int) -> None:
    """End without a farewell: tasks that hang on a connection must not keep a replica that may not write any more."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


async def _run(settings: Settings) -> None:
    cluster = await Cluster.connect(seconds=settings.request_seconds, identity=settings.identity)
    operator = Operator(cluster, settings)
    _end_on_signals(operator)
    await operator.run()


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point of the image."""
    parser = argparse.ArgumentParser(
        prog="trainyard-operator",
        description="Runs TrainingJobs. Settings are environment variables TRAINYARD_….",
    )
    parser.add_argument(
        "--namespaces", help="serve these alone, separated by commas: Roles are enough then, and no node is read"
    )
    parser.add_argument(
        "--settings", metavar="FILE", help=f"YAML file of settings, under the environment ({SETTINGS_FILE})"
    )
    given = parser.parse_args(arguments)
    if given.settings:
        os.environ[SETTINGS_FILE] = given.settings
    overrides = {"watch_namespaces": given.namespaces, "watch_nodes": False} if given.namespaces else {}
    try:
        settings = load_settings(**overrides)
    except SettingsError as error:
        parser.exit(2, f"trainyard-operator: {error}\n")
    logs.set_up(settings.log_level, settings.log_format)
    gc.freeze()  # what the imports made stays: the collector need not go through it while thousands of objects arrive
    try:
        asyncio.run(_run(settings))
    except BaseException as error:
        _log_end(error)
        _exit(1)


def _log_end(error: BaseException) -> None:
    for cause in _causes(error):
        known = hasattr(cause, "expected") or isinstance(cause, LeaseLostError)
        logger.error("ending: %s: %s", type(cause).__name__, cause, exc_info=None if known else cause)


def _causes(error: BaseException) -> list[BaseException]:
    """The errors in nested exception groups."""
    if isinstance(error, BaseExceptionGroup):
        return [cause for part in error.exceptions for cause in _causes(part)]
    return [error]


if __name__ == "__main__":
    main()
