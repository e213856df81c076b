"""A server of our own on the way to another one, which answers as the day demands and else passes on what comes."""

from collections.abc import Mapping
from typing import Any

import aiohttp
from aiohttp import web

HOP_BY_HOP = frozenset({"connection", "transfer-encoding"})
"""What concerns one connection alone and is not passed on."""


class Forwarder:
    """Listens on 127.0.0.1 from `start` to `stop`; `_handle` answers every request, with `_session` for the way on."""

    _session: aiohttp.ClientSession

    async def start(self, port: int) -> None:
        self._session = self._open_session()
        application = web.Application(client_max_size=2**28)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", port).start()

    async def stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    def _open_session(self) -> aiohttp.ClientSession:
        raise NotImplementedError

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        raise NotImplementedError


def passed_on(headers: Mapping[str, str], *without: str) -> dict[str, Any]:
    """The headers that go on to the other side; names in `without` are in lower case."""
    return {name: value for name, value in headers.items() if name.lower() not in HOP_BY_HOP.union(without)}
