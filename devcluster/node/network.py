"""Names and addresses: what a pod's address is, what /etc/hosts says in it, and which variables name its Services."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network
from typing import Any
from urllib.parse import urlsplit

from devcluster.node.api import Api

DOMAIN = "svc.cluster.local"


class Addresses:
    """Gives out the addresses of a node's pods; one that was given back is used again as late as possible."""

    def __init__(self, cidr: str) -> None:
        self._network = IPv4Network(cidr)
        self._taken: set[str] = set()
        self._next = self._cycle()

    def claim(self, address: str) -> None:
        self._taken.add(address)

    def take(self) -> str:
        for _ in range(self._network.num_addresses):
            address = next(self._next)
            if address not in self._taken:
                self._taken.add(address)
                return address
        raise RuntimeError(f"all addresses of {self._network} are in use: give the node a larger --pod-cidr")

    def give_back(self, address: str) -> None:
        self._taken.discard(address)

    def _cycle(self) -> Iterator[str]:
        while True:
            # The first address is left out, as everywhere.
            yield from (str(a) for i, a in enumerate(self._network) if i > 1)


class Directory:
    """Watches Services, and all pods as soon as a headless Service needs their names."""

    def __init__(self, api: Api, changed: Callable[[], None]) -> None:
        self._api = api
        self._changed = changed
        self._services: dict[str, dict[str, Any]] = {}
        self._pods: dict[str, dict[str, Any]] = {}
        self._pod_watch: asyncio.Task[None] | None = None

    async def run(self) -> None:
        try:
            async for kind, body in self._api.watch("/api/v1/services"):
                apply_event(self._services, kind, body)
                if self._pod_watch is None and any(_headless(s) for s in self._services.values()):
                    self._pod_watch = asyncio.create_task(self._watch_pods())
                self._changed()
        finally:
            if self._pod_watch is not None:
                self._pod_watch.cancel()

    async def _watch_pods(self) -> None:
        async for kind, body in self._api.watch("/api/v1/pods"):
            apply_event(self._pods, kind, body)
            self._changed()

    def hosts(self, pod: dict[str, Any], pod_ip: str) -> str:
        """The text of /etc/hosts for the pod."""
        hostname = pod["spec"].get("hostname") or pod["metadata"]["name"]
        lines = ["127.0.0.1\tlocalhost", "::1\tlocalhost ip6-localhost ip6-loopback", f"{pod_ip}\t{hostname}"]
        namespace = pod["metadata"]["namespace"]
        for service in sorted(self._services.values(), key=_key):
            lines += _service_lines(service, list(self._pods.values()), namespace)
        for alias in pod["spec"].get("hostAliases") or []:
            lines.append(f"{alias['ip']}\t{' '.join(alias.get('hostnames') or [])}")
        return "\n".join(lines) + "\n"

    def service_env(self, pod: dict[str, Any]) -> dict[str, str]:
        """KUBERNETES_SERVICE_HOST and _PORT are the API server's own; Services of the namespace as everywhere."""
        server = urlsplit(self._api.server)
        host, port = server.hostname or "", str(server.port or 443)
        out: dict[str, str] = {}
        if pod["spec"].get("enableServiceLinks", True):
            for service in self._services.values():
                if service["metadata"]["namespace"] == pod["metadata"]["namespace"] and not _headless(service):
                    out |= _links(service)
        out |= {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port}
        out |= {"KUBERNETES_SERVICE_PORT_HTTPS": port, "KUBERNETES_PORT": f"tcp://{host}:{port}"}
        return out


def selects(service: dict[str, Any], pod: dict[str, Any]) -> bool:
    """Whether the pod stands behind the Service: same namespace, all labels of the selector, not ended."""
    selector = service["spec"].get("selector")
    labels = pod["metadata"].get("labels") or {}
    return (
        bool(selector)
        and pod["metadata"]["namespace"] == service["metadata"]["namespace"]
        and all(labels.get(key) == value for key, value in selector.items())
        and (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")
    )


def is_ready(pod: dict[str, Any]) -> bool:
    conditions = (pod.get("status") or {}).get("conditions") or []
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]


def _service_lines(service: dict[str, Any], pods: list[dict[str, Any]], namespace: str) -> list[str]:
    name, its_namespace = service["metadata"]["name"], service["metadata"]["namespace"]
    address = service["spec"].get("clusterIP")
    if not _headless(service):
        return [f"{address}\t{_names(name, its_namespace, namespace)}"] if address else []
    lines = []
    always = service["spec"].get("publishNotReadyAddresses")
    for pod in sorted((p for p in pods if selects(service, p)), key=_key):
        ip = (pod.get("status") or {}).get("podIP")
        if not ip or not (always or is_ready(pod)):
            continue
        names = _names(name, its_namespace, namespace)
        hostname, subdomain = pod["spec"].get("hostname"), pod["spec"].get("subdomain")
        if hostname and subdomain == name:
            names = f"{_names(f'{hostname}.{name}', its_namespace, namespace)} {names}"
        lines.append(f"{ip}\t{names}")
    return lines


def _names(name: str, its_namespace: str, namespace: str) -> str:
    full = f"{name}.{its_namespace}"
    names = [f"{full}.{DOMAIN}", f"{full}.svc", full]
    return " ".join([*names, name] if its_namespace == namespace else names)


def _links(service: dict[str, Any]) -> dict[str, str]:
    name = service["metadata"]["name"].upper().replace("-", "_")
    ports = service["spec"].get("ports") or []
    address = service["spec"].get("clusterIP")
    if not ports or not address:
        return {}
    out = {f"{name}_SERVICE_HOST": address, f"{name}_SERVICE_PORT": str(ports[0]["port"])}
    for port in ports:
        if port.get("name"):
            out[f"{name}_SERVICE_PORT_{port['name'].upper().replace('-', '_')}"] = str(port["port"])
    return out


def _headless(service: dict[str, Any]) -> bool:
    return service["spec"].get("clusterIP") == "None"


def _key(body: dict[str, Any]) -> tuple[str, str]:
    return body["metadata"]["namespace"], body["metadata"]["name"]


def apply_event(cache: dict[str, dict[str, Any]], kind: str, body: Any) -> None:
    """Folds one event of a watch into a cache by uid."""
    if kind == "LIST":
        cache.clear()
        cache.update({item["metadata"]["uid"]: item for item in body})
    elif kind == "DELETED":
        with contextlib.suppress(KeyError):
            del cache[body["metadata"]["uid"]]
    else:
        cache[body["metadata"]["uid"]] = body
