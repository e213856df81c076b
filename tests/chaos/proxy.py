"""A proxy between operator and API server that does what networks and API servers do on a bad day, by a seed.

Requests are answered 409, 410, 429, 500, late or not at all, and connections break before a request was carried out or after;
watch events come late, twice or never, and streams end. What is carried out is carried out by the real API server.
"""

import asyncio
import random
import ssl
from collections import Counter

import aiohttp
from aiohttp import web

from tests.chaos.forward import Forwarder, passed_on

LATE_SECONDS = 0.3
HANG_SECONDS = 6.0
"""Longer than the operator under test waits for an answer."""
ERRORS = {
    409: '{"kind":"Status","status":"Failure","reason":"Conflict","message":"injected","code":409}',
    410: '{"kind":"Status","status":"Failure","reason":"Expired","message":"injected","code":410}',
    429: '{"kind":"Status","status":"Failure","reason":"TooManyRequests","message":"injected","code":429}',
    500: '{"kind":"Status","status":"Failure","reason":"InternalError","message":"injected","code":500}',
}
GONE = b'{"type":"ERROR","object":' + ERRORS[410].encode() + b"}\n"


class Proxy(Forwarder):
    """Forwards to `server`, whose certificate `context` knows, with the token that the client sends; `rate` is the share of requests that meet a fault."""

    def __init__(self, server: str, context: ssl.SSLContext, seed: int, rate: float) -> None:
        self._server, self._context = server, context
        self._random = random.Random(seed)
        self.rate = rate
        self.faults: Counter[str] = Counter()

    def _open_session(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(ssl=self._context, limit=0)
        return aiohttp.ClientSession(connector=connector, auto_decompress=False, read_bufsize=2**21)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        fault = self._fault(request)
        if fault.isdigit():
            retry = {"Retry-After": "1"} if fault == "429" else {}
            return web.Response(
                status=int(fault), text=ERRORS[int(fault)], content_type="application/json", headers=retry
            )
        if fault == "hang":
            await asyncio.sleep(HANG_SECONDS)
        if fault in ("reset-before", "hang"):
            return self._broken(request)
        try:
            return await self._forward(request, lose_answer=fault == "reset-after")
        except (aiohttp.ClientError, ConnectionError, TimeoutError):
            return self._broken(request)

    def _fault(self, request: web.Request) -> str:
        if self._random.random() >= self.rate:
            return ""
        writes = request.method != "GET"
        kinds = ["429", "500", "reset-before", "reset-after", "hang"] + (["409"] if writes else ["410"])
        kind = self._random.choice(kinds)
        self.faults[kind] += 1
        return kind

    async def _forward(self, request: web.Request, *, lose_answer: bool) -> web.StreamResponse:
        url = self._server + request.raw_path
        headers = passed_on(request.headers, "host")
        body = await request.read()
        limit = aiohttp.ClientTimeout(total=None, connect=5)
        async with self._session.request(
            request.method, url, headers=headers, data=body or None, timeout=limit
        ) as answer:
            if request.query.get("watch") == "true" and answer.status == 200:
                return await self._watch(request, answer)
            data = await answer.read()
            if lose_answer:
                return self._broken(request)
            kept = {
                k: v
                for k, v in answer.headers.items()
                if k.lower() in ("content-type", "content-encoding", "retry-after")
            }
            return web.Response(status=answer.status, body=data, headers=kept)

    async def _watch(self, request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        # What a watch begins with comes whole or breaks off: nothing is missing in the middle of an answer.
        whole = "sendInitialEvents" in request.query
        async for line in answer.content:
            draw = self._random.random() / max(self.rate, 1e-9)
            fault = next((name for name, limit in WATCH_FAULTS if draw < limit), "")
            fault = "late" if whole and fault == "dropped" else fault
            if fault:
                self.faults[fault] += 1
            if fault == "dropped":
                continue
            if fault == "late":
                await asyncio.sleep(LATE_SECONDS)
            if fault in ("ended", "expired"):
                if fault == "expired":
                    await response.write(GONE)
                break
            await response.write(line)
            if fault == "doubled":
                await response.write(line)
        return response

    @staticmethod
    def _broken(request: web.Request) -> web.Response:
        if request.transport is not None:
            request.transport.abort()
        return web.Response(status=502)


WATCH_FAULTS = (("ended", 0.03), ("expired", 0.05), ("dropped", 0.25), ("doubled", 0.6), ("late", 1.0))
"""Cumulative shares of the watch events that meet a fault."""
