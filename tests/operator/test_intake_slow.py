"""A client that sends its report byte by byte holds no connection for long."""

import asyncio
import json
import socket
import time

import pytest
from aiohttp import web
from trainyard_operator import intake
from trainyard_operator.intake import Refusal, serve


async def test_a_body_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(intake, "BODY_SECONDS", 0.3)

    async def handle(request: web.Request) -> web.Response:
        try:
            await intake._read_report(request)
        except Refusal as refusal:
            return intake._refused(refusal)
        raise AssertionError("half a report was taken")

    application = web.Application()
    application.router.add_post("/", handle)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    runner = await serve(application, "127.0.0.1", port, None)
    try:
        began = time.monotonic()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        answer = (await asyncio.wait_for(reader.readuntil(b"}"), 20)).decode()
        writer.close()
    finally:
        await runner.cleanup()
    assert answer.startswith("HTTP/1.1 408")
    assert json.loads(answer.split("\r\n\r\n")[1])["reason"] == "TooSlow"
    assert time.monotonic() - began < 20
