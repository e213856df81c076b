"""Zips and prefixes on S3, looked at without fetching the pictures: names, annotations, and the first bytes of each picture.

A zip takes one ranged read for its directory; what lies close together is read at once. Nothing is written to this machine.
"""

from __future__ import annotations

import hashlib
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from trainyard_trainer.errors import BadData
from trainyard_trainer.records import Progress, silent
from trainyard_trainer.store import Entry, Stat, Storage, concurrently
from trainyard_trainer.voc_image import EXTENSIONS, Look, look
from trainyard_trainer.voc_source import Member, RangedFile, check_name, is_junk, member_name, open_directory

HEAD = 16 << 10
"""Bytes of a picture that are read first: enough for the sizes in all formats, unless a large preview lies before them."""
GAP = 64 << 10
"""What lies between two pieces is read along when it is at most this much: a request costs as much as some 100 KiB."""
PIECE = 4 << 20
THREADS = 16
_LOCAL = struct.Struct("<4s5H3I2H")


@dataclass(frozen=True, slots=True)
class _Piece:
    name: str
    start: int
    length: int


class RemoteZip:
    """A zip of which annotations and lists were read, and the first bytes of pictures; `read` of a picture fetches it."""

    def __init__(
        self, uri: str, stat: Stat, storage: Storage, *, max_bytes: int, max_pixels: int, progress: Progress = silent
    ) -> None:
        self.uri, self.digest = uri, stat.etag
        self._stat, self._storage = stat, storage
        with open_directory(RangedFile(stat.size, self._range), uri, max_bytes=max_bytes) as archive:
            infos = {member_name(info): info for info in archive.infolist() if not info.is_dir()}
        self._infos = {name: info for name, info in infos.items() if not is_junk(name)}
        # A local header says its own length of name and extra field, which may differ from the directory's.
        texts = [self._piece(name, info.compress_size) for name, info in self._infos.items() if not _is_picture(name)]
        pictures = [
            self._piece(name, min(info.compress_size, HEAD)) for name, info in self._infos.items() if _is_picture(name)
        ]
        total = len(texts) + len(pictures)
        self._texts: dict[str, bytes] = {}
        self._looks: dict[str, Look] = {}
        for name, data in self._fetched(texts):
            self._texts[name] = self._unpacked(name, data, None)
            progress(len(self._texts), total)
        for name, data in self._fetched(pictures):
            self._looks[name] = self._look(name, data, max_pixels)
            progress(len(texts) + len(self._looks), total)

    def members(self) -> list[Member]:
        return [Member(name, info.file_size) for name, info in self._infos.items()]

    def read(self, name: str) -> bytes:
        if name not in self._texts:
            ((_, data),) = self._fetched([self._piece(name, self._infos[name].compress_size)])
            return self._unpacked(name, data, None)
        return self._texts[name]

    def look(self, name: str, max_pixels: int) -> Look:
        return self._looks.get(name) or look(self.read(name), max_pixels)

    def _look(self, name: str, data: bytes, max_pixels: int) -> Look:
        info = self._infos[name]
        digest = f"{info.CRC:08x}{info.file_size:x}"
        found = look(self._unpacked(name, data, HEAD), max_pixels, digest)
        whole = info.compress_size <= HEAD
        return found if found.facts is not None or whole else look(self.read(name), max_pixels, digest)

    def _piece(self, name: str, length: int) -> _Piece:
        info = self._infos[name]
        start = info.header_offset
        slack = _LOCAL.size + len(info.orig_filename.encode("utf-8", "surrogateescape")) + len(info.extra) + 64
        return _Piece(name, start, min(slack + length, max(self._stat.size - start, 0)))

    def _fetched(self, pieces: Sequence[_Piece]) -> Iterator[tuple[str, bytes]]:
        """What was asked for, as it arrives, close pieces by one read."""
        for group, data in concurrently(
            lambda g: self._range(g[0].start, _end(g) - g[0].start), grouped(pieces), THREADS
        ):
            for piece in group:
                at = piece.start - group[0].start
                yield piece.name, data[at : at + piece.length]

    def _range(self, start: int, length: int) -> bytes:
        return self._storage.get_range(self.uri, start, length, self._stat.etag) if length > 0 else b""

    def _unpacked(self, name: str, data: bytes, most: int | None) -> bytes:
        """The member's content from its local header on; with `most` only about so many bytes of it."""
        info = self._infos[name]
        try:
            signature, *_, name_length, extra_length = _LOCAL.unpack_from(data)
            if signature != b"PK\3\4":
                raise ValueError("there is no member where the directory says")
            start = _LOCAL.size + name_length + extra_length
            short = start + min(info.compress_size, HEAD if most else info.compress_size) - len(data)
            if short > 0:
                data += self._range(info.header_offset + len(data), short)
            packed = data[start : start + info.compress_size]
            content = _decompressed(info, packed, most)
        except (ValueError, struct.error, zlib.error, OSError, EOFError, NotImplementedError) as error:
            raise BadData(
                f"{name} in {self.uri} cannot be unpacked ({error}); make the zip again and test it with unzip -t."
            ) from error
        if most is None and (len(content) != info.file_size or zlib.crc32(content) != info.CRC):
            raise BadData(f"{name} in {self.uri} is not what the zip's directory promises; make it again.")
        return content


