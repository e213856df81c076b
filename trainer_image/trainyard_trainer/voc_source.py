"""Where a dataset's files are read from: a zip, read in place and never extracted, or a folder on this machine.

A zip is checked by its central directory alone (`open_directory`), which for a remote zip takes one ranged read of its tail.
"""

from __future__ import annotations

import io
import os
import stat as stat_bits
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from trainyard_trainer.errors import BadData
from trainyard_trainer.voc_image import Look, look

MAX_MEMBERS = 4_000_000
MAX_RATIO = 200
"""Largest expansion of one member above `RATIO_FLOOR` bytes; annotations in XML reach about 30, plain pictures about 100."""
RATIO_FLOOR = 16 << 20
MAX_EXPANSION = 4
"""Largest expansion of a whole zip, as a multiple of `maxBytes`."""
TAIL = 1 << 20

_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA}
_MAGICS = (
    (b"\x1f\x8b", "gzip data (a .tar.gz?)"),
    (b"7z\xbc\xaf", "a 7z archive"),
    (b"Rar!", "a RAR archive"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89PNG", "a PNG picture"),
    (b"<?xml", "an XML file"),
    (b"BZh", "bzip2 data"),
    (b"\xfd7zXZ", "xz data"),
)


@dataclass(frozen=True, slots=True)
class Member:
    """A file of a source: its name with `/` between folders, and its size in bytes."""

    name: str
    size: int


class Source(Protocol):
    """A dataset's files. `digest` changes when their content does; reads may come from several threads."""

    uri: str
    digest: str

    def members(self) -> list[Member]: ...
    def read(self, name: str) -> bytes: ...
    def look(self, name: str, max_pixels: int) -> Look:
        """What a picture's first bytes say, and its digest."""
        ...


class ZipSource:
    """Members of a zip on this machine. Raises BadData for everything in it that is not safe or not readable."""

    def __init__(self, path: Path, uri: str, digest: str, *, max_bytes: int) -> None:
        self.uri, self.digest = uri, digest
        self._zip = open_directory(path.open("rb"), uri, max_bytes=max_bytes)
        self._infos = {member_name(info): info for info in self._zip.infolist() if not info.is_dir()}

    def members(self) -> list[Member]:
        return [Member(name, info.file_size) for name, info in self._infos.items() if not is_junk(name)]

    def read(self, name: str) -> bytes:
        info = self._infos[name]
        try:
            # A member that claims less than it holds must not fill the memory: read what it claims, and one byte more.
            with self._zip.open(info) as file:
                data = file.read(info.file_size + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError) as error:
            raise BadData(
                f"{name} in {self.uri} cannot be unpacked ({error}); make the zip again and test it with unzip -t."
            ) from error
        if len(data) != info.file_size:
            raise BadData(
                f"{name} in {self.uri} has {len(data)} bytes where the zip promises {info.file_size}; make it again."
            )
        return data

    def look(self, name: str, max_pixels: int) -> Look:
        return look(self.read(name), max_pixels)


class FolderSource:
    """A folder on this machine. Links that lead out of it are not followed."""

    def __init__(self, root: Path, uri: str) -> None:
        self.uri, self._root = uri, root
        self._members = sorted(_walk(root), key=lambda found: found[0].name)
        self.digest = _listing_digest((member.name, member.size, mark) for member, mark in self._members)

    def members(self) -> list[Member]:
        return [member for member, _ in self._members if not is_junk(member.name)]

    def read(self, name: str) -> bytes:
        try:
            return (self._root / name).read_bytes()
        except OSError as error:
            raise BadData(f"{self._root / name} cannot be read: {error.strerror}.") from error

    def look(self, name: str, max_pixels: int) -> Look:
        return look(self.read(name), max_pixels)


def open_directory(file: io.IOBase, uri: str, *, max_bytes: int) -> zipfile.ZipFile:
    """The zip, its central directory checked: names, links, encryption, compression, sizes. Raises BadData."""
    try:
        archive = zipfile.ZipFile(file)  # type: ignore[arg-type]
    except (
        zipfile.BadZipFile,
        ValueError,
        NotImplementedError,
        OverflowError,
        UnicodeDecodeError,
        IndexError,
    ) as error:
        raise BadData(
            f"{uri} is no zip file{_looks_like(file)}: {error}. Zip the folder that holds Annotations and JPEGImages."
        ) from error
    infos = archive.infolist()
    if len(infos) > MAX_MEMBERS:
        raise BadData(
            f"{uri} has {len(infos):,} files; at most {MAX_MEMBERS:,} are read. Split it into several sources."
        )
    total = 0
    for info in infos:
        _check_member(info, uri)
        total += info.file_size
    if total > MAX_EXPANSION * max_bytes:
        raise BadData(
            f"{uri} unpacks to {total:,} bytes, more than {MAX_EXPANSION} times dataset.limits.maxBytes ({max_bytes:,});"
            " raise it if that is meant."
        )
    return archive


def _check_member(info: zipfile.ZipInfo, uri: str) -> None:
    name = member_name(info)
    if info.orig_filename.startswith(("/", "\\")) or (len(name) > 1 and name[1] == ":") or ".." in name.split("/"):
        raise BadData(f"{uri}: the member {name!r} leaves its folder; make the zip with relative names only.")
    check_name(name, uri)
    if stat_bits.S_ISLNK(info.external_attr >> 16):
        raise BadData(f"{uri}: the member {name!r} is a symbolic link; zip the files themselves.")
    if info.flag_bits & 0x1:
        raise BadData(f"{uri}: the member {name!r} is encrypted; make the zip without a password.")
    if info.compress_type not in _METHODS:
        raise BadData(
            f"{uri}: the member {name!r} is compressed by method {info.compress_type}; use deflate, or store."
        )
    if info.file_size > RATIO_FLOOR and info.file_size > MAX_RATIO * max(info.compress_size, 1):
        raise BadData(
            f"{uri}: the member {name!r} unpacks from {info.compress_size:,} to {info.file_size:,} bytes; that is no picture."
        )


def member_name(info: zipfile.ZipInfo) -> str:
    """The member's name; bytes that zipfile took for cp437 though they are UTF-8 are read as UTF-8."""
    name = info.filename
    if not info.flag_bits & 0x800 and not name.isascii():
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")


def check_name(name: str, uri: str) -> None:
    """Raises BadData for a name that would do something to the terminal, log or list it is written to."""
    if any(ord(character) < 32 or 0x7F <= ord(character) < 0xA0 for character in name):
        raise BadData(f"{uri}: the file {name!r} has control characters in its name; rename it.")


def is_junk(name: str) -> bool:
    """Files that operating systems leave behind."""
    parts = name.split("/")
    return "__MACOSX" in parts or parts[-1].startswith("._") or parts[-1] in {".DS_Store", "Thumbs.db", "desktop.ini"}


def _looks_like(file: io.IOBase) -> str:
    try:
        file.seek(0)
        start: bytes = file.read(64)
    except OSError:
        return ""
    for magic, what in _MAGICS:
        if start.startswith(magic):
            return f" but {what}"
    if start[:4] == b"PK\x03\x04":
        return " that is whole (cut off?)"
    if start and all(byte >= 32 or byte in b"\t\r\n" for byte in start):
        return f" but text beginning with {start[:24].decode('utf-8', 'replace').splitlines()[0]!r}"
    return ""


def _walk(root: Path) -> list[tuple[Member, str]]:
    found = []
    for folder, folders, names in os.walk(root):
        folders.sort()
        for name in names:
            path = Path(folder) / name
            if path.is_symlink() and not path.resolve().is_relative_to(root.resolve()):
                raise BadData(f"{path} is a link that leads out of {root}; copy the file itself.")
            stat = path.stat()
            check_name(name, str(root))
            found.append((Member(path.relative_to(root).as_posix(), stat.st_size), f"{stat.st_mtime_ns:x}"))
    return found


def _listing_digest(rows) -> str:
    import hashlib

    digest = hashlib.sha256()
    for name, size, mark in rows:
        digest.update(f"{name}\0{size}\0{mark}\n".encode())
    return digest.hexdigest()


class RangedFile(io.RawIOBase):
    """A remote object as a seekable file: its last MiB is read at once, everything else in pieces of a MiB when asked for."""

    def __init__(self, size: int, read: Callable[[int, int], bytes]) -> None:
        self._size, self._read, self._at = size, read, 0
        self._tail_start = max(0, size - TAIL)
        self._tail = read(self._tail_start, size - self._tail_start) if size else b""

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = max(0, {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence] + offset)
        return self._at

    def read(self, size: int = -1) -> bytes:
        end = self._size if size is None or size < 0 else min(self._size, self._at + size)
        if end <= self._at:
            return b""
        head = b""
        if self._at < self._tail_start:
            head = self._read(self._at, min(end, self._tail_start) - self._at)
        start = max(self._at - self._tail_start, 0)
        data = head + self._tail[start : max(end - self._tail_start, 0)]
        self._at = end
        return data
