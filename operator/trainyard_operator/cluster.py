"""The only module that calls the Kubernetes API: plain dictionaries in, plain dictionaries out, errors by what they mean.

The generated classes of the client are not used: they cost memory and drop fields that they do not know. What is used is
its configuration (kubeconfig, service account with token renewal) and its HTTP session.

Writes follow three rules. Creating is create-or-adopt: names are deterministic, so that a 409 is either our own earlier
write or somebody else's object. Deleting names the uid, so that it never hits a namesake. Status is written by JSON Patch
that tests what the writer has read (`/metadata/uid` and a revision): 422 means look again.
"""

import logging
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from urllib.parse import quote, urlencode
from urllib.request import getproxies

import aiohttp
import orjson
from kubernetes.aio import client, config

from trainyard_operator.clock import Clock

logger = logging.getLogger(__name__)

PAGE = 500
"""Objects of a list that are asked for at once."""
STREAM_SECONDS = 300
"""For all objects of a kind as one stream: longer than the largest cluster takes."""

Object = dict[str, Any]
Operation = dict[str, Any]


@dataclass(frozen=True)
class Resource:
    """A kind as the API server addresses it."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str | None = None, name: str | None = None, subresource: str | None = None) -> str:
        """URL path; without `namespace` all namespaces, without `name` the collection."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        parts = [root]
        if self.namespaced and namespace:
            parts += ["namespaces", quote(namespace, safe="")]
        parts.append(self.plural)
        if name:
            parts.append(quote(name, safe=""))
        if subresource:
            parts.append(subresource)
        return "/".join(parts)


TRAINING_JOBS = Resource("trainyard.dev", "v1alpha1", "trainingjobs", "TrainingJob")
TRAINING_SERVICES = Resource("trainyard.dev", "v1alpha1", "trainingservices", "TrainingService")
TRAINING_BUDGETS = Resource("trainyard.dev", "v1alpha1", "trainingbudgets", "TrainingBudget")
MODEL_VERSIONS = Resource("trainyard.dev", "v1alpha1", "modelversions", "ModelVersion")
JOBS = Resource("batch", "v1", "jobs", "Job")
PODS = Resource("", "v1", "pods", "Pod")
NODES = Resource("", "v1", "nodes", "Node", namespaced=False)
NAMESPACES = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
SECRETS = Resource("", "v1", "secrets", "Secret")
SERVICES = Resource("", "v1", "services", "Service")
EVENTS = Resource("events.k8s.io", "v1", "events", "Event")
CORE_EVENTS = Resource("", "v1", "events", "Event")
WORKLOADS = tuple(Resource("kueue.x-k8s.io", version, "workloads", "Workload") for version in ("v1beta2", "v1beta1"))
"""Of Kueue, in the versions of its API that this operator can read, the newest first."""
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")


