"""Kopf as the shell of the operator: login, watch streams and their reconnects. Handlers are `on.event` only, see `watch`.

The session is ours, so that every opening of a watch is seen: what `/healthz` asks is whether each watch lives, and the only
other sign of life of a quiet one, its bookmarks, Kopf keeps to itself.
"""

import asyncio
import os
from types import SimpleNamespace
from typing import Any

import aiohttp
import kopf

from trainyard_operator.cluster import Cluster
from trainyard_operator.settings import Settings
from trainyard_operator.watch import Watch


class Shell:
    """One Kopf operator over the handlers of `watch`."""

    def __init__(self, cluster: Cluster, watch: Watch, settings: Settings) -> None:
        # Kopf asks for a user name, and a numeric user without an entry in passwd has none.
        os.environ.setdefault("LOGNAME", "trainyard")
        self._cluster = cluster
        self._watch = watch
        self._settings = settings
        self._registry = kopf.OperatorRegistry()
        self._kopf_settings = kopf_settings(settings)
        self._opened: dict[str, asyncio.Event] = {c.resource.plural: asyncio.Event() for c in watch.watched}
        self.started = asyncio.Event()
        kopf.on.login(registry=self._registry, id="login")(self._login)
        watch.register(self._registry, self._kopf_settings)

    async def run(self) -> None:
        """Watch until cancelled; raises what ends a watch for good."""
        namespaces = self._settings.watch_namespaces
        await kopf.operator(
            registry=self._registry,
            settings=self._kopf_settings,
            standalone=True,
            clusterwide=not namespaces,
            namespaces=namespaces,
            ready_flag=self.started,
        )

    async def watching(self) -> None:
        """Wait until the watch of every kind has been opened: a list made from then on misses nothing."""
        for opened in self._opened.values():
            await opened.wait()

    async def _login(self, **_: Any) -> kopf.AiohttpSession:
        """A session for Kopf with the credentials of now; Kopf asks again when the API server refuses them."""
        tracing = aiohttp.TraceConfig()
        tracing.on_request_start.append(self._request_started)
        tracing.on_request_end.append(self._request_ended)
        authorization = await self._cluster.authorization()
        session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self._cluster.ssl_context),
            headers={"Authorization": authorization} if authorization else None,
            trace_configs=[tracing],
            read_bufsize=2**21,
        )
        return kopf.AiohttpSession(server=self._cluster.server, aiohttp_session=session)

    async def _request_started(
        self, session: aiohttp.ClientSession, context: SimpleNamespace, params: aiohttp.TraceRequestStartParams
    ) -> None:
        # The service account's token is renewed in place, and a session outlives it.
        if authorization := await self._cluster.authorization():
            params.headers["Authorization"] = authorization

    async def _request_ended(
        self, session: aiohttp.ClientSession, context: SimpleNamespace, params: aiohttp.TraceRequestEndParams
    ) -> None:
        if params.url.query.get("watch") != "true" or params.response.status != 200:
            return
        plural = params.url.path.rpartition("/")[2]
        if plural in self._opened:
            self._watch.alive(plural)
            self._opened[plural].set()


def kopf_settings(settings: Settings) -> kopf.OperatorSettings:
    """No scanning, no posting, no finalizers; every wait bounded."""
    configured = kopf.OperatorSettings()
    configured.scanning.disabled = True
    configured.persistence.diffbase_storage = _NoEssence()
    configured.persistence.progress_storage = _NoProgress()
    configured.posting.enabled = False
    configured.watching.server_timeout = settings.watch_server_seconds
    configured.watching.client_timeout = settings.watch_server_seconds + 30
    configured.watching.connect_timeout = 10
    configured.watching.inactivity_timeout = settings.watch_inactivity_seconds
    configured.watching.chunk_size = 500
    configured.networking.request_timeout = settings.request_seconds
    configured.networking.connect_timeout = 10
    configured.queueing.exit_timeout = 0.1
    return configured


class _NoEssence(kopf.DiffBaseStorage):
    """Handlers of differences are not used, and for them Kopf copies every object of every event three times: a third of the CPU of
    the whole operator."""

    def build(self, *, body: kopf.Body, extra_fields: Any = None) -> Any:
        return {}

    def fetch(self, *, body: kopf.Body) -> Any:
        return None

    def store(self, *, body: kopf.Body, patch: kopf.Patch, essence: Any) -> None:
        """Nothing is kept in the object."""


class _NoProgress(kopf.ProgressStorage):
    """Nothing about handlers is kept in the object either."""

    def fetch(self, *, key: Any, body: kopf.Body) -> Any:
        return None

    def store(self, *, key: Any, record: Any, body: kopf.Body, patch: kopf.Patch) -> None:
        """Not kept."""

    def purge(self, *, key: Any, body: kopf.Body, patch: kopf.Patch) -> None:
        """There is nothing."""

    def touch(self, *, body: kopf.Body, patch: kopf.Patch, value: str | None) -> None:
        """There is nothing."""

    def clear(self, *, essence: Any) -> Any:
        return essence
