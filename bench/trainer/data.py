"""`make bench-data`: what one image costs on its way into a batch, on one CPU thread.

Prints a table and, as its last line, one JSON object; with a GPU also what is left to the CPU when that augments. Times are CPU time of
this process, the median over batches, so that other work on the machine disturbs little. Data: TRAINYARD_BCCD or
`../shared/datasets/bccd.zip` when there, else generated shapes.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from trainyard_api.architectures import Task
from trainyard_api.dataset import Dataset
from trainyard_api.training import Augmentation
from trainyard_trainer import voc
from trainyard_trainer.data import EvalBatches, TrainBatches
from trainyard_trainer.fetch import fetch
from trainyard_trainer.pixels import build
from trainyard_trainer.prepare import Prepared, choose_sides
from trainyard_trainer.records import Side
from trainyard_trainer.store import Storage
from trainyard_trainer.synth import write_zip

SIZE, BATCH, BATCHES = (320, 320), 8, 60
GOALS = {"default, mosaic off": 3.0, "default, mosaic on": 4.5}
"""Milliseconds per image at 320 px."""


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        uri = _dataset(Path(folder))
        prepared, costs = _prepare(uri, Path(folder))
    rows = {
        "plain": _batches(prepared, Augmentation.model_validate({"preset": "None"})),
        "default, mosaic off": _batches(prepared, Augmentation(mosaic=0)),
        "default, mosaic on": _batches(prepared, Augmentation(mosaic=100)),
        "default": _batches(prepared, Augmentation()),
        "strong": _batches(prepared, Augmentation.model_validate({"preset": "Strong"})),
    }
    if torch.cuda.is_available():
        rows["default, by a GPU"] = _batches(prepared, Augmentation(), torch.device("cuda"))
    validation = EvalBatches(prepared, Side.TRAIN, size=SIZE, batch_size=BATCH)
    rows["validation"] = _median(lambda i: validation.batch(i % (len(validation) - 1)))
    print(
        f"{uri.rsplit('/', 1)[-1]}: {len(prepared.dataset.records)} images; {platform.processor() or platform.machine()}, 1 thread"
    )
    for name, cost in (costs | rows).items():
        goal = GOALS.get(name)
        print(
            f"  {name:<22} {cost:6.2f} ms/image"
            + (f"   goal {goal} {'met' if cost <= goal else 'MISSED'}" if goal else "")
        )
    result = {name.replace(", ", "_").replace(" ", "_"): round(cost, 3) for name, cost in (costs | rows).items()}
    print(json.dumps({"bench": "data", "unit": "ms/image", "size": SIZE[0], "torch": torch.__version__, **result}))


def _dataset(folder: Path) -> str:
    found = Path(os.environ.get("TRAINYARD_BCCD") or Path(__file__).parents[2] / "../shared/datasets/bccd.zip")
    if found.exists():
        return found.resolve().as_uri()
    write_zip(folder / "shapes.zip", images=200, size=(640, 480))
    return (folder / "shapes.zip").as_uri()


def _prepare(uri: str, folder: Path) -> tuple[Prepared, dict[str, float]]:
    """The data, and what reading and decoding cost."""
    spec = Dataset.model_validate({"sources": [{"uri": uri}]})
    start = time.process_time()
    sources, _ = fetch([uri], Storage(), folder, max_bytes=2 << 30)
    dataset = voc.load(spec, Task.DETECTION, sources)
    read = time.process_time()
    kept, _ = build(dataset, max(SIZE), folder, threads=1)
    decoded = time.process_time()
    count = len(dataset.records)
    prepared = Prepared(dataset, choose_sides(spec, dataset, Storage(), None), kept, ())
    return prepared, {"read and check": 1000 * (read - start) / count, "decode": 1000 * (decoded - read) / count}


def _batches(prepared: Prepared, augmentation: Augmentation, device: torch.device | None = None) -> float:
    source = TrainBatches(prepared, size=SIZE, batch_size=BATCH, augmentation=augmentation, device=device)
    return _median(lambda step: source.batch(step, 10 * BATCHES))


def _median(make: Callable[[int], object]) -> float:
    """CPU milliseconds per image, the first batches aside."""
    costs = []
    for step in range(BATCHES):
        start = time.process_time()
        make(step)
        costs.append(1000 * (time.process_time() - start) / BATCH)
    return median(costs[5:])


if __name__ == "__main__":
    main()
