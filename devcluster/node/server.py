"""What kubectl asks of a kubelet, through the API server: logs, and commands in containers."""

import asyncio
import contextlib
import os
import ssl
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from aiohttp import web

from devcluster.node import exec
from devcluster.node.agent import Agent
from devcluster.node.container import Container
from devcluster.node.settings import Settings
from devcluster.node.status import Running, Waiting

BLOCK = 64 * 1024
FOLLOW_SECONDS = 0.1


class Server:
    """Serves on the node's address; use `start`, which gives the port."""

    def __init__(self, agent: Agent, settings: Settings) -> None:
        self._agent = agent
        self._settings = settings

    async def start(self) -> int:
        app = web.Application()
        app.router.add_get("/healthz", _healthy)
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._logs)
        app.router.add_get("/exec/{namespace}/{pod}/{container}", self._exec)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, self._settings.address, self._settings.port, ssl_context=tls(self._settings))
        await site.start()
        return runner.addresses[0][1]

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        container = self._find(request.match_info)
        query = request.query
        previous = query.get("previous") == "true"
        if previous and container.restart_count == 0:
            name, pod = container.name, request.match_info["pod"]
            raise web.HTTPBadRequest(text=f'previous terminated container "{name}" in pod "{pod}" not found')
        path = container.log_file(previous=previous)
        if not path.exists():
            reason = container.state.reason if isinstance(container.state, Waiting) else "unknown"
            pod = request.match_info["pod"]
            raise web.HTTPBadRequest(text=f'container "{container.name}" in pod "{pod}" is waiting to start: {reason}')
        response = web.StreamResponse(headers={"Content-Type": "text/plain; charset=utf-8"})
        await response.prepare(request)
        with path.open("rb") as file:
            if _over_since(query.get("sinceSeconds"), container) or query.get("tailLines") == "0":
                file.seek(0, os.SEEK_END)
            elif "tailLines" in query:
                file.seek(last_lines(path, int(query["tailLines"])))
            left = int(query["limitBytes"]) if "limitBytes" in query else None
            follow = query.get("follow") == "true" and not previous
            with contextlib.suppress(ConnectionError):
                await self._copy(file.fileno(), response, container, left, follow=follow)
        return response

    async def _exec(self, request: web.Request) -> web.StreamResponse:
        container = self._find(request.match_info)
        target = container.probe_target()
        if target is None:
            raise web.HTTPBadRequest(text=f'container "{container.name}" is not running')
        return await exec.serve(request, target)

    async def _copy(
        self, file: int, response: web.StreamResponse, container: Container, left: int | None, *, follow: bool
    ) -> None:
        """Sends what the file holds, and with `follow` what is added to it until the container has ended."""
        restart = container.restart_count
        while left is None or left > 0:
            over = not isinstance(container.state, Running) or container.restart_count != restart
            block = os.read(file, BLOCK if left is None else min(BLOCK, left))
            if block:
                left = None if left is None else left - len(block)
                await response.write(block)
            elif not follow or over:
                return
            else:
                await asyncio.sleep(FOLLOW_SECONDS)

    def _find(self, wanted: "web.UrlMappingMatchInfo") -> Container:
        for worker in self._agent.workers.values():
            metadata = worker.pod["metadata"]
            if (metadata["namespace"], metadata["name"]) == (wanted["namespace"], wanted["pod"]):
                if (container := worker.container(wanted["container"])) is not None:
                    return container
                raise web.HTTPNotFound(text=f'pod "{wanted["pod"]}" has no container "{wanted["container"]}"')
        raise web.HTTPNotFound(text=f'pod "{wanted["pod"]}" is not on this node')


def last_lines(path: Path, count: int) -> int:
    """The offset at which the last `count` lines of the file begin."""
    with path.open("rb") as file:
        position = file.seek(0, os.SEEK_END)
        end, found = position, 0
        while position > 0:
            step = min(BLOCK, position)
            position -= step
            file.seek(position)
            block = file.read(step)
            for index in range(len(block) - 1, -1, -1):
                # A newline at the very end closes the last line, it does not begin another one.
                if block[index] == 0x0A and position + index != end - 1:
                    found += 1
                    if found == count:
                        return position + index + 1
    return 0


def tls(settings: Settings) -> ssl.SSLContext:
    """The node's certificate; with a client CA only the API server gets in."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if settings.tls_cert and settings.tls_key:
        context.load_cert_chain(settings.tls_cert, settings.tls_key)
    else:
        with tempfile.NamedTemporaryFile() as file:
            file.write(_self_signed(settings.name))
            file.flush()
            context.load_cert_chain(file.name)
    if settings.client_ca:
        context.load_verify_locations(settings.client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _over_since(seconds: str | None, container: Container) -> bool:
    """Whether `--since` leaves the whole log out: lines have no times, so it is the container's end that counts."""
    finished = getattr(container.state, "finished_at", None)
    if seconds is None or finished is None:
        return False
    return datetime.now(UTC).timestamp() - finished > float(seconds)


def _self_signed(name: str) -> bytes:
    # Only for a node without a certificate, and slow to import.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=365))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return certificate.public_bytes(pem) + private


async def _healthy(_: web.Request) -> web.Response:
    return web.Response(text="ok")
