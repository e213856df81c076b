"""Plays a recording again on the devcluster: the same manifests and actions, and what the watch then shows.

Times are shortened where nothing depends on them. Names, addresses and times differ by nature; `story` leaves them out.
"""

import asyncio
import copy
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devcluster.node.api import Api, ApiError
from devcluster.node.faults import kill
from devcluster.node.process import Process
from tests.recordings import Line, Recording

PAUSE_LIMIT = 1.0
KUBELET_PAUSE = (0.5, 4.0)
OBSERVATION_LIMIT = 22.0
NOT_SEEN_SECONDS = 3.0
WAIT_SECONDS = 75.0


@dataclass
class Node:
    """A node process of the test's own, which may be killed and started again without a supervisor minding."""

    name: str
    command: list[str]
    state: Path
    process: "subprocess.Popen[bytes] | None" = None

    def start(self) -> None:
        with (self.state / "node.log").open("ab") as log:
            self.process = subprocess.Popen([*self.command], stdout=log, stderr=log, start_new_session=True)

    def stop(self, number: int) -> None:
        """Ends the node's process alone; SIGTERM would take the containers with it, and is not what a kubelet does."""
        assert self.process is not None
        os.kill(self.process.pid, signal.SIGKILL if number == signal.SIGTERM else number)
        self.process.wait()

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            self.process.wait(30)
        kill(self.state)


def make_node(name: str, kubeconfig: Path, state: Path, address: str, pod_cidr: str, gpus: int) -> Node:
    state.mkdir(parents=True)
    images = state / "images.json"
    python = str(Path(sys.executable).parent)
    segv = state / "bin" / "segv"
    segv.parent.mkdir()
    segv.write_text(f"#!{sys.executable}\nimport ctypes\nctypes.string_at(0)\n")
    segv.chmod(0o755)
    path = f"{python}:/usr/local/bin:/usr/bin:/bin:{segv.parent}"
    images.write_text(json.dumps({"lab/py": {"path": path, "folders": [str(segv.parent)]}}))
    flags = {
        "kubeconfig": str(kubeconfig),
        "name": name,
        "state": str(state),
        "gpus": str(gpus),
        "address": address,
        "port": "0",
        "pod-cidr": pod_cidr,
        "images": str(images),
    }
    arguments = [text for key, value in flags.items() for text in (f"--{key}", value)]
    return Node(name, [sys.executable, "-m", "devcluster.node", *arguments, "--no-proxy"], state)


