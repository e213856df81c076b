"""Kopf as the shell of the operator: login, what is watched, watch streams, their reconnects and their end.

What Kopf does with an event after that is left out (docs/decisions/0020): a task, a memory and two queues for every object, for the
sake of handlers of differences, which are not used here. It is half of the operator's CPU and most of its memory, and the
caches do with an event all that there is to do.

The session is ours, so that every opening of a watch is seen: what `/healthz` asks is whether each watch lives.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Collection
from types import SimpleNamespace
from typing import Any

import aiohttp
import kopf
import orjson
from kopf._cogs.clients import api, fetching, watching
from kopf._core.reactor import queueing

from trainyard_operator.cache import Cache
from trainyard_operator.cluster import Cluster, UnavailableError
from trainyard_operator.settings import Settings
from trainyard_operator.watch import EVENTS_AT_ONCE, Watch

logger = logging.getLogger(__name__)

OPENING_SECONDS = 60.0
LIST_AGAIN_SECONDS = 1.0


class NotWatchingError(Exception):
    """A kind is not watched; only a new process looks for it again."""

    expected = True


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
        kopfs = queueing.watcher, fetching.fetch_objs
        queueing.watcher = self._follow
        fetching.fetch_objs = self._list
        setattr(api, "json", orjson)  # noqa: B010  reads the lines of watches, three times as fast
        try:
            await kopf.operator(
                registry=self._registry,
                settings=self._kopf_settings,
                standalone=True,
                clusterwide=not namespaces,
                namespaces=namespaces,
                ready_flag=self.started,
            )
        finally:
            queueing.watcher, fetching.fetch_objs = kopfs

    async def _follow(
        self, *, namespace: Any, settings: Any, resource: Any, operator_paused: Any = None, **_: Any
    ) -> None:
        """In the place of Kopf's own: one watch stream, its events taken in one after the other."""
        cache = self._cache_of(resource)
        stream = watching.infinite_watch(
            settings=settings, resource=resource, namespace=namespace, operator_paused=operator_paused
        )
        turn = 0
        async for event in stream:
            if isinstance(event, watching.Bookmark):
                continue
            self._watch.heard(cache, event)
            turn += 1
            if turn % EVENTS_AT_ONCE == 0:
                await asyncio.sleep(0)

    async def _list(
        self, *, resource: Any, namespace: Any, **unused: Any
    ) -> AsyncIterator[tuple[Collection[Any], str]]:
        """In the place of Kopf's own: what there is goes into the cache as it comes, and Kopf watches from there on."""
        try:
            _, version = await self._watch.relist(self._cluster, self._cache_of(resource), namespace)
        except UnavailableError as error:
            logger.info("%s; beginning anew", error)
            await asyncio.sleep(error.retry_after or LIST_AGAIN_SECONDS)
            raise TimeoutError from error  # lets Kopf begin anew
        yield (), version

    def _cache_of(self, resource: Any) -> Cache[Any]:
        return next(c for c in self._watch.watched if c.resource.plural == resource.plural)

    async def watching(self, seconds: float = OPENING_SECONDS) -> None:
        """Wait until the watch of every kind has been opened: a list made from then on misses nothing.

        Raises NotWatchingError after `seconds`: Kopf looks for the kinds once, as it starts, and leaves out what it did not find.
        """
        try:
            async with asyncio.timeout(seconds):
                for opened in self._opened.values():
                    await opened.wait()
        except TimeoutError:
            missing = ", ".join(plural for plural, opened in self._opened.items() if not opened.is_set())
            raise NotWatchingError(
                f"there is no watch of {missing} after {seconds:.0f} s; beginning anew. Should that not help, see whether the "
                "definitions are installed (kubectl get crd) and whether the operator may list and watch them"
            ) from None

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
    configured.posting.enabled = False
    configured.watching.server_timeout = settings.watch_server_seconds
    configured.watching.client_timeout = settings.watch_server_seconds + 30
    configured.watching.connect_timeout = 10
    configured.watching.inactivity_timeout = settings.watch_inactivity_seconds
    configured.networking.request_timeout = settings.request_seconds
    configured.networking.connect_timeout = 10
    configured.queueing.exit_timeout = 0.1
    return configured
