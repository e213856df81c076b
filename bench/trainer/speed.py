"""`make bench-train`: training speed of yard-nano against torchvision's SSDLite by its reference recipe, side by side.

Both train on the same kind of batch (8 images of 320 px, a dozen objects each) on one thread, in turns, so that whatever else the
machine does hits both alike. Speed is images per second of CPU time (user + system of this process). SSDLite's step is
torchvision's own (`references/detection/train.py`): SGD 0.15 with momentum 0.9 and weight decay 4e-5, losses summed. Ours is the
loop's step: loss, backward, clipping, AdamW, average. The work on data is measured apart, on generated pictures of 640x480.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from trainyard_api.architectures import Task
from trainyard_api.dataset import Dataset
from trainyard_api.training import Augmentation, Training
from trainyard_trainer.batch import Batch
from trainyard_trainer.box_task import parameter_count
from trainyard_trainer.data import TrainBatches
from trainyard_trainer.detector import Detector
from trainyard_trainer.device import cpu_has_bf16
from trainyard_trainer.optimizer import Average, Optimizer
from trainyard_trainer.prepare import prepare
from trainyard_trainer.store import Storage
from trainyard_trainer.synth import write_zip

SIZE, BATCH, OBJECTS, LABELS = 320, 8, 12, 3


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    rounds = arguments.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bf16 = cpu_has_bf16()
    batch = a_batch()
    ours, parameters = our_step(batch, torch.bfloat16 if bf16 else None)
    theirs, their_parameters = ssdlite_step(batch)
    for step in (ours, theirs):
        step()
    times: dict[str, list[float]] = {"yard-nano": [], "ssdlite320": []}
    for _ in range(rounds):
        times["yard-nano"].append(seconds(ours))
        times["ssdlite320"].append(seconds(theirs))
    data = data_milliseconds()

    speed = {name: BATCH / statistics.median(of) for name, of in times.items()}
    ratio = speed["yard-nano"] / speed["ssdlite320"]
    goal = 4.0 if bf16 else 1.6
    print(
        f"{'model':<12}{'parameters':>12}{'precision':>11}{'img/s':>8}   (1 thread, batch {BATCH}, {SIZE} px, median of {rounds})"
    )
    print(f"{'yard-nano':<12}{parameters:>12,}{'bf16' if bf16 else 'fp32':>11}{speed['yard-nano']:>8.1f}")
    print(f"{'ssdlite320':<12}{their_parameters:>12,}{'fp32':>11}{speed['ssdlite320']:>8.1f}")
    print(f"ratio {ratio:.2f} (goal {goal} on a CPU {'with' if bf16 else 'without'} bf16)")
    print(f"data: {data:.2f} ms per image (goal 3.5)")
    told = {
        "bench": "train", "cpuHasBF16": bf16, "yardNanoImagesPerSecond": round(speed["yard-nano"], 2),
        "ssdliteImagesPerSecond": round(speed["ssdlite320"], 2), "ratio": round(ratio, 3), "ratioGoal": goal,
        "dataMillisecondsPerImage": round(data, 3), "dataGoal": 3.5,
    }  # fmt: skip
    print(json.dumps(told))
    sys.exit(0 if ratio >= goal else 1)


def seconds(step: Callable[[], None]) -> float:
    begun = time.process_time()
    step()
    return time.process_time() - begun


def a_batch() -> Batch:
    """Random pictures with objects of 16 to 112 px."""
    corner = torch.rand(BATCH, OBJECTS, 2) * 200
    sides = 16 + torch.rand(BATCH, OBJECTS, 2) * 96
    return Batch(
        images=torch.rand(BATCH, 3, SIZE, SIZE).contiguous(memory_format=torch.channels_last),
        boxes=torch.cat((corner, corner + sides), -1),
        labels=torch.randint(0, LABELS, (BATCH, OBJECTS)),
        difficult=torch.zeros(BATCH, OBJECTS, dtype=torch.bool),
        counts=(OBJECTS,) * BATCH,
        records=tuple(range(BATCH)),
    )


def our_step(batch: Batch, autocast: torch.dtype | None) -> tuple[Callable[[], None], int]:
    detector = Detector.build("yard-nano", LABELS)
    optimizer, average = Optimizer(list(detector.network.parameters()), Training()), Average(detector.network)

    def step() -> None:
        with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
            loss = detector.loss(batch)
        loss.total.backward()
        optimizer.step(1e-3, loss.total.detach())
        average.update(0.99)

    return step, parameter_count(detector.network)


def ssdlite_step(batch: Batch) -> tuple[Callable[[], None], int]:
    from torchvision.models.detection import ssdlite320_mobilenet_v3_large

    model = ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=LABELS + 1).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.15, momentum=0.9, weight_decay=4e-5)
    images = [image.contiguous() for image in batch.images]
    targets = [{"boxes": boxes, "labels": labels + 1} for boxes, labels in zip(batch.boxes, batch.labels, strict=True)]

    def step() -> None:
        loss = torch.stack(list(model(images, targets).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        # The rate of the recipe's warm-up, or random pictures would soon give no finite loss.
        optimizer.param_groups[0]["lr"] = 1e-3
        optimizer.step()

    return step, parameter_count(model)


def data_milliseconds() -> float:
    """CPU time per augmented image, mosaic in half of them as by default."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "shapes.zip"
        write_zip(path, images=40, size=(640, 480))
        spec = Dataset.model_validate({"sources": [{"uri": path.as_uri()}]})
        prepared = prepare(spec, Task.DETECTION, Storage(), Path(folder) / "cache", image_size=(SIZE, SIZE))
        batches = TrainBatches(prepared, size=(SIZE, SIZE), batch_size=BATCH, augmentation=Augmentation())
        batches.batch(0, 1000)
        taken = [seconds(lambda number=number: void(batches.batch(number, 1000))) for number in range(1, 13)]
    return 1000 * statistics.median(taken) / BATCH


def void(_: object) -> None:
    pass


if __name__ == "__main__":
    main()
