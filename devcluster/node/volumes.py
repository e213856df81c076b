"""A pod's volumes as folders of this machine, to be bound into its containers.

Files from the API (Secrets, ConfigMaps, tokens, downward API) are swapped all at once, as kubelet does: they are links
into `..data`, which is itself a link that is replaced.
"""

import base64
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from devcluster.node.api import Api, ApiError
from devcluster.node.env import ConfigError, pod_field, resource_field

Files = dict[str, tuple[bytes, int]]
"""Content and mode by path within the volume."""


class MountError(Exception):
    """A volume cannot be set up (yet); the message is what the Event FailedMount says."""


@dataclass(frozen=True)
class PodPlace:
    """Where the pod runs, for the downward API."""

    pod_ip: str
    host_ip: str
    allocatable: dict[str, str]


class Volumes:
    """The volumes of one pod. `pod` gives the newest version of the pod."""

    def __init__(
        self, api: Api, folder: Path, memory: Path, pod: Callable[[], dict[str, Any]], place: PodPlace
    ) -> None:
        self._api = api
        self._folder = folder
        self._memory = memory
        self._pod = pod
        self.place = place
        self._tokens: dict[str, tuple[float, bytes]] = {}

    async def set_up(self) -> None:
        """Makes or renews all volumes; raises MountError for the first one that cannot be made."""
        for volume in self._pod()["spec"].get("volumes") or []:
            try:
                await self._set_up_one(volume)
            except (ApiError, ConfigError, OSError, MountError) as error:
                raise MountError(f'MountVolume.SetUp failed for volume "{volume["name"]}" : {error}') from error

    def path(self, name: str) -> Path:
        """The machine's path of the volume `name`."""
        volume = next(v for v in self._pod()["spec"]["volumes"] if v["name"] == name)
        if "hostPath" in volume:
            return Path(volume["hostPath"]["path"])
        in_memory = (volume.get("emptyDir") or {}).get("medium") == "Memory"
        return (self._memory if in_memory else self._folder) / name

    def empty_dirs(self) -> dict[str, Path]:
        volumes = self._pod()["spec"].get("volumes") or []
        return {v["name"]: self.path(v["name"]) for v in volumes if "emptyDir" in v}

    async def _set_up_one(self, volume: dict[str, Any]) -> None:
        path = self.path(volume["name"])
        match volume:
            case {"emptyDir": _}:
                if not path.exists():
                    path.mkdir(parents=True)
                    path.chmod(0o1777)
            case {"hostPath": host_path}:
                _check_host_path(path, host_path.get("type") or "")
            case {"secret": source}:
                write_atomically(path, await self._object_files("secret", source, source["secretName"], 0o644))
            case {"configMap": source}:
                write_atomically(path, await self._object_files("configMap", source, source["name"], 0o644))
            case {"downwardAPI": source}:
                write_atomically(path, self._downward_files(source, 0o644))
            case {"projected": source}:
                write_atomically(path, await self._projected_files(volume["name"], source))
            case _:
                kind = next((key for key in volume if key != "name"), "none")
                raise MountError(f"this node has no volumes of the kind {kind}")

    async def _projected_files(self, name: str, projected: dict[str, Any]) -> Files:
        mode = projected.get("defaultMode", 0o644)
        files: Files = {}
        for index, source in enumerate(projected.get("sources") or []):
            match source:
                case {"serviceAccountToken": wanted}:
                    files[wanted["path"]] = (await self._token(f"{name}/{index}", wanted), mode)
                case {"secret": inner}:
                    files |= await self._object_files("secret", inner, inner["name"], mode)
                case {"configMap": inner}:
                    files |= await self._object_files("configMap", inner, inner["name"], mode)
                case {"downwardAPI": inner}:
                    files |= self._downward_files(inner, mode)
                case _:
                    raise MountError(f"this node does not project {', '.join(source)}")
        return files

    async def _object_files(self, kind: str, source: dict[str, Any], name: str, mode: int) -> Files:
        mode = source.get("defaultMode", mode)
        optional = bool(source.get("optional"))
        data = await fetch_data(self._api, kind, self._pod()["metadata"]["namespace"], name)
        if data is None:
            if optional:
                return {}
            raise MountError(f'{kind.lower()} "{name}" not found')
        if not source.get("items"):
            return {key: (value, mode) for key, value in data.items()}
        files: Files = {}
        for item in source["items"]:
            if item["key"] in data:
                files[item["path"]] = (data[item["key"]], item.get("mode", mode))
            elif not optional:
                raise MountError(f"references non-existent {kind.lower().replace('map', ' map')} key: {item['key']}")
        return files

    def _downward_files(self, source: dict[str, Any], mode: int) -> Files:
        pod, place, files = self._pod(), self.place, Files()
        mode = source.get("defaultMode", mode)
        for item in source.get("items") or []:
            if "fieldRef" in item:
                text = pod_field(pod, item["fieldRef"]["fieldPath"], place.pod_ip, place.host_ip)
            else:
                containers = pod["spec"]["containers"] + (pod["spec"].get("initContainers") or [])
                text = resource_field(containers, "", item["resourceFieldRef"], place.allocatable)
            files[item["path"]] = (text.encode(), item.get("mode", mode))
        return files

    async def _token(self, key: str, wanted: dict[str, Any]) -> bytes:
        """The token bound to this pod, asked for anew when 80 % of its life is over."""
        renew_at, token = self._tokens.get(key, (0.0, b""))
        if time.time() < renew_at:
            return token
        metadata = self._pod()["metadata"]
        account = self._pod()["spec"].get("serviceAccountName") or "default"
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": [wanted["audience"]] if wanted.get("audience") else [],
                "expirationSeconds": wanted.get("expirationSeconds", 3600),
                "boundObjectRef": {
                    "apiVersion": "v1",
                    "kind": "Pod",
                    "name": metadata["name"],
                    "uid": metadata["uid"],
                },
            },
        }
        path = f"/api/v1/namespaces/{metadata['namespace']}/serviceaccounts/{account}/token"
        now = time.time()
        status = (await self._api.post(path, request))["status"]
        expires = datetime.fromisoformat(status["expirationTimestamp"]).timestamp()
        token = status["token"].encode()
        self._tokens[key] = (now + min(0.8 * (expires - now), 86400.0), token)
        return token


