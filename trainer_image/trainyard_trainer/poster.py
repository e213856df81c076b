"""Posting to one address over a connection that is kept.

A handshake costs the intake five times what it takes to read, verify and answer a report; of urllib's opener every request makes
its own.
"""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from trainyard_api.run import Intake


@dataclass(frozen=True)
class Reply:
    status: int
    headers: http.client.HTTPMessage
    body: bytes


class Poster:
    """Not for several threads at once. Proxies of the environment are not used: the address is in the cluster."""

    def __init__(self, url: str, context: ssl.SSLContext | None, seconds: float) -> None:
        """`seconds` is how long one step of an exchange may take."""
        parts = urlsplit(url)
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname or "", parts.port
        self._path = parts.path or "/"
        self._context, self._seconds = context, seconds
        self._kept: http.client.HTTPConnection | None = None

    @classmethod
    def to(cls, intake: Intake, seconds: float) -> Poster:
        """To the address that takes the reports."""
        return cls(intake.url, ssl.create_default_context(cadata=intake.ca_pem) if intake.ca_pem else None, seconds)

    def post(self, body: bytes, headers: Mapping[str, str], most: int) -> Reply:
        """The answer, of its body at most `most` bytes. Raises OSError when there is none."""
        kept, self._kept = self._kept, None
        if kept is not None:
            try:
                return self._exchange(kept, body, headers, most)
            except TimeoutError:
                raise
            except OSError:
                pass  # the server closes what was idle for long, and when it goes: another one may be there by now
        return self._exchange(self._connection(), body, headers, most)

    def close(self) -> None:
        if self._kept is not None:
            self._kept.close()
        self._kept = None

    def _exchange(
        self, connection: http.client.HTTPConnection, body: bytes, headers: Mapping[str, str], most: int
    ) -> Reply:
        try:
            connection.request("POST", self._path, body, dict(headers))
            answer = connection.getresponse()
            text = answer.read(most)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            if isinstance(error, OSError):
                raise
            raise OSError(f"what it answers is no HTTP: {type(error).__name__} {error}") from error
        if answer.isclosed() and not answer.will_close:
            self._kept = connection
        else:
            connection.close()
        return Reply(answer.status, answer.headers, text)

    def _connection(self) -> http.client.HTTPConnection:
        if self._secure:
            return http.client.HTTPSConnection(self._host, self._port, timeout=self._seconds, context=self._context)
        return http.client.HTTPConnection(self._host, self._port, timeout=self._seconds)


def authorized(intake: Intake) -> dict[str, str]:
    """Headers of a request to the intake. Raises OSError when the pod's token cannot be read."""
    # Read anew each time: the kubelet renews it.
    token = Path(intake.token_path).read_text(encoding="utf-8").strip()
    return {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
