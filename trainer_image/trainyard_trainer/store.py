"""Storage: `s3://bucket/key` and `file:///path` behind one object, with retries, integrity checks and errors that say what to check.

    storage = Storage.open("/secrets", "dataset", stop=stop)

Reads look at the stop flag for every file and every part; writes do not (a checkpoint is uploaded after the flag was set): open the
output without one. Whatever storage answers becomes one of two errors: `StorageRefused` (credentials, bucket, object, rights: trying
again does not help) or `StorageUnreachable` (no answer in `patience` seconds of retries).
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import unquote, urlsplit

from trainyard_trainer.errors import BadSpec, Interrupted, StorageRefused, StorageUnreachable
from trainyard_trainer.records import Progress, StopFlag, never, silent

T = TypeVar("T")
A = TypeVar("A")

CREDENTIAL_NAMES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "AWS_CA_BUNDLE",
)
LONGEST_BACKOFF_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Stat:
    """Size in bytes and the storage's own version mark (without quotes)."""

    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class Entry:
    uri: str
    size: int
    etag: str


@dataclass(frozen=True, slots=True)
class Location:
    """A parsed URI. For files, `bucket` is empty and `key` is the absolute path."""

    scheme: str
    bucket: str
    key: str

    @property
    def is_prefix(self) -> bool:
        return self.key == "" or self.key.endswith("/")

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}{'/' if self.scheme == 's3' else ''}{self.key}"


class Transient(Exception):
    """Storage did not answer, or asked to come back later; worth another try."""


class Full(Transient):
    """Storage has no room. Somebody may make some meanwhile."""


class Backend(Protocol):
    """What one kind of storage can do, without retries. Raises `Transient`, or a `TrainerError`."""

    def head(self, at: Location) -> Stat | None: ...
    def read(self, at: Location, start: int, length: int | None, etag: str | None) -> bytes: ...
    def download(self, at: Location, path: Path, etag: str | None, context: Context) -> Stat: ...
    def put(self, at: Location, data: bytes) -> None: ...
    def put_if_absent(self, at: Location, data: bytes) -> bool: ...
    def upload(self, path: Path, at: Location, progress: Progress) -> None: ...
    def list(self, at: Location) -> Iterator[Entry]: ...
    def delete(self, locations: list[Location]) -> None: ...
    def clear_unfinished(self, at: Location) -> None: ...


def parse(uri: str) -> Location:
    """Raises BadSpec for anything but `s3://bucket/...` and `file:///...`."""
    parts = urlsplit(uri, allow_fragments=False)
    query = f"?{parts.query}" if parts.query else ""
    if parts.scheme == "s3" and parts.netloc:
        return Location("s3", parts.netloc, parts.path.lstrip("/") + query)
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/"):
        return Location("file", "", unquote(parts.path))
    raise BadSpec(f"{uri!r} is no storage address: write s3://bucket/key or file:///absolute/path.")


@dataclass(frozen=True)
class Context:
    """What every operation is surrounded by: the stop flag, progress, and how long to keep trying."""

    stop: StopFlag = never
    progress: Progress = silent
    patience: float = 120.0

    def check(self) -> None:
        if self.stop():
            raise Interrupted("asked to stop while reading from storage; the next attempt starts over here.")

    def retry(self, what: str, action: Callable[[], T]) -> T:
        """The action's result; after `patience` seconds of `Transient`, StorageUnreachable."""
        deadline, backoff = time.monotonic() + self.patience, 0.2
        while True:
            self.check()
            try:
                return action()
            except Transient as error:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise self._given_up(what, error) from error
                self._pause(min(left, backoff * random.uniform(0.75, 1.25)))
                backoff = min(2 * backoff, LONGEST_BACKOFF_SECONDS)

    def _given_up(self, what: str, error: Transient) -> StorageUnreachable:
        if isinstance(error, Full):
            return StorageUnreachable(
                f"{what}: the storage is full ({error}); make room there, or raise its quota: the next attempt goes on from"
                " the last checkpoint.",
                reason="StorageFull",
            )
        return StorageUnreachable(
            f"{what}: storage did not answer for {self.patience:.0f} s ({error}); check that it runs and that"
            " AWS_ENDPOINT_URL and the network policy let this pod reach it."
        )

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.check()
            time.sleep(min(left, 0.2))


