"""Storage against a real S3 server with authentication, and files with the same promises."""

import base64
import hashlib
import http.server
import io
import os
import random
import resource
import socket
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from boto3.s3.transfer import TransferConfig
from trainyard_trainer import store_s3
from trainyard_trainer.errors import BadData, BadSpec, DiskFull, Interrupted, StorageRefused, StorageUnreachable
from trainyard_trainer.fetch import fetch
from trainyard_trainer.store import Storage, parse
from trainyard_trainer.store_file import whole_file
from trainyard_trainer.store_s3 import S3

from devcluster.access import free_port
from tests.trainer.conftest import Bucket
from tests.trainer.vocfiles import good, load_uri, zipped


@pytest.fixture(params=["s3", "file"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Storage, str]:
    """Storage and an address to write below, for both kinds."""
    if request.param == "file":
        return Storage(), (tmp_path / "store").as_uri()
    bucket: Bucket = request.getfixturevalue("bucket")
    return bucket.storage(), f"{bucket.uri}/some folder"


def test_what_was_put_can_be_read_listed_and_deleted(place: tuple[Storage, str], tmp_path: Path):
    storage, root = place
    storage.put_bytes(f"{root}/a b.txt", b"hello")
    (tmp_path / "file").write_bytes(b"0123456789")
    storage.upload(tmp_path / "file", f"{root}/deep/er/file")
    assert storage.get_bytes(f"{root}/a b.txt") == b"hello"
    assert storage.get_range(f"{root}/deep/er/file", 2, 3) == b"234"
    assert storage.get_range(f"{root}/deep/er/file", -4, 4) == b"6789"
    listed = storage.list(f"{root}/")
    assert [storage.get_bytes(entry.uri) for entry in listed] == [b"hello", b"0123456789"]
    assert [entry.size for entry in listed] == [5, 10]
    stat = storage.head(f"{root}/a b.txt")
    assert stat is not None
    assert (stat.size, stat.etag) == (5, listed[0].etag)
    storage.delete([f"{root}/a b.txt", f"{root}/never-there"])
    assert storage.head(f"{root}/a b.txt") is None
    assert len(storage.list(f"{root}/")) == 1


def test_clearing_takes_what_a_killed_writer_left_half_written(bucket: Bucket, tmp_path: Path):
    storage, client = bucket.storage(), bucket.client
    storage.put_bytes(f"{bucket.uri}/checkpoints/1.pt", b"whole")
    storage.put_bytes(f"{bucket.uri}/kept", b"another's")
    client.create_multipart_upload(Bucket=bucket.name, Key="checkpoints/2.pt")
    storage.clear(f"{bucket.uri}/checkpoints/")
    assert [entry.uri for entry in storage.list(f"{bucket.uri}/")] == [f"{bucket.uri}/kept"]
    assert "Uploads" not in client.list_multipart_uploads(Bucket=bucket.name)

    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / ".2.pt.0123456789ab.part").write_bytes(b"half")
    Storage().clear(f"{tmp_path.as_uri()}/checkpoints/")
    assert not list(folder.iterdir())


def test_a_conditional_write_has_exactly_one_winner(place: tuple[Storage, str]):
    storage, root = place
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: storage.put_if_absent(f"{root}/manifest.json", b"%d" % i), range(8)))
    assert won.count(True) == 1
    assert storage.get_bytes(f"{root}/manifest.json") == b"%d" % won.index(True)


def test_a_file_that_is_being_written_is_not_seen(tmp_path: Path):
    root = tmp_path.as_uri()
    with whole_file(tmp_path / "new.bin", 5) as file:
        file.write(b"12345")
        assert Storage().list(f"{root}/") == []
        assert Storage().head(f"{root}/new.bin") is None
    assert [entry.uri for entry in Storage().list(f"{root}/")] == [f"{root}/new.bin"]


