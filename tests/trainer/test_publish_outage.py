"""Storage that goes down exactly when a version is to be uploaded: nothing that was trained is lost, nothing is half published."""

import http.client
import json
import threading
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from trainyard_api.report import ExitCode
from trainyard_api.run import RunSpec

from devcluster.s3 import S3Credentials
from tests.trainer.conftest import Bucket
from tests.trainer.runs import Trainer, dataset, run_spec

pytestmark = [pytest.mark.training, pytest.mark.timeout(600)]

SLOW_DOWN = (503, b"<Error><Code>SlowDown</Code><Message>later</Message></Error>")
FULL = (507, b"<Error><Code>XMinioStorageFull</Code><Message>minimum free drive threshold</Message></Error>")
VERSION = "/v1/"
"""In the path of what belongs to the version."""


class Gate:
    """In front of the S3 server; from the first file of the version on it answers otherwise, `times` times.

    `answer`: status and body of what then comes; None refuses connections for good.
    """

    def __init__(self, bucket: Bucket, answer: tuple[int, bytes] | None, times: int) -> None:
        self.answer, self.times = answer, times
        self.refused: list[float] = []
        self.stored: list[str] = []
        target, gate = urlsplit(bucket.endpoint).netloc, self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if gate.closes(self.command, self.path):
                    if gate.answer is None:
                        self.close_connection = True
                    else:
                        self.tell(gate.answer[0], {}, gate.answer[1])
                    return
                upstream = http.client.HTTPConnection(target)
                upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() != "expect":
                        upstream.putheader(name, value)
                upstream.endheaders(body)
                response = upstream.getresponse()
                self.tell(response.status, dict(response.getheaders()), response.read())
                upstream.close()
                if self.command == "PUT" and response.status == 200:
                    gate.stored.append(self.path)

            do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = forward

            def tell(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response_only(status)
                own = ("content-length", "connection", "transfer-encoding")
                for name, value in headers.items():
                    if name.lower() not in own:
                        self.send_header(name, value)
                length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(body))
                self.send_header("Content-Length", length)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.environment = {**bucket.environment, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.server.server_port}"}

    def closes(self, method: str, path: str) -> bool:
        """Whether this request is not let through."""
        begins = method == "PUT" and VERSION in path
        if len(self.refused) >= self.times or not (self.refused or begins):
            return False
        if self.answer is None:
            self.refused = [0.0] * self.times
            threading.Thread(target=self.close, daemon=True).start()
        elif begins:
            self.refused.append(0.0)
        return True

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture(scope="module")
def bucket(s3_server: tuple[str, S3Credentials]) -> Bucket:
    made = Bucket("outage", *s3_server)
    made.client.create_bucket(Bucket=made.name)
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return dataset(tmp_path_factory.mktemp("data"))


OUTAGES = {"connections refused": None, "503": SLOW_DOWN, "507": FULL}


def spec_of(folder: Path, data: Path, bucket: Bucket, **changes: Any) -> RunSpec:
    return run_spec(
        folder, data, outputURI=f"{bucket.uri}/{folder.name}", timeoutSeconds=100, drainSeconds=10, **changes
    )


@pytest.fixture(scope="module")
def ended(
    data: Path, bucket: Bucket, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, tuple[Trainer, Gate]]]:
    """A training for each kind of outage, side by side: most of the time they wait."""
    runs: dict[str, tuple[Trainer, Gate]] = {}
    for name, answer in OUTAGES.items():
        folder = tmp_path_factory.mktemp("down")
        gate = Gate(bucket, answer, times=10_000)
        runs[name] = Trainer(spec_of(folder, data, bucket), folder, gate.environment), gate
    for trainer, _ in runs.values():
        trainer.end()
    yield runs
    for _, gate in runs.values():
        gate.close()


@pytest.fixture(scope="module")
def undisturbed(data: Path, bucket: Bucket, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The manifest of the same training with a storage that is up."""
    folder = tmp_path_factory.mktemp("up")
    trainer = Trainer(spec_of(folder, data, bucket), folder, bucket.environment)
    assert trainer.end() == ExitCode.DONE, trainer.errors()
    return manifest_of(bucket, trainer.spec)


def manifest_of(bucket: Bucket, spec: RunSpec) -> dict[str, Any]:
    return json.loads(bucket.storage().get_bytes(f"{spec.version_uri}manifest.json"))


def sha256_of(manifest: dict[str, Any], name: str) -> str:
    return next(file["sha256"] for file in manifest["files"] if file["name"] == name)


@pytest.mark.parametrize("name", OUTAGES)
def test_it_tries_for_long_ends_with_69_and_has_published_nothing(
    name: str, ended: dict[str, tuple[Trainer, Gate]], bucket: Bucket
) -> None:
    trainer, gate = ended[name]
    assert trainer.end() == ExitCode.STORAGE_UNREACHABLE, trainer.errors()
    result = trainer.result
    assert result["reason"] == ("StorageFull" if name == "507" else "StorageUnreachable")
    assert ("make room" if name == "507" else "did not answer for") in result["message"]
    assert (result["step"], result["checkpointStep"]) == (12, 12)
    times = [datetime.fromisoformat(line["time"]) for line in trainer.lines if line["event"] in ("phase", "result")]
    assert [line["phase"] for line in trainer.lines if line["event"] == "phase"][-1] == "Uploading"
    assert 30 <= (times[-1] - times[-2]).total_seconds() < 90, (
        "half a minute at least, a minute before the timeout at most"
    )
    if gate.answer is not None:
        assert 6 < len(gate.refused) < 30, "the pauses grow"
    assert bucket.storage().list(trainer.spec.version_uri) == []
    assert list((trainer.folder / "cache" / "attempts").iterdir()) == [], "what was to be uploaded does not stay behind"


@pytest.mark.parametrize("name", OUTAGES)
def test_the_next_attempt_publishes_the_same_without_a_step(
    name: str, ended: dict[str, tuple[Trainer, Gate]], undisturbed: dict[str, Any], bucket: Bucket, data: Path
) -> None:
    first, _ = ended[name]
    gate = Gate(bucket, None, times=0)
    spec = spec_of(first.folder, data, bucket, attempt=2, resumeFrom=[first.spec.attempt_uri])
    second = Trainer(spec, first.folder, gate.environment)
    assert second.end() == ExitCode.DONE, second.errors()
    assert not [line for line in second.lines if line["event"] == "step"]
    assert (second.result["resumedFromStep"], second.result["step"]) == (12, 12)
    manifest = manifest_of(bucket, spec)
    for file in ("model.safetensors", "dataset.json"):
        assert sha256_of(manifest, file) == sha256_of(undisturbed, file)
    of_version = [path for path in gate.stored if VERSION in path]
    assert of_version[-1].endswith("/v1/manifest.json")
    assert len(of_version) == 1 + len(manifest["files"])
    gate.close()


def test_an_outage_that_passes_costs_no_attempt(data: Path, bucket: Bucket, tmp_path: Path) -> None:
    gate = Gate(bucket, SLOW_DOWN, times=4)
    trainer = Trainer(spec_of(tmp_path, data, bucket), tmp_path, gate.environment)
    assert trainer.end() == ExitCode.DONE, trainer.errors()
    assert len(gate.refused) == 4
    assert trainer.result["checkpointStep"] == 12
    assert manifest_of(bucket, trainer.spec)["version"] == 1
    gate.close()
