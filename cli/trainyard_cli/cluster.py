"""The user's cluster: kubeconfig, context and namespace as kubectl takes them, and the few calls that the commands need.

Objects are plain dictionaries: this program may be older or newer than the cluster's definitions, and shows what is there.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlencode

from trainyard_api import API_VERSION

from trainyard_cli.errors import CLIError

Object = dict[str, Any]
JSON = "application/json"
MERGE_PATCH = "application/merge-patch+json"
READ_SECONDS = 30.0
KINDS = {
    "trainingjobs": ("TrainingJob", "job"),
    "trainingservices": ("TrainingService", "service"),
    "modelversions": ("ModelVersion", "model"),
}


class APIError(CLIError):
    """The API server's refusal, in its own words; `status` is the HTTP status, 0 when there was no answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class Cluster:
    """A connection with the user's own rights. Raises `CLIError` where the kubeconfig does not name a cluster."""

    def __init__(self, namespace: str | None = None, context: str | None = None, kubeconfig: str | None = None) -> None:
        # Slow to import, and help and completion do without.
        from kubernetes import config
        from kubernetes.client import Configuration
        from kubernetes.client.rest import RESTClientObject

        settings = Configuration()
        try:
            config.load_kube_config(config_file=kubeconfig, context=context, client_configuration=settings)
            default = _context_namespace(config.list_kube_config_contexts(config_file=kubeconfig), context)
        except config.ConfigException as error:
            try:
                config.load_incluster_config(client_configuration=settings)
                default = None
            except config.ConfigException:
                raise CLIError(f"No cluster: {error} Set KUBECONFIG, or give --kubeconfig or --context.") from error
        self.namespace: str = namespace or default or "default"
        self.server: str = settings.host
        self._settings = settings
        self._pool = RESTClientObject(settings).pool_manager

    def _headers(self, content_type: str) -> dict[str, str]:
        headers = {"Accept": JSON, "Content-Type": content_type, "User-Agent": "trainyard"}
        token: Any = self._settings.auth_settings().get("BearerToken")
        return headers | ({token["key"]: token["value"]} if token else {})

    def _open(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        content_type: str = JSON,
        seconds: float = READ_SECONDS,
    ) -> Any:
        """The response, unread. Raises `APIError` for everything that is not a success."""
        import urllib3

        url = self.server + path + (f"?{urlencode(query)}" if query else "")
        try:
            response = self._pool.request(
                method,
                url,
                body=None if body is None else json.dumps(body),
                headers=self._headers(content_type),
                preload_content=False,
                timeout=urllib3.Timeout(connect=10.0, read=seconds),
                retries=False,
            )
        except urllib3.exceptions.HTTPError as error:
            raise APIError(
                f"Cannot reach the cluster at {self.server}: {_plain(error)}. Is KUBECONFIG right?"
            ) from error
        if response.status >= 300:
            text = response.data.decode(errors="replace")
            with contextlib.suppress(ValueError):
                text = json.loads(text).get("message") or text
            raise APIError(text.strip() or f"{method} {path}: {response.status}", response.status)
        return response

    def request(self, method: str, path: str, **more: Any) -> Object:
        """The decoded answer to one call."""
        return json.loads(self._open(method, path, **more).data or b"{}")

    def lines(self, path: str, query: Mapping[str, str], seconds: float) -> Iterator[str]:
        """A streaming answer line by line, until the server ends it or nothing came for `seconds`."""
        import urllib3

        response = self._open("GET", path, query, seconds=seconds)
        rest = b""
        try:
            for chunk in response.stream(65536, decode_content=True):
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    yield line.decode(errors="replace")
        except urllib3.exceptions.HTTPError:
            pass
        finally:
            response.release_conn()
        if rest:
            yield rest.decode(errors="replace")

    def path(self, plural: str, name: str = "", everywhere: bool = False) -> str:
        """URL path of a kind of ours, in this namespace or in all."""
        place = "" if everywhere else f"/namespaces/{self.namespace}"
        return f"/apis/{API_VERSION}{place}/{plural}" + (f"/{name}" if name else "")

    def get(self, plural: str, name: str) -> Object:
        try:
            return self.request("GET", self.path(plural, name))
        except APIError as error:
            raise self._unknown(plural, name, error) from error

    def list(self, plural: str, everywhere: bool = False) -> "list[Object]":
        return self.request("GET", self.path(plural, everywhere=everywhere)).get("items", [])

    def patch(self, plural: str, name: str, patch: Object) -> Object:
        """Apply a merge patch."""
        query = {"fieldManager": "trainyard"}
        try:
            return self.request("PATCH", self.path(plural, name), query=query, body=patch, content_type=MERGE_PATCH)
        except APIError as error:
            raise self._unknown(plural, name, error) from error

    def get_job(self, name: str) -> Object:
        return self.get("trainingjobs", name)

    def list_jobs(self, everywhere: bool = False) -> "list[Object]":
        return self.list("trainingjobs", everywhere)

    def patch_job(self, name: str, patch: Object) -> Object:
        return self.patch("trainingjobs", name, patch)

    def delete_job(self, name: str) -> None:
        try:
            self.request("DELETE", self.path("trainingjobs", name), body={"propagationPolicy": "Background"})
        except APIError as error:
            raise self._unknown("trainingjobs", name, error) from error

    def watch_job(self, name: str) -> Iterator[Object | None]:
        """The job as it is, then each time it changes; None once it is deleted. Ends with its consumer."""
        job = self.get_job(name)
        yield job
        uid = job["metadata"]["uid"]
        while True:
            query = {
                "watch": "true",
                "fieldSelector": f"metadata.name={name}",
                "resourceVersion": job["metadata"]["resourceVersion"],
                "timeoutSeconds": "240",
                "allowWatchBookmarks": "true",
            }
            for line in self.lines(self.path("trainingjobs"), query, seconds=250.0):
                event = json.loads(line)
                if event["type"] == "DELETED":
                    yield None
                    return
                if event["type"] in ("ADDED", "MODIFIED"):
                    job = event["object"]
                    yield job
                elif event["type"] == "ERROR":
                    break
            try:
                job = self.get_job(name)
            except APIError as error:
                if error.status != 404:
                    raise
                job = {"metadata": {"uid": ""}}
            if job["metadata"]["uid"] != uid:
                yield None
                return
            yield job

    def _unknown(self, plural: str, name: str, error: APIError) -> APIError:
        """A 404 in words; every other error as it is."""
        if error.status != 404:
            return error
        kind, command = KINDS[plural]
        if "could not find the requested resource" in str(error):
            return APIError(f"This cluster has no {kind}s: install the Trainyard chart first.", 404)
        where = f"in namespace {self.namespace}"
        return APIError(f"There is no {kind} {name} {where}; `trainyard {command} list -A` shows all of them.", 404)


def _context_namespace(contexts: Any, wanted: str | None) -> str | None:
    """Namespace of the context `wanted`, else of the active one, out of the client's (all, active)."""
    every, active = contexts
    context = next(entry for entry in every if entry["name"] == wanted) if wanted else active
    return context.get("context", {}).get("namespace")


def _plain(error: Exception) -> str:
    """The reason inside urllib3's wrappers, as words."""
    reason = getattr(error, "reason", None) or error
    text = str(reason)
    return text.rpartition(": ")[2] if "object at 0x" in text else text
