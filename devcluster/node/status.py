"""What a pod's status says, as a pure function of what runs.

The rules are kubelet's (`getPhase`, `GenerateContainersReadyCondition` and friends in pkg/kubelet), seen in the
recordings. The one that surprises: the phase never turns Succeeded or Failed before everything in the pod has ended and
been cleaned up, while the conditions already tell which of the two it will be.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from devcluster.node.events import timestamp

DEADLINE = "DeadlineExceeded"
DEADLINE_MESSAGE = "Pod was active on the node longer than the specified deadline"
EVICTED = "Evicted"
NOT_LOCATED = "The container could not be located when the pod was terminated"


@dataclass(frozen=True)
class Waiting:
    reason: str
    message: str | None = None


@dataclass(frozen=True)
class Running:
    started_at: float


@dataclass(frozen=True)
class Terminated:
    exit_code: int
    reason: str
    message: str | None = None
    started_at: float | None = None
    finished_at: float | None = None


State = Waiting | Running | Terminated


@dataclass(frozen=True)
class ContainerView:
    """One container as it is now. `sidecar`: an init container with restartPolicy Always."""

    name: str
    image: str
    state: State
    last: Terminated | None = None
    ready: bool = False
    started: bool = False
    restarts: int = 0
    container_id: str = ""
    init: bool = False
    sidecar: bool = False
    lost: bool = False
    """It never ran, and the pod is over: reported as 137, though nothing else in the status takes notice of that."""


@dataclass(frozen=True)
class Ending:
    """Why kubelet itself ends a pod: `reason` "" for a deletion, else DEADLINE or EVICTED."""

    reason: str = ""
    message: str = ""


@dataclass(frozen=True)
class PodView:
    """One pod as it is now. `finished`: everything in it has ended; `sandbox`: its volumes and address are set up."""

    containers: tuple[ContainerView, ...]
    restart_policy: str
    pod_ip: str
    host_ip: str
    start_time: float
    sandbox: bool = False
    finished: bool = False
    ending: Ending | None = None
    host_network: bool = False


def terminated(code: int | None, oom: bool, message: str | None, started_at: float, finished_at: float) -> Terminated:
    """The state of a run that ended with `code`, None when nobody saw its end."""
    if code is None:
        return Terminated(255, "Unknown", message, started_at, finished_at)
    reason = "OOMKilled" if oom else "Completed" if code == 0 else "Error"
    return Terminated(code, reason, message, started_at, finished_at)


def terminated_from(state: dict[str, Any]) -> Terminated | None:
    """The terminated state that the API server has, None for any other."""
    there = state.get("terminated")
    if not there:
        return None
    times = [there.get(key) for key in ("startedAt", "finishedAt")]
    started, finished = (datetime.fromisoformat(t).timestamp() if t else None for t in times)
    return Terminated(there["exitCode"], there.get("reason", ""), there.get("message"), started, finished)


def restarts(policy: str, exit_code: int) -> bool:
    return policy == "Always" or (policy == "OnFailure" and exit_code != 0)


def initialized(view: PodView) -> bool:
    """Whether all init containers have done their part (a sidecar: has started)."""
    return all(_init_done(c) for c in view.containers if c.init)


def expected_phase(view: PodView) -> str:
    """The phase that the containers amount to, whether or not the pod has been cleaned up."""
    if view.ending is not None and view.ending.reason:
        return "Failed"
    for container in view.containers:
        match container:
            case ContainerView(init=True, sidecar=False, state=Terminated(exit_code=code)) if code != 0:
                return "Failed" if view.restart_policy == "Never" else "Pending"
    main = [c for c in view.containers if not c.init]
    waiting = [c for c in main if isinstance(c.state, Waiting) and c.last is None]
    running = [c for c in main if isinstance(c.state, Running)]
    ended = [c.state for c in main if isinstance(c.state, Terminated)]
    if waiting or not (initialized(view) or running or ended):
        return "Pending"
    if running or len(ended) < len(main):
        return "Running"
    if any(isinstance(c.state, Running) for c in view.containers if c.sidecar):
        return "Running"
    if any(restarts(view.restart_policy, state.exit_code) for state in ended):
        return "Running"
    return "Succeeded" if all(state.exit_code == 0 for state in ended) else "Failed"


def pod_status(view: PodView, pod: dict[str, Any], now: float) -> dict[str, Any]:
    """The pod's whole status; `pod` is what the API server has, for the phase, for transition times and for the generation."""
    before = pod.get("status") or {}
    expected = expected_phase(view)
    phase = expected
    if view.finished:
        phase = expected if expected in ("Succeeded", "Failed") else "Failed"
    elif expected in ("Succeeded", "Failed"):
        phase = before.get("phase", "Pending")
        if phase in ("Succeeded", "Failed"):
            phase = "Running"
    out: dict[str, Any] = {
        **observed(pod),
        "phase": phase,
        "conditions": _conditions(view, expected, before, observed(pod), now),
        "hostIP": view.host_ip,
        "hostIPs": [{"ip": view.host_ip}],
        "startTime": timestamp(view.start_time),
    }
    if view.pod_ip:
        out |= {"podIP": view.pod_ip, "podIPs": [{"ip": view.pod_ip}]}
    if view.ending is not None and view.ending.reason and view.finished:
        out |= {"reason": view.ending.reason, "message": view.ending.message}
    inits = [container_status(c) for c in view.containers if c.init]
    if inits:
        out["initContainerStatuses"] = inits
    out["containerStatuses"] = [container_status(c) for c in view.containers if not c.init]
    return out


