"""A training's state on storage: atomic, in the background, and back again.

`checkpoints/<step>.pt` is written first, then `checkpoints/latest.json` names it: whoever reads `latest.json` finds a whole file. An
attempt writes and deletes only below its own prefix. The best weights travel inside each checkpoint, so that the newest is all that
is needed to go on and to publish.
"""

from __future__ import annotations

import hashlib
import json
import platform
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from trainyard_api.run import RunSpec

from trainyard_trainer.errors import BadData, BadSpec, DiskFull, StorageRefused, StorageUnreachable, TrainerError
from trainyard_trainer.store import Storage

FORMAT = 1


@dataclass(frozen=True)
class Saved:
    """A checkpoint on storage, as its `latest.json` names it."""

    step: int
    uri: str
    size: int
    sha256: str


def spec_digest(spec: RunSpec) -> str:
    """Digest of what a resumed training must have in common with the one before: what is trained, on what, how.

    Policies, addresses, Secrets, descriptions and the attempt's number may differ.
    """
    dataset = spec.dataset.to_dict()
    dataset.pop("secretName", None)
    start = spec.start.to_dict()
    what = {
        "architecture": spec.architecture,
        "task": spec.task.value,
        "dataset": dataset,
        "training": spec.training.to_dict(),
        "augmentation": spec.augmentation.to_dict(),
        "start": start,
    }
    return hashlib.sha256(json.dumps(what, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def environment(device: torch.device, processes: int, painted_on: torch.device | None) -> dict[str, Any]:
    """What the arithmetic depends on: the same everywhere means bitwise the same continuation."""
    return {
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "augmented on": painted_on.type if painted_on else "cpu",
    }


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """A sentence when a training goes on under other conditions, else None."""
    changed = [f"{key} {saved.get(key)} → {value}" for key, value in now.items() if saved.get(key) != value]
    if not changed:
        return None
    return (
        f"goes on under other conditions ({', '.join(changed)}): the result is as good, but not bit for bit the same."
    )


def newest(storage: Storage, attempts: Sequence[str]) -> Saved | None:
    """The checkpoint with the highest step in these attempts' folders."""
    found: list[Saved] = []
    for attempt in attempts:
        latest = f"{attempt}checkpoints/latest.json"
        if storage.head(latest) is None:
            continue
        told = json.loads(storage.get_bytes(latest))
        found.append(
            Saved(int(told["step"]), f"{attempt}checkpoints/{told['file']}", int(told["size"]), told["sha256"])
        )
    return max(found, key=lambda saved: saved.step, default=None)


def load(storage: Storage, saved: Saved, folder: Path, spec: str | None, data: str | None) -> dict[str, Any]:
    """The state of a checkpoint, on the CPU.

    `spec` and `data` are the digests of this attempt (None: not compared). Raises BadSpec and BadData when the training or the
    data is another one, StorageRefused when the file is not what `latest.json` says.
    """
    path = folder / f"resume-{saved.step}.pt"
    storage.download(saved.uri, path)
    if sha256_of(path) != saved.sha256:
        raise StorageRefused(f"{saved.uri} is not what its latest.json says (sha256 differs); delete it to start anew.")
    state = torch.load(path, map_location="cpu", weights_only=True)
    path.unlink()
    if state["format"] != FORMAT:
        raise BadSpec(
            f"{saved.uri} has format {state['format']}, this trainer reads {FORMAT}; set rerun to start anew."
        )
    if spec is not None and state["spec"] != spec:
        raise BadSpec(
            f"{saved.uri} is of another training: architecture, dataset, training, augmentation or startFrom was changed since;"
            " raise rerun to start anew."
        )
    if data is not None and state["data"] != data:
        raise BadData(
            f"the dataset has changed since step {saved.step} (digest {state['data'][:12]} → {data[:12]}); put the old data back,"
            " or raise rerun to start anew with the new data.",
            reason="DatasetChanged",
        )
    return state


class Checkpoints:
    """Writes an attempt's checkpoints; uploads run in a thread, one at a time. Without a storage nothing is written: only the first
    of several processes does that.

    `saved` is the last one that is whole on storage. An upload that fails is told by the next call of `failure`, and tried
    again with the next checkpoint.
    """

    def __init__(self, storage: Storage | None, attempt_uri: str, folder: Path) -> None:
        self._storage, self._prefix, self._folder = storage, f"{attempt_uri}checkpoints/", folder
        self._thread: threading.Thread | None = None
        self._error: TrainerError | None = None
        self.saved: Saved | None = None
        self.upload_seconds = 0.0

    @property
    def busy(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def save(self, state: Mapping[str, Any], step: int, *, last: bool = False) -> bool:
        """Writes the state now and uploads it in the background. False when one is still in flight: then this one is skipped, unless
        it is the `last`, which follows it."""
        if self.busy and not last:
            return False
        if self._storage is None:
            return True
        path = self._folder / f"{step}.pt"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            torch.save({"format": FORMAT, **state}, path)
        except (OSError, RuntimeError) as error:
            path.unlink(missing_ok=True)
            raise DiskFull(f"the checkpoint {path} cannot be written: {error}") from error
        arguments = (path, step, self._thread)
        self._thread = threading.Thread(target=self._upload, args=arguments, name="checkpoint", daemon=True)
        self._thread.start()
        return True

    def wait(self, timeout: float | None = None) -> bool:
        """Waits for the upload under way; False when it takes longer than `timeout` seconds."""
        if self._thread is not None:
            self._thread.join(timeout)
        return not self.busy

    def failure(self) -> TrainerError | None:
        """What the last upload failed of, once."""
        error, self._error = self._error, None
        return error

    def _upload(self, path: Path, step: int, before: threading.Thread | None) -> None:
        if before is not None:
            before.join()
        started = time.monotonic()
        assert self._storage is not None
        try:
            saved = Saved(step, f"{self._prefix}{path.name}", path.stat().st_size, sha256_of(path))
            self._storage.upload(path, saved.uri)
            told = {"step": step, "file": path.name, "size": saved.size, "sha256": saved.sha256}
            self._storage.put_bytes(f"{self._prefix}latest.json", json.dumps(told).encode())
            older, self.saved = self.saved, saved
            if older is not None and older.step != step:
                self._storage.delete([older.uri])
            self._error = None
        except TrainerError as error:
            self._error = error
        except Exception as error:  # a thread's error would only be printed
            self._error = StorageUnreachable(f"the checkpoint of step {step} could not be uploaded: {error}")
        finally:
            path.unlink(missing_ok=True)
            self.upload_seconds = time.monotonic() - started


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
