"""Torchvision's reference recipe for SSDLite (`references/detection`), from scratch, for so many CPU-minutes on one thread.

Batches of 24, SGD with momentum 0.9 and weight decay 4e-5, its rate of 0.15 for eight such batches scaled to one, a cosine to zero,
1000 steps of warm-up but no longer than the first epoch, random IoU crops and flips. Whatever there is to choose is chosen in its favour:
pictures are decoded and made smaller beforehand, nothing is evaluated on the way, and of the time only the steps count.

    python bench/trainer/recipe.py data.zip --minutes 4 --seed 0

The last line is one JSON object with the scores on validation and test together, of the same split as the trainer's.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.models.detection import ssdlite320_mobilenet_v3_large
from torchvision.transforms import v2
from trainyard_api.architectures import Task
from trainyard_api.dataset import Dataset
from trainyard_trainer.metrics import BoxScores, Detections, box_scores, truth_of
from trainyard_trainer.prepare import Prepared, prepare
from trainyard_trainer.records import Side
from trainyard_trainer.store import Storage

SIZE, BATCH = 320, 24
RATE = 0.15 * BATCH / (8 * 24)
WARM_UP_STEPS, WARM_UP_FACTOR = 1000, 1e-3

Sample = tuple[torch.Tensor, dict[str, torch.Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    with tempfile.TemporaryDirectory() as cache:
        spec = Dataset.model_validate(
            {"sources": [{"uri": given.data.resolve().as_uri()}], "split": {"seed": given.seed}}
        )
        prepared = prepare(spec, Task.DETECTION, Storage(), Path(cache), image_size=(SIZE, SIZE))
        model = ssdlite320_mobilenet_v3_large(
            weights=None, weights_backbone=None, num_classes=len(prepared.dataset.labels) + 1
        )
        used, steps = train(model, prepared, 60 * given.minutes)
        scores = score(model, prepared)
    told = {"mAP50": scores.map50, "mAP50_95": scores.map50_95, "cpuMinutes": used / 60, "steps": steps}
    print(json.dumps(told))


def train(model: torch.nn.Module, prepared: Prepared, seconds: float) -> tuple[float, int]:
    """Train for `seconds` of CPU time; what was used, and the steps. Raises ArithmeticError where the loss is not finite."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE, momentum=0.9, weight_decay=4e-5)
    batches = endless(prepared)
    warm_up = min(WARM_UP_STEPS, math.ceil(len(prepared.of(Side.TRAIN)) / BATCH))
    model.train()
    began, step = time.process_time(), 0
    while (used := time.process_time() - began) < seconds:
        warm = min(1.0, WARM_UP_FACTOR + (1 - WARM_UP_FACTOR) * step / warm_up)
        # How far the cosine has come follows from the time: the number of steps is known only at the end.
        optimizer.param_groups[0]["lr"] = RATE * warm * (1 + math.cos(math.pi * used / seconds)) / 2
        images, targets = zip(*next(batches), strict=True)
        loss = torch.stack(list(model(list(images), list(targets)).values())).sum()
        if not torch.isfinite(loss):
            raise ArithmeticError(f"the recipe's loss is {loss} after {step} steps")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
    return used, step


def endless(prepared: Prepared) -> Iterator[list[Sample]]:
    """Batches of epochs, each in another order, augmented as the recipe's `ssdlite` preset does."""
    preset = v2.Compose([
        v2.RandomIoUCrop(), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True), v2.SanitizeBoundingBoxes(),
        v2.ToPureTensor(),
    ])  # fmt: skip
    members = prepared.of(Side.TRAIN)
    while True:
        order = torch.randperm(len(members)).tolist()
        for first in range(0, len(order), BATCH):
            yield [preset(*sample(prepared, members[index])) for index in order[first : first + BATCH]]


def sample(prepared: Prepared, index: int) -> Sample:
    """A picture as it lies in the cache, with its boxes in pixels of that."""
    record, pixels = prepared.dataset.records[index], prepared.pixels.image(index)
    truth = truth_of(record, {label: i for i, label in enumerate(prepared.dataset.labels)})
    height, width = pixels.shape[:2]
    boxes = truth.boxes * np.tile((width / record.width, height / record.height), 2)
    corners = torch.from_numpy(boxes).float()
    target = {
        "boxes": tv_tensors.BoundingBoxes(corners, format="XYXY", canvas_size=(height, width)),  # pyright: ignore[reportCallIssue]
        "labels": torch.from_numpy(truth.labels) + 1,
    }
    return tv_tensors.Image(torch.from_numpy(np.array(pixels)).permute(2, 0, 1)), target


@torch.inference_mode()
def score(model: torch.nn.Module, prepared: Prepared) -> BoxScores:
    """By the trainer's own mAP, which is pycocotools' to 1e-6 (`make bench-map`)."""
    model.eval()
    labels = prepared.dataset.labels
    index = {label: i for i, label in enumerate(labels)}
    truths, found = [], []
    for number in (*prepared.of(Side.VALIDATION), *prepared.of(Side.TEST)):
        record = prepared.dataset.records[number]
        image, _ = sample(prepared, number)
        (answer,) = model([image.float() / 255])
        scale = np.tile((record.width / image.shape[2], record.height / image.shape[1]), 2)
        truths.append(truth_of(record, index))
        found.append(
            Detections(
                answer["boxes"].double().numpy() * scale,
                answer["scores"].double().numpy(),
                answer["labels"].numpy() - 1,
            )
        )
    return box_scores(truths, found, len(labels))


if __name__ == "__main__":
    main()
