"""A client that sends its report byte by byte, be it head or body, holds no connection for long."""

import asyncio
import json
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
from aiohttp import web
from trainyard_operator import intake
from trainyard_operator.intake import Refusal, serve

from devcluster.access import free_port

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def connected(handle: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[Connection]:
    """A connection to a server as the intake's, which answers with `handle`."""
    application = web.Application()
    application.router.add_post("/", handle)
    port = free_port()
    runner = await serve(application, "127.0.0.1", port, None)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        await runner.cleanup()


async def test_a_body_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(intake, "BODY_SECONDS", 0.3)

    async def handle(request: web.Request) -> web.Response:
        try:
            await intake._read_report(request)
        except Refusal as refusal:
            return intake._refused(refusal)
        raise AssertionError("half a report was taken")

    began = time.monotonic()
    async with connected(handle) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        answer = (await asyncio.wait_for(reader.readuntil(b"}"), 20)).decode()
    assert answer.startswith("HTTP/1.1 408")
    assert json.loads(answer.split("\r\n\r\n")[1])["reason"] == "TooSlow"
    assert time.monotonic() - began < 20


async def test_a_client_that_goes_away_in_the_middle_is_refused_and_no_error():
    reasons: asyncio.Queue[str] = asyncio.Queue()

    async def handle(request: web.Request) -> web.Response:
        try:
            await intake._read_report(request)
        except Refusal as refusal:
            reasons.put_nowait(refusal.reason)
        return web.Response()

    async with connected(handle) as (_, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        await writer.drain()
        # As a process that is killed leaves it: with what it has not read thrown away.
        peer = writer.get_extra_info("socket")
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await asyncio.sleep(0.2)
        writer.transport.abort()
        assert await asyncio.wait_for(reasons.get(), 20) == "Disconnected"


@pytest.mark.parametrize("kept", [False, True], ids=["the first request", "one after a whole one"])
async def test_a_head_that_does_not_come_is_given_up(kept: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(intake, "KEPT_SECONDS", 0.5)

    async def handle(_: web.Request) -> web.Response:
        return web.Response(text="done")

    async def drip(writer: asyncio.StreamWriter) -> None:
        for letter in b"POST / HTTP/1.1\r\nHost: " + b"x" * 10_000:
            writer.write(bytes([letter]))
            await writer.drain()
            await asyncio.sleep(0.05)

    async with connected(handle) as (reader, writer):
        if kept:
            writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            await reader.readuntil(b"done")
        slow = asyncio.create_task(drip(writer))
        with suppress(ConnectionResetError):  # as good an end: what came last was not read any more
            assert await asyncio.wait_for(reader.read(), 20) == b""
        slow.cancel()
