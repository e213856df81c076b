"""A cluster as its users hold it: started, asked, broken on purpose, and ended.

with Cluster.start("mine", nodes=2, gpus=4, s3=True) as cluster:
    cluster.kubectl("get", "nodes")
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

from devcluster import processes
from devcluster.access import S3Access, around_proxies
from devcluster.node.faults import kill_containers
from devcluster.spec import (
    Addresses,
    ClusterSpec,
    ClusterStatus,
    ComponentStatus,
    Layout,
    Phase,
    ProcessRecord,
    S3Credentials,
    state_folder,
)
from devcluster.tools import HELM, control_plane_programs, programs_folder

CHECKOUT = Path(__file__).resolve().parent.parent
READY_SECONDS = 180.0
STOP_SECONDS = 30.0
POLL_SECONDS = 0.05
Say = Callable[[str], None]


class ClusterError(Exception):
    """The cluster is not as it was asked to be; the message says what happened and what to do."""


class CommandError(ClusterError):
    """kubectl or helm ended with a code other than 0."""

    def __init__(self, command: list[str], code: int, stdout: str, stderr: str) -> None:
        super().__init__(f"`{' '.join(command)}` ended with exit code {code}: {stderr.strip() or stdout.strip()}")
        self.code, self.stdout, self.stderr = code, stdout, stderr


class Cluster:
    """A handle on the cluster in one state folder; any number of handles may exist, in any number of processes."""

    def __init__(self, name: str = "dev", state: Path | None = None) -> None:
        """Raises ValueError for a name that no cluster can have. Nothing is started."""
        self.name = name
        self.layout = Layout((state or state_folder(name)).absolute())

    @classmethod
    def start(
        cls,
        name: str = "dev",
        *,
        nodes: int = 0,
        gpus: int = 0,
        s3: bool = False,
        controllers: bool = True,
        node_grace_seconds: int = 40,
        images: Path | None = None,
        audit_bodies: bool = False,
        state: Path | None = None,
        owner: ProcessRecord | None = None,
        say: Say = lambda _: None,
    ) -> Cluster:
        """Starts the cluster, or what it still lacks where it runs already, and waits until it is ready.

        The programs are built first where this machine has not done so (minutes). `state` is the folder to keep
        everything in, `owner` a process that the cluster must not outlive. Raises ClusterError, ToolsError.
        """
        cluster = cls(name, state)
        spec = ClusterSpec(
            name=name,
            nodes=nodes,
            gpus=gpus,
            s3=s3,
            controllers=controllers,
            node_grace_seconds=node_grace_seconds,
            images=images.absolute() if images else None,
            audit_bodies=audit_bodies,
            owner=owner,
        )
        cluster.up(spec, say)
        return cluster

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def up(self, spec: ClusterSpec, say: Say = lambda _: None) -> bool:
        """Brings the cluster up to `spec`; False when there was nothing to do. What runs beyond `spec` stays.

        Interrupted, by Ctrl-C say, it leaves nothing running that it started itself.
        """
        if sys.platform != "linux":
            raise ClusterError("the devcluster needs Linux, where all of 127/8 answers; elsewhere use kind")
        control_plane_programs()
        with self._lock():
            status = self.status()
            if status is None or status.phase in (Phase.STOPPED, Phase.FAILED):
                self._clean()
                supervisor = self._spawn(spec)
                with _undone_unless_finished(lambda: processes.end([supervisor], STOP_SECONDS)):
                    self._wait_ready(say, spec, supervisor)
                    self._link_programs()
                return True
            if status.phase == Phase.CRASHED:
                raise ClusterError(f"{status.message}\nEnd it with `python -m devcluster down --name {self.name}`.")
            if status.phase == Phase.READY and status.spec.covers(spec):
                return False
            wanted = (ClusterSpec.read(self.layout.spec) or status.spec).grown_by(spec)
            self._ask_for(wanted)
            self._wait_ready(say, wanted, status.supervisor)
            return True

    def grow(self, *, nodes: int = 0, gpus: int = 0, s3: bool = False) -> Cluster:
        """Adds what is not there yet and waits until it is ready; GPUs count for a cluster's first nodes only."""
        current = self._current()
        self.up(ClusterSpec(name=self.name, nodes=nodes, gpus=gpus, s3=s3, controllers=current.spec.controllers))
        return self

    def stop(self) -> bool:
        """Ends the cluster and forgets its data, keeping the logs; False when nothing ran.

        Also clears up after a supervisor that was killed.
        """
        status = ClusterStatus.read(self.layout.status)
        ran = status is not None and processes.is_alive(status.supervisor)
        if status is not None:
            processes.end([status.supervisor], STOP_SECONDS)
        if self.layout.root.is_dir():
            with self._lock():
                ran = self._clean() or ran
        return ran

    def status(self) -> ClusterStatus | None:
        """What the supervisor says; None when there is no such cluster, Stopped when its supervisor is gone."""
        status = ClusterStatus.read(self.layout.status)
        if status is None or status.phase in (Phase.FAILED, Phase.STOPPED) or processes.is_alive(status.supervisor):
            return status
        return status.model_copy(update={"phase": Phase.STOPPED, "message": "its supervisor was killed"})

    @property
    def kubeconfig(self) -> Path:
        """An administrator's kubeconfig."""
        return self.layout.kubeconfig

    def kubeconfig_of(self, account: str, namespace: str, path: Path) -> Path:
        """Writes a kubeconfig with a token of the service account that is good for a day; its path."""
        token = self.kubectl("create", "token", account, "--namespace", namespace, "--duration=24h").strip()
        return self.kubeconfig_with(token, path)

    def kubeconfig_with(self, token: str, path: Path) -> Path:
        """Writes a kubeconfig for who has the token, in the place of the administrator; its path."""
        config = json.loads(self.kubeconfig.read_text())
        for user in config["users"]:
            user["user"] = {"token": token}
        path.touch(mode=0o600)
        path.write_text(json.dumps(config))
        return path

    @property
    def addresses(self) -> Addresses:
        slot = self._current().slot
        assert slot is not None
        return Addresses(slot)

    @property
    def api_server(self) -> str:
        """URL of the API server, the same for this machine and for pods."""
        return f"https://{self.addresses.control_plane}:{self._current().ports['kube-apiserver']}"

    @property
    def s3(self) -> S3Access:
        """Raises ClusterError when the cluster was started without S3."""
        current = self._current()
        if not current.spec.s3:
            raise ClusterError(f"cluster {self.name} has no S3 server: start it with s3=True (`up --s3`)")
        credentials = S3Credentials.read(self.layout.s3_credentials)
        assert credentials is not None
        endpoint = f"http://{self.addresses.control_plane}:{current.ports['s3']}"
        return S3Access(endpoint, credentials.access_key_id, credentials.secret_access_key)

    def environment(self) -> dict[str, str]:
        """Variables that make kubectl, helm, boto3 and any Kubernetes client use this cluster."""
        s3 = self.s3.environment() if self._current().spec.s3 else {}
        direct = around_proxies(str(self.addresses.control_plane), os.environ)
        return {"KUBECONFIG": str(self.kubeconfig), **s3, **direct}

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True, timeout: float = 60) -> str:
        """Runs kubectl as administrator and returns its standard output. Raises CommandError, with `check`."""
        return self._run([str(self.layout.programs / "kubectl"), *arguments], stdin, check, timeout)

    def define(self, folder: Path) -> None:
        """Applies the CustomResourceDefinitions of a folder and waits until the API server answers for them."""
        files = ("--filename", str(folder))
        self.kubectl("apply", "--server-side", "--force-conflicts", *files, timeout=180)
        self.kubectl("wait", "--for=condition=Established", *files, "--timeout=120s", timeout=180)
        names = self.kubectl("get", *files, "--output=jsonpath={.items[*].metadata.name}").split()
        # They are Established before their storage answers; kubectl asks again until it does.
        self.kubectl("get", ",".join(names))

    def helm(self, *arguments: str, stdin: str | None = None, check: bool = True, timeout: float = 180) -> str:
        """As `kubectl`, with Helm (built at the first use)."""
        return self._run([str(programs_folder(HELM) / "helm"), *arguments], stdin, check, timeout)

    def kill(self, component: str) -> None:
        """Ends a component with SIGKILL and keeps it down until `restart`: `kube-scheduler`, `node-0`, `s3`, ..."""
        self._component(component)
        self._change_killed(lambda killed: killed | {component})
        self._wait_for(lambda status: _state(status, component) == "Killed", f"{component} to be killed")

    def restart(self, component: str) -> None:
        """Starts a component again, having killed it where it runs, and waits until it is ready."""
        self.kill(component)
        self._change_killed(lambda killed: killed - {component})
        self._wait_for(lambda status: _state(status, component) == "Ready", f"{component} to be ready again")

    def freeze(self, component: str) -> None:
        """Stops a component where it is (SIGSTOP) until `thaw`: it holds its connections and does nothing."""
        self._send(component, signal.SIGSTOP)

    def thaw(self, component: str) -> None:
        self._send(component, signal.SIGCONT)

    def kill_node(self, index: int) -> None:
        """Node `index` is gone at once, with its pods' processes, as if its power were cut."""
        self.kill(f"node-{index}")

    def restart_node(self, index: int) -> None:
        self.restart(f"node-{index}")

    def freeze_node(self, index: int) -> None:
        """Node `index` stops its heartbeats and does nothing more, while the processes of its pods run on."""
        self.freeze(f"node-{index}")

    def thaw_node(self, index: int) -> None:
        """The end of `freeze_node`."""
        self.thaw(f"node-{index}")

    def log_tail(self, component: str, lines: int = 20) -> str:
        return processes.tail(self.layout.log(component), lines)

    def _run(self, command: list[str], stdin: str | None, check: bool, timeout: float) -> str:
        folders = {name: str(self.layout.data / "helm" / name.lower()) for name in _HELM_FOLDERS}
        # Such a program ends before collecting its garbage would pay.
        environment = {"GOGC": "off", **os.environ, "KUBECONFIG": str(self.kubeconfig), **folders}
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, timeout=timeout, env=environment, check=False
        )
        if check and done.returncode != 0:
            shown = [Path(command[0]).name, *command[1:]]
            raise CommandError(shown, done.returncode, done.stdout, done.stderr)
        return done.stdout

    def _current(self) -> ClusterStatus:
        status = self.status()
        if status is None or status.phase in (Phase.STOPPED, Phase.FAILED):
            raise ClusterError(f"cluster {self.name} is not running: `python -m devcluster up --name {self.name}`")
        return status

    def _component(self, name: str) -> ComponentStatus:
        status = self._current()
        if (component := status.component(name)) is None:
            known = ", ".join(component.name for component in status.components)
            raise ClusterError(f"cluster {self.name} has no component {name}; it has {known}")
        return component

    def _send(self, component: str, number: signal.Signals) -> None:
        process = self._component(component).process
        if process is None or not processes.is_alive(process):
            raise ClusterError(f"{component} of cluster {self.name} does not run")
        processes.send(process, number)

    def _change_killed(self, change: Callable[[set[str]], set[str]]) -> None:
        with self._lock():
            spec = ClusterSpec.read(self.layout.spec) or self._current().spec
            killed = tuple(sorted(change(set(spec.killed))))
            if killed != spec.killed:
                self._ask_for(spec.model_copy(update={"killed": killed}))

    def _ask_for(self, spec: ClusterSpec) -> None:
        spec.write(self.layout.spec)
        processes.send(self._current().supervisor, signal.SIGHUP)

    def _spawn(self, spec: ClusterSpec) -> ProcessRecord:
        """Starts the supervisor as a process that outlives us."""
        shutil.rmtree(self.layout.logs, ignore_errors=True)
        self.layout.logs.mkdir()
        spec.write(self.layout.spec)
        with (self.layout.log("supervisor")).open("wb") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", "devcluster.supervisor", str(self.layout.root)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": _python_path()},
            )
        _children.append(child)
        record = processes.record(child.pid)
        if record is None:
            raise ClusterError(f"the supervisor did not start:\n{self.log_tail('supervisor')}")
        return record

    def _wait_ready(self, say: Say, spec: ClusterSpec, supervisor: ProcessRecord) -> None:
        before = ClusterStatus.read(self.layout.status)
        told = {component.name for component in before.components} if before else set[str]()
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            alive = processes.is_alive(supervisor)
            status = ClusterStatus.read(self.layout.status)
            for component in status.components if status else ():
                if component.state == "Ready" and component.name not in told:
                    told.add(component.name)
                    say(f"    {component.name} ready after {component.ready_after_seconds} s")
            if status and status.phase in (Phase.FAILED, Phase.CRASHED):
                raise ClusterError(status.message)
            if status and status.phase == Phase.READY and status.spec.covers(spec):
                return
            if not alive:
                log = self.log_tail("supervisor") or "It was ended from outside."
                raise ClusterError(f"cluster {self.name} ended while it started. {log}")
            time.sleep(POLL_SECONDS)
        raise ClusterError(
            f"cluster {self.name} was not ready after {READY_SECONDS:.0f} s; logs are in {self.layout.logs}"
        )

    def _wait_for(self, condition: Callable[[ClusterStatus], bool], what: str) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not condition(self._current()):
            if time.monotonic() > deadline:
                raise ClusterError(f"waited {READY_SECONDS:.0f} s in vain for {what}")
            time.sleep(POLL_SECONDS)

    def _clean(self) -> bool:
        """Ends what a killed supervisor left, and deletes everything but the logs; True if there was something."""
        status = ClusterStatus.read(self.layout.status)
        left = [component.process for component in status.components if component.process] if status else []
        alive = [process for process in left if processes.is_alive(process)]
        processes.end(alive, 0)
        for node in self.layout.data.glob("node-*"):
            kill_containers(node)
        for folder in (self.layout.data, self.layout.pki, self.layout.programs):
            shutil.rmtree(folder, ignore_errors=True)
        for file in (self.layout.spec, self.layout.status, self.layout.kubeconfig, self.layout.s3_credentials):
            file.unlink(missing_ok=True)
        return bool(alive)

    def _link_programs(self) -> None:
        self.layout.programs.mkdir(exist_ok=True)
        (self.layout.programs / "kubectl").symlink_to(control_plane_programs()["kubectl"])

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self.layout.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.layout.lock.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


_HELM_FOLDERS = ("HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME")
_children: list[subprocess.Popen[bytes]] = []
"""Our supervisors: kept so that they are reaped, and are not taken for running when they ended."""


def _state(status: ClusterStatus, component: str) -> str | None:
    found = status.component(component)
    return found.state if found else None


def _python_path() -> str:
    return os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH")]))


@contextmanager
def _undone_unless_finished(undo: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        undo()
        raise
