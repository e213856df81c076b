"""`make bench-catalogue`: training images per second of CPU time on one thread, of every architecture that may train on a CPU.

What `cpu_speed` in the catalogue says. A step is the loop's: loss, backward, AdamW, average; FP32, at the default size, few images.
"""

import argparse
import json
import time
from importlib import import_module

import torch
from trainyard_api.architectures import ARCHITECTURES, Architecture
from trainyard_api.training import Evaluation, Training
from trainyard_trainer.batch import Batch
from trainyard_trainer.optimizer import Average, Optimizer
from trainyard_trainer.task import Wanted

LABELS = tuple(f"label {number}" for number in range(20))
OBJECTS = 6


def main() -> None:
    names = [name for name, entry in ARCHITECTURES.items() if not entry.needs_gpu]
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("architectures", nargs="*", default=names)
    arguments.add_argument("--steps", type=int, default=3)
    wanted = arguments.parse_args()
    torch.set_num_threads(1)
    told = {}
    for name in wanted.architectures:
        told[name] = images_per_second(ARCHITECTURES[name], wanted.steps)
        said = ARCHITECTURES[name].cpu_speed
        print(f"{name:<28}{told[name]:>8.2f} img/s   catalogue {said if said is not None else '-'}", flush=True)
    print(
        json.dumps({"bench": "catalogue", "imagesPerSecond": {name: round(value, 2) for name, value in told.items()}})
    )


def images_per_second(entry: Architecture, steps: int) -> float:
    """The best of some steps, the first not counted."""
    side, images = entry.image_size, 8 if entry.image_size < 300 else 2
    torch.manual_seed(0)
    wanted = Wanted(entry.task, LABELS, (), (side, side), Training(), Evaluation())
    task = import_module(f"trainyard_trainer.{entry.module}").build(entry, wanted)
    task.network.train()
    corner = torch.rand(images, OBJECTS, 2) * side * 0.6
    batch = Batch(
        images=torch.rand(images, 3, side, side).contiguous(memory_format=torch.channels_last),
        boxes=torch.cat((corner, corner + side * (0.05 + 0.3 * torch.rand(images, OBJECTS, 2))), -1),
        labels=torch.randint(0, len(LABELS), (images, OBJECTS)),
        difficult=torch.zeros(images, OBJECTS, dtype=torch.bool),
        counts=(OBJECTS,) * images,
        records=tuple(range(images)),
        targets=torch.eye(len(LABELS))[:images],
    )
    optimizer, average = Optimizer(list(task.network.parameters()), Training()), Average(task.network)
    best = float("inf")
    for number in range(steps + 1):
        begun = time.process_time()
        loss = task.loss(batch)
        loss.total.backward()
        optimizer.step(1e-4, loss.total.detach())
        average.update(0.9)
        if number:
            best = min(best, time.process_time() - begun)
    return images / best


if __name__ == "__main__":
    main()
