"""`make bench-dataset`: what reading a dataset costs. Against raw boto3 where it is fetched, against itself without a cap where memory is short.

    check      20,000 objects from a zip on this machine: read, decode, split, look-alikes               <= 6 s
    prefix     the same as single objects on S3: check, and the fetch of a training                      <= 1.2x raw listing and transfer
    transfer   one zip of `--mib` from S3 on loopback, its content verified                              <= 1.2x raw boto3, constant memory
    memory     `--images` pictures of 640 px under a cap of `--cap-mib`: trains, speed                   >= 0.8x of uncapped

The S3 server is moto's, a process of its own. Times are wall time, the best of `--rounds`; on a busy machine only the ratios mean something.
Prints a table and, as its last line, one JSON object.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import boto3
import numpy as np
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from trainyard_api.architectures import Task
from trainyard_api.dataset import Dataset
from trainyard_trainer.fetch import fetch
from trainyard_trainer.store import Storage
from trainyard_trainer.survey import survey
from trainyard_trainer.synth import Kind, draw, label_names
from trainyard_trainer.voc_write import zip_writer

ROOT = Path(__file__).parents[2]
GOALS = {"check": ("<=", 6.0), "prefix": ("<=", 1.2), "transfer": ("<=", 1.2), "memory": (">=", 0.8)}
OBJECTS_PER_IMAGE = 10
DISTINCT = 100
"""Pictures that are drawn; the rest are copies of them with other last bytes, so that no two files are equal."""
TRAIN = "--train-in-this-process"
TURNS = 8
"""In which the steps of the part on memory are taken."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default="check,prefix,transfer,memory")
    parser.add_argument("--objects", type=int, default=20_000)
    parser.add_argument("--mib", type=int, default=2048, help="size of the zip that is transferred")
    parser.add_argument("--images", type=int, default=4000, help="pictures of 640 px for the part on memory")
    parser.add_argument("--cap-mib", type=int, default=1536)
    parser.add_argument("--steps", type=int, default=40, help="training steps that are timed for the part on memory")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(TRAIN, dest="train", metavar="ZIP", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.train:
        trained(Path(given.train), given.steps, given.cap_mib << 20)
        return
    result: dict[str, Any] = {"bench": "dataset"}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts: dict[str, Callable[[], dict[str, Any]]] = {
            "check": lambda: check(folder, given.objects, given.rounds),
            "prefix": lambda: prefix(folder, given.objects, given.rounds),
            "transfer": lambda: transfer(folder, given.mib, given.rounds),
            "memory": lambda: memory(folder, given.images, given.cap_mib, given.steps),
        }
        for part in given.parts.split(","):
            result[part] = parts[part]()
            value, (sign, goal) = result[part]["value"], GOALS[part]
            met = value <= goal if sign == "<=" else value >= goal
            print(f"{part:<10}{value:>8.2f}   goal {sign} {goal}   {'met' if met else 'MISSED'}")
            for key, text in result[part].items():
                if key != "value":
                    print(f"    {key:<28} {text}")
    print(json.dumps(result))


def made(folder: Path, images: int, size: tuple[int, int]) -> Path:
    """A zip of shapes with `OBJECTS_PER_IMAGE` objects an image, about."""
    import io

    path = folder / f"shapes-{images}-{size[0]}.zip"
    if path.exists():
        return path
    names = label_names(Kind.SHAPES, 3)
    drawn = []
    for index in range(min(images, DISTINCT)):
        picture = draw(
            np.random.default_rng([7, index]), names, Kind.SHAPES, size, (OBJECTS_PER_IMAGE, OBJECTS_PER_IMAGE)
        )
        buffer = io.BytesIO()
        picture.image.save(buffer, "JPEG", quality=90)
        drawn.append((buffer.getvalue(), picture.objects))
    with zip_writer(path) as writer:
        for index in range(images):
            data, objects = drawn[index % len(drawn)]
            writer.add(f"img_{index:05d}", ".jpg", data + index.to_bytes(4, "big"), size, objects)
    return path


def check(folder: Path, objects: int, rounds: int) -> dict[str, Any]:
    path = made(folder, objects // OBJECTS_PER_IMAGE, (640, 480))
    spec = Dataset.model_validate({"sources": [{"uri": path.as_uri()}]})
    found = None

    def run() -> None:
        nonlocal found
        found = survey(spec, Task.DETECTION, Storage(), folder / "cache")

    wall, cpu = best(run, rounds)
    assert found is not None
    assert found.problem is None
    counted = sum(len(record.objects) for record in found.dataset.records)
    return {
        "value": round(wall, 2),
        "objects": counted,
        "images": len(found.dataset.records),
        "cpuSeconds": round(cpu, 2),
    }


def prefix(folder: Path, objects: int, rounds: int) -> dict[str, Any]:
    """Raw: all pages of the listing, then every object by `get_object` on 16 threads. Ours: the survey without pictures, and the fetch."""
    path = made(folder, objects // OBJECTS_PER_IMAGE, (640, 480))
    with server() as (client, storage, _):
        client.create_bucket(Bucket="bench")
        with zipfile.ZipFile(path) as archive, ThreadPoolExecutor(8) as pool:
            list(
                pool.map(
                    lambda n: client.put_object(Bucket="bench", Key=f"d/{n}", Body=archive.read(n)), archive.namelist()
                )
            )

        def raw() -> None:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket="bench", Prefix="d/")
            keys = [item["Key"] for page in pages for item in page["Contents"]]
            with ThreadPoolExecutor(16) as pool:
                for _ in pool.map(lambda key: len(client.get_object(Bucket="bench", Key=key)["Body"].read()), keys):
                    pass

        spec = Dataset.model_validate({"sources": [{"uri": "s3://bench/d/"}]})
        caches = iter(range(1000))

        def fetched() -> None:
            fetch(["s3://bench/d/"], storage, folder / f"prefix-{next(caches)}", max_bytes=1 << 40)

        def checked() -> None:
            survey(spec, Task.DETECTION, storage, folder / f"prefix-{next(caches)}", pictures=False)

        times, cpu = interleaved({"raw": raw, "fetch": fetched, "check": checked}, rounds)
    return {
        "value": round(times["check"] / times["raw"], 2),
        "fetchAgainstRaw": round(times["fetch"] / times["raw"], 2),
        "seconds": {name: round(value, 2) for name, value in times.items()},
        "cpuSeconds": cpu,
    }


def transfer(folder: Path, mib: int, rounds: int) -> dict[str, Any]:
    path = folder / "large.zip"
    random = np.random.default_rng(0)
    with zipfile.ZipFile(path, "w") as archive:
        for index in range(mib):
            archive.writestr(f"JPEGImages/{index}.jpg", random.bytes(1 << 20))
        archive.writestr("Annotations/0.xml", "<annotation/>")
    size, expected = path.stat().st_size, _sha256(path)
    target = folder / "fetched.zip"
    classic = TransferConfig(multipart_chunksize=8 << 20, max_concurrency=8, preferred_transfer_client="classic")
    with server() as (client, storage, _):
        client.create_bucket(Bucket="bench")
        # As boto3 uploads today, a CRC-32 with every part, and with nothing that we know but the ETag's MD5.
        upload = TransferConfig(multipart_chunksize=64 << 20)
        client.upload_file(str(path), "bench", "large.zip", Config=upload)
        client.upload_file(str(path), "bench", "md5.zip", Config=upload, ExtraArgs={"ChecksumAlgorithm": "SHA256"})
        path.unlink()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        times, cpu = interleaved(
            {
                "ours": lambda: storage.download("s3://bench/large.zip", target),
                "ours, by MD5": lambda: storage.download("s3://bench/md5.zip", target),
                "raw": lambda: client.download_file("bench", "large.zip", str(target), Config=classic),
            },
            rounds,
        )
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        storage.download("s3://bench/large.zip", target)
        assert _sha256(target) == expected, "what arrived is not what was sent"
    target.unlink()
    rate = {name: f"{size / value / 1e6:.0f} MB/s" for name, value in times.items()}
    return {
        "value": round(times["ours"] / times["raw"], 2),
        "by MD5": round(times["ours, by MD5"] / times["raw"], 2),
        "mib": mib,
        "rate": rate,
        "cpuSeconds": cpu,
        "bothGrewByMiB": grown // 1024,
    }


def memory(folder: Path, images: int, cap_mib: int, steps: int) -> dict[str, Any]:
    """Two processes train on the same data in turns, one of them under a cap; each says how fast and where its pixels lay.

    Capped is what a cgroup cannot take back: anonymous and shared memory, looked at every 20 ms; above the cap the process is killed. Pages
    of files, the pixel cache among them, are the kernel's to drop.
    """
    path = made(folder, images, (640, 480))
    caps = {"uncapped": 0, "capped": cap_mib}
    runs = {name: Training(path, steps, cap, folder / f"{name}.err") for name, cap in caps.items()}
    for _ in range(TURNS):
        for run in runs.values():
            run.turn()
    told = {name: run.end() for name, run in runs.items()}
    ratio = told["capped"]["imagesPerCPUSecond"] / told["uncapped"]["imagesPerCPUSecond"]
    return {"value": round(ratio, 2), "images": images, "capMiB": cap_mib, **told}


class Training:
    """A process that trains, a turn at a time, so that what else the machine does falls on both alike."""

    def __init__(self, path: Path, steps: int, cap_mib: int, errors: Path) -> None:
        command = [sys.executable, __file__, TRAIN, str(path), "--steps", str(steps), "--cap-mib", str(cap_mib)]
        self._errors, self._peak = errors, 0
        with errors.open("w") as file:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True
            )
        self._watch = threading.Thread(target=self._watched, args=(cap_mib << 20,))
        self._watch.start()
        self._said()

    def turn(self) -> None:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
        self._said()

    def end(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.close()
        said = json.loads(self._said())
        self._watch.join()
        return {**said, "peakMiB": self._peak >> 20}

    def _said(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait(60)
            raise SystemExit(
                f"a training ended with {code} at {self._peak >> 20} MiB: {self._errors.read_text()[-2000:]}"
            )
        return line

    def _watched(self, cap: int) -> None:
        self._peak = watched(self._process, cap)


def watched(process: subprocess.Popen[str], cap: int) -> int:
    """The most memory that a process had, in bytes; above `cap` (0: none) it is killed."""
    peak = 0
    while process.poll() is None:
        with suppress(OSError, KeyError, ValueError):
            lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
            status = dict(line.split(":", 1) for line in lines)
            now = sum(int(status[key].split()[0]) << 10 for key in ("RssAnon", "RssShmem"))
            peak = max(peak, now)
            if cap and now > cap:
                process.kill()
        time.sleep(0.02)
    return peak


def trained(path: Path, steps: int, cap: int) -> None:
    """Steps of yard-nano as the loop takes them, default augmentation: batch, forward, backward, optimizer, average. As many of
    `steps` as one turn has for each line of the input, which a line answers; the last one has the result."""
    import torch
    from trainyard_api.training import Augmentation
    from trainyard_api.training import Training as Settings
    from trainyard_trainer.data import TrainBatches
    from trainyard_trainer.detector import Detector
    from trainyard_trainer.device import cpu_has_bf16
    from trainyard_trainer.optimizer import Average, Optimizer
    from trainyard_trainer.pixels import MEMORY_SHARE
    from trainyard_trainer.prepare import prepare

    torch.set_num_threads(1)
    torch.manual_seed(0)
    spec, side, size = Dataset.model_validate({"sources": [{"uri": path.as_uri()}]}), (320, 320), 8
    with tempfile.TemporaryDirectory() as cache:
        begun = time.process_time()
        # The share that `prepare` takes of a cgroup's limit by itself.
        budget = int(cap * MEMORY_SHARE) if cap else None
        prepared = prepare(spec, Task.DETECTION, Storage(), Path(cache), image_size=side, memory=budget)
        reading = time.process_time() - begun
        batches = TrainBatches(prepared, size=side, batch_size=size, augmentation=Augmentation())
        detector = Detector.build("yard-nano", len(prepared.dataset.labels))
        optimizer, average = Optimizer(list(detector.network.parameters()), Settings()), Average(detector.network)

        def step(number: int) -> None:
            batch = batches.batch(number, 10_000)
            with torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bf16()):
                loss = detector.loss(batch)
            loss.total.backward()
            optimizer.step(1e-3, loss.total.detach())
            average.update(0.99)
            assert torch.isfinite(loss.total)

        step(0)
        step(1)
        print("ready", flush=True)
        taken, seconds, each = 2, 0.0, max(1, steps // TURNS)
        for _ in sys.stdin:
            begun = time.process_time()
            for _ in range(each):
                step(taken)
                taken += 1
            seconds += time.process_time() - begun
            print("taken", flush=True)
    told = {
        "imagesPerCPUSecond": round((taken - 2) * size / seconds, 2),
        "pixels": prepared.pixels.place,
        "pixelMiB": prepared.pixels.pixels.nbytes >> 20,
        "readingCPUSeconds": round(reading, 1),
    }
    print(json.dumps(told), flush=True)


def best(run: Callable[[], None], rounds: int) -> tuple[float, float]:
    """Wall and CPU seconds of the quickest round."""
    found = []
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        found.append((time.perf_counter() - wall, time.process_time() - cpu))
    return min(found)


def interleaved(runs: dict[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, float], dict[str, float]]:
    """The best wall time of each, and the least CPU time of this process, in turns so that other work on the machine falls on all alike."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            found[name].append(best(run, 1))
    walls = {name: min(wall for wall, _ in times) for name, times in found.items()}
    return walls, {name: round(min(cpu for _, cpu in times), 2) for name, times in found.items()}


@contextmanager
def server() -> Iterator[tuple[Any, Storage, dict[str, str]]]:
    """A client of boto3's own and ours, for a fresh S3 server, and its address and keys as variables of the environment."""
    from devcluster.access import free_port
    from devcluster.s3 import S3Credentials

    port, keys = free_port(), S3Credentials.made_up()
    with tempfile.TemporaryDirectory() as folder:
        keys.write(Path(folder) / "keys.json")
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "devcluster.s3", "--address", "127.0.0.1", "--port", str(port)),
                *("--credentials", f"{folder}/keys.json"),
            ],
            cwd=ROOT,
        )
        try:
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            endpoint = f"http://127.0.0.1:{port}"
            client = boto3.client(
                "s3",
                endpoint_url=endpoint,
                aws_access_key_id=keys.access_key_id,
                aws_secret_access_key=keys.secret_access_key,
                region_name="us-east-1",
                config=Config(s3={"addressing_style": "path"}, max_pool_connections=32),
            )
            names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL")
            known: dict[str, str] = dict(
                zip(names, (keys.access_key_id, keys.secret_access_key, endpoint), strict=True)
            )
            yield client, Storage(known, source="the bench"), known
        finally:
            process.terminate()
            process.wait(10)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    main()
