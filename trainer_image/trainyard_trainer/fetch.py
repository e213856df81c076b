"""A dataset's sources from storage to this machine: zips by parallel ranges into the cache, prefixes into one stored zip there.

A zip's directory is checked before the download. What is in the cache is named by its digest and never fetched twice; `file://` is read
in place.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from trainyard_trainer.cache import kept, make_room, place
from trainyard_trainer.errors import BadData, StorageRefused
from trainyard_trainer.records import Finding, Kind, Progress, StopFlag, never, silent
from trainyard_trainer.remote import RemotePrefix, RemoteZip
from trainyard_trainer.store import Context, Entry, Stat, Storage, missing, parse
from trainyard_trainer.store_file import sha256, whole_file
from trainyard_trainer.voc_source import FolderSource, RangedFile, Source, ZipSource, is_junk, open_directory

MANY_OBJECTS = 1000
_UNITS = {"": 1, "m": Decimal("0.001"), "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15, "E": 10**18}
_UNITS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50, "Ei": 2**60}


@dataclass(frozen=True)
class Plan:
    """One source before it is fetched: what lies there, and how much."""

    uri: str
    size: int
    stat: Stat | None
    entries: tuple[Entry, ...] = ()


def fetch(
    uris: Sequence[str],
    storage: Storage,
    cache: Path,
    *,
    max_bytes: int,
    stop: StopFlag = never,
    progress: Progress = silent,
) -> tuple[list[Source], list[Finding]]:
    """Opens all sources, in order. `progress` counts bytes over all of them.

    Raises StorageRefused, StorageUnreachable, BadData (too large, no zip, changed meanwhile) and DiskFull.
    """
    plans = plan_all(uris, storage, max_bytes)
    total, done = sum(plan.size for plan in plans), 0
    sources: list[Source] = []
    findings: list[Finding] = []
    for plan in plans:
        before = done

        def report(part: int, _: int, before: int = before) -> None:
            progress(before + part, total)

        if parse(plan.uri).scheme == "file":
            sources.append(_local(plan, Context(stop, report), max_bytes))
        elif plan.stat is not None:
            sources.append(_remote_zip(plan, plan.stat, storage, cache, max_bytes, report))
        else:
            sources.append(_remote_prefix(plan, storage, cache, max_bytes, stop, report))
        findings.extend(_many(plan))
        done += plan.size
        progress(done, total)
    return sources, findings


def glance(
    plans: Sequence[Plan], storage: Storage, *, max_bytes: int, max_pixels: int, progress: Progress = silent
) -> tuple[list[Source], list[Finding]]:
    """As `fetch`, without the pictures of what lies on S3: their first bytes only. `progress` counts files of one source after the other.

    Raises what `fetch` raises.
    """
    sources: list[Source] = []
    for plan in plans:
        if parse(plan.uri).scheme == "file":
            sources.append(_local(plan, Context(never, silent), max_bytes))
        elif plan.stat is not None:
            zipped = RemoteZip(
                plan.uri, plan.stat, storage, max_bytes=max_bytes, max_pixels=max_pixels, progress=progress
            )
            sources.append(zipped)
        else:
            sources.append(RemotePrefix(plan.uri, plan.entries, storage, max_pixels=max_pixels, progress=progress))
    return sources, [finding for plan in plans for finding in _many(plan)]


def plan_all(uris: Sequence[str], storage: Storage, max_bytes: int) -> list[Plan]:
    """What lies at the addresses. Raises StorageRefused where there is nothing, BadData where it is too much."""
    plans = [_plan(uri, storage) for uri in uris]
    if (total := sum(plan.size for plan in plans)) > max_bytes:
        raise BadData(
            f"the dataset has {total:,} bytes, more than dataset.limits.maxBytes ({max_bytes:,}); raise it, or use less data.",
            reason="DatasetTooLarge",
        )
    return plans


def quantity(text: str) -> int:
    """Bytes of a Kubernetes quantity: `2Gi`, `500M`, `1024`."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([a-zA-Z]*)", text)
    if match is None or match[2] not in _UNITS:
        raise ValueError(f"{text!r} is no quantity; write 500Mi or 2Gi")
    return int(Decimal(match[1]) * _UNITS[match[2]])


def _plan(uri: str, storage: Storage) -> Plan:
    at = parse(uri)
    if at.scheme == "file" and Path(at.key).is_dir():
        return Plan(uri, 0, None)
    if at.is_prefix:
        entries = tuple(entry for entry in storage.list(uri) if not entry.uri.endswith("/") and not is_junk(entry.uri))
        if not entries:
            raise StorageRefused(f"there is nothing below {uri}; check the address (upper and lower case count).")
        return Plan(uri, sum(entry.size for entry in entries), None, entries)
    stat = storage.head(uri)
    if stat is None:
        if at.scheme == "s3" and storage.list(f"{uri}/"):
            raise StorageRefused(f"{uri} is a prefix, not an object: write {uri}/ with a slash at its end.")
        raise missing(uri)
    return Plan(uri, stat.size, stat)


def _many(plan: Plan) -> list[Finding]:
    if len(plan.entries) <= MANY_OBJECTS or parse(plan.uri).scheme != "s3":
        return []
    message = f"{plan.uri} has {len(plan.entries):,} objects; one zip of them is fetched many times faster"
    return [Finding(Kind.WARNING, "ManyObjects", message)]


def _local(plan: Plan, context: Context, max_bytes: int) -> Source:
    path = Path(parse(plan.uri).key)
    if path.is_dir():
        source = FolderSource(path, plan.uri)
        if (total := sum(member.size for member in source.members())) > max_bytes:
            raise BadData(
                f"{plan.uri} has {total:,} bytes, more than dataset.limits.maxBytes ({max_bytes:,}); raise it.",
                reason="DatasetTooLarge",
            )
        return source
    return ZipSource(path, plan.uri, sha256(path, context), max_bytes=max_bytes)


def _remote_zip(plan: Plan, stat: Stat, storage: Storage, cache: Path, max_bytes: int, report: Progress) -> Source:
    key = _key(plan.uri, stat.etag, str(stat.size))
    path = kept(cache, key)
    if path is None:

        def read(start: int, length: int) -> bytes:
            return storage.get_range(plan.uri, start, length, stat.etag)

        open_directory(RangedFile(stat.size, read), plan.uri, max_bytes=max_bytes).close()
        path = place(cache, key)
        make_room(cache, plan.size)
        storage.download(plan.uri, path, etag=stat.etag, progress=report)
    return ZipSource(path, plan.uri, stat.etag, max_bytes=max_bytes)


def _remote_prefix(
    plan: Plan, storage: Storage, cache: Path, max_bytes: int, stop: StopFlag, report: Progress
) -> Source:
    """All objects as members of one zip, stored as they are: no file is ever named by what storage holds."""
    context = Context(stop, report)
    digest = hashlib.sha256()
    for entry in plan.entries:
        digest.update(f"{entry.uri}\0{entry.size}\0{entry.etag}\n".encode())
    key = digest.hexdigest()[:40]
    path = kept(cache, key)
    if path is None:
        path, done = place(cache, key), 0
        make_room(cache, plan.size)
        with whole_file(path, plan.size) as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
                for uri, data in storage.get_many(entry.uri for entry in plan.entries):
                    context.check()
                    archive.writestr(uri.removeprefix(plan.uri), data)
                    done += len(data)
                    report(done, plan.size)
            file.truncate()
    return ZipSource(path, plan.uri, digest.hexdigest(), max_bytes=max_bytes)


def _key(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]