class ClusterError(Exception):
    """A call that failed. `expected`: the answer to a race, a moment's trouble, or a refusal; no bug of ours."""

    expected = True

    def __init__(self, message: str, *, status: int = 0, reason: str = "", retry_after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after = retry_after


class NotFoundError(ClusterError):
    """404: not there (any more)."""


class ConflictError(ClusterError):
    """409: there already, or changed since it was read."""


class StaleError(ClusterError):
    """422 of a JSON Patch whose test failed: what was read has changed; look again."""


class RejectedError(ClusterError):
    """400, 403, 413, 422: the API server will not take this as it is; a person has to change something."""


class UnavailableError(ClusterError):
    """429, 5xx, 410 (a list that took too long), no connection, no answer in time: the same call may succeed a little later."""

    retry_within = 15.0
    """The API server comes back for everybody at once: nobody waits for minutes after an outage."""


class ForeignObjectError(ClusterError):
    """An object of this name exists and belongs to somebody else, or is being deleted."""

    def __init__(self, message: str, existing: Object) -> None:
        super().__init__(message, status=409, reason="ForeignObject")
        self.existing = existing


class Cluster:
    """A connection to one API server."""

    def __init__(self, api: client.ApiClient, *, seconds: float = 30.0, identity: str = "") -> None:
        self._api = api
        self._identity = identity
        self._agent = f"trainyard-operator/{identity}".rstrip("/")
        self._may_write: Callable[[], bool] = lambda: True
        self._seconds = seconds
        self._streams = True  # until the API server says that it does not
        self.clock = Clock()

    @classmethod
    async def connect(cls, kubeconfig: str | None = None, *, seconds: float = 30.0, identity: str = "") -> "Cluster":
        """From `kubeconfig`, else the pod's service account, else KUBECONFIG or ~/.kube/config.

        `identity` shows in the audit log of the API server, as part of the user agent.
        """
        configuration = client.Configuration()
        if kubeconfig:
            await config.load_kube_config(config_file=kubeconfig, client_configuration=configuration)
        else:
            try:
                config.load_incluster_config(client_configuration=configuration)
            except config.ConfigException:
                await config.load_kube_config(client_configuration=configuration)
        # Retries are the queue's business: a hidden one would hold a worker, and repeat what must not be.
        configuration.retries = False
        # Looking for a proxy in the environment is a hop to a thread, for every request.
        configuration.client_session_kwargs = {"trust_env": bool(getproxies())}
        return cls(client.ApiClient(configuration), seconds=seconds, identity=identity)

    async def close(self) -> None:
        await self._api.close()

    def fenced(self, may_write: Callable[[], bool]) -> "Cluster":
        """The same connection for one who may write only while `may_write` says so: asked right before each request."""
        other = Cluster(self._api, seconds=self._seconds, identity=self._identity)
        other._may_write = may_write
        other.clock = self.clock
        return other

    @property
    def server(self) -> str:
        """Address of the API server."""
        return self._api.configuration.host

    @property
    def ssl_context(self) -> ssl.SSLContext:
        """With the cluster's CA and, from a kubeconfig, the client certificate."""
        return self._api.rest_client.ssl_context

    async def authorization(self) -> str | None:
        """The Authorization header of now, or None where a client certificate speaks for us."""
        settings = await self._api.configuration.auth_settings()
        token = settings.get("BearerToken")
        return token["value"] if token else None

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = "application/json",
        seconds: float | None = None,
    ) -> Any:
        """The decoded JSON of the answer. Raises a `ClusterError` for everything that is not a success."""
        url = self.server + path + ("?" + urlencode(query) if query else "")
        headers = {
            "Accept": "application/json, */*;q=0.1",
            "Content-Type": content_type,
            "User-Agent": self._agent,
        }
        if authorization := await self.authorization():
            headers["Authorization"] = authorization
        if method != "GET" and not self._may_write():
            raise UnavailableError(f"{method} {path}: not sent, another replica may lead by now")
        sent = orjson.dumps(body) if body is not None else None
        began = self.clock.monotonic()
        try:
            response = await self._send(method, url, headers, sent, seconds or self._seconds)
            self.clock.heard(response.headers.get("Date"), began)
            data = await response.read()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise UnavailableError(f"{method} {path}: no answer ({type(error).__name__}: {error})") from error
        if 200 <= response.status < 300:
            return orjson.loads(data) if data else None
        raise error_of(
            method, path, response.status, data, response.headers, is_json_patch="json-patch" in content_type
        )

    async def _send(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        body: bytes | None,
        seconds: float,
        silent: float | None = None,
    ) -> aiohttp.ClientResponse:
        """By the session of the client, which is what its `request` comes to for JSON that is written already."""
        rest = self._api.rest_client
        if rest.pool_manager is None:
            rest.pool_manager = rest._create_pool_manager()
        return await rest.pool_manager.request(
            method,
            url,
            headers=headers,
            data=body,
            timeout=_limit(seconds, silent),
            proxy=rest.proxy,
            proxy_headers=rest.proxy_headers,
            server_hostname=self._api.configuration.tls_server_name or None,
        )

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object:
        return await self.request("GET", resource.path(namespace, name))

    async def find(self, resource: Resource, namespace: str | None, name: str) -> Object | None:
        """The object, or None when it is not there."""
        try:
            return await self.get(resource, namespace, name)
        except NotFoundError:
            return None

    async def list_all(
        self, resource: Resource, namespace: str | None = None, *, labels: str | None = None, fields: str | None = None
    ) -> list[Object]:
        """All objects, of one namespace or of all, that fit the selectors."""
        items, _ = await self.list_at(resource, namespace, labels=labels, fields=fields)
        return items

    async def list_at(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        labels: str | None = None,
        fields: str | None = None,
        page: int = PAGE,
    ) -> tuple[list[Object], int]:
        """All objects, read page by page, and the version of the cluster that the list shows."""
        items: list[Object] = []
        version = 0
        async for some, shown in self._pages(resource, namespace, labels, fields, page):
            items += some
            version = shown
        return items, version

    async def _pages(
        self, resource: Resource, namespace: str | None, labels: str | None, fields: str | None, page: int
    ) -> AsyncIterator[tuple[list[Object], int]]:
        query = {"limit": str(page)}
        query |= {"labelSelector": labels} if labels else {}
        query |= {"fieldSelector": fields} if fields else {}
        # Items of a list carry neither, yet everything here expects whole objects.
        kind = {"apiVersion": resource.api_version, "kind": resource.kind}
        while True:
            answer = await self.request("GET", resource.path(namespace), query=query)
            metadata = answer.get("metadata") or {}
            yield [kind | item for item in answer.get("items") or ()], int(metadata.get("resourceVersion") or 0)
            if not metadata.get("continue"):
                return
            query["continue"] = metadata["continue"]

    async def present(
        self, resource: Resource, namespace: str | None = None, *, labels: str | None = None
    ) -> AsyncIterator[tuple[str, Object]]:
        """What there is, as events of a watch: `ADDED` of every object, what happens to some of them meanwhile, and at the end a
        `BOOKMARK` whose `metadata.resourceVersion` is the version of the cluster that this comes to.

        As one stream where the API server has them (WatchList, docs/decisions/0028), else page by page. Raises a `ClusterError`.
        """
        if self._streams:
            query = {
                "sendInitialEvents": "true",
                "resourceVersionMatch": "NotOlderThan",
                "allowWatchBookmarks": "true",
            }
            query |= {"labelSelector": labels} if labels else {}
            try:
                stream = self._watch(resource, namespace, query, seconds=STREAM_SECONDS, silent=self._seconds)
                async with aclosing(stream):
                    async for event in stream:
                        yield event["type"], event["object"]
                        if event["type"] == "BOOKMARK" and _ends_the_beginning(event["object"]):
                            return
                raise UnavailableError(f"GET {resource.path(namespace)}: the stream broke off before its end")
            except RejectedError as error:
                if error.status != 422:
                    raise
                self._streams = False
        version = 0
        async for items, shown in self._pages(resource, namespace, labels, None, PAGE):
            version = shown
            for item in items:
                yield "ADDED", item
        yield "BOOKMARK", {"metadata": {"resourceVersion": str(version)}}

    async def states(self, resource: Resource, namespace: str, name: str, *, seconds: int) -> AsyncIterator[Object]:
        """The object as it is, then as it becomes, for `seconds`; ends early when it is deleted, or never was.

        Raises a `ClusterError`; a connection that breaks off ends it.
        """
        stream = self._watch(resource, namespace, {"fieldSelector": f"metadata.name={name}"}, seconds=seconds)
        async with aclosing(stream):
            async for event in stream:
                if event["type"] not in ("ADDED", "MODIFIED"):
                    return
                yield event["object"]

    async def _watch(
        self,
        resource: Resource,
        namespace: str | None,
        query: Mapping[str, str],
        *,
        seconds: int,
        silent: float | None = None,
    ) -> AsyncGenerator[Object]:
        """The events of a watch of `seconds`. A connection that breaks off, or says nothing for `silent` seconds, ends it; raises a
        `ClusterError` when there is no watch, or when the API server ends it with an error."""
        path = resource.path(namespace)
        url = f"{self.server}{path}?{urlencode({'watch': 'true', 'timeoutSeconds': str(seconds), **query})}"
        headers = {"Accept": "application/json", "User-Agent": self._agent}
        if authorization := await self.authorization():
            headers["Authorization"] = authorization
        try:
            response = await self._send("GET", url, headers, None, seconds + 5, silent)
            if response.status >= 300:
                raise error_of("GET", path, response.status, await response.read(), response.headers)
            try:
                async for line in _lines(response.content):
                    event = orjson.loads(line)
                    if event["type"] == "ERROR":
                        code = event["object"].get("code") or 500
                        raise error_of("GET", path, code, orjson.dumps(event["object"]), response.headers)
                    yield event
            finally:
                response.close()
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            logger.debug("a watch broke off: %s", error)

    async def create(self, resource: Resource, body: Object) -> Object:
        return await self.request("POST", resource.path(body["metadata"].get("namespace")), body=body)

    async def create_or_adopt(
        self, resource: Resource, body: Object, *, owner_uid: str | None = None
    ) -> tuple[Object, bool]:
        """Create `body`, or take what is there under its name when it is ours; (object, whether it was made now).

        Ours is what the controller `owner_uid` owns (None: whatever is there). Raises `ForeignObjectError` else.
        """
        metadata = body["metadata"]
        try:
            return await self.create(resource, body), True
        except ConflictError:
            existing = await self.get(resource, metadata.get("namespace"), metadata["name"])
        if existing["metadata"].get("deletionTimestamp"):
            raise ForeignObjectError(
                f"{resource.kind} {metadata['name']} is still being deleted; it is made anew when that is over",
                existing,
            )
        if owner_uid is not None and controller_uid(existing) != owner_uid:
            raise ForeignObjectError(
                f"{resource.kind} {metadata['name']} exists and belongs to somebody else; delete or rename it", existing
            )
        return existing, False

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        uid: str,
        grace_seconds: int | None = None,
        propagation: str = "Background",
    ) -> bool:
        """Delete the object of exactly this `uid`; False when it is gone already, or another has its name."""
        body: Object = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid},
            "propagationPolicy": propagation,
        }
        if grace_seconds is not None:
            body["gracePeriodSeconds"] = grace_seconds
        try:
            await self.request("DELETE", resource.path(namespace, name), body=body)
        except (NotFoundError, ConflictError):
            return False
        return True

    async def patch(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        operations: Sequence[Operation],
        *,
        subresource: str | None = None,
    ) -> Object:
        """Apply a JSON Patch. Raises `StaleError` when one of its tests fails."""
        return await self.request(
            "PATCH",
            resource.path(namespace, name, subresource),
            body=list(operations),
            content_type="application/json-patch+json",
        )

    async def patch_status(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        *,
        tests: Mapping[str, Any],
        operations: Sequence[Operation],
    ) -> Object:
        """Patch the status where every path of `tests` still has its value (None: is absent)."""
        guards = [{"op": "test", "path": path, "value": value} for path, value in tests.items()]
        return await self.patch(resource, namespace, name, [*guards, *operations], subresource="status")

    async def replace(self, resource: Resource, body: Object) -> Object:
        """Write the whole object; its `metadata.resourceVersion`, when there is one, must still be the newest."""
        metadata = body["metadata"]
        return await self.request("PUT", resource.path(metadata.get("namespace"), metadata["name"]), body=body)


