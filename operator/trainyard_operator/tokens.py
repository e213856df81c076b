"""Who sends a report: a pod's projected service-account token, verified offline against the cluster's public keys.

A TokenReview would need a cluster-wide right and would count a token as good for seconds after its pod is gone. The keys are
public to every service account; what they sign says which pod the token is bound to, and the rest is a comparison.
"""

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import jwt
from trainyard_api.report import TOKEN_AUDIENCE

from trainyard_operator.cluster import Cluster, ClusterError

logger = logging.getLogger(__name__)

KEYS_SECONDS = 3600.0
"""Keys are read again after this long."""
UNKNOWN_KEY_SECONDS = 10.0
"""A token signed by an unknown key leads to reading them again, at most this often: anybody can send such a token."""
LEEWAY_SECONDS = 10
MAX_KNOWN = 20_000
ALGORITHMS = ["RS256", "RS384", "RS512", "ES256", "ES384", "ES512"]


class TokenError(Exception):
    """The token is not good; the text says why, without quoting it."""


@dataclass(frozen=True)
class Reporter:
    """The pod that a token is bound to."""

    namespace: str
    pod_name: str
    pod_uid: str


class Verifier:
    """Verifies tokens; reads issuer and keys from the API server when it needs them."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._issuer = ""
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._known: OrderedDict[bytes, tuple[Reporter, float]] = OrderedDict()
        """By their digests, tokens whose signature was verified with the keys of now, and when each expires."""
        self._read_at = float("-inf")
        self._lock = asyncio.Lock()

    async def reporter(self, token: str) -> Reporter:
        """The pod of a good token. Raises `TokenError`; `ClusterError` when the keys cannot be read."""
        if not token.isascii():
            raise TokenError("this is no token of a service account")
        digest = hashlib.sha256(token.encode()).digest()
        known = self._known.get(digest)
        if (
            known is not None
            and self._cluster.clock.seconds() < known[1]
            and time.monotonic() - self._read_at < KEYS_SECONDS
        ):
            return known[0]
        reporter, expires = await self._verified(token)
        self._known[digest] = reporter, expires
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)
        return reporter

    async def _verified(self, token: str) -> tuple[Reporter, float]:
        """The pod of a good token, and when this expires."""
        try:
            key_id = jwt.get_unverified_header(token).get("kid")
        except jwt.PyJWTError as error:
            raise TokenError("this is no token of a service account") from error
        key = await self._key(key_id)
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=ALGORITHMS,
                audience=TOKEN_AUDIENCE,
                issuer=self._issuer,
                # The times are compared with the cluster's clock, not with this machine's.
                options={
                    "require": ["exp", "iat", "iss", "aud"],
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except jwt.InvalidAudienceError as error:
            raise TokenError(f"the token is not for {TOKEN_AUDIENCE}") from error
        except jwt.InvalidIssuerError as error:
            raise TokenError("the token was issued by another cluster") from error
        except jwt.PyJWTError as error:
            raise TokenError("the token's signature does not verify") from error
        now, expires = self._cluster.clock.seconds(), claims["exp"] + LEEWAY_SECONDS
        if now >= expires:
            raise TokenError("the token has expired; read the file again, the kubelet renews it")
        if now < claims.get("nbf", 0) - LEEWAY_SECONDS:
            raise TokenError("the token is not valid yet")
        return _reporter(claims), expires

    async def _key(self, key_id: str | None) -> jwt.PyJWK:
        await self._refresh(lambda: key_id in self._keys)
        try:
            return self._keys[key_id]
        except KeyError:
            raise TokenError("the token is signed by a key that this cluster does not know") from None

    async def _refresh(self, known: Any) -> None:
        age = time.monotonic() - self._read_at
        if age < (KEYS_SECONDS if known() else UNKNOWN_KEY_SECONDS):
            return
        async with self._lock:
            age = time.monotonic() - self._read_at
            if age < (KEYS_SECONDS if known() else UNKNOWN_KEY_SECONDS):
                return  # somebody else has just read them
            try:
                issuer, keys = await self._read()
            except ClusterError:
                if known():
                    logger.warning("the cluster's keys could not be read again; the known ones are used")
                    return
                raise
            self._issuer, self._keys, self._read_at = issuer, keys, time.monotonic()
            self._known.clear()  # a key that is gone verifies nothing any more

    async def _read(self) -> tuple[str, dict[str | None, jwt.PyJWK]]:
        configuration = await self._cluster.request("GET", "/.well-known/openid-configuration")
        answer = await self._cluster.request("GET", "/openid/v1/jwks")
        keys = {key.get("kid"): jwt.PyJWK.from_dict(key) for key in answer["keys"]}
        return configuration["issuer"], keys


def _reporter(claims: dict[str, Any]) -> Reporter:
    bound = claims.get("kubernetes.io") or {}
    pod = bound.get("pod") or {}
    if not pod.get("uid") or not bound.get("namespace"):
        raise TokenError("the token is not bound to a pod")
    return Reporter(bound["namespace"], pod.get("name", ""), pod["uid"])
