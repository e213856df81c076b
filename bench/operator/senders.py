"""A client for reports that costs little itself: HTTP written by hand, over TLS, for the benchmark shares the machine."""

from __future__ import annotations

import asyncio
import json
import ssl
from contextlib import suppress


class Sender:
    """One connection at a time to the intake."""

    def __init__(self, host: str, port: int, path: str, context: ssl.SSLContext, *, keep: bool) -> None:
        self._host, self._port, self._path, self._context, self._keep = host, port, path, context, keep
        self._open: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, bearer: str | None, body: bytes) -> tuple[int, str]:
        """Status and, of a refusal, its reason."""
        if self._open is not None:
            try:
                return await self._exchange(*self._open, bearer, body)
            except (OSError, asyncio.IncompleteReadError):
                self.close()  # the server closes what is idle for long; a new one is made
        self._open = await asyncio.open_connection(self._host, self._port, ssl=self._context)
        try:
            return await self._exchange(*self._open, bearer, body)
        finally:
            if not self._keep:
                self.close()

    def close(self) -> None:
        if self._open is not None:
            with suppress(OSError):
                self._open[1].close()
        self._open = None

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, bearer: str | None, body: bytes
    ) -> tuple[int, str]:
        lines = [
            f"POST {self._path} HTTP/1.1",
            f"Host: {self._host}:{self._port}",
            f"Content-Length: {len(body)}",
            "Content-Type: application/json",
            f"Connection: {'keep-alive' if self._keep else 'close'}",
        ]
        if bearer is not None:
            lines.append(f"Authorization: Bearer {bearer}")
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        length = int(head.partition("content-length:")[2].split("\r\n", 1)[0])
        answer = await reader.readexactly(length)
        status = int(head.split(" ", 2)[1])
        return status, "" if status < 400 else json.loads(answer).get("reason", "")
