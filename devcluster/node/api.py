"""The API server, over plain HTTP requests: small, and quick to import."""

import asyncio
import base64
import contextlib
import json
import logging
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import yaml

log = logging.getLogger(__name__)
Object = dict[str, Any]

MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"


class ApiError(Exception):
    """The API server said no: HTTP `status`, Kubernetes `reason` ("NotFound", "Conflict", ...) and its message."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class Api:
    """Requests to the API server of a kubeconfig's current context, with its token. Use as an async context manager."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text("utf-8"))
        context = _named(config["contexts"], config["current-context"])["context"]
        cluster = _named(config["clusters"], context["cluster"])["cluster"]
        user = _named(config["users"], context["user"])["user"]
        self.server: str = cluster["server"].rstrip("/")
        self.ca: bytes = _inline(cluster, "certificate-authority", kubeconfig.parent)
        self._headers = {"Authorization": f"Bearer {user['token']}"}
        self._tls = ssl.create_default_context(cadata=self.ca.decode()) if self.ca else True
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "Api":
        # A frozen and thawed node must not wait for connections that died meanwhile, hence the short keep-alive.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=15)
        timeout = aiohttp.ClientTimeout(total=30, connect=5)
        self._session = aiohttp.ClientSession(connector=connector, timeout=timeout, headers=self._headers)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def request(
        self, method: str, path: str, body: object = None, content_type: str = "application/json", **query: str
    ) -> Object:
        """The answer's object; ApiError for an HTTP status of 400 and above, OSError when there is no connection."""
        assert self._session is not None
        data = None if body is None else json.dumps(body)
        try:
            async with self._session.request(
                method,
                self.server + path,
                data=data,
                params=query,
                ssl=self._tls,
                headers={"Content-Type": content_type} if body is not None else None,
            ) as response:
                text = await response.text()
                if response.status >= 400:
                    raise _error(response.status, text)
                return json.loads(text) if text else {}
        except (aiohttp.ClientError, TimeoutError) as error:
            raise OSError(f"{method} {path}: {error or type(error).__name__}") from error

    async def get(self, path: str, **query: str) -> Object:
        return await self.request("GET", path, **query)

    async def post(self, path: str, body: Object) -> Object:
        return await self.request("POST", path, body)

    async def patch(self, path: str, body: object, content_type: str = STRATEGIC) -> Object:
        return await self.request("PATCH", path, body, content_type)

    async def delete(self, path: str, body: Object) -> Object:
        return await self.request("DELETE", path, body)

    async def watch(self, path: str, **query: str) -> AsyncIterator[tuple[str, Any]]:
        """Yields ("LIST", objects) at the start and after every gap, and (type, object) for each change between.

        Never ends by itself: an API server that is away is tried again every half second.
        """
        while True:
            try:
                listed = await self.get(path, **query)
                yield "LIST", listed["items"]
                version = listed["metadata"]["resourceVersion"]
                async for kind, body in self._changes(path, version, query):
                    yield kind, body
            except (ApiError, OSError, aiohttp.ClientError, TimeoutError, ValueError) as error:
                log.info("watch of %s: %s; listing again", path, error)
                await asyncio.sleep(0.5)

    async def _changes(self, path: str, version: str, query: dict[str, str]) -> AsyncIterator[tuple[str, Object]]:
        """Changes since `version`; goes on from the last seen version when a watch ends, raises ApiError on a gap."""
        assert self._session is not None
        while True:
            params = {**query, "watch": "true", "allowWatchBookmarks": "true", "timeoutSeconds": "300"}
            timeout = aiohttp.ClientTimeout(total=None, connect=5, sock_read=330)
            async with self._session.get(
                self.server + path, params={**params, "resourceVersion": version}, ssl=self._tls, timeout=timeout
            ) as response:
                if response.status >= 400:
                    raise _error(response.status, await response.text())
                async for line in _lines(response.content):
                    event = json.loads(line)
                    kind, body = event["type"], event["object"]
                    if kind == "ERROR":
                        raise ApiError(body.get("code", 0), body.get("reason", ""), body.get("message", ""))
                    version = body["metadata"]["resourceVersion"]
                    if kind != "BOOKMARK":
                        yield kind, body


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Lines of any length (aiohttp's own reader stops at 64 KiB; a pod may be larger)."""
    rest = b""
    async for chunk in stream.iter_any():
        rest += chunk
        *lines, rest = rest.split(b"\n")
        for line in lines:
            if line:
                yield line


def _error(status: int, text: str) -> ApiError:
    with contextlib.suppress(ValueError):
        body = json.loads(text)
        return ApiError(status, body.get("reason", ""), body.get("message", text))
    return ApiError(status, "", text)


def _named(entries: list[Object], name: str) -> Object:
    return next(entry for entry in entries if entry["name"] == name)


def _inline(source: Object, key: str, folder: Path) -> bytes:
    """The value of `key-data` or of the file that `key` names (relative to the kubeconfig), b"" for neither."""
    if data := source.get(f"{key}-data"):
        return base64.b64decode(data)
    return (folder / source[key]).read_bytes() if key in source else b""
