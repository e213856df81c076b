"""What a container is started with: its image, its environment, its sandbox; and why it cannot be started.

Nothing here starts anything. What stands in the way is `Blocked`, with the words that kubelet has for it.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devcluster.node.api import Api, ApiError
from devcluster.node.env import ConfigError, Source, environment, expand
from devcluster.node.events import Recorder
from devcluster.node.images import Image, find, parse_error, pull_error, source_folders
from devcluster.node.sandbox import PRIVATE, Mount, Sandbox
from devcluster.node.settings import Settings, Timings
from devcluster.node.volumes import MountError, Volumes, fetch_data, sub_path


@dataclass(frozen=True)
class Host:
    """What all containers of a node share."""

    settings: Settings
    api: Api
    recorder: Recorder
    images: Mapping[str, Image]
    allocatable: dict[str, str]
    host_ip: str
    service_env: Callable[[dict[str, Any]], dict[str, str]]


class Blocked(Exception):
    """The container cannot start now: the reason and message that its status shows, and the Events to write."""

    def __init__(self, reason: str, message: str, events: tuple[tuple[str, str, str], ...]) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.events = events


class Images:
    """The images as one container sees them: with its own back-off between tries to pull."""

    def __init__(self, images: Mapping[str, Image], timings: Timings) -> None:
        self._images = images
        self._timings = timings
        self._backoff = 0.0
        self._next_pull = 0.0

    def find(self, spec: dict[str, Any]) -> Image:
        """The image of a container; raises Blocked when it cannot be had."""
        name = spec["image"]
        if why := parse_error(name):
            raise Blocked(
                "InvalidImageName",
                why,
                (("Warning", "InspectFailed", why), ("Warning", "Failed", "Error: InvalidImageName")),
            )
        if (image := find(dict(self._images), name)) is not None:
            return image
        if spec.get("imagePullPolicy") == "Never":
            why = f'Container image "{name}" is not present with pull policy of Never'
            raise Blocked(
                "ErrImageNeverPull",
                why,
                (("Warning", "ErrImageNeverPull", why), ("Warning", "Failed", "Error: ErrImageNeverPull")),
            )
        timings, why = self._timings, pull_error(name)
        if time.monotonic() < self._next_pull:
            back_off = f'Back-off pulling image "{name}"'
            raise Blocked(
                "ImagePullBackOff",
                f"{back_off}: ErrImagePull: {why}",
                (("Normal", "BackOff", back_off), ("Warning", "Failed", "Error: ImagePullBackOff")),
            )
        self._backoff = min(max(timings.pull_backoff, 2 * self._backoff), timings.pull_backoff_max)
        self._next_pull = time.monotonic() + self._backoff
        raise Blocked(
            "ErrImagePull",
            why,
            (
                ("Normal", "Pulling", f'Pulling image "{name}"'),
                ("Warning", "Failed", f'Failed to pull image "{name}": {why}'),
                ("Warning", "Failed", "Error: ErrImagePull"),
            ),
        )


@dataclass(frozen=True)
class Place:
    """Where one container of a pod is to run: `run` is the folder of the run, `hosts` the file for /etc/hosts."""

    host: Host
    pod: dict[str, Any]
    spec: dict[str, Any]
    run: Path
    hosts: Path
    volumes: Volumes

    @property
    def pod_ip(self) -> str:
        # The API server may not have been told yet.
        return self.volumes.place.pod_ip

    @property
    def hostname(self) -> str:
        return (self.pod["spec"].get("hostname") or self.pod["metadata"]["name"])[:63]


async def configure(place: Place, image: Image) -> tuple[dict[str, str], Sandbox]:
    """The container's environment and sandbox; raises Blocked when the pod asks for what there is not."""
    try:
        env = await _environment(place, image)
        return env, _sandbox(place, image, env)
    except (ConfigError, MountError, ApiError, OSError) as error:
        events = (("Warning", "Failed", f"Error: {error}"),)
        raise Blocked("CreateContainerConfigError", str(error), events) from error


