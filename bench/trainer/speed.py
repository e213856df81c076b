"""`make bench-train`: training speed of yard-nano and of our SSDLite against torchvision's SSDLite by its reference recipe, side by side.

All train on the same kind of batch (8 images of 320 px, a dozen objects each) on one thread, in turns, so that whatever else the
machine does hits all alike. Speed is images per second of CPU time (user + system of this process). SSDLite's step is
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
from importlib import import_module
from pathlib import Path

import torch
from trainyard_api.architectures import ARCHITECTURES, Task
from trainyard_api.dataset import Dataset
from trainyard_api.training import Augmentation, Evaluation, Training
from trainyard_trainer.batch import Batch
from trainyard_trainer.box_task import parameter_count
from trainyard_trainer.data import TrainBatches
from trainyard_trainer.device import cpu_has_bf16
from trainyard_trainer.optimizer import Average, Optimizer
from trainyard_trainer.prepare import prepare
from trainyard_trainer.records import Object, Record
from trainyard_trainer.store import Storage
from trainyard_trainer.synth import write_zip
from trainyard_trainer.task import Wanted

SIZE, BATCH, OBJECTS, LABELS = 320, 8, 12, 3
SSDLITE_GOAL = 1.6


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rounds", type=int, default=5)
    rounds = arguments.parse_args().rounds
    torch.set_num_threads(1)
    torch.manual_seed(0)
    bf16 = cpu_has_bf16()
    batch = a_batch()
    steps = {
        "yard-nano": our_step("yard-nano", batch, torch.bfloat16 if bf16 else None),
        "our ssdlite320": our_step("ssdlite320-mobilenet-v3", batch, None),
        "reference": reference_step(batch),
    }
    for step, _ in steps.values():
        step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, (step, _) in steps.items():
            times[name].append(seconds(step))
    data = data_milliseconds()

    speed = {name: BATCH / statistics.median(of) for name, of in times.items()}
    ratio, ssdlite = (speed[name] / speed["reference"] for name in ("yard-nano", "our ssdlite320"))
    goal = 4.5 if bf16 else 1.8
    print(
        f"{'model':<16}{'parameters':>12}{'precision':>11}{'img/s':>8}   (1 thread, batch {BATCH}, {SIZE} px, median of {rounds})"
    )
    for name, (_, parameters) in steps.items():
        precision = "bf16" if bf16 and name == "yard-nano" else "fp32"
        print(f"{name:<16}{parameters:>12,}{precision:>11}{speed[name]:>8.1f}")
    print(f"yard-nano is {ratio:.2f} times as fast (goal {goal} on a CPU {'with' if bf16 else 'without'} bf16)")
    print(f"our ssdlite320 is {ssdlite:.2f} times as fast (goal {SSDLITE_GOAL})")
    print(f"data: {data:.2f} ms per image (goal 3.5)")
    told = {
        "bench": "train", "cpuHasBF16": bf16, "yardNanoImagesPerSecond": round(speed["yard-nano"], 2),
        "ourSSDLiteImagesPerSecond": round(speed["our ssdlite320"], 2),
        "referenceImagesPerSecond": round(speed["reference"], 2), "ssdliteRatio": round(ssdlite, 3),
        "ssdliteRatioGoal": SSDLITE_GOAL, "ratio": round(ratio, 3), "ratioGoal": goal,
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


def our_step(name: str, batch: Batch, autocast: torch.dtype | None) -> tuple[Callable[[], None], int]:
    """A step of an architecture of the catalogue as the loop takes it."""
    entry = ARCHITECTURES[name]
    objects = tuple(Object("0", tuple(box)) for box in batch.boxes[0].tolist())
    record = Record("a", "a.jpg", None, 0, SIZE, SIZE, "", objects=objects)
    wanted = Wanted(Task.DETECTION, tuple("012"), [record], (SIZE, SIZE), Training(), Evaluation())
    detector = import_module(f"trainyard_trainer.{entry.module}").build(entry, wanted)
    optimizer, average = Optimizer(list(detector.network.parameters()), Training()), Average(detector.network)

    def step() -> None:
        with torch.autocast("cpu", autocast or torch.bfloat16, enabled=autocast is not None):
            loss = detector.loss(batch)
        loss.total.backward()
        optimizer.step(1e-3, loss.total.detach())
        average.update(0.99)

    return step, parameter_count(detector.network)


def reference_step(batch: Batch) -> tuple[Callable[[], None], int]:
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
