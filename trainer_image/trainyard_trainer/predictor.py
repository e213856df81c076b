"""A version's ONNX file as a function: pictures in, detections or scores out, in pixels of the picture. onnxruntime, no torch.

What goes in and comes out is what the manifest says (`onnx`), so that this works for any version, also of architectures that this
trainer does not have.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from trainyard_api.dataset import Resize

from trainyard_trainer.augment import fit
from trainyard_trainer.errors import BadSpec
from trainyard_trainer.metrics import Detections, Floats, box_iou

CANDIDATES = 400
LOWEST_SCORE = 0.001


@dataclass(frozen=True)
class Contract:
    """How the graph is fed and read: from the manifest of a version."""

    labels: tuple[str, ...]
    task: str
    size: tuple[int, int]
    resize: Resize
    pad: int
    iou: float
    most: int
    score: float
    """Least score that is shown."""

    @classmethod
    def of(cls, manifest: Mapping[str, Any]) -> Contract:
        """Raises BadSpec for a version without an ONNX file."""
        told = manifest.get("onnx")
        if told is None:
            raise BadSpec(
                f"{manifest.get('name')} has no ONNX file; train it again, or look at the warnings of its job."
            )
        evaluation = manifest.get("evaluation", {})
        source = told["input"]
        return cls(
            labels=tuple(manifest["labels"]),
            task=manifest["task"],
            size=(source["width"], source["height"]),
            resize=Resize(source["resize"]),
            pad=source["padValue"],
            iou=evaluation.get("iouThresholdPercent", 60) / 100,
            most=evaluation.get("maxDetections", 100),
            score=evaluation.get("scoreThresholdPercent", 25) / 100,
        )


class Predictor:
    """An open graph. `__call__` takes RGB pictures `[height, width, 3]` uint8 of any size."""

    def __init__(self, manifest: Mapping[str, Any], model: Path, threads: int = 0) -> None:
        import onnxruntime

        self.name = str(manifest["name"])
        self.contract = Contract.of(manifest)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self._outputs = [output.name for output in self._session.get_outputs()]

    @property
    def finds_boxes(self) -> bool:
        return "boxes" in self._outputs

    def detections(
        self,
        pictures: Sequence[np.ndarray],
        sizes: Sequence[tuple[int, int]] | None = None,
        lowest: float = LOWEST_SCORE,
    ) -> list[Detections]:
        """What is found in each picture, best first, in pixels of (width, height) `sizes` (default: the pictures' own)."""
        c = self.contract
        originals = sizes or [(picture.shape[1], picture.shape[0]) for picture in pictures]
        prepared = [fitted(picture, size, c) for picture, size in zip(pictures, originals, strict=True)]
        boxes, scores = self._run(np.stack([image for image, _ in prepared]))
        found = []
        for i, (_, placement) in enumerate(prepared):
            one = suppressed(boxes[i], scores[i], score=lowest, iou=c.iou, most=c.most)
            scale, shift = np.tile(placement[:2], 2), np.tile(placement[2:], 2)
            found.append(Detections((one.boxes - shift) / scale, one.scores, one.labels))
        return found

    def scores(self, pictures: Sequence[np.ndarray]) -> Floats:
        """`[pictures, labels]`: of an image network."""
        prepared = [fitted(picture, (picture.shape[1], picture.shape[0]), self.contract)[0] for picture in pictures]
        (scores,) = self._run(np.stack(prepared))
        return np.asarray(scores, np.float64)

    def _run(self, images: np.ndarray) -> list[np.ndarray]:
        return [np.asarray(one) for one in self._session.run(self._outputs, {"images": images})]


def fitted(picture: np.ndarray, original: tuple[int, int], contract: Contract) -> tuple[np.ndarray, np.ndarray]:
    """The network's input `[3, height, width]` in 0..1, and (scale x, scale y, shift x, shift y) from pixels of the original to it."""
    width, height = contract.size
    matrix = fit(original, contract.size, contract.resize)
    left, top = round(matrix[0, 2]), round(matrix[1, 2])
    right = max(left + 1, round(matrix[0, 0] * original[0] + matrix[0, 2]))
    bottom = max(top + 1, round(matrix[1, 1] * original[1] + matrix[1, 2]))
    resized = Image.fromarray(np.ascontiguousarray(picture)).resize(
        (right - left, bottom - top), Image.Resampling.BILINEAR
    )
    canvas = Image.new("RGB", (width, height), (contract.pad,) * 3)
    canvas.paste(resized, (left, top))
    image = np.asarray(canvas, np.float32).transpose(2, 0, 1) / 255
    scale = ((right - left) / original[0], (bottom - top) / original[1])
    return np.ascontiguousarray(image), np.array([*scale, left, top], np.float64)


def suppressed(boxes: np.ndarray, scores: np.ndarray, *, score: float, iou: float, most: int) -> Detections:
    """The best boxes of one picture after greedy non-maximum suppression within each label, best first.

    `boxes` `[points, 4]`, `scores` `[points, labels]`; the rules are those by which the version was scored.
    """
    labels = scores.shape[1]
    flat = scores.reshape(-1).astype(np.float64)
    best = np.argsort(-flat, kind="stable")[: min(max(CANDIDATES, most), len(flat))]
    best = best[flat[best] > score]
    where, label = np.divmod(best, labels)
    chosen = boxes[where].astype(np.float64)
    # Other labels are moved out of reach, so that they do not suppress each other.
    apart = chosen + (label * (2 * np.abs(chosen).max(initial=0) + 1))[:, None]
    overlaps = box_iou(apart, apart) > iou
    kept: list[int] = []
    counts = np.zeros(labels, np.int64)
    free = np.ones(len(best), bool)
    for i in range(len(best)):
        if free[i]:
            free &= ~overlaps[i]
            if counts[label[i]] < most:
                counts[label[i]] += 1
                kept.append(i)
    return Detections(chosen[kept], flat[best[kept]], label[kept].astype(np.int64))


def in_batches(items: Sequence[Any], size: int = 8) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