@lru_cache
def _limit(seconds: float, silent: float | None) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=seconds, sock_read=silent)


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Whole lines, however long: the reader's own iteration has a limit."""
    held = b""
    async for part in content.iter_any():
        *lines, held = (held + part).split(b"\n")
        for line in lines:
            yield line


def _ends_the_beginning(bookmark: Object) -> bool:
    annotations = bookmark["metadata"].get("annotations") or {}
    return annotations.get("k8s.io/initial-events-end") == "true"


def controller_uid(obj: Object) -> str | None:
    """Uid of the controller that owns `obj`."""
    for owner in obj.get("metadata", {}).get("ownerReferences") or ():
        if owner.get("controller"):
            return owner["uid"]
    return None


def status_operations(old: Object | None, new: Object, owned: Sequence[str]) -> list[Operation]:
    """The JSON Patch operations that bring the `owned` fields of a status from `old` to `new`.

    Fields that are not owned are somebody else's and stay as they are, whatever `new` says. An owned field may be a path
    (`summary/attempt`); its parent must exist in `old` or be owned too. Unset is absent: None in `new` removes.
    """
    operations: list[Operation] = []
    for field in owned:
        before, after = _at(old or {}, field), _at(new, field)
        if after == []:
            after = None  # an empty list says no more than none, and would show as a field of its own
        if before == after:
            continue
        path = f"/status/{field}"
        operations.append(
            {"op": "remove", "path": path} if after is None else {"op": "add", "path": path, "value": after}
        )
    return operations