async def fetch_data(api: Api, kind: str, namespace: str, name: str) -> dict[str, bytes] | None:
    """The decoded data of a Secret (`kind` "secret") or ConfigMap, None when there is none of that name."""
    resource = "secrets" if kind == "secret" else "configmaps"
    try:
        body = await api.get(f"/api/v1/namespaces/{namespace}/{resource}/{name}")
    except ApiError as error:
        if error.status == 404:
            return None
        raise
    binary = body.get("data" if kind == "secret" else "binaryData") or {}
    plain = {} if kind == "secret" else body.get("data") or {}
    return {key: base64.b64decode(value) for key, value in binary.items()} | {
        key: value.encode() for key, value in plain.items()
    }


def write_atomically(folder: Path, files: Files) -> None:
    """Makes the folder hold exactly `files`; a reader sees the old ones or the new ones, never a mixture."""
    digest = hashlib.sha256(repr(sorted(files.items())).encode()).hexdigest()[:16]
    version = folder / f"..{digest}"
    data = folder / "..data"
    if data.is_symlink() and data.readlink() == Path(version.name):
        return
    folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(version, ignore_errors=True)
    version.mkdir()
    for name, (content, mode) in files.items():
        path = version / name
        if not path.resolve().is_relative_to(version.resolve()):
            raise MountError(f"path {name} leads out of the volume")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)
    swap = folder / "..data_tmp"
    swap.unlink(missing_ok=True)
    swap.symlink_to(version.name)
    swap.replace(data)
    entries = {Path(name).parts[0] for name in files}
    for entry in entries:
        link = folder / entry
        if not link.is_symlink():
            link.symlink_to(f"..data/{entry}")
    for stale in folder.iterdir():
        if stale.name.startswith("..") and stale.name not in ("..data", version.name):
            shutil.rmtree(stale, ignore_errors=True)
        elif not stale.name.startswith("..") and stale.name not in entries:
            stale.unlink()


def sub_path(volume: Path, sub: str, *, create: bool) -> Path:
    """The entry `sub` of a volume, made as a folder when it may be; MountError when it would leave the volume."""
    path = volume / sub
    if not Path(os.path.normpath(path)).is_relative_to(volume) or Path(sub).is_absolute():
        raise MountError(f'subPath "{sub}" must lie within the volume')
    if not path.exists() and create:
        path.mkdir(parents=True)
    return path.resolve() if (volume / "..data").exists() else path


def _check_host_path(path: Path, kind: str) -> None:
    match kind:
        case "" | "DirectoryOrCreate":
            if not path.exists():
                path.mkdir(parents=True)
        case "FileOrCreate":
            path.touch()
        case "Directory":
            if not path.is_dir():
                raise MountError(f"hostPath type check failed: {path} is not a directory")
        case "File":
            if not path.is_file():
                raise MountError(f"hostPath type check failed: {path} is not a file")