def container_status(view: ContainerView) -> dict[str, Any]:
    state = Terminated(137, "ContainerStatusUnknown", NOT_LOCATED) if view.lost else view.state
    out = {
        "name": view.name,
        "state": _state(state, view.container_id),
        "lastState": _state(view.last, view.container_id) if view.last else {},
        "ready": view.ready,
        "restartCount": view.restarts,
        "image": view.image,
        "imageID": "" if isinstance(view.state, Waiting) and not view.last else f"local://{view.image}",
        "started": view.started,
    }
    return out | {"containerID": view.container_id} if view.container_id else out


def rejected_status(reason: str, message: str, pod: dict[str, Any], now: float) -> dict[str, Any]:
    """The status of a pod that the node does not take."""
    return {
        **observed(pod),
        "phase": "Failed",
        "reason": reason,
        "message": f"Pod was rejected: {message}",
        "startTime": timestamp(now),
    }


def observed(pod: dict[str, Any]) -> dict[str, int]:
    """What says which version of the pod a status is of. An API server before 1.33 gives pods no generation, and drops the field."""
    generation = pod["metadata"].get("generation")
    return {"observedGeneration": generation} if generation else {}


def differs(wanted: dict[str, Any], found: dict[str, Any]) -> bool:
    """Whether the API server must be told; conditions that others have set do not count."""
    for key, value in wanted.items():
        if key == "conditions":
            there = {c["type"]: c for c in found.get("conditions") or []}
            for condition in value:
                other = there.get(condition["type"], {})
                if any(condition.get(k) != other.get(k) for k in ("status", "reason", "message", "observedGeneration")):
                    return True
        elif value != found.get(key):
            return True
    return False


def _init_done(view: ContainerView) -> bool:
    match view.state:
        case Terminated(exit_code=code):
            return view.sidecar or code == 0
        case Running():
            return view.sidecar and view.started
        case _:
            return False


def _conditions(
    view: PodView, expected: str, before: dict[str, Any], seen: dict[str, int], now: float
) -> list[dict[str, Any]]:
    done = {"Succeeded": "PodCompleted", "Failed": "PodFailed"}.get(expected)
    if view.ending is not None and view.ending.reason == EVICTED and not view.finished:
        done = None
    unready = [c.name for c in view.containers if (not c.init or c.sidecar) and not c.ready]
    if done:
        ready: tuple[bool, str, str] = (False, done, "")
    elif unready:
        ready = (False, "ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]")
    else:
        ready = (True, "", "")
    unfinished = [c.name for c in view.containers if c.init and not _init_done(c)]
    if expected == "Succeeded":
        init: tuple[bool, str, str] = (True, "PodCompleted", "")
    elif unfinished:
        init = (False, "ContainersNotInitialized", f"containers with incomplete status: [{' '.join(unfinished)}]")
    else:
        init = (True, "", "")
    wanted = {
        "PodReadyToStartContainers": (view.sandbox, "", ""),
        "Initialized": init,
        "Ready": ready,
        "ContainersReady": ready,
        "PodScheduled": (True, "", ""),
    }
    there = {c["type"]: c for c in before.get("conditions") or []}
    out = []
    for kind, (status, reason, message) in wanted.items():
        condition: dict[str, Any] = {
            "type": kind,
            **seen,
            "status": "True" if status else "False",
            "lastProbeTime": None,
            "reason": reason or None,
            "message": message or None,
        }
        old = there.get(kind, {})
        same = old.get("status") == condition["status"]
        condition["lastTransitionTime"] = old.get("lastTransitionTime") if same else timestamp(now)
        out.append(condition)
    return out


def _state(state: State, container_id: str) -> dict[str, Any]:
    match state:
        case Waiting(reason, message):
            return {"waiting": {"reason": reason} | ({"message": message} if message else {})}
        case Running(started_at):
            return {"running": {"startedAt": timestamp(started_at)}}
        case Terminated():
            out: dict[str, Any] = {"exitCode": state.exit_code, "reason": state.reason}
            if state.message:
                out["message"] = state.message
            out["startedAt"] = None if state.started_at is None else timestamp(state.started_at)
            out["finishedAt"] = None if state.finished_at is None else timestamp(state.finished_at)
            if container_id and state.started_at is not None:
                out["containerID"] = container_id
            return {"terminated": out}
