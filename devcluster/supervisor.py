"""The one process that owns a cluster: it makes the world agree with spec.json and says in status.json how far it is.

    python -m devcluster.supervisor STATE_FOLDER      (started by `devcluster.cluster`, not by hand)

It reads spec.json again at SIGHUP, ends everything at SIGTERM and SIGINT, and looks at its children whenever one ends.
A component that ends unasked is not restarted: a test must see it. Its children die with it (see `processes.start`).
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from devcluster import processes
from devcluster.components import PREFERRED_PORTS, Component, Plant
from devcluster.node.faults import kill_containers
from devcluster.pki import KeyPair
from devcluster.probes import Prober, client_context
from devcluster.spec import (
    SLOTS,
    Addresses,
    ClusterSpec,
    ClusterStatus,
    ComponentStatus,
    Layout,
    Phase,
    S3Credentials,
)
from devcluster.tools import control_plane_programs

TICK_SECONDS = 0.1
IDLE_SECONDS = 5.0
NODE_GRACE_SECONDS = 5.0
START_SECONDS = 120.0
LOG_LINES = 20


class StartError(Exception):
    """The cluster cannot start; the message says why and what to do."""


@dataclass
class _Running:
    """A started component and what has been seen of it."""

    component: Component
    process: subprocess.Popen[bytes]
    started: float
    state: str = "Starting"
    ready_after_seconds: float | None = None
    message: str = ""


class Supervisor:
    def __init__(self, layout: Layout, spec: ClusterSpec) -> None:
        self.layout, self.spec = layout, spec
        self.phase, self.message = Phase.STARTING, ""
        self.slot: int | None = None
        self.ports: dict[str, int] = {}
        self.running: dict[str, _Running] = {}
        self._stop = self._reload = self._was_ready = False
        self._published = ""

    def run(self) -> int:
        """Until told to stop; 0 unless the cluster could not start."""
        wake = self._install_signals()
        try:
            with claimed_slot() as (slot, claim):
                self.slot, self._claim = slot, claim.fileno()
                self._prepare(Addresses(slot))
                while not self._stop and not self._is_orphan():
                    self._step()
                    select.select([wake], [], [], TICK_SECONDS if self.phase == Phase.STARTING else IDLE_SECONDS)
                    with suppress(BlockingIOError):
                        wake.recv(4096)
        except StartError as error:
            self.phase, self.message = Phase.FAILED, str(error)
        finally:
            self._end_all()
        if self.phase != Phase.FAILED:
            self.phase, self.message = Phase.STOPPED, ""
        self._publish()
        return 1 if self.phase == Phase.FAILED else 0

    def _install_signals(self) -> socket.socket:
        reader, writer = socket.socketpair()
        reader.setblocking(False)
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        self._wake_writer = writer

        def stop(*_: object) -> None:
            self._stop = True

        def reload(*_: object) -> None:
            self._reload = True

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        signal.signal(signal.SIGHUP, reload)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        return reader

    def _is_orphan(self) -> bool:
        return self.spec.owner is not None and not processes.is_alive(self.spec.owner)

    def _prepare(self, addresses: Addresses) -> None:
        self.ports = choose_ports(str(addresses.control_plane))
        self._publish()
        self.plant = Plant(self.layout, addresses, self.ports, control_plane_programs())
        self.plant.write_credentials()
        S3Credentials.made_up().write(self.layout.s3_credentials)
        admin = KeyPair(self.layout.pki / "admin.crt", self.layout.pki / "admin.key")
        context = client_context(str(self.plant.authority.certificate_path), admin)
        self.prober = Prober(self.plant.api_server, context)

    def _step(self) -> None:
        """Compares wish and world once, and does what is missing."""
        if self._reload:
            self._reload = False
            self.spec = ClusterSpec.read(self.layout.spec) or self.spec
            self.phase = Phase.STARTING
        self._notice_ends()
        components = self.plant.components(self.spec)
        for component in components:
            self._reconcile(component)
        states = [running.state for running in self.running.values() if running.component.name not in self.spec.killed]
        if "Crashed" in states:
            self.phase = Phase.CRASHED
        elif len(states) + len(self.spec.killed) >= len(components) and all(state == "Ready" for state in states):
            self.phase, self.message, self._was_ready = Phase.READY, "", True
        self._publish()

    def _notice_ends(self) -> None:
        for name, running in self.running.items():
            code = running.process.poll()
            if code is None or running.state in ("Killed", "Crashed"):
                continue
            if name in self.spec.killed:
                continue
            how = f"was ended by signal {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
            log = self.layout.log(name)
            running.state = "Crashed"
            running.message = f"{name} {how}. The end of {log}:\n{processes.tail(log, LOG_LINES)}"
            self.message = running.message
            if not self._was_ready:
                raise StartError(running.message)

    def _reconcile(self, component: Component) -> None:
        running = self.running.get(component.name)
        if component.name in self.spec.killed:
            if running and running.state != "Killed":
                self._kill(running)
        elif running is None or running.state == "Killed":
            if all(name in self.running and self.running[name].state == "Ready" for name in component.after):
                self._start(component)
        elif running.state == "Starting":
            self._look_whether_ready(running)

    def _start(self, component: Component) -> None:
        scratch = self.layout.data / component.name
        scratch.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **component.environment}
        log = self.layout.log(component.name)
        try:
            process = processes.start(component.argv, log, scratch, environment, keep_open=(self._claim,))
        except OSError as error:
            raise StartError(f"{component.name} could not be started as {component.argv[0]}: {error}") from error
        self.running[component.name] = _Running(component, process, time.monotonic())

    def _kill(self, running: _Running) -> None:
        running.process.kill()
        running.process.wait()
        if running.component.name.startswith("node-"):
            # Containers outlive their node's process, as they do a kubelet's; when the power is cut they do not.
            kill_containers(self.layout.data / running.component.name)
        running.state = "Killed"

    def _look_whether_ready(self, running: _Running) -> None:
        age = time.monotonic() - running.started
        if all(self.prober.passes(probe) for probe in running.component.probes):
            running.state, running.ready_after_seconds = "Ready", round(age, 2)
        elif age > START_SECONDS:
            log = self.layout.log(running.component.name)
            raise StartError(
                f"{running.component.name} was not ready after {age:.0f} s. The end of {log}:\n"
                f"{processes.tail(log, LOG_LINES)}"
            )

    def _end_all(self) -> None:
        """Nodes first and gently, since they have pods to end; the others hold nothing that outlives the cluster."""
        records = {name: processes.record(running.process.pid) for name, running in self.running.items()}
        nodes = [record for name, record in records.items() if record and name.startswith("node-")]
        processes.end(nodes, NODE_GRACE_SECONDS)
        processes.end([record for record in records.values() if record], 0)
        for running in self.running.values():
            running.process.wait()
        self.running.clear()

    def _publish(self) -> None:
        own = processes.record(os.getpid())
        assert own is not None
        components = tuple(
            ComponentStatus(
                name=name,
                state=running.state,
                process=processes.record(running.process.pid),
                ready_after_seconds=running.ready_after_seconds,
                message=running.message,
            )
            for name, running in self.running.items()
        )
        status = ClusterStatus(
            phase=self.phase,
            message=self.message,
            supervisor=own,
            slot=self.slot,
            ports=self.ports,
            components=components,
            spec=self.spec,
        )
        if (text := status.model_dump_json()) != self._published:
            status.write(self.layout.status)
            self._published = text


@contextmanager
def claimed_slot() -> Iterator[tuple[int, socket.socket]]:
    """Holds the first free slot of the machine, as its number and the socket that claims it.

    The claim is an abstract socket: exactly those who share our loopback addresses know it, and it is given up when the
    last process that holds it is gone. Components inherit it, so no slot is taken while one of them still runs.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as claim:
        for slot in range(SLOTS):
            try:
                claim.bind(f"\0trainyard-devcluster-{slot}")
            except OSError:
                continue
            yield slot, claim
            return
    raise StartError(f"{SLOTS} clusters run on this machine already: end one with `python -m devcluster down`")


def choose_ports(host: str) -> dict[str, int]:
    """A free port of `host` for each server, the preferred one where it is free."""
    return {name: _bindable(host, port) or _bindable(host, 0) for name, port in PREFERRED_PORTS.items()}


def _bindable(host: str, port: int) -> int:
    """The port that could be bound, 0 when it could not."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return 0
        return probe.getsockname()[1]


def main() -> int:
    layout = Layout(Path(sys.argv[1]))
    spec = ClusterSpec.read(layout.spec)
    if spec is None:
        print(f"{layout.spec} is missing: start the cluster with `python -m devcluster up`", file=sys.stderr)
        return 2
    return Supervisor(layout, spec).run()


if __name__ == "__main__":
    sys.exit(main())