class RemotePrefix:
    """Objects below a prefix, of which annotations were read whole and pictures by their first bytes."""

    def __init__(
        self, uri: str, entries: Sequence[Entry], storage: Storage, *, max_pixels: int, progress: Progress = silent
    ) -> None:
        self.uri, self._storage = uri, storage
        self._entries = {entry.uri.removeprefix(uri): entry for entry in entries}
        for name in self._entries:
            check_name(name, uri)
        listing = "".join(f"{entry.uri}\0{entry.size}\0{entry.etag}\n" for entry in entries)
        self.digest = hashlib.sha256(listing.encode()).hexdigest()
        self._texts: dict[str, bytes] = {}
        self._looks: dict[str, Look] = {}

        def fetch(name: str) -> bytes | Look:
            return self._look(name, max_pixels) if _is_picture(name) else self._whole(name)

        for done, (name, found) in enumerate(concurrently(fetch, self._entries, THREADS), 1):
            if isinstance(found, Look):
                self._looks[name] = found
            else:
                self._texts[name] = found
            progress(done, len(self._entries))

    def members(self) -> list[Member]:
        return [Member(name, entry.size) for name, entry in self._entries.items()]

    def read(self, name: str) -> bytes:
        return self._texts[name] if name in self._texts else self._whole(name)

    def look(self, name: str, max_pixels: int) -> Look:
        return self._looks.get(name) or look(self.read(name), max_pixels)

    def _whole(self, name: str) -> bytes:
        return self._storage.get_bytes(self._entries[name].uri)

    def _look(self, name: str, max_pixels: int) -> Look:
        entry = self._entries[name]
        digest = f"{entry.etag}{entry.size:x}"
        if entry.size <= 2 * HEAD:
            return look(self._whole(name) if entry.size else b"", max_pixels, digest)
        found = look(self._storage.get_range(entry.uri, 0, HEAD), max_pixels, digest)
        return found if found.facts is not None else look(self._whole(name), max_pixels, digest)


def grouped(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    """Pieces that lie close together, in the order of the file; a group spans `PIECE` bytes at most, unless it is one piece."""
    group: list[_Piece] = []
    for piece in sorted(pieces, key=lambda piece: piece.start):
        if group and (piece.start - _end(group) > GAP or piece.start + piece.length - group[0].start > PIECE):
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def _end(group: Sequence[_Piece]) -> int:
    return max(piece.start + piece.length for piece in group)


def _is_picture(name: str) -> bool:
    return ("." + name.rsplit(".", 1)[-1].lower()) in EXTENSIONS


def _decompressed(info: zipfile.ZipInfo, packed: bytes, most: int | None) -> bytes:
    limit = info.file_size + 1 if most is None else min(info.file_size, 4 * most)
    unpack: dict[int, Callable[[], bytes]] = {
        zipfile.ZIP_STORED: lambda: packed[:limit],
        zipfile.ZIP_DEFLATED: lambda: zlib.decompressobj(-15).decompress(packed, limit),
    }
    if info.compress_type not in unpack:
        raise NotImplementedError(f"method {info.compress_type} is not read in pieces; use deflate, or store")
    return unpack[info.compress_type]()
