"""`kubectl exec`: a command in a running container, its streams over one WebSocket.

The protocol is v5.channel.k8s.io: the first byte of each message is the stream's number. The API server passes a client's
WebSocket on to nodes that declare ExtendWebSocketsToKubelet; older ways (SPDY) are not served.
"""

import asyncio
import contextlib
import fcntl
import json
import os
import struct
import termios
from collections.abc import Mapping
from typing import Any

from aiohttp import WSMsgType, web

from devcluster.node.probes import Target, enter_arguments

PROTOCOLS = ("v5.channel.k8s.io",)
STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255
BLOCK = 32 * 1024


async def serve(request: web.Request, target: Target) -> web.WebSocketResponse:
    """Runs the command of the request's query and answers with its streams and, at the end, its exit code."""
    socket = web.WebSocketResponse(protocols=PROTOCOLS)
    await socket.prepare(request)
    query = request.query
    command = enter_arguments(target.pid, target.working_dir, query.getall("command", []))
    asked = {name for name in ("input", "output", "error", "tty") if query.get(name) in ("1", "true")}
    try:
        if "tty" in asked:
            code = await _on_a_terminal(socket, command, target.env)
        else:
            code = await _on_pipes(socket, command, target.env, has_input="input" in asked)
        with contextlib.suppress(ConnectionError):
            await socket.send_bytes(bytes([ERROR]) + json.dumps(status(code)).encode())
    finally:
        await socket.close()
    return socket


def status(code: int) -> dict[str, Any]:
    """The end of a command as the API has it."""
    if code == 0:
        return {"metadata": {}, "status": "Success"}
    message = f"command terminated with non-zero exit code: exit status {code}"
    details = {"causes": [{"reason": "ExitCode", "message": str(code)}]}
    return {"metadata": {}, "status": "Failure", "message": message, "reason": "NonZeroExitCode", "details": details}


async def _on_pipes(
    socket: web.WebSocketResponse, command: list[str], env: Mapping[str, str], *, has_input: bool
) -> int:
    pipe = asyncio.subprocess.PIPE
    stdin = pipe if has_input else asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, env=env, stdin=stdin, stdout=pipe, stderr=pipe)
    assert process.stdout is not None
    assert process.stderr is not None
    receiver = asyncio.create_task(_receive(socket, process.stdin))
    try:
        await asyncio.gather(_send(socket, STDOUT, process.stdout), _send(socket, STDERR, process.stderr))
        return await process.wait()
    finally:
        receiver.cancel()
        if process.returncode is None:
            process.kill()


async def _on_a_terminal(socket: web.WebSocketResponse, command: list[str], env: Mapping[str, str]) -> int:
    master, slave = os.openpty()

    def take_terminal() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = await asyncio.create_subprocess_exec(
        *command, env={"TERM": "xterm", **env}, stdin=slave, stdout=slave, stderr=slave, preexec_fn=take_terminal
    )
    os.close(slave)
    loop = asyncio.get_running_loop()
    output = asyncio.StreamReader()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(output), os.fdopen(master, "rb", 0)
    )
    receiver = asyncio.create_task(_receive(socket, None, terminal=master))
    try:
        # A terminal whose last user has gone gives an error in the place of an end.
        with contextlib.suppress(OSError):
            await _send(socket, STDOUT, output)
        return await process.wait()
    finally:
        receiver.cancel()
        transport.close()
        if process.returncode is None:
            process.kill()


async def _send(socket: web.WebSocketResponse, channel: int, stream: asyncio.StreamReader) -> None:
    while block := await stream.read(BLOCK):
        await socket.send_bytes(bytes([channel]) + block)


async def _receive(
    socket: web.WebSocketResponse, stdin: asyncio.StreamWriter | None, terminal: int | None = None
) -> None:
    """Hands on what the client types, until it closes the stream."""
    async for message in socket:
        if message.type != WSMsgType.BINARY or not message.data:
            continue
        channel, data = message.data[0], message.data[1:]
        if channel == STDIN and terminal is not None:
            os.write(terminal, data)
        elif channel == STDIN and stdin is not None:
            stdin.write(data)
            await stdin.drain()
        elif channel == RESIZE and terminal is not None:
            size = json.loads(data)
            window = struct.pack("HHHH", size.get("Height", 24), size.get("Width", 80), 0, 0)
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, window)
        elif channel == CLOSE and data[:1] == bytes([STDIN]) and stdin is not None:
            stdin.close()