@dataclass
class Replay:
    """One recording being played; `lines` is what the watches have shown so far."""

    api: Api
    recording: Recording
    node: Node
    enough: int | None = None
    """So many states of a pod end an observation that only repeats itself."""
    lines: list[Line] = field(default_factory=list)
    manifests: list[dict[str, Any]] = field(default_factory=list)
    watched: set[str] = field(default_factory=set)

    @property
    def namespace(self) -> str:
        return self.recording.namespace

    async def run(self) -> "Replay":
        await self.api.post("/api/v1/namespaces", {"metadata": {"name": self.namespace}})
        await self._until(self._has_service_account, "a default service account")
        self.started = time.monotonic()
        watches = [asyncio.create_task(self._watch(kind)) for kind in ("Pod", "Job", "Event", "Node")]
        self.manifests = [self._fitted(m) for m in self.recording.manifests]
        await self._until(lambda: len(self.watched) == len(watches), "the watches")
        before = 0.0
        try:
            for action in self.recording.actions:
                await self._pause(action, before)
                before = action["t"]
                await self._act(action)
            await asyncio.sleep(1.5)
        finally:
            for watch in watches:
                watch.cancel()
            await self._clean_up()
        return self

    async def _act(self, action: dict[str, Any]) -> None:
        what = action["action"]
        if what.startswith("create ") and "http" not in action:
            await self._create(what.split()[1])
        elif match := re.fullmatch(r"stop kubelet \(signal (\d+)\)", what):
            await asyncio.to_thread(self.node.stop, int(match.group(1)))
        elif what == "start kubelet":
            self.node.start()
        elif what.startswith("kill -9 of container PID 1"):
            (run,) = self.node.state.glob(f"pods/{self._pods()[-1]['metadata']['uid']}/containers/trainer/0")
            process = Process.adopt(run)
            assert process is not None
            process.signal(signal.SIGKILL)
        elif what.startswith("advertise 8 GPUs"):
            pass
        elif "http" in action:
            await self._call(*action["http"])
        elif match := re.fullmatch(r"\(NOT seen within \d+ s: (.*)\)", what):
            await asyncio.sleep(NOT_SEEN_SECONDS)
            assert not self._seen(match.group(1))(), f"{self.recording.scenario}: seen: {match.group(1)}"
        elif match := re.fullmatch(r"\(seen: (.*)\)", what):
            await self._until(self._seen(match.group(1)), what)

    async def _create(self, kind: str) -> None:
        manifest = next(m for m in self.manifests if m["kind"] == kind)
        self.manifests.remove(manifest)
        group = "/api/v1" if manifest["apiVersion"] == "v1" else f"/apis/{manifest['apiVersion']}"
        plural = {"Job": "jobs", "PriorityClass": "priorityclasses", "ResourceQuota": "resourcequotas"}[kind]
        place = "" if kind == "PriorityClass" else f"/namespaces/{self.namespace}"
        try:
            await self.api.post(f"{group}{place}/{plural}", manifest)
        except ApiError as error:
            if error.reason != "AlreadyExists":
                raise

    async def _call(self, method: str, path: str, body: dict[str, Any]) -> None:
        recorded = sorted({line.object["metadata"]["name"] for line in self.recording.lines("Pod")})
        ours = sorted(pod["metadata"]["name"] for pod in self._pods())
        text = json.dumps(body)
        for theirs, own in [*zip(recorded, ours, strict=False), ("node-0", self.node.name)]:
            path, text = path.replace(theirs, own), text.replace(theirs, own)
        content = "application/merge-patch+json" if method == "PATCH" else "application/json"
        try:
            await self.api.request(method, path, json.loads(text), content)
        except ApiError as error:
            if error.status != 429:
                raise

    def _seen(self, what: str) -> Callable[[], Any]:
        def containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
            return (pod["status"].get("initContainerStatuses") or []) + (pod["status"].get("containerStatuses") or [])

        def finished(job: dict[str, Any]) -> bool:
            conditions = job["status"].get("conditions") or []
            return any(c["type"] in ("Complete", "Failed") and c["status"] == "True" for c in conditions)

        def node_ready(status: str) -> bool:
            nodes = [line.object for line in self.lines if line.kind == "Node"]
            conditions = {c["type"]: c["status"] for c in nodes[-1]["status"]["conditions"]} if nodes else {}
            return conditions.get("Ready") == status

        def running() -> bool:
            return any("running" in c["state"] for p in self._pods() for c in containers(p) if c["name"] == "trainer")

        tests: dict[str, Callable[[], Any]] = {
            "trainer container running": running,
            "Job has Complete or Failed": lambda: self._jobs() and all(finished(job) for job in self._jobs()),
            "Job and Pod gone": lambda: self._gone("Pod") and self._gone("Job"),
            "pod gone": lambda: self._gone("Pod"),
            "pod has deletionTimestamp": lambda: any("deletionTimestamp" in p["metadata"] for p in self._pods()),
            "pod Terminating": lambda: any("deletionTimestamp" in p["metadata"] for p in self._pods()),
            "Node Ready=Unknown": lambda: node_ready("Unknown"),
            "Node Ready=True": lambda: node_ready("True"),
            "ErrImageNeverPull": lambda: "ErrImageNeverPull" in json.dumps(self._pods()),
            "both Jobs": lambda: len(self._jobs()) == 2,
        }
        return tests[what]

    async def _watch(self, kind: str) -> None:
        namespace = f"namespaces/{self.namespace}"
        path, query = {
            "Pod": (f"/api/v1/{namespace}/pods", {}),
            "Job": (f"/apis/batch/v1/{namespace}/jobs", {}),
            "Event": (f"/api/v1/{namespace}/events", {}),
            "Node": ("/api/v1/nodes", {"fieldSelector": f"metadata.name={self.node.name}"}),
        }[kind]
        async for type_, body in self.api.watch(path, **query):
            t = time.monotonic() - self.started
            self.watched.add(kind)
            for item in body if type_ == "LIST" else [body]:
                self.lines.append(Line(t, "ADDED" if type_ == "LIST" else type_, kind, item))

    async def _pause(self, action: dict[str, Any], before: float) -> None:
        if action["action"].startswith("("):
            if self.enough is not None:
                await self._until(lambda: any(len(pod) >= self.enough for pod in story(self.lines)), "enough states")
            elif "end of the observation" in action["action"]:
                await asyncio.sleep(min(action["t"] - before, OBSERVATION_LIMIT))
            return
        shortest, longest = KUBELET_PAUSE if "kubelet" in action["action"] else (0.0, PAUSE_LIMIT)
        await asyncio.sleep(max(shortest, min(action["t"] - before, longest)))

    async def _until(self, condition: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + WAIT_SECONDS
        while True:
            answer = condition()
            if await answer if asyncio.iscoroutine(answer) else answer:
                return
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.recording.scenario}: not seen: {what}")
            await asyncio.sleep(0.05)

    async def _has_service_account(self) -> bool:
        try:
            await self.api.get(f"/api/v1/namespaces/{self.namespace}/serviceaccounts/default")
            await self.api.get(f"/api/v1/namespaces/{self.namespace}/configmaps/kube-root-ca.crt")
        except ApiError:
            return False
        return True

    async def _clean_up(self) -> None:
        # Not the namespace: looking for everything that could be in it is most of what the whole replay would ask for.
        await self.api.delete(f"/apis/batch/v1/namespaces/{self.namespace}/jobs", {"propagationPolicy": "Background"})
        await self.api.delete(f"/api/v1/namespaces/{self.namespace}/pods", {"gracePeriodSeconds": 0})

    def _fitted(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """The manifest for the node that this recording is played on."""
        manifest = copy.deepcopy(manifest)
        if manifest["kind"] == "Job":
            spec = manifest["spec"]["template"]["spec"]
            for limited in (manifest["spec"], spec):
                # On a busy machine a container may take longer to start than the six seconds after which it shall be ended.
                if limited.get("activeDeadlineSeconds") == 6:
                    limited["activeDeadlineSeconds"] = 15
            for container in spec["containers"]:
                container["command"] = [_hastened(part) for part in container["command"]]
            if "nodeName" in spec:
                spec["nodeName"] = self.node.name
            else:
                spec["nodeSelector"] = {**(spec.get("nodeSelector") or {}), "kubernetes.io/hostname": self.node.name}
        return manifest

    def _pods(self) -> list[dict[str, Any]]:
        return _newest([line for line in self.lines if line.kind == "Pod"])

    def _jobs(self) -> list[dict[str, Any]]:
        return _newest([line for line in self.lines if line.kind == "Job"])

    def _gone(self, kind: str) -> bool:
        return any(line.kind == kind for line in self.lines) and not _newest([x for x in self.lines if x.kind == kind])


def _hastened(command: str) -> str:
    """A command that only has to outlast a kubelet's absence, or a limit, need not do more than that."""
    for longer, shorter in (
        ("sleep 8; ", "sleep 3; "),
        ("sleep 35; ", "sleep 12; "),
        # Not its own end, but being killed after a second is what it shows, also where the node is late with that.
        ("sleep 3; exit 75' TERM; head -c 200000000", "sleep 30; exit 75' TERM; head -c 30000000"),
    ):
        command = command.replace(longer, shorter)
    return command


def _newest(lines: list[Line]) -> list[dict[str, Any]]:
    """The objects that there are, in order of their creation."""
    out: dict[str, dict[str, Any]] = {}
    for line in lines:
        uid = line.object["metadata"]["uid"]
        out[uid] = line.object
        if line.type == "DELETED":
            del out[uid]
    return list(out.values())


def story(lines: list[Line]) -> list[list[str]]:
    """For each pod, in order of creation, its distinct states one after the other, as a controller tells them apart."""
    pods: dict[str, list[str]] = {}
    for line in lines:
        if line.kind == "Pod":
            steps = pods.setdefault(line.object["metadata"]["uid"], [])
            step = _step(line.object)
            if not steps or steps[-1] != step:
                steps.append(step)
    return list(pods.values())


def _step(pod: dict[str, Any]) -> str:
    """One line: phase, reason and message of the pod, its containers' states, readiness, disruption, deletion."""
    status, metadata = pod["status"], pod["metadata"]
    conditions = {c["type"]: c for c in status.get("conditions") or []}
    words = [status["phase"], status.get("reason"), status.get("message")]
    for kind in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(kind) or []:
            ((state, details),) = container["state"].items()
            facts = [repr(details[key]) for key in ("reason", "exitCode", "message") if details.get(key) is not None]
            words.append(f"{container['name']}={state}({', '.join(facts)})")
    if ready := conditions.get("Ready"):
        words.append(f"ready={ready['status']}({ready.get('reason', '')})")
    if disruption := conditions.get("DisruptionTarget"):
        words.append(disruption["reason"])
    if "deletionTimestamp" in metadata:
        words.append("deleting")
    return _plain(" ".join(word for word in words if word), pod)


def _plain(value: str, pod: dict[str, Any]) -> str:
    for key in ("name", "uid"):
        value = value.replace(pod["metadata"][key], f"<{key}>")
    return re.sub(r"failed to resolve image: .*?(?='\))", "failed to resolve image: ...", value)


def kubelet_events(lines: list[Line]) -> dict[tuple[str, str], int]:
    """How often kubelet said what about pods: count by (reason, message)."""
    out: dict[tuple[str, str], int] = {}
    for line in lines:
        event = line.object
        if line.kind == "Event" and event["involvedObject"]["kind"] == "Pod" and event.get("count"):
            message = re.sub("failed to resolve image: .*", "failed to resolve image: ...", event["message"])
            out[event["reason"], message] = event["count"]
    return out


def job_ends(lines: list[Line]) -> list[list[tuple[str, str]]]:
    """The conditions of each Job at the end, as (type, reason)."""
    last: dict[str, list[tuple[str, str]]] = {}
    for line in lines:
        if line.kind == "Job":
            conditions = line.object["status"].get("conditions") or []
            last[line.object["metadata"]["uid"]] = [(c["type"], c.get("reason", "")) for c in conditions]
    return list(last.values())