async def _environment(place: Place, image: Image) -> dict[str, str]:
    host, namespace = place.host, place.pod["metadata"]["namespace"]
    found: dict[tuple[str, str], Mapping[str, bytes] | None] = {}
    for kind, name in _referenced_objects(place.spec):
        found[kind, name] = await fetch_data(host.api, kind, namespace, name)
    source = Source(
        place.pod,
        place.spec,
        place.pod_ip,
        host.host_ip,
        host.allocatable,
        lambda name: found.get(("secret", name)),
        lambda name: found.get(("configMap", name)),
        host.service_env(place.pod),
    )
    base = {"PATH": image.path, "HOME": "/root", "HOSTNAME": place.hostname, "LANG": "C.UTF-8", **image.env}
    if _asks_for_gpu(place.spec):
        # There is no accelerator here however many are advertised; trainers may use the CPU instead.
        base["TRAINYARD_ALLOW_CPU"] = "1"
    return base | environment(source)


def _sandbox(place: Place, image: Image, env: dict[str, str]) -> Sandbox:
    spec = place.spec
    command = [expand(part, env) for part in spec.get("command") or image.command]
    arguments = spec.get("args") or ([] if spec.get("command") else image.arguments)
    argv = (*command, *(expand(part, env) for part in arguments))
    if not argv:
        raise ConfigError(f'no command specified: image "{spec["image"]}" has none of its own')
    security = {**(place.pod["spec"].get("securityContext") or {}), **(spec.get("securityContext") or {})}
    uid = _user(place, security, image)
    return Sandbox(
        place.run / "layer",
        _mounts(place, image, env),
        place.hostname,
        uid,
        security.get("runAsGroup", uid),
        bool(security.get("readOnlyRootFilesystem")),
        spec.get("workingDir") or image.working_dir,
        argv,
    )


def _user(place: Place, security: Mapping[str, Any], image: Image) -> int:
    uid = security.get("runAsUser", image.user)
    if security.get("runAsNonRoot") and uid == 0:
        why = "container has runAsNonRoot and image will run as root"
        if "runAsUser" in security:
            why = "container's runAsUser breaks non-root policy"
        metadata = place.pod["metadata"]
        pod = f"{metadata['name']}_{metadata['namespace']}({metadata['uid']})"
        raise ConfigError(f'{why} (pod: "{pod}", container: {place.spec["name"]})')
    return uid


def _mounts(place: Place, image: Image, env: dict[str, str]) -> tuple[Mount, ...]:
    mounts = [Mount(folder, str(folder), True) for folder in source_folders(image, PRIVATE)]
    for mount in place.spec.get("volumeMounts") or []:
        source = place.volumes.path(mount["name"])
        sub = expand(mount["subPathExpr"], env) if mount.get("subPathExpr") else mount.get("subPath")
        if sub:
            source = sub_path(source, sub, create=not (source / "..data").exists())
        mounts.append(Mount(source, mount["mountPath"], bool(mount.get("readOnly"))))
    mounts.append(Mount(place.hosts, "/etc/hosts"))
    mounts.append(Mount(place.run / "termination", place.spec.get("terminationMessagePath") or "/dev/termination-log"))
    return tuple(mounts)


def _referenced_objects(spec: dict[str, Any]) -> set[tuple[str, str]]:
    """The (kind, name) of all Secrets and ConfigMaps that the environment refers to."""
    out: set[tuple[str, str]] = set()
    for entry in spec.get("envFrom") or []:
        for key, kind in (("secretRef", "secret"), ("configMapRef", "configMap")):
            if key in entry:
                out.add((kind, entry[key]["name"]))
    for entry in spec.get("env") or []:
        value = entry.get("valueFrom") or {}
        for key, kind in (("secretKeyRef", "secret"), ("configMapKeyRef", "configMap")):
            if key in value:
                out.add((kind, value[key]["name"]))
    return out


def _asks_for_gpu(spec: dict[str, Any]) -> bool:
    resources = spec.get("resources") or {}
    return any("gpu" in name for name in {**(resources.get("limits") or {}), **(resources.get("requests") or {})})