def _at(value: Any, path: str) -> Any:
    for part in path.split("/"):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def error_of(
    method: str, path: str, status: int, data: bytes, headers: Mapping[str, str], *, is_json_patch: bool = False
) -> ClusterError:
    """The error class for an answer, with the API server's own sentence."""
    try:
        answer = orjson.loads(data)
        message, reason = answer.get("message", ""), answer.get("reason", "")
        details = answer.get("details") or {}
    except (ValueError, AttributeError):
        message, reason, details = data[:500].decode(errors="replace"), "", {}
    retry_after = _seconds(headers.get("Retry-After")) or details.get("retryAfterSeconds")
    text = f"{method} {path}: {status} {message or reason}"
    kind: type[ClusterError]
    match status:
        case 404:
            kind = NotFoundError
        case 409:
            kind = ConflictError
        case 422 if is_json_patch and not details.get("causes"):
            # A failed test and a path that is not there have no causes; a schema violation names its fields there.
            kind = StaleError
        case 429 | 408 | 410:
            kind = UnavailableError
        case _ if status >= 500:
            kind = UnavailableError
        case 401:
            kind = UnavailableError  # a token that is being renewed
        case _:
            kind = RejectedError
    return kind(text, status=status, reason=reason, retry_after=retry_after)


def _seconds(text: str | None) -> float | None:
    return float(text) if text and text.isdigit() else None
