"""`s3`: a real S3 server with authentication, one for the session, and a fresh bucket for each test."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from trainyard_trainer.store import Storage

from devcluster.access import free_port
from devcluster.s3 import S3Credentials


@dataclass(frozen=True)
class Bucket:
    """A bucket of the server. `client` is boto3's own, for what a test prepares or looks at."""

    name: str
    endpoint: str
    keys: S3Credentials

    @property
    def uri(self) -> str:
        return f"s3://{self.name}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": self.keys.access_key_id,
            "AWS_SECRET_ACCESS_KEY": self.keys.secret_access_key,
            "AWS_ENDPOINT_URL": self.endpoint,
        }

    @cached_property
    def client(self):
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.keys.access_key_id,
            aws_secret_access_key=self.keys.secret_access_key,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
        )

    def storage(self, **changes: str) -> Storage:
        """Storage with this server's credentials, some of them changed; gives up after two seconds."""
        return Storage({**self.environment, **changes}, source="the test's Secret", patience=2)

    def put(self, key: str, data: bytes) -> str:
        self.client.put_object(Bucket=self.name, Key=key, Body=data)
        return f"{self.uri}/{key}"


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, S3Credentials]]:
    """Endpoint and keys."""
    folder = tmp_path_factory.mktemp("s3")
    keys, port = S3Credentials.made_up(), free_port()
    keys.write(folder / "keys.json")
    root = Path(__file__).parents[2]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [
                *(sys.executable, "-m", "devcluster.s3", "--address", "127.0.0.1", "--port", str(port)),
                *("--credentials", str(folder / "keys.json")),
            ],
            cwd=root,
            stdout=log,
            stderr=log,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        try:
            deadline = time.monotonic() + 90
            while server.poll() is None and time.monotonic() < deadline:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.05)
            else:
                pytest.fail(f"the S3 server did not start: {(folder / 'log').read_text()[-2000:]}")
            yield f"http://127.0.0.1:{port}", keys
        finally:
            server.terminate()
            server.wait(10)


@pytest.fixture
def bucket(s3_server: tuple[str, S3Credentials]) -> Bucket:
    made = Bucket(f"test-{secrets.token_hex(6)}", *s3_server)
    made.client.create_bucket(Bucket=made.name)
    return made