def test_an_empty_object_is_no_zip(bucket: Bucket, tmp_path: Path):
    with pytest.raises(BadData, match=r"empty\.zip is no zip file"):
        fetch([bucket.put("empty.zip", b"")], bucket.storage(), tmp_path, max_bytes=100)


def test_a_storage_that_keeps_second_writers_out_is_found_by_a_probe_that_leaves_nothing(place: tuple[Storage, str]):
    storage, root = place
    assert storage.honours_if_absent(root)
    assert storage.list(f"{root}/") == []


def test_a_download_in_parts_is_whole_and_reports_progress(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(store_s3, "PART", 1 << 20)
    data = os.urandom((2 << 20) + 12345)
    uri = bucket.put("big.bin", data)
    seen: list[tuple[int, int]] = []
    bucket.storage().download(uri, tmp_path / "x" / "big.bin", progress=lambda done, total: seen.append((done, total)))
    assert hashlib.sha256((tmp_path / "x" / "big.bin").read_bytes()).digest() == hashlib.sha256(data).digest()
    assert seen[-1] == (len(data), len(data))
    assert len(seen) == 3
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["big.bin"]


def upload(bucket: Bucket, data: bytes, part: int | None, checksum: str | None) -> None:
    """As object `a`: at once or in parts, with a checksum that the storage keeps or without."""
    transfer = TransferConfig(multipart_threshold=part or len(data) + 1, multipart_chunksize=part or len(data) + 1)
    extra = {"ChecksumAlgorithm": checksum} if checksum else {}
    bucket.client.upload_fileobj(io.BytesIO(data), bucket.name, "a", Config=transfer, ExtraArgs=extra)


@pytest.mark.parametrize(("checksum", "name"), [("CRC32", "CRC-32"), ("SHA256", "MD5"), (None, "MD5")])
@pytest.mark.parametrize("part", [None, 5 << 20, 6 << 20])
def test_a_download_that_arrives_damaged_is_found_by_its_checksum(
    bucket: Bucket, tmp_path: Path, monkeypatch, part: int | None, checksum: str | None, name: str
):
    data = random.Random(1).randbytes(17 << 20)
    upload(bucket, data, part, checksum)
    head = bucket.client.head_object(Bucket=bucket.name, Key="a", ChecksumMode="ENABLED")
    assert ("-" in head["ETag"], "ChecksumCRC32" in head) == (part is not None, checksum == "CRC32")
    used: list[str] = []
    update = store_s3.Check.update
    monkeypatch.setattr(store_s3.Check, "update", lambda self, data: used.append(self.name) or update(self, data))
    bucket.storage().download(f"{bucket.uri}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == data
    assert set(used) == {name}
    read = S3.read
    monkeypatch.setattr(S3, "read", lambda *args: read(*args)[:-1] + b"x")
    with pytest.raises(StorageUnreachable, match=r"/a arrived damaged: its MD5 is .*; fetch it again"):
        bucket.storage().download(f"{bucket.uri}/a", tmp_path / "b")
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("kind", [None, "COMPOSITE", "FULL_OBJECT"])
@pytest.mark.parametrize("said", ["of the parts", "of the whole", "of the parts, with their number", "nonsense"])
def test_a_checksum_is_held_against_the_etag_before_it_is_believed(
    bucket: Bucket, tmp_path: Path, monkeypatch, said: str, kind: str | None
):
    data = random.Random(2).randbytes(17 << 20)
    upload(bucket, data, 6 << 20, "CRC32")
    head = S3._head

    def other(self: S3, *args: object, **more: object):
        answer = dict(head(self, *args, **more) or {})
        if "ChecksumCRC32" in answer:
            whole = base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
            parts = answer["ChecksumCRC32"]
            answer["ChecksumCRC32"] = {"of the parts": parts, "of the whole": whole, "nonsense": "?"}.get(
                said, f"{parts}-3"
            )
            answer |= {"ChecksumType": kind} if kind else {}
        return answer

    monkeypatch.setattr(S3, "_head", other)
    bucket.storage().download(f"{bucket.uri}/a", tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == data


def test_what_is_encrypted_with_a_key_of_one_s_own_is_checked_where_the_storage_has_a_checksum(
    bucket: Bucket, tmp_path: Path, monkeypatch
):
    upload(bucket, b"data", None, "CRC32")
    head = S3._head
    encrypted = {"ServerSideEncryption": "aws:kms", "ETag": '"0123456789abcdef0123456789abcdef"'}
    monkeypatch.setattr(S3, "_head", lambda *args, **more: (head(*args, **more) or {}) | encrypted)
    read = S3.read
    monkeypatch.setattr(S3, "read", lambda self, at, start, length, etag: read(self, at, start, length, None))
    bucket.storage().download(f"{bucket.uri}/a", tmp_path / "a")
    monkeypatch.setattr(S3, "read", lambda *args: b"date")
    with pytest.raises(StorageUnreachable, match=r"/a arrived damaged: its CRC-32 is .*; fetch it again"):
        bucket.storage().download(f"{bucket.uri}/a", tmp_path / "b")


def test_a_large_upload_in_parts_arrives_whole(bucket: Bucket, tmp_path: Path):
    data = os.urandom(2 * store_s3.PART + 77)
    (tmp_path / "big").write_bytes(data)
    bucket.storage().upload(tmp_path / "big", f"{bucket.uri}/big")
    assert bucket.storage().get_bytes(f"{bucket.uri}/big") == data


def test_34_an_object_that_changed_meanwhile_is_an_error_and_leaves_no_file(place: tuple[Storage, str], tmp_path: Path):
    storage, root = place
    storage.put_bytes(f"{root}/data.zip", b"first")
    stat = storage.head(f"{root}/data.zip")
    assert stat is not None
    storage.put_bytes(f"{root}/data.zip", b"second version")
    with pytest.raises(BadData, match=r"data\.zip changed while it was read") as caught:
        storage.download(f"{root}/data.zip", tmp_path / "x" / "data.zip", etag=stat.etag)
    assert caught.value.reason == "DatasetChanged"
    assert not list(tmp_path.glob("x/*"))


def test_a_missing_object_is_refused_by_name(place: tuple[Storage, str]):
    storage, root = place
    with pytest.raises(StorageRefused, match=r"none\.zip does not exist; check the address"):
        storage.get_bytes(f"{root}/none.zip")


def test_a_missing_bucket_is_told_from_a_missing_object(bucket: Bucket):
    for call in (bucket.storage().get_bytes, bucket.storage().head, bucket.storage().list):
        with pytest.raises(
            StorageRefused, match=r"s3://no-such-bucket-xyz/.*: there is no bucket 'no-such-bucket-xyz'"
        ):
            call("s3://no-such-bucket-xyz/data.zip")
    with pytest.raises(StorageRefused, match="no bucket"):
        bucket.storage().put_bytes("s3://no-such-bucket-xyz/data.zip", b"")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"AWS_SECRET_ACCESS_KEY": "wrong"},
            "the secret key does not match the access key; check AWS_SECRET_ACCESS_KEY",
        ),
        ({"AWS_ACCESS_KEY_ID": "AKIAUNKNOWNUNKNOWN00"}, "the access key is not known there; check AWS_ACCESS_KEY_ID"),
    ],
)
def test_wrong_credentials_are_refused_with_what_to_check(bucket: Bucket, change: dict[str, str], said: str):
    bucket.put("data.zip", b"x")
    with pytest.raises(StorageRefused) as caught:
        bucket.storage(**change).get_bytes(f"{bucket.uri}/data.zip")
    assert said in str(caught.value)
    assert f"{bucket.uri}/data.zip" in str(caught.value)
    assert "the test's Secret" in str(caught.value)
    assert bucket.keys.secret_access_key not in str(caught.value)


