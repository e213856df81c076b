"""The trainers' way to S3, on which the storage can be full: every write is refused then, as MinIO does it, and reads go on.

What is stored is stored by the cluster's own S3 server, and read there, beside this way, when it is judged.
"""

import asyncio
import hashlib
import json
from collections import Counter
from typing import Any

import aiohttp
from aiohttp import web
from yarl import URL

from demo.stage import s3_client
from devcluster.access import S3Access
from tests.chaos.forward import Forwarder, passed_on
from tests.chaos.observer import Findings

BUCKET = "chaos"
FULL = b"<Error><Code>XMinioStorageFull</Code><Message>minimum free drive threshold reached</Message></Error>"
MANIFEST = "/manifest.json"


class Storage(Forwarder):
    """Forwards to the S3 server behind `access`."""

    def __init__(self, access: S3Access) -> None:
        self._access = access
        self.client = s3_client(access)
        self.full = False
        self.refused = 0
        """Writes that did not find room."""
        self.refusal = asyncio.Event()
        """Set by each of them."""
        self.published: Counter[str] = Counter()
        """How often each manifest was stored, by its key."""

    def _open_session(self) -> aiohttp.ClientSession:
        # The signature covers the Host that the client has named: it goes on as it came.
        return aiohttp.ClientSession(auto_decompress=False, skip_auto_headers=("User-Agent", "Accept"))

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        data = await request.read()
        if self.full and request.method in ("PUT", "POST") and "delete" not in request.query:
            self.refused += 1
            self.refusal.set()
            return web.Response(status=507, body=FULL, content_type="application/xml")
        headers = passed_on(request.headers)
        # As the client has written it, for that is signed.
        url = URL(self._access.endpoint + request.raw_path, encoded=True)
        async with self._session.request(request.method, url, headers=headers, data=data or None) as answer:
            body = await answer.read()
            if request.method == "PUT" and request.path.endswith(MANIFEST) and answer.status == 200:
                self.published[request.path.removeprefix(f"/{BUCKET}/")] += 1
            if request.method == "HEAD":
                return web.Response(status=answer.status, headers=passed_on(answer.headers))
            headers = passed_on(answer.headers, "content-length")
            return web.Response(status=answer.status, body=body, headers=headers)

    # --- what is there in the end ---------------------------------------------------------------------------------------------

    def judge(self, jobs: dict[str, str], findings: Findings) -> None:
        """`jobs`: state by name of those that trained. A version is whole, stored once, and there when its job has succeeded."""
        for key, count in self.published.items():
            if count > 1:
                findings.breaks(f"{key} was stored {count} times")
        for name, state in jobs.items():
            manifests = self._keys(f"models/{name}/v")
            if state == "Succeeded" and not manifests:
                findings.breaks(f"{name} has succeeded, and no version of it is in the storage")
            for key in manifests:
                findings.broken += self._broken(key)

    def _keys(self, prefix: str) -> list[str]:
        found = self.client.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        return [each["Key"] for each in found if each["Key"].endswith(MANIFEST)]

    def _broken(self, key: str) -> list[str]:
        manifest = json.loads(self._read(key))
        folder = key.removesuffix(MANIFEST.removeprefix("/"))
        return [
            f"{key} names {each['path']} with another content than it has"
            for each in manifest["files"]
            if hashlib.sha256(self._read(folder + each["path"])).hexdigest() != each["sha256"]
        ]

    def _read(self, key: str) -> Any:
        return self.client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
