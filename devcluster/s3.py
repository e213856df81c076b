"""An S3 server with authentication: moto's, with one user who may do everything. Its objects live as long as it.

    python -m devcluster.s3 --address 127.98.0.1 --port 19000 --credentials s3.json

The user may also call IAM at the same address, so that a test can make a user who may do less.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from devcluster.spec import S3Credentials

REGION = "us-east-1"
ACCOUNT = "123456789012"
USER = "devcluster"
POLICY = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def main() -> None:
    parser = argparse.ArgumentParser(prog="devcluster.s3", description=__doc__)
    parser.add_argument("--address", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--credentials", type=Path, required=True, help="JSON file with the access key")
    arguments = parser.parse_args()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: os._exit(0))
    if (credentials := S3Credentials.read(arguments.credentials)) is None:
        parser.error(f"{arguments.credentials} does not exist: write access_key_id and secret_access_key there")
    serve(arguments.address, arguments.port, credentials)


def serve(address: str, port: int, credentials: S3Credentials) -> None:
    """Serves until the process ends. Every request must be signed by a user that IAM knows, else it gets 403."""
    # moto reads these while it is imported.
    os.environ["INITIAL_NO_AUTH_ACTION_COUNT"] = "0"
    os.environ["MOTO_PORT"] = str(port)
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
    from werkzeug.serving import run_simple

    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    _create_user(credentials)
    application = guarded(DomainDispatcherApplication(create_backend_app))
    run_simple(address, port, application, threaded=True, request_handler=MotoRequestHandler)


def guarded(application: Application) -> Application:
    """Two things that S3 does and moto leaves out: unsigned requests are refused, conditional writes are atomic.

    moto looks whether an object is there and then stores it, with nothing between that keeps a second writer out.
    """
    one_writer = threading.Lock()

    def call(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if not _is_signed(environ):
            start_response("403 Forbidden", [("Content-Type", "application/xml")])
            return [b"<Error><Code>AccessDenied</Code><Message>Sign the request.</Message></Error>"]
        if environ.get("HTTP_IF_NONE_MATCH") and environ["REQUEST_METHOD"] in ("PUT", "POST"):
            # Read before the lock is taken: a slow client must hold up nobody.
            length = int(environ.get("CONTENT_LENGTH") or 0)
            if length:
                environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(length))
            with one_writer:
                return list(application(environ, start_response))
        return application(environ, start_response)

    return call


def _is_signed(environ: dict[str, Any]) -> bool:
    return environ.get("HTTP_AUTHORIZATION", "").startswith("AWS4-HMAC-SHA256 Credential=")


def _create_user(credentials: S3Credentials) -> None:
    from moto.iam.models import iam_backends

    backend = iam_backends[ACCOUNT]["aws"]
    backend.create_user(REGION, USER)
    key = backend.create_access_key(USER)
    key.access_key_id = credentials.access_key_id
    key.secret_access_key = credentials.secret_access_key
    backend.put_user_policy(USER, "everything", json.dumps(POLICY))


if __name__ == "__main__":
    sys.exit(main())
