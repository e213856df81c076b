"""A container's environment and command line, as kubelet makes them from the pod."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from devcluster.node.quantity import in_units

REFERENCE = re.compile(r"\$(\$|\(([^()]*)\))")
ENV_NAME = re.compile(r"^[-._a-zA-Z][-._a-zA-Z0-9]*$")


class ConfigError(Exception):
    """The container cannot be configured as written (kubelet: CreateContainerConfigError); the message says why."""


@dataclass(frozen=True)
class Source:
    """Where the values of an environment come from.

    `secret` and `config_map` give an object's data, decoded, or None when there is no such object.
    """

    pod: Mapping[str, Any]
    container: Mapping[str, Any]
    pod_ip: str
    host_ip: str
    allocatable: Mapping[str, str]
    secret: Callable[[str], Mapping[str, bytes] | None]
    config_map: Callable[[str], Mapping[str, bytes] | None]
    services: Mapping[str, str]
    """Variables of Services and of the API server; everything else goes before them."""


def expand(text: str, values: Mapping[str, str]) -> str:
    """`$(VAR)` replaced by its value, `$$` by `$`; a name without value stays as written."""

    def replaced(match: re.Match[str]) -> str:
        if match.group(1) == "$":
            return "$"
        name = match.group(2)
        return values[name] if name in values else match.group(0)

    return REFERENCE.sub(replaced, text)


def environment(source: Source) -> dict[str, str]:
    """All variables of the container, in the order in which they may refer to each other; raises ConfigError."""
    values: dict[str, str] = {}
    for entry in source.container.get("envFrom") or []:
        values.update(_whole_object(source, entry))
    for entry in source.container.get("env") or []:
        if (reference := entry.get("valueFrom")) is not None:
            value = _referenced(source, reference)
            if value is not None:
                values[entry["name"]] = value
        else:
            values[entry["name"]] = expand(entry.get("value") or "", {**source.services, **values})
    return {**source.services, **values}


def pod_field(pod: Mapping[str, Any], path: str, pod_ip: str, host_ip: str) -> str:
    """The value of a fieldRef; ConfigError for a path that there is not."""
    metadata, spec = pod["metadata"], pod["spec"]
    if match := re.fullmatch(r"metadata\.(labels|annotations)\['(.+)'\]", path):
        return (metadata.get(match.group(1)) or {}).get(match.group(2), "")
    match path:
        case "metadata.name" | "metadata.namespace" | "metadata.uid":
            return metadata[path.removeprefix("metadata.")]
        case "metadata.labels" | "metadata.annotations":
            entries = metadata.get(path.removeprefix("metadata.")) or {}
            return "".join(f"{key}={_quoted(value)}\n" for key, value in sorted(entries.items())).removesuffix("\n")
        case "spec.nodeName":
            return spec.get("nodeName", "")
        case "spec.serviceAccountName":
            return spec.get("serviceAccountName", "default")
        case "status.podIP" | "status.podIPs":
            return pod_ip
        case "status.hostIP" | "status.hostIPs":
            return host_ip
    raise ConfigError(f"unsupported fieldPath: {path}")


def resource_field(
    containers: list[Mapping[str, Any]], own: str, reference: Mapping[str, Any], allocatable: Mapping[str, str]
) -> str:
    """The value of a resourceFieldRef; a limit that is not set is the node's allocatable."""
    name = reference.get("containerName") or own
    container = next((c for c in containers if c["name"] == name), None)
    if container is None:
        raise ConfigError(f"container {name} not found")
    kind, _, resource = reference["resource"].partition(".")
    resources = container.get("resources") or {}
    amount = (resources.get(kind) or {}).get(resource)
    if amount is None:
        amount = allocatable.get(resource, "0") if kind == "limits" else "0"
    return str(in_units(amount, reference.get("divisor")))


def _quoted(value: str) -> str:
    """The value between double quotes as Go's %q writes it, for the cases that occur in labels and annotations."""
    escaped = (
        value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    )
    return f'"{escaped}"'


def _whole_object(source: Source, entry: Mapping[str, Any]) -> dict[str, str]:
    kind, fetch = ("secretRef", source.secret) if "secretRef" in entry else ("configMapRef", source.config_map)
    reference = entry[kind]
    data = fetch(reference["name"])
    if data is None:
        if reference.get("optional"):
            return {}
        raise ConfigError(f'{kind.removesuffix("Ref").lower()} "{reference["name"]}" not found')
    prefix = entry.get("prefix") or ""
    return {
        prefix + key: value.decode("utf-8", "replace") for key, value in data.items() if ENV_NAME.match(prefix + key)
    }


def _referenced(source: Source, reference: Mapping[str, Any]) -> str | None:
    if field := reference.get("fieldRef"):
        return pod_field(source.pod, field["fieldPath"], source.pod_ip, source.host_ip)
    if resource := reference.get("resourceFieldRef"):
        containers = source.pod["spec"]["containers"] + (source.pod["spec"].get("initContainers") or [])
        return resource_field(containers, source.container["name"], resource, source.allocatable)
    for kind, kind_name, fetch in (
        ("secretKeyRef", "Secret", source.secret),
        ("configMapKeyRef", "ConfigMap", source.config_map),
    ):
        if key_reference := reference.get(kind):
            data = fetch(key_reference["name"])
            name, key, optional = key_reference["name"], key_reference["key"], key_reference.get("optional")
            if data is None and not optional:
                raise ConfigError(f'{kind_name.lower()} "{name}" not found')
            if data is not None and key not in data and not optional:
                namespace = source.pod["metadata"]["namespace"]
                raise ConfigError(f"couldn't find key {key} in {kind_name} {namespace}/{name}")
            return data[key].decode("utf-8", "replace") if data and key in data else None
    raise ConfigError(f"unsupported valueFrom: {', '.join(reference)}")
