"""The files of a model version, made locally: weights, ONNX graphs with a parity check, labels, metrics, a picture of predictions."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainyard_trainer.detector import Detector, anchor_points, decode

OPSET = 20
BOX_TOLERANCE = 0.05
"""Pixels that a box of the ONNX graph may be off."""
SCORE_TOLERANCE = 1e-3
NMS_SCORE = 0.05
NMS_IOU = 0.6
NMS_BOXES = 300


class RawGraph(nn.Module):
    """What `model.onnx` computes: images `[batch, 3, height, width]` in 0..1 to boxes `[batch, points, 4]`, xyxy in pixels of the
    input, and scores `[batch, points, labels]` in 0..1."""

    def __init__(self, detector: Detector, size: tuple[int, int]) -> None:
        super().__init__()
        self.network = detector.network
        points, strides = anchor_points((size[1], size[0]), "cpu")
        self.register_buffer("points", points)
        self.register_buffer("strides", strides)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, distances = self.network(images)
        assert isinstance(self.points, Tensor)
        assert isinstance(self.strides, Tensor)
        return decode(distances, self.points, self.strides), logits.sigmoid()


def write_weights(detector: Detector, path: Path, metadata: dict[str, str]) -> None:
    """`model.safetensors`: the network's state, with labels and architecture in the header."""
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in detector.network.state_dict().items()}, path, metadata)


def write_onnx(detector: Detector, size: tuple[int, int], folder: Path, images: Tensor) -> tuple[float, float]:
    """`model.onnx` (raw) and `model-nms.onnx`. Returns the largest difference to torch on `images`: boxes in pixels, scores.

    Network and images on the CPU.
    """
    import onnx

    graph = RawGraph(detector, size).eval()
    raw = folder / "model.onnx"
    with _quiet(), torch.no_grad():
        # By tracing: a second instead of half a minute of CPU (docs/decisions/0012-onnx-by-tracing.md).
        torch.onnx.export(
            graph,
            (torch.zeros(2, 3, size[1], size[0]),),
            str(raw),
            dynamo=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["boxes", "scores"],
            dynamic_axes={name: {0: "batch"} for name in ("images", "boxes", "scores")},
        )
    model = onnx.load(str(raw))
    points, _ = anchor_points((size[1], size[0]), "cpu")
    _set_shape(model.graph.output[1], ["batch", len(points), detector.labels])
    onnx.save(model, str(raw))
    onnx.save(with_suppression(model), str(folder / "model-nms.onnx"))
    return parity(graph, raw, images)


def _set_shape(output: Any, shape: Sequence[int | str]) -> None:
    """The tracer does not see that the number of labels is fixed."""
    for dimension, value in zip(output.type.tensor_type.shape.dim, shape, strict=True):
        if isinstance(value, str):
            dimension.dim_param = value
        else:
            dimension.dim_value = value


def parity(graph: nn.Module, path: Path, images: Tensor) -> tuple[float, float]:
    """Largest differences between torch and onnxruntime: boxes in pixels, scores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    boxes, scores = session.run(None, {"images": images.contiguous().numpy()})
    with torch.no_grad():
        expected_boxes, expected_scores = graph(images)
    return (
        float(np.abs(boxes - expected_boxes.numpy()).max()),
        float(np.abs(scores - expected_scores.numpy()).max()),
    )


def with_suppression(model: Any) -> Any:
    """The raw graph with non-maximum suppression behind it: one output, `detections` `[n, 7]` with the columns image, x1, y1, x2,
    y2, score, label; all images of the batch together."""
    from onnx import TensorProto, checker, helper

    graph = model.graph

    def constant(name: str, kind: int, values: Sequence[float]) -> None:
        graph.initializer.append(helper.make_tensor(name, kind, [len(values)], values))

    constant("nms_most", TensorProto.INT64, [NMS_BOXES])
    constant("nms_iou", TensorProto.FLOAT, [NMS_IOU])
    constant("nms_score", TensorProto.FLOAT, [NMS_SCORE])
    constant("nms_image", TensorProto.INT64, [0])
    constant("nms_label", TensorProto.INT64, [1])
    constant("nms_image_box", TensorProto.INT64, [0, 2])
    constant("nms_last", TensorProto.INT64, [1])
    node = helper.make_node
    graph.node.extend(
        [
            node("Transpose", ["scores"], ["nms_scores"], perm=[0, 2, 1]),
            node("NonMaxSuppression", ["boxes", "nms_scores", "nms_most", "nms_iou", "nms_score"], ["nms_chosen"]),
            node("Gather", ["nms_chosen", "nms_image_box"], ["nms_where"], axis=1),
            node("GatherND", ["boxes", "nms_where"], ["nms_boxes"]),
            node("GatherND", ["nms_scores", "nms_chosen"], ["nms_values"]),
            node("Unsqueeze", ["nms_values", "nms_last"], ["nms_column"]),
            node("Gather", ["nms_chosen", "nms_image"], ["nms_images"], axis=1),
            node("Cast", ["nms_images"], ["nms_image_column"], to=TensorProto.FLOAT),
            node("Gather", ["nms_chosen", "nms_label"], ["nms_labels"], axis=1),
            node("Cast", ["nms_labels"], ["nms_label_column"], to=TensorProto.FLOAT),
            node("Concat", ["nms_image_column", "nms_boxes", "nms_column", "nms_label_column"], ["detections"], axis=1),
        ]
    )
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("detections", TensorProto.FLOAT, ["n", 7]))
    checker.check_model(model)
    return model


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def onnx_description(size: tuple[int, int], resize: str, labels: Sequence[str]) -> dict[str, Any]:
    """What a program needs to know to feed the graphs and read their outputs; part of the manifest."""
    return {
        "opset": OPSET,
        "input": {
            "name": "images", "layout": "NCHW", "width": size[0], "height": size[1], "resize": resize, "padValue": 114,
            "channelOrder": "RGB", "range": [0.0, 1.0],
        },
        "model.onnx": {
            "outputs": {"boxes": ["x1", "y1", "x2", "y2"], "scores": list(labels)},
            "unit": "pixels of the input",
        },
        "model-nms.onnx": {
            "outputs": {"detections": ["image", "x1", "y1", "x2", "y2", "score", "label"]},
            "scoreThreshold": NMS_SCORE, "iouThreshold": NMS_IOU, "maxDetectionsPerLabel": NMS_BOXES,
        },
    }  # fmt: skip


@contextmanager
def _quiet() -> Any:
    """The exporter writes pages about its passes."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logger.setLevel(level)