def test_wrong_credentials_are_refused_where_the_answer_has_no_body(bucket: Bucket):
    with pytest.raises(StorageRefused, match="access was denied; check the keys"):
        bucket.storage(AWS_SECRET_ACCESS_KEY="wrong").head(f"{bucket.uri}/data.zip")


def test_a_secret_with_half_of_the_keys_is_refused(tmp_path: Path):
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "AWS_ACCESS_KEY_ID").write_text("AKIA")
    with pytest.raises(
        StorageRefused, match="needs both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; it has AWS_ACCESS_KEY_ID"
    ):
        Storage.open(tmp_path, "dataset").head("s3://bucket/x")


def test_credentials_come_from_the_roles_folder_else_the_services(bucket: Bucket, tmp_path: Path):
    uri = bucket.put("x", b"here")
    for role in ("service", "output"):
        (tmp_path / role).mkdir()
        for name, text in bucket.environment.items():
            # A line break at the end is what `echo` leaves in a Secret.
            (tmp_path / role / name).write_text(f"{text}\n")
    (tmp_path / "output" / "AWS_SECRET_ACCESS_KEY").write_text("wrong")
    assert Storage.open(tmp_path, "dataset").get_bytes(uri) == b"here"
    with pytest.raises(StorageRefused, match="AWS_SECRET_ACCESS_KEY"):
        Storage.open(tmp_path, "output").get_bytes(uri)


