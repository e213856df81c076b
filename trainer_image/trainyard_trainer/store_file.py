"""`file://` storage with the same promises as S3: writes appear whole, a conditional write has one winner."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from trainyard_trainer.errors import BadData, DiskFull, StorageRefused, StorageUnreachable
from trainyard_trainer.records import Progress
from trainyard_trainer.store import Context, Entry, Location, Stat, missing

CHUNK = 8 << 20
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Files:
    """Objects are files, prefixes are folders."""

    def head(self, at: Location) -> Stat | None:
        try:
            with Path(at.key).open("rb") as file:
                return Stat(os.fstat(file.fileno()).st_size, _mark(os.fstat(file.fileno())))
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        except OSError as error:
            raise _refused(at, error) from error

    def read(self, at: Location, start: int, length: int | None, etag: str | None) -> bytes:
        try:
            with Path(at.key).open("rb") as file:
                _same(at, etag, os.fstat(file.fileno()))
                size = os.fstat(file.fileno()).st_size
                file.seek(max(0, size + start) if start < 0 else start)
                return file.read(-1 if length is None else length)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise missing(at) from error
        except OSError as error:
            raise _refused(at, error) from error

    def download(self, at: Location, path: Path, etag: str | None, context: Context) -> Stat:
        stat = self.head(at)
        if stat is None:
            raise missing(at)
        with Path(at.key).open("rb") as source, whole_file(path, stat.size) as target:
            _same(at, etag, os.fstat(source.fileno()))
            done = 0
            while chunk := source.read(CHUNK):
                context.check()
                target.write(chunk)
                done += len(chunk)
                context.progress(done, stat.size)
        return stat

    def put(self, at: Location, data: bytes) -> None:
        with _writable(at), whole_file(Path(at.key), len(data)) as file:
            file.write(data)

    def put_if_absent(self, at: Location, data: bytes) -> bool:
        path = Path(at.key)
        with _writable(at):
            part = _part(path)
            try:
                with part.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                # A hard link fails when the name is there; a rename would replace it.
                os.link(part, path)
            except FileExistsError:
                return False
            finally:
                part.unlink(missing_ok=True)
        return True

    def upload(self, path: Path, at: Location, progress: Progress) -> None:
        size = path.stat().st_size
        with _writable(at), path.open("rb") as source, whole_file(Path(at.key), size) as target:
            shutil.copyfileobj(source, target, CHUNK)
        progress(size, size)

    def list(self, at: Location) -> Iterator[Entry]:
        root = Path(at.key)
        if not root.is_dir():
            return
        for folder, _, names in os.walk(root):
            for name in names:
                if name.startswith(".") and name.endswith(".part"):
                    continue
                path = Path(folder) / name
                # A file may vanish between the listing and the look at it.
                with suppress(FileNotFoundError):
                    stat = path.stat()
                    yield Entry(f"file://{quote(str(path))}", stat.st_size, _mark(stat))

    def delete(self, locations: list[Location]) -> None:
        for at in locations:
            with _writable(at):
                Path(at.key).unlink(missing_ok=True)

    def clear_unfinished(self, at: Location) -> None:
        with _writable(at):
            for part in Path(at.key).rglob(".*.part"):
                part.unlink(missing_ok=True)


@contextmanager
def whole_file(path: Path, size: int) -> Iterator:
    """A binary file for writing (and reading back) that gets its name when the block ends well. Its space is taken first.

    Raises DiskFull with path, and with the bytes needed where there is no room.
    """
    part: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = _part(path)
        with part.open("x+b") as file:
            if size:
                os.posix_fallocate(file.fileno(), 0, size)
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        if error.errno in FORBIDDEN:
            raise DiskFull(
                f"{path} cannot be written ({error.strerror}); let user {os.getuid()} write there, or name another place."
            ) from error
        if error.errno not in FULL:
            raise
        free = shutil.disk_usage(_existing(path)).free
        raise DiskFull(
            f"{path} cannot be written ({error.strerror}): it needs {size:,} bytes, {free:,} are free on its disk; give the"
            " execution more ephemeral storage or a larger cache."
        ) from error
    finally:
        if part is not None:
            with suppress(OSError):  # on a disk that is read only, where there is none
                part.unlink(missing_ok=True)


def sha256(path: Path, context: Context) -> str:
    """Checksum of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            context.check()
            digest.update(chunk)
    return digest.hexdigest()


def _part(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.with_name(f".{path.name[:100]}.{secrets.token_hex(6)}.part")


def _existing(path: Path) -> Path:
    return next(parent for parent in path.parents if parent.exists())


def _mark(stat: os.stat_result) -> str:
    return f"{stat.st_mtime_ns:x}-{stat.st_size:x}"


def _same(at: Location, etag: str | None, stat: os.stat_result) -> None:
    if etag is not None and _mark(stat) != etag:
        raise BadData(f"{at} changed while it was read; start again when nobody writes to it.", reason="DatasetChanged")


@contextmanager
def _writable(at: Location) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (*FULL, errno.EROFS):
            raise DiskFull(f"{at} cannot be written: {error.strerror}.") from error
        raise _refused(at, error) from error


def _refused(at: Location, error: OSError) -> StorageRefused | StorageUnreachable:
    if error.errno in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT):
        return StorageUnreachable(f"{at} cannot be reached: {error.strerror}.")
    return StorageRefused(f"{at} cannot be used: {error.strerror}; check its path and rights.")
