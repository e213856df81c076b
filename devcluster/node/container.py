"""One container of a pod, from its image's name to its last exit."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from devcluster.node import memory, probes
from devcluster.node.configuration import Blocked, Host, Images, Place, configure
from devcluster.node.process import Exit, Process
from devcluster.node.quantity import parse
from devcluster.node.sandbox import Sandbox, start_error
from devcluster.node.status import (
    ContainerView,
    Running,
    State,
    Terminated,
    Waiting,
    restarts,
    terminated,
    terminated_from,
)
from devcluster.node.volumes import Volumes

PRESENT = 'Container image "{}" already present on machine and can be accessed by the pod'
RUNTIME_ERROR = (
    "failed to create containerd task: failed to create shim task: OCI runtime create failed: "
    "runc create failed: unable to start container process: "
)


class Container:
    """Runs one container as its pod asks. All that changes goes through `changed`, which publishes the pod's status."""

    def __init__(
        self,
        host: Host,
        spec: dict[str, Any],
        pod: Callable[[], dict[str, Any]],
        folder: Path,
        volumes: Volumes,
        changed: Callable[[], None],
        publish: Callable[[], Awaitable[None]],
        *,
        init: bool,
    ) -> None:
        self.spec = spec
        self.name: str = spec["name"]
        self.init = init
        self.sidecar = init and spec.get("restartPolicy") == "Always"
        self.process: Process | None = None
        self.state: State
        self.last: Terminated | None = None
        self.restart_count = 0
        self.ready = False
        self.started = asyncio.Event()
        self.lost = False
        self.kill_at = float("inf")
        """When SIGKILL follows SIGTERM (monotonic); the pod may bring it forward while it is being stopped."""
        self.hurry = asyncio.Event()
        self._host = host
        self._pod = pod
        self._folder = folder
        self._volumes = volumes
        self._changed = changed
        self._publish = publish
        self._latest: Waiting | None = None
        self._images = Images(host.images, host.settings.timings)
        self._crash_backoff = 0.0
        self._watchers: list[asyncio.Task[None]] = []
        self._env: dict[str, str] = {}
        self.state = self._creating()
        self._adopt()

    # -- what the pod sees ---------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        return isinstance(self.state, Running) or (self.process is not None and isinstance(self.state, Waiting))

    def view(self) -> ContainerView:
        return ContainerView(
            self.name,
            self.spec["image"],
            self.state,
            self.last,
            self.ready,
            self.started.is_set(),
            self.restart_count,
            self._container_id() if self.process or self.last else "",
            self.init,
            self.sidecar,
            self.lost,
        )

    def log_file(self, *, previous: bool = False) -> Path:
        return self._folder / str(self.restart_count - previous) / "log"

    async def run(self, policy: str) -> None:
        """Runs the container until it has ended and is not to be started again under the restart `policy`."""
        while True:
            if self.process is None and isinstance(self.state, Waiting):
                await self._start()
            if self.process is not None:
                await self._watch()
            assert isinstance(self.state, Terminated)
            if not restarts(policy, self.state.exit_code):
                return
            await self._back_off(self.state)

    async def stop(self, message: str, grace: float) -> None:
        """Ends the run: preStop, TERM, and KILL when `grace` seconds (or less, see `kill_at`) are over."""
        self._stop_watchers()
        process = self.process
        if process is None or not self.running:
            return
        self.event("Normal", "Killing", message)
        self.kill_at = min(self.kill_at, time.monotonic() + grace)
        exited = asyncio.ensure_future(process.wait())
        hook = (self.spec.get("lifecycle") or {}).get("preStop")
        if hook:
            handler = asyncio.ensure_future(self._hook(hook, "PreStop", max(0.1, self.kill_at - time.monotonic())))
            await self._until_killed(exited, handler)
            handler.cancel()
        process.signal(self._stop_signal())
        await self._until_killed(exited)
        process.signal(signal.SIGKILL)
        ended = await exited
        if self.process is process:  # else its end was seen elsewhere, and the next run may have begun
            self._record(ended)

    def show_latest(self) -> None:
        """Shows why the container could not be started at the last try."""
        if self._latest is not None and self.process is None and isinstance(self.state, Waiting):
            self.state = self._latest
            self._changed()

    def reset_to_waiting(self) -> None:
        """A container that waits is shown as if nothing had been tried (kubelet, when the pod is deleted)."""
        if isinstance(self.state, Waiting) and self.process is None:
            self.state = self._creating()

    def event(self, type_: str, reason: str, message: str) -> None:
        kind = "initContainers" if self.init else "containers"
        self._host.recorder.record(self._pod(), type_, reason, message, f"spec.{kind}{{{self.name}}}")

    def probe_target(self) -> probes.Target | None:
        pid = self.process.pid if self.process else None
        if pid is None:
            return None
        ports = {p["name"]: p["containerPort"] for p in self.spec.get("ports") or [] if "name" in p}
        return probes.Target(self._place().pod_ip, pid, self._env, ports, self.spec.get("workingDir") or "/")

    # -- starting ------------------------------------------------------------------------------------------------

    async def _start(self) -> None:
        """Starts the container; as long as it cannot be started, says why and tries again."""
        self._latest = None
        while True:
            # As in kubelet, the status tells the outcome of the look before this one.
            self.show_latest()
            timings = self._host.settings.timings
            try:
                image = self._images.find(self.spec)
                self.event("Normal", "Pulled", PRESENT.format(self.spec["image"]))
                env, sandbox = await configure(self._place(), image)
                break
            except Blocked as blocked:
                for event in blocked.events:
                    self.event(*event)
                pause = timings.resync if self._latest is None else timings.sync
                self._latest = Waiting(blocked.reason, blocked.message)
                await asyncio.sleep(pause)
        self._env = env
        self._launch(sandbox, env)
        process = self.process
        if process is None:
            return
        await process.started()
        self.event("Normal", "Started", "Container started")
        if not await self._post_start():
            return
        self.state = Running(process.started_at)
        self._is_running()

    def _launch(self, sandbox: Sandbox, env: dict[str, str]) -> None:
        run = self._run_folder()
        run.mkdir(parents=True, exist_ok=True)
        (run / "termination").write_bytes(b"")
        (run / "termination").chmod(0o666)
        self.event("Normal", "Created", "Container created")
        why = start_error(sandbox, env.get("PATH", ""))
        if why is None:
            try:
                self.process = Process.start(run, sandbox, env)
                return
            except OSError as error:
                why = str(error)
        (run / "log").touch()
        self._start_failed(RUNTIME_ERROR + why)

    def _start_failed(self, why: str) -> None:
        self.event("Warning", "Failed", f"Error: {why}")
        self.process = None
        self.state = Terminated(128, "StartError", why, 0.0, time.time())
        self._changed()

    async def _post_start(self) -> bool:
        """Runs the postStart hook; a failed one ends the container, without it ever being shown as running."""
        hook = (self.spec.get("lifecycle") or {}).get("postStart")
        if not hook:
            return True
        result = await self._hook(hook, "PostStart", 600.0)
        if result.ok:
            return True
        grace = self._pod()["spec"].get("terminationGracePeriodSeconds", 30)
        await self.stop("FailedPostStartHook", float(grace))
        return False

    async def _hook(self, hook: dict[str, Any], kind: str, limit: float) -> probes.Result:
        target = self.probe_target()
        result = await probes.perform(hook, target, limit) if target else probes.Result(False, "container has ended")
        if not result.ok:
            self.event("Warning", f"Failed{kind}Hook", f"{kind}Hook failed")
        return result

    # -- running -------------------------------------------------------------------------------------------------

    def _is_running(self) -> None:
        """Starts the limits and probes of a running container, and says that it runs."""
        limit = ((self.spec.get("resources") or {}).get("limits") or {}).get("memory")
        if limit:
            self._watchers.append(asyncio.create_task(self._watch_memory(int(parse(limit)))))
        if self.spec.get("startupProbe") and not self.started.is_set():
            self._watchers.append(asyncio.create_task(self._probe("Startup")))
        else:
            self._has_started()
        self._changed()

    def _has_started(self) -> None:
        self.started.set()
        if self.spec.get("readinessProbe"):
            self._watchers.append(asyncio.create_task(self._probe("Readiness")))
        else:
            self.ready = True
        if self.spec.get("livenessProbe"):
            self._watchers.append(asyncio.create_task(self._probe("Liveness")))

    async def _watch(self) -> None:
        assert self.process is not None
        ended = await self.process.wait()
        self._stop_watchers()
        # Told late, the end must not swallow that the container ran.
        await self._publish()
        self._record(ended)

    def _record(self, ended: Exit) -> None:
        assert self.process is not None
        if isinstance(self.state, Terminated):
            return
        self._stop_watchers()
        self.ready = False
        self.started.clear()
        if ended.setup_error:
            self._start_failed(RUNTIME_ERROR + ended.setup_error)
            return
        policy = self.spec.get("terminationMessagePolicy") or "File"
        message = self.process.message(policy, 255 if ended.code is None else ended.code)
        self.state = terminated(ended.code, ended.out_of_memory, message, self.process.started_at, ended.finished_at)
        self._changed()

    async def _watch_memory(self, limit: int) -> None:
        while self.process is not None:
            pid = self.process.pid
            if pid is not None and memory.enforce(pid, limit) is not None:
                (self.process.folder / "oom").touch()
            await asyncio.sleep(self._host.settings.timings.memory_check)

    async def _probe(self, kind: str) -> None:
        probe = self.spec[f"{kind.lower()}Probe"]
        target = self.probe_target()
        if target is None:
            return

        async def told(result: probes.Result, passing: bool) -> None:
            if not result.ok:
                self.event("Warning", "Unhealthy", f"{kind} probe failed: {result.message}")
            if kind == "Readiness":
                if self.ready != passing:
                    self.ready = passing
                    self._changed()
            elif kind == "Startup" and passing and not self.started.is_set():
                self._has_started()
                self._changed()
                raise asyncio.CancelledError
            elif not passing and not result.ok:
                grace = probe.get("terminationGracePeriodSeconds")
                grace = self._pod()["spec"].get("terminationGracePeriodSeconds", 30) if grace is None else grace
                message = f"Container {self.name} failed {kind.lower()} probe, will be restarted"
                current = asyncio.current_task()
                self._watchers = [task for task in self._watchers if task is not current]
                await self.stop(message, float(grace))

        await probes.watch(probe, target, told, initial=kind != "Readiness")

    async def _back_off(self, ended: Terminated) -> None:
        """Waits before the next start: not at all after the first end, then ever longer."""
        timings = self._host.settings.timings
        ran = (ended.finished_at or 0.0) - (ended.started_at or 0.0)
        pause = 0.0 if ran > timings.crash_backoff_reset and ended.started_at else self._crash_backoff
        self._crash_backoff = min(max(timings.crash_backoff, 2 * pause), timings.crash_backoff_max)
        self.last, self.process = ended, None
        metadata = self._pod()["metadata"]
        who = f"{metadata['name']}_{metadata['namespace']}({metadata['uid']})"
        if pause:
            why = f"back-off {pause:g}s restarting failed container={self.name} pod={who}"
            self.state = Waiting("CrashLoopBackOff", why)
            self.event("Warning", "BackOff", f"Back-off restarting failed container {self.name} in pod {who}")
            self._changed()
            await asyncio.sleep(pause)
        self.restart_count += 1
        self.state = self.state if pause else self._creating()

    # -- small things --------------------------------------------------------------------------------------------

    async def _until_killed(self, *futures: "asyncio.Future[Any]") -> None:
        """Waits for one of the futures, or until `kill_at`, which may be brought forward meanwhile (`hurry`)."""
        while (left := self.kill_at - time.monotonic()) > 0 and not any(f.done() for f in futures):
            hurried = asyncio.ensure_future(self.hurry.wait())
            await asyncio.wait({*futures, hurried}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            hurried.cancel()
            self.hurry.clear()

    def _stop_signal(self) -> int:
        name = (self.spec.get("lifecycle") or {}).get("stopSignal") or "SIGTERM"
        return getattr(signal, name, signal.SIGTERM)

    def _stop_watchers(self) -> None:
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            if watcher is not asyncio.current_task():
                watcher.cancel()

    def _creating(self) -> Waiting:
        inits = bool(self._pod()["spec"].get("initContainers"))
        return Waiting("PodInitializing" if inits else "ContainerCreating")

    def _adopt(self) -> None:
        """Takes over the newest run that an earlier process of this node has started."""
        runs = []
        with contextlib.suppress(FileNotFoundError):
            runs = sorted(int(entry.name) for entry in os.scandir(self._folder))
        if not runs:
            return
        self.restart_count = runs[-1]
        self.process = Process.adopt(self._run_folder())
        status = self._pod().get("status") or {}
        statuses = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
        told = next((s for s in statuses if s["name"] == self.name), {})
        self.last = terminated_from(told.get("lastState") or {})
        if self.process is None:
            self.restart_count += 1
        elif (ended := self.process.exit_if_ended()) is not None:
            self._record(ended)
        else:
            self.state = Running(self.process.started_at)
            self.ready = bool(told.get("ready"))
            if told.get("started"):
                self.started.set()

    def resume(self) -> None:
        """Watches over an adopted run again."""
        if self.process is not None and isinstance(self.state, Running):
            self._is_running()

    def _place(self) -> Place:
        hosts = self._folder.parent.parent / "etc-hosts"
        return Place(self._host, self._pod(), self.spec, self._run_folder(), hosts, self._volumes)

    def _run_folder(self) -> Path:
        return self._folder / str(self.restart_count)

    def _container_id(self) -> str:
        return f"process://{self._pod()['metadata']['uid']}/{self.name}/{self.restart_count}"
