"""Is a component ready? Asked over HTTP with the administrator's certificate; any failure to ask means not yet."""

from __future__ import annotations

import http.client
import json
import ssl
from urllib.parse import urlsplit

from devcluster.components import HttpProbe, ObjectProbe
from devcluster.pki import KeyPair

TIMEOUT_SECONDS = 2.0


class Prober:
    def __init__(self, api_server: str, context: ssl.SSLContext) -> None:
        self._api_server, self._context = api_server, context

    def passes(self, probe: HttpProbe | ObjectProbe) -> bool:
        match probe:
            case HttpProbe(url, any_answer):
                status, _ = self._get(url)
                return (0 < status < 500) if any_answer else status == 200
            case ObjectProbe(path, condition):
                status, body = self._get(self._api_server + path)
                return status == 200 and (not condition or _is_ready(body))

    def _get(self, url: str) -> tuple[int, bytes]:
        """Status and body; (0, b"") when nobody answers."""
        parts = urlsplit(url)
        assert parts.hostname
        if parts.scheme == "https":
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                parts.hostname, parts.port, timeout=TIMEOUT_SECONDS, context=self._context
            )
        else:
            connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=TIMEOUT_SECONDS)
        try:
            connection.request("GET", parts.path or "/")
            response = connection.getresponse()
            return response.status, response.read()
        except (OSError, http.client.HTTPException):
            return 0, b""
        finally:
            connection.close()


def client_context(authority: str, pair: KeyPair) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority)
    context.load_cert_chain(pair.certificate, pair.key)
    return context


def _is_ready(body: bytes) -> bool:
    conditions = json.loads(body).get("status", {}).get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)