def test_an_unreachable_storage_is_said_after_retries(tmp_path: Path):
    keys = {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}",
    }
    with pytest.raises(StorageUnreachable, match=r"s3://b-1/x: storage did not answer for 1 s .*AWS_ENDPOINT_URL"):
        Storage(keys, patience=1).get_bytes("s3://b-1/x")


def test_retries_stop_when_the_flag_is_set():
    keys = {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}",
    }
    looks = iter(range(1000))
    with pytest.raises(Interrupted):
        Storage(keys, patience=300, stop=lambda: next(looks) > 3).get_bytes("s3://b-1/x")


@pytest.fixture
def flaky() -> Iterator[tuple[str, list[int]]]:
    """A server that answers with the given status codes, one after the other, then 200. Endpoint and the codes left."""
    codes: list[int] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status = codes.pop(0) if codes else 200
            body = b"payload" if status == 200 else b"<Error><Code>SlowDown</Code><Message>later</Message></Error>"
            self.send_response(status)
            # -1: the connection ends in the middle of the body.
            self.send_header("Content-Length", str(len(body) + (100 if status == 206 else 0)))
            self.end_headers()
            self.wfile.write(body)

        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status = codes.pop(0) if codes else 200
            said = b"<Error><Code>XMinioStorageFull</Code><Message>minimum free drive threshold</Message></Error>"
            body = b"" if status == 200 else said
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", codes
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("answers", [[503, 500], [429], [206]])
def test_passing_faults_are_tried_again(flaky: tuple[str, list[int]], answers: list[int]):
    endpoint, codes = flaky
    codes += answers
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_ENDPOINT_URL": endpoint}
    assert Storage(keys, patience=20).get_bytes("s3://b-1/x") == b"payload"
    assert codes == []


def test_a_full_storage_is_waited_for_and_then_said_to_be_full(flaky: tuple[str, list[int]]):
    endpoint, codes = flaky
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_ENDPOINT_URL": endpoint}
    codes += [507]
    Storage(keys, patience=20).put_bytes("s3://b-1/checkpoint", b"weights")  # somebody made room
    assert codes == []
    codes += [507] * 50
    with pytest.raises(
        StorageUnreachable, match=r"checkpoint: the storage is full \(XMinioStorageFull: .*make room"
    ) as error:
        Storage(keys, patience=0.3).put_bytes("s3://b-1/checkpoint", b"weights")
    assert error.value.reason == "StorageFull"


