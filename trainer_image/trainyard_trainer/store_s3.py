"""S3 by boto3's classic transfer client (the CRT one fails on plain local endpoints), and what its errors mean to a person."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from boto3.session import Session
from botocore import exceptions as errors
from botocore.config import Config
from botocore.loaders import Loader, create_loader
from botocore.session import get_session
from urllib3.exceptions import HTTPError

from trainyard_trainer.errors import BadData, StorageRefused, StorageUnreachable
from trainyard_trainer.records import Progress
from trainyard_trainer.store import Context, Entry, Full, Location, Stat, Transient, concurrently, missing
from trainyard_trainer.store_file import whole_file

PART = 8 << 20
THREADS = 8

_TRANSFER = TransferConfig(
    multipart_threshold=2 * PART, multipart_chunksize=PART, max_concurrency=THREADS, preferred_transfer_client="classic"
)
_TRANSIENT = (
    errors.ConnectionError,
    errors.HTTPClientError,
    errors.IncompleteReadError,
    errors.ResponseStreamingError,
    errors.ReadTimeoutError,
    HTTPError,
    ConnectionError,
    TimeoutError,
)
_LATER = {"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "TooManyRequests", "InternalError"}
_LATER |= {"ServiceUnavailable", "OperationAborted", "ConditionalRequestConflict", "RequestTimeoutException"}
_FULL = {"XMinioStorageFull", "InsufficientCapacity"}
_INSUFFICIENT_STORAGE = 507
_NO_CREDENTIALS = (
    "there are no credentials; name a Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in dataset.secretName,"
    " output.secretName or the service's secretNames."
)
_KEY = "the access key is not known there; check AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL"
_REASONS = {
    "InvalidAccessKeyId": _KEY,
    "InvalidClientTokenId": _KEY,
    "SignatureDoesNotMatch": "the secret key does not match the access key; check AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the session token has expired; renew AWS_SESSION_TOKEN",
    "InvalidToken": "the session token is wrong; check AWS_SESSION_TOKEN",
    "RequestTimeTooSkewed": "this machine's clock differs from the storage's by more than 15 minutes; set it",
    "AuthorizationHeaderMalformed": "the region is another one; set AWS_REGION",
    "PermanentRedirect": "the bucket is in another region; set AWS_REGION",
    "301": "the bucket is in another region; set AWS_REGION",
    "QuotaExceeded": "the storage's quota is used up; make room or raise it",
}


class Hash(Protocol):
    def update(self, data: bytes | memoryview, /) -> None: ...

    def digest(self) -> bytes: ...


class CRC32:
    """As one of hashlib's; four times as fast as MD5."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes | memoryview, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


@dataclass(frozen=True)
class Algorithm:
    name: str
    new: Callable[[], Hash]


_MD5 = Algorithm("MD5", lambda: hashlib.md5(usedforsecurity=False))
_CRC32 = Algorithm("CRC-32", CRC32)


class Check:
    """Whether content that comes piece by piece is what storage says: its digest, or for an upload in parts the digest of the parts'
    digests."""

    def __init__(self, algorithm: Algorithm, expected: str, part: int | None = None) -> None:
        """`expected` is in hexadecimal digits; `part` the size in bytes of every part but the last, None for an object that has one
        digest."""
        self.name, self.expected = algorithm.name, expected
        self._new, self._part, self._room = algorithm.new, part, part or 0
        self._now, self._parts = self._new(), list[bytes]()

    def update(self, data: bytes) -> None:
        if self._part is None:
            self._now.update(data)
            return
        rest = memoryview(data)
        while rest:
            self._now.update(rest[: self._room])
            taken, rest = min(self._room, len(rest)), rest[self._room :]
            self._room -= taken
            if self._room == 0:
                self._close(self._part)

    def found(self) -> str:
        """The digest of what came, comparable with `expected`."""
        if self._part is None:
            return self._now.digest().hex()
        if self._room < self._part:
            self._close(self._part)
        whole = self._new()
        whole.update(b"".join(self._parts))
        return whole.digest().hex()

    def fits(self) -> bool:
        return self.found() == self.expected

    def _close(self, part: int) -> None:
        self._parts.append(self._now.digest())
        self._now, self._room = self._new(), part


