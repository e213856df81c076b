"""Probes and hooks: HTTP, TCP and commands inside a container."""

import asyncio
import contextlib
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import aiohttp

from devcluster.node.sandbox import user_namespaces


@dataclass(frozen=True)
class Result:
    ok: bool
    message: str = ""


@dataclass(frozen=True)
class Target:
    """What a probe needs to know of its container; `pid` is the machine's pid of its process 1."""

    pod_ip: str
    pid: int
    env: dict[str, str]
    ports: dict[str, int]
    working_dir: str


def enter_arguments(pid: int, working_dir: str, command: list[str]) -> list[str]:
    """The command line that runs `command` inside the container whose process 1 is `pid`."""
    nsenter = shutil.which("nsenter") or "nsenter"
    user = ["--user", "--preserve-credentials"] if user_namespaces() else []
    script = 'cd "$1" && shift && exec "$@"'
    return [
        *(nsenter, "--target", str(pid), *user, "--mount", "--pid", "--uts", "--"),
        *("/bin/sh", "-c", script, "sh", working_dir, *command),
    ]


async def perform(action: dict[str, Any], target: Target, limit: float) -> Result:
    """One probe or hook handler; never raises for what the container does."""
    try:
        async with asyncio.timeout(limit):
            match action:
                case {"exec": handler}:
                    return await _exec(handler.get("command") or [], target)
                case {"httpGet": handler}:
                    return await _http(handler, target)
                case {"tcpSocket": handler}:
                    return await _tcp(handler, target)
                case {"sleep": handler}:
                    await asyncio.sleep(float(handler.get("seconds", 0)))
                    return Result(True)
                case _:
                    return Result(False, f"this node has no probe of the kind {', '.join(action)}")
    except TimeoutError:
        return Result(False, f"probe timed out after {limit:g}s")


async def watch(
    probe: dict[str, Any], target: Target, told: Callable[[Result, bool], Awaitable[None]], *, initial: bool
) -> None:
    """Probes for ever. `told(result, passing)` after each try; `passing` changes only at the thresholds."""
    passing, in_a_row = initial, 0
    await asyncio.sleep(probe.get("initialDelaySeconds") or 0)
    while True:
        result = await perform(probe, target, probe.get("timeoutSeconds") or 1)
        if result.ok == passing:
            in_a_row = 0
        else:
            in_a_row += 1
            threshold = probe.get("successThreshold") or 1 if result.ok else probe.get("failureThreshold") or 3
            if in_a_row >= threshold:
                passing, in_a_row = result.ok, 0
                await told(result, passing)
                await asyncio.sleep(probe.get("periodSeconds") or 10)
                continue
        await told(result, passing)
        await asyncio.sleep(probe.get("periodSeconds") or 10)


async def _exec(command: list[str], target: Target) -> Result:
    process = await asyncio.create_subprocess_exec(
        *enter_arguments(target.pid, target.working_dir, command),
        env=target.env,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
    return Result(process.returncode == 0, output[:1024].decode("utf-8", "replace"))


async def _http(handler: dict[str, Any], target: Target) -> Result:
    scheme = (handler.get("scheme") or "HTTP").lower()
    url = f"{scheme}://{handler.get('host') or target.pod_ip}:{_port(handler, target)}{handler.get('path') or '/'}"
    headers = {h["name"]: h["value"] for h in handler.get("httpHeaders") or []}
    try:
        # Kubelet does not verify the certificate of a probed container either.
        async with aiohttp.ClientSession() as session, session.get(url, headers=headers, ssl=False) as response:
            if response.status < 400:
                return Result(True)
            return Result(False, f"HTTP probe failed with statuscode: {response.status}")
    except (aiohttp.ClientError, OSError) as error:
        return Result(False, f'Get "{url}": {error}')


async def _tcp(handler: dict[str, Any], target: Target) -> Result:
    host, port = handler.get("host") or target.pod_ip, _port(handler, target)
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return Result(False, f"dial tcp {host}:{port}: connect: connection refused")
    writer.close()
    return Result(True)


def _port(handler: dict[str, Any], target: Target) -> int:
    port = handler["port"]
    return port if isinstance(port, int) else target.ports.get(port) or int(port)