def test_38_a_download_onto_a_full_disk_names_path_and_bytes(tmp_path: Path):
    (tmp_path / "data").write_bytes(bytes(100_000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(DiskFull, match=r"/x/copy cannot be written .*: it needs 100,000 bytes, [0-9,]+ are free"):
            Storage().download((tmp_path / "data").as_uri(), tmp_path / "x" / "copy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "x").iterdir()) == []


@pytest.mark.parametrize("uri", ["data.zip", "http://x/y", "s3:///key", "file://host/x", "s3:bucket"])
def test_what_is_no_address_is_a_bad_spec(uri: str):
    with pytest.raises(BadSpec, match="is no storage address: write s3://bucket/key"):
        parse(uri)


def test_a_zip_on_s3_is_checked_before_it_is_downloaded(bucket: Bucket, tmp_path: Path):
    uri = bucket.put("text.zip", b"no zip at all" * 1000)
    with pytest.raises(BadData, match=r"text\.zip is no zip file but text beginning with 'no zip"):
        fetch([uri], bucket.storage(), tmp_path, max_bytes=1 << 30)
    assert not (tmp_path / "data").exists()


def test_a_zip_on_s3_is_fetched_once_and_found_in_the_cache(bucket: Bucket, tmp_path: Path):
    uri = bucket.put("data.zip", zipped(good(), tmp_path / "local.zip").read_bytes())
    (first,), _ = fetch([uri], bucket.storage(), tmp_path / "cache", max_bytes=1 << 30)
    (kept,) = (tmp_path / "cache" / "data").iterdir()
    before = kept.stat().st_ino
    (again,), _ = fetch([uri], bucket.storage(), tmp_path / "cache", max_bytes=1 << 30)
    assert kept.stat().st_ino == before
    assert first.digest == again.digest
    assert len(again.members()) == 24
    bucket.put("data.zip", zipped(good(13), tmp_path / "local.zip").read_bytes())
    (other,), _ = fetch([uri], bucket.storage(), tmp_path / "cache", max_bytes=1 << 30)
    assert other.digest != first.digest


def test_a_prefix_on_s3_is_read_as_the_same_dataset(bucket: Bucket, tmp_path: Path):
    for name, data in good().items():
        bucket.put(f"sets/one/{name}", data)
    (source,), _ = fetch([f"{bucket.uri}/sets/one/"], bucket.storage(), tmp_path, max_bytes=1 << 30)
    local = load_uri(zipped(good(), tmp_path / "data.zip").as_uri(), tmp_path)
    assert sorted(m.name for m in source.members()) == sorted(m.name for m in local.sources[0].members())
    assert source.read("JPEGImages/img_03.jpg") == good()["JPEGImages/img_03.jpg"]
    with pytest.raises(StorageRefused, match=r"sets/one is a prefix, not an object: write .*sets/one/ with a slash"):
        fetch([f"{bucket.uri}/sets/one"], bucket.storage(), tmp_path, max_bytes=1 << 30)
    with pytest.raises(StorageRefused, match="there is nothing below"):
        fetch([f"{bucket.uri}/sets/two/"], bucket.storage(), tmp_path, max_bytes=1 << 30)


def test_more_than_max_bytes_is_refused_before_the_download(bucket: Bucket, tmp_path: Path):
    uri = bucket.put("data.zip", bytes(5000))
    with pytest.raises(BadData, match=r"the dataset has 10,000 bytes, more than dataset.limits.maxBytes \(9,999\)"):
        fetch([uri, uri], bucket.storage(), tmp_path, max_bytes=9999)


def test_without_credentials_the_machine_is_asked_once_and_the_sentence_says_what_to_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Where nobody answers at the address of the cloud's metadata, each question takes seconds."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    asked = []
    with socket.create_server(("127.0.0.1", 0)) as nobody:

        def count() -> None:
            with suppress(OSError):
                while True:
                    asked.append(nobody.accept()[0])  # and never answered

        threading.Thread(target=count, daemon=True).start()
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}/")
        storage = Storage()
        for _ in range(5):
            with pytest.raises(StorageRefused, match=r"there are no credentials; name a Secret .* dataset\.secretName"):
                storage.head("s3://vision/cells.zip")
    assert 1 <= len(asked) <= 4