class S3:
    """One client for all threads. Every call raises `Transient` or a TrainerError."""

    def __init__(self, credentials: Mapping[str, str] | None, source: str) -> None:
        self._source = source
        known = credentials or {}
        endpoint = known.get("AWS_ENDPOINT_URL") or os.environ.get("AWS_ENDPOINT_URL")
        self._endpoint = _shown(endpoint or "AWS")
        if credentials is not None and not (known.get("AWS_ACCESS_KEY_ID") and known.get("AWS_SECRET_ACCESS_KEY")):
            raise StorageRefused(
                f"{source} needs both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; it has {', '.join(known)}."
            )
        if credentials is None and not _has_ambient_credentials(_aws_environment()):
            raise StorageRefused(_NO_CREDENTIALS)
        core = get_session()
        # The description of S3's calls takes a tenth of a second to read: once a process is enough.
        core.register_component("data_loader", _loader())
        session = Session(
            botocore_session=core,
            aws_access_key_id=known.get("AWS_ACCESS_KEY_ID"),
            aws_secret_access_key=known.get("AWS_SECRET_ACCESS_KEY"),
            aws_session_token=known.get("AWS_SESSION_TOKEN"),
            region_name=known.get("AWS_REGION") or os.environ.get("AWS_REGION") or "us-east-1",
        )
        config = Config(
            # Retries are ours (`Context.retry`): they know the stop flag and the time left.
            retries={"mode": "standard", "total_max_attempts": 1},
            connect_timeout=10,
            read_timeout=60,
            max_pool_connections=32,
            tcp_keepalive=True,
            # Buckets as host names need a DNS wildcard, which only AWS has for sure.
            s3={"addressing_style": "path" if endpoint else "auto"},
            # Other storages than AWS refuse the checksums that newer clients send unasked.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        try:
            self._client: Any = session.client(
                "s3", endpoint_url=endpoint, config=config, verify=known.get("AWS_CA_BUNDLE") or None
            )
        except (ValueError, errors.BotoCoreError) as error:
            raise StorageRefused(f"{source}: {error}; check AWS_ENDPOINT_URL and AWS_REGION.") from error

    def head(self, at: Location) -> Stat | None:
        answer = self._head(at)
        return None if answer is None else Stat(answer["ContentLength"], answer["ETag"].strip('"'))

    def _head(self, at: Location, **more: Any) -> Mapping[str, Any] | None:
        with self._explained(at):
            try:
                return self._client.head_object(Bucket=at.bucket, Key=at.key, **more)
            except errors.ClientError as error:
                if more and _code(error) in ("400", "501"):  # it does not know what more is asked for
                    return self._head(at)
                if _code(error) not in ("404", "NoSuchKey", "NotFound"):
                    raise
                # The answer to HEAD has no body: a missing bucket looks like a missing object.
                self._client.list_objects_v2(Bucket=at.bucket, Prefix=at.key, MaxKeys=1)
                return None

    def read(self, at: Location, start: int, length: int | None, etag: str | None) -> bytes:
        extra: dict[str, str] = {}
        if start < 0:
            extra["Range"] = f"bytes={start}"
        elif length is not None:
            extra["Range"] = f"bytes={start}-{start + length - 1}"
        if etag is not None:
            extra["IfMatch"] = f'"{etag}"'
        with self._explained(at):
            answer = self._client.get_object(Bucket=at.bucket, Key=at.key, **extra)
            data = answer["Body"].read()
        if len(data) != answer["ContentLength"]:
            raise Transient(f"{len(data)} of {answer['ContentLength']} bytes arrived")
        return data if length is None else data[:length]

    def download(self, at: Location, path: Path, etag: str | None, context: Context) -> Stat:
        head = context.retry(str(at), lambda: self._head(at, ChecksumMode="ENABLED"))
        if head is None:
            raise missing(at)
        stat = Stat(head["ContentLength"], head["ETag"].strip('"'))
        etag = etag or stat.etag
        lock, done = threading.Lock(), 0

        with whole_file(path, stat.size) as file:

            def fetch(start: int) -> None:
                nonlocal done
                length = min(PART, stat.size - start)
                data = context.retry(str(at), lambda: self.read(at, start, length, etag))
                os.pwrite(file.fileno(), data, start)
                with lock:
                    done += length
                    context.progress(done, stat.size)

            # What has arrived without a gap is hashed here, while the rest is on its way.
            checks, arrived, hashed = self._checks(at, head), set[int](), 0
            for start, _ in concurrently(fetch, range(0, stat.size, PART), THREADS):
                context.check()
                arrived.add(start)
                while checks and hashed in arrived:
                    checks[0].update(os.pread(file.fileno(), PART, hashed))
                    hashed += PART
            # Not every storage says whether its CRC is of the whole or of the parts: one that differs is not believed alone.
            for check in checks[1:] if checks and not checks[0].fits() else ():
                for start in range(0, stat.size, PART):
                    context.check()
                    check.update(os.pread(file.fileno(), PART, start))
            if checks and not any(check.fits() for check in checks):
                check = checks[-1]
                raise StorageUnreachable(
                    f"{at} arrived damaged: its {check.name} is {check.found()}, storage says {check.expected}; fetch it again."
                )
        return stat

    def put(self, at: Location, data: bytes) -> None:
        with self._explained(at):
            self._client.put_object(Bucket=at.bucket, Key=at.key, Body=data)

    def put_if_absent(self, at: Location, data: bytes) -> bool:
        with self._explained(at):
            try:
                self._client.put_object(Bucket=at.bucket, Key=at.key, Body=data, IfNoneMatch="*")
            except errors.ClientError as error:
                if _code(error) in ("PreconditionFailed", "412"):
                    return False
                raise
        return True

    def upload(self, path: Path, at: Location, progress: Progress) -> None:
        lock, done, size = threading.Lock(), 0, path.stat().st_size

        def count(sent: int) -> None:
            nonlocal done
            with lock:
                done += sent
                progress(done, size)

        with self._explained(at):
            self._client.upload_file(str(path), at.bucket, at.key, Config=_TRANSFER, Callback=count)

    def list(self, at: Location) -> Iterator[Entry]:
        with self._explained(at):
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=at.bucket, Prefix=at.key):
                for item in page.get("Contents", ()):
                    yield Entry(f"s3://{at.bucket}/{item['Key']}", item["Size"], item["ETag"].strip('"'))

    def delete(self, locations: list[Location]) -> None:
        for start in range(0, len(locations), 1000):
            some = locations[start : start + 1000]
            with self._explained(some[0]):
                answer = self._client.delete_objects(
                    Bucket=some[0].bucket, Delete={"Objects": [{"Key": at.key} for at in some], "Quiet": True}
                )
            for failed in answer.get("Errors", ()):
                raise StorageRefused(
                    f"s3://{some[0].bucket}/{failed['Key']} cannot be deleted: {failed.get('Message') or failed.get('Code')}."
                )

    def clear_unfinished(self, at: Location) -> None:
        with self._explained(at):
            pages = self._client.get_paginator("list_multipart_uploads").paginate(Bucket=at.bucket, Prefix=at.key)
            for upload in (upload for page in pages for upload in page.get("Uploads", ())):
                self._client.abort_multipart_upload(Bucket=at.bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    def _checks(self, at: Location, head: Mapping[str, Any]) -> list[Check]:
        """What can be compared with what storage says of the object, the quickest first.

        Its CRC-32, which today's clients store with what they upload, and its ETag, which is an MD5 where the object is not encrypted with
        a key of one's own. Of an upload in parts both are of the parts' digests: not to be told where the parts are unequal.
        """
        etag = re.fullmatch("([0-9a-f]{32})(?:-([0-9]+))?", head["ETag"].strip('"'))
        crc = re.fullmatch("([0-9A-Za-z+/]{6}==)(?:-([0-9]+))?", head.get("ChecksumCRC32", ""))
        parts = int((etag and etag[2]) or (crc and crc[2]) or 0)
        part = self._part_size(at, head["ContentLength"], parts) if parts else None
        checks: list[Check] = []
        in_parts = bool(parts) and head.get("ChecksumType") != "FULL_OBJECT"
        if crc and (part or not in_parts):
            checks.append(Check(_CRC32, base64.b64decode(crc[1]).hex(), part if in_parts else None))
        encrypted = head.get("ServerSideEncryption") not in (None, "AES256") or head.get("SSECustomerAlgorithm")
        if etag and not encrypted and (part or not etag[2]):
            checks.append(Check(_MD5, etag[1], part if etag[2] else None))
        return checks

    def _part_size(self, at: Location, size: int, parts: int) -> int | None:
        """Bytes of each part but the last; None where storage does not know of parts, or they are unequal."""
        try:
            first = self._client.head_object(Bucket=at.bucket, Key=at.key, PartNumber=1)["ContentLength"]
        except (errors.ClientError, errors.BotoCoreError, HTTPError):
            return None
        return first if first and -(-size // first) == parts else None

    @contextmanager
    def _explained(self, at: Location) -> Iterator[None]:
        """Turns what boto3 raises into a sentence with address, cause and what to check."""
        try:
            yield
        except errors.ClientError as error:
            raise self._explain(at, error) from error
        except (errors.NoCredentialsError, errors.PartialCredentialsError) as error:
            raise StorageRefused(f"{at}: {_NO_CREDENTIALS}") from error
        except errors.SSLError as error:
            raise StorageRefused(
                f"{at}: the certificate of {self._endpoint} is not trusted; put its CA into AWS_CA_BUNDLE of {self._source}"
                f" ({error})."
            ) from error
        except _TRANSIENT as error:
            raise Transient(str(error)) from error
        except S3UploadFailedError as error:
            cause = error.__context__
            if isinstance(cause, errors.ClientError):
                raise self._explain(at, cause) from error
            raise Transient(str(error)) from error
        except errors.BotoCoreError as error:
            raise StorageRefused(f"{at}: {error}") from error

    def _explain(self, at: Location, error: errors.ClientError) -> Exception:
        code, status = _code(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        where = f"{at} at {self._endpoint}"
        said = f"{code}: {error.response['Error'].get('Message', '')}"
        if code in _FULL or status == _INSUFFICIENT_STORAGE:
            return Full(said)
        if code in _LATER or status >= 500 or status == 429:
            return Transient(said)
        if code == "NoSuchBucket":
            return StorageRefused(f"{where}: there is no bucket {at.bucket!r}; check the name, or create the bucket.")
        if code in ("NoSuchKey", "404", "NotFound"):
            return missing(at)
        if code in ("PreconditionFailed", "412"):
            return BadData(
                f"{at} changed while it was read; start again when nobody writes to it.", reason="DatasetChanged"
            )
        if code in ("InvalidRange", "416"):
            return BadData(f"{at} is shorter than it was a moment ago, or empty.", reason="DatasetChanged")
        why = _REASONS.get(code)
        if why is None and (status in (401, 403) or code in ("AccessDenied", "Forbidden", "403")):
            why = "access was denied; check the keys, and that they may read (dataset) or write (output) there"
        why = why or f"storage answered {code}: {error.response['Error'].get('Message', '')}"
        return StorageRefused(f"{where}: {why} (credentials from {self._source}).")


@lru_cache(4)
def _has_ambient_credentials(environment: frozenset[tuple[str, str]]) -> bool:
    """Whether environment, files or the machine itself give any. Asked once: a machine whose metadata service does not answer takes
    two seconds for it, and boto3 would ask again at every single call."""
    return get_session().get_credentials() is not None


def _aws_environment() -> frozenset[tuple[str, str]]:
    return frozenset((name, text) for name, text in os.environ.items() if name.startswith("AWS_") or name == "HOME")


def _shown(endpoint: str) -> str:
    """The address as people may read it: without a user's name and password."""
    return re.sub(r"//[^/@]*@", "//", endpoint)


@lru_cache(1)
def _loader() -> Loader:
    return create_loader()


def _code(error: errors.ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
