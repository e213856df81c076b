"""What the loop gets from `data`: a batch of images with their boxes as dense tensors, and the way back to the original pixels."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """`images` is float32 `[batch, 3, height, width]`, RGB, 0 to 1, channels last in memory.

    `boxes` `[batch, objects, 4]` are xyxy pixels of the input, `labels` `[batch, objects]` int64 indices (-1 where there is no
    object), `difficult` `[batch, objects]` bool; `objects` is the largest count in the batch, at least 1. `counts` are the
    objects of each image without the difficult ones, known on the CPU (no device sync needed). `records` are indices into the
    dataset's records (with mosaic: the anchor image). `placements` is `[batch, 4]` float64 on the CPU, only of batches that are not
    augmented: `input = original * placements[:, :2] + placements[:, 2:]` for x and y.
    `targets` `[batch, labels]` float32, only of batches for image networks: the share of the image that has the label, 0 to 1, or -1
    where that does not count.
    """

    images: Tensor
    boxes: Tensor
    labels: Tensor
    difficult: Tensor
    counts: tuple[int, ...]
    records: tuple[int, ...]
    placements: Tensor | None = None
    targets: Tensor | None = None

    def __len__(self) -> int:
        return len(self.records)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device; asynchronous from pinned memory."""
        return replace(
            self,
            images=self.images.to(device, non_blocking=True),
            boxes=self.boxes.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            difficult=self.difficult.to(device, non_blocking=True),
            targets=None if self.targets is None else self.targets.to(device, non_blocking=True),
        )

    def split(self, parts: int) -> list["Batch"]:
        """The batch in `parts` micro-batches (fewer when it has fewer images), for gradient accumulation."""
        size = -(-len(self) // parts)
        return [self.part(start, min(start + size, len(self))) for start in range(0, len(self), size)]

    def part(self, start: int, stop: int) -> "Batch":
        """Images `start` to `stop`: a micro-batch, or one rank's slice of the global batch."""
        return Batch(
            images=self.images[start:stop],
            boxes=self.boxes[start:stop],
            labels=self.labels[start:stop],
            difficult=self.difficult[start:stop],
            counts=self.counts[start:stop],
            records=self.records[start:stop],
            placements=None if self.placements is None else self.placements[start:stop],
            targets=None if self.targets is None else self.targets[start:stop],
        )

    def to_original(self, image: int, boxes: Tensor) -> Tensor:
        """Boxes `[n, 4]` of one image, from pixels of the input to pixels of the original; float64 on the CPU."""
        if self.placements is None:
            raise ValueError("an augmented batch has no way back to the original pixels")
        scale, shift = self.placements[image, :2], self.placements[image, 2:]
        return (boxes.detach().cpu().double() - shift.repeat(2)) / scale.repeat(2)
