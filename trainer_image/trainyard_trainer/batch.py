"""What the loop gets from `data`: a batch of images with their boxes as dense tensors, and the way back to the original pixels."""

from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

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
    ready: Any = None
    """Event on the device after which its tensors are there; None: they are."""

    def __len__(self) -> int:
        return len(self.records)

    def pinned(self) -> "Batch":
        """The same batch in memory from which copies to a GPU need not wait; images that are on one stay there."""
        return replace(
            self,
            images=self.images if self.images.is_cuda else self.images.pin_memory(),
            boxes=self.boxes.pin_memory(),
            labels=self.labels.pin_memory(),
            difficult=self.difficult.pin_memory(),
            targets=None if self.targets is None else self.targets.pin_memory(),
        )

    def after(self, ready: Any) -> "Batch":
        """A batch whose tensors are being copied on a stream of their own; `to` waits for that on the device, not here."""
        return replace(self, ready=ready)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on a device; asynchronous from pinned memory."""
        if self.ready is not None:
            stream = torch.cuda.current_stream(self.images.device)
            stream.wait_event(self.ready)
            for tensor in (self.images, self.boxes, self.labels, self.difficult, self.targets):
                if tensor is not None:
                    tensor.record_stream(stream)
            return replace(self, ready=None)
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
        parts = min(parts, len(self))
        edges = [len(self) * part // parts for part in range(parts + 1)]
        return [self.part(start, stop) for start, stop in pairwise(edges)]

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
            ready=self.ready,
        )

    def to_original(self, image: int, boxes: Tensor) -> Tensor:
        """Boxes `[n, 4]` of one image, from pixels of the input to pixels of the original; float64 on the CPU."""
        if self.placements is None:
            raise ValueError("an augmented batch has no way back to the original pixels")
        scale, shift = self.placements[image, :2], self.placements[image, 2:]
        return (boxes.detach().cpu().double() - shift.repeat(2)) / scale.repeat(2)