class Storage:
    """Reads and writes by URI. Made once per set of credentials, shared by threads."""

    def __init__(
        self,
        credentials: Mapping[str, str] | None = None,
        *,
        source: str = "the environment",
        stop: StopFlag = never,
        patience: float = 120.0,
    ) -> None:
        self._credentials = credentials
        self._source = source
        self._context = Context(stop, silent, patience)
        self._backends: dict[str, Backend] = {}

    @classmethod
    def open(cls, secrets_path: str | Path, role: str, *, stop: StopFlag = never, patience: float = 120.0) -> Storage:
        """Credentials of a role (`dataset`, `output`), else those of `service`, else the environment's."""
        for folder in (Path(secrets_path) / role, Path(secrets_path) / "service"):
            found = {name: text for name in CREDENTIAL_NAMES if (text := _secret(folder / name))}
            if found.get("AWS_CA_BUNDLE", "").startswith("-----BEGIN"):
                # The certificates themselves instead of the path of a file with them.
                found["AWS_CA_BUNDLE"] = str(folder / "AWS_CA_BUNDLE")
            if found:
                return cls(found, source=f"the Secret mounted at {folder}", stop=stop, patience=patience)
        return cls(None, stop=stop, patience=patience)

    def with_patience(self, seconds: float) -> Storage:
        """The same storage, trying for so many seconds before it gives up."""
        return Storage(self._credentials, source=self._source, stop=self._context.stop, patience=seconds)

    def head(self, uri: str) -> Stat | None:
        """Size and version mark, or None when nothing is there."""
        return self._do(uri, lambda backend, at: backend.head(at))

    def get_bytes(self, uri: str) -> bytes:
        return self._do(uri, lambda backend, at: backend.read(at, 0, None, None))

    def get_range(self, uri: str, start: int, length: int, etag: str | None = None) -> bytes:
        """`length` bytes from `start` (a negative start counts from the end); with `etag`, BadData when it changed meanwhile."""
        return self._do(uri, lambda backend, at: backend.read(at, start, length, etag))

    def get_many(self, uris: Iterable[str], threads: int = 16) -> Iterator[tuple[str, bytes]]:
        """Contents of many objects, as they arrive, at most `2 * threads` of them in memory."""
        yield from concurrently(self.get_bytes, uris, threads)

    def download(self, uri: str, path: Path, *, etag: str | None = None, progress: Progress = silent) -> Stat:
        """One object into a file, which appears only when it is whole and checked. Raises DiskFull with the bytes needed."""
        context = Context(self._context.stop, progress, self._context.patience)
        at = parse(uri)
        return self._backend(at).download(at, path, etag, context)

    def put_bytes(self, uri: str, data: bytes) -> None:
        """Writes or replaces an object; nobody ever sees a part of it."""
        self._do(uri, lambda backend, at: backend.put(at, data))

    def upload(self, path: Path, uri: str, *, progress: Progress = silent) -> None:
        """A file as one object; nobody ever sees a part of it."""
        self._do(uri, lambda backend, at: backend.upload(path, at, progress))

    def put_if_absent(self, uri: str, data: bytes) -> bool:
        """Whether this call made the object: of any number of writers exactly one gets True."""
        return self._do(uri, lambda backend, at: backend.put_if_absent(at, data))

    def honours_if_absent(self, prefix: str) -> bool:
        """Whether this storage keeps a second writer out; found with a probe object below `prefix`, removed afterwards."""
        probe = f"{prefix.rstrip('/')}/.probe-{os.getpid()}-{time.time_ns():x}"
        try:
            return self.put_if_absent(probe, b"1") and not self.put_if_absent(probe, b"2")
        finally:
            self.delete([probe])

    def list(self, prefix: str) -> list[Entry]:
        """All objects below a prefix, sorted by URI."""

        def entries(backend: Backend, at: Location) -> list[Entry]:
            found = []
            for entry in backend.list(at):
                self._context.check()
                found.append(entry)
            return sorted(found, key=lambda entry: entry.uri)

        return self._do(prefix, entries)

    def delete(self, uris: Iterable[str]) -> None:
        """Deletes objects; those that are not there are no error."""
        groups: dict[str, list[Location]] = {}
        for uri in uris:
            at = parse(uri)
            groups.setdefault(f"{at.scheme}://{at.bucket}", []).append(at)
        for name, locations in groups.items():
            backend = self._backend(locations[0])
            self._context.retry(f"deleting from {name}", lambda b=backend, group=locations: b.delete(group))

    def clear(self, prefix: str) -> None:
        """Deletes all below a prefix, and what a killed writer left there half-written."""
        self.delete(entry.uri for entry in self.list(prefix))
        # Not every policy that grants writing grants the list of unfinished uploads; storages expire them by rule, too.
        with suppress(StorageRefused):
            self._do(prefix, lambda backend, at: backend.clear_unfinished(at))

    def _do(self, uri: str, action: Callable[[Backend, Location], T]) -> T:
        at = parse(uri)
        backend = self._backend(at)
        return self._context.retry(uri, lambda: action(backend, at))

    def _backend(self, at: Location) -> Backend:
        # Two threads may make one each at the same time; the second replaces an equal one.
        if at.scheme not in self._backends:
            if at.scheme == "file":
                from trainyard_trainer.store_file import Files

                self._backends["file"] = Files()
            else:
                from trainyard_trainer.store_s3 import S3

                self._backends["s3"] = S3(self._credentials, self._source)
        return self._backends[at.scheme]


def concurrently(action: Callable[[A], T], arguments: Iterable[A], threads: int) -> Iterator[tuple[A, T]]:
    """Results as they arrive, with at most `2 * threads` under way. The first error ends it, what had not begun is dropped."""
    pool = ThreadPoolExecutor(threads)
    pending: dict[Future[T], A] = {}
    try:
        for argument in arguments:
            pending[pool.submit(action, argument)] = argument
            if len(pending) >= 2 * threads:
                done, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield pending.pop(future), future.result()
        while pending:
            done, _ = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                yield pending.pop(future), future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def missing(uri: object) -> StorageRefused:
    """The error for an object that is not there."""
    return StorageRefused(
        f"{uri} does not exist; check the address (upper and lower case count, a folder ends in /).",
        reason="StorageDenied",
    )


def _secret(path: Path) -> str | None:
    """A file of a mounted Secret. Blanks around it are never meant: `echo key | base64` leaves a line break."""
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except FileNotFoundError:
        return None
    except NotADirectoryError:
        return None
    except OSError as error:
        raise StorageRefused(f"the credentials file {path} cannot be read: {error.strerror}.") from error
