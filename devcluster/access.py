"""How a program reaches a cluster: S3 credentials as environment variables, past the user's HTTP proxy, and a port to serve on."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class S3Access:
    """How to reach the cluster's S3 server, from this machine as from its pods."""

    endpoint: str
    access_key_id: str
    secret_access_key: str
    region: str = "us-east-1"

    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.secret_access_key,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
        }


def around_proxies(address: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Variables that keep requests to `address` off the user's HTTP proxy; none where there is no proxy.

    Go leaves all of 127/8 alone by itself, Python only what is named.
    """
    if not any(environ.get(name) for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")):
        return {}
    exempt = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
    if address in exempt.split(","):
        return {}
    value = ",".join(filter(None, [exempt, address]))
    return {"NO_PROXY": value, "no_proxy": value}


def free_port() -> int:
    """A port that nobody listens on now, for a server of one's own."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
