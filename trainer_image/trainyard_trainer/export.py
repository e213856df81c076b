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
from trainyard_api.training import Evaluation

from trainyard_trainer.task import Task

OPSET = 20
TOLERANCE = {"boxes": 0.05, "scores": 1e-3}
"""By how much an output of the ONNX graph may be off: boxes in pixels."""
NMS_SCORE = 0.05
"""What `model-nms.onnx` drops by score, at most: programs choose their own threshold (docs/decisions/0029-thresholds-of-the-graph.md)."""


def write_weights(network: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """`model.safetensors`: the network's state, with labels and architecture in the header."""
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in network.state_dict().items()}, path, metadata)


def write_onnx(
    task: Task, size: tuple[int, int], folder: Path, images: Tensor, evaluation: Evaluation
) -> dict[str, float]:
    """`model.onnx` (raw) and, for a detector, `model-nms.onnx`, which selects boxes as `evaluation` says.

    Returns the largest difference to torch on `images` by output.
    Network and images on the CPU.
    """
    import onnx

    graph = task.raw_graph(size).eval()
    raw = folder / "model.onnx"
    example = torch.zeros(2, 3, size[1], size[0])
    with _quiet(), torch.no_grad():
        # By tracing: a second instead of half a minute of CPU (docs/decisions/0012-onnx-by-tracing.md).
        torch.onnx.export(
            graph,
            (example,),
            str(raw),
            dynamo=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=list(task.outputs),
            dynamic_axes={name: {0: "batch"} for name in ("images", *task.outputs)},
        )
        shapes = [output.shape for output in _tuple(graph(example))]
    model = onnx.load(str(raw))
    for output, shape in zip(model.graph.output, shapes, strict=True):
        _set_shape(output, ["batch", *shape[1:]])
    onnx.save(model, str(raw))
    if "boxes" in task.outputs:
        onnx.save(with_suppression(model, evaluation), str(folder / "model-nms.onnx"))
    return parity(graph, raw, images, task.outputs, task.ordered)


def _tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs


def _set_shape(output: Any, shape: Sequence[int | str]) -> None:
    """The tracer does not see that the number of labels is fixed."""
    for dimension, value in zip(output.type.tensor_type.shape.dim, shape, strict=True):
        if isinstance(value, str):
            dimension.dim_param = value
        else:
            dimension.dim_value = value


def parity(
    graph: nn.Module, path: Path, images: Tensor, outputs: Sequence[str], ordered: bool = True
) -> dict[str, float]:
    """Largest difference between torch and onnxruntime, by output. Without an order, rows are compared with the nearest ones."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found = session.run(list(outputs), {"images": images.contiguous().numpy()})
    with torch.no_grad():
        expected = [output.numpy() for output in _tuple(graph(images))]
    if not ordered:
        found = _in_order_of(found, expected)
    return {name: float(np.abs(one - other).max()) for name, one, other in zip(outputs, found, expected, strict=True)}


def _in_order_of(found: Sequence[Any], expected: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Boxes and scores of `found`: for each row of `expected` the one that differs least in box and scores.

    Rows that nothing would show are taken as equal: which proposals come last in the list depends on the last bit of their scores.
    """
    boxes, scores = (np.asarray(output) for output in found)
    result = [np.empty_like(boxes), np.empty_like(scores)]
    for image in range(len(boxes)):
        off = np.abs(boxes[image][None] - expected[0][image][:, None]).max(2) / TOLERANCE["boxes"]
        off = np.maximum(off, np.abs(scores[image][None] - expected[1][image][:, None]).max(2) / TOLERANCE["scores"])
        nearest = off.argmin(1)
        shown = expected[1][image].max(1, keepdims=True) >= NMS_SCORE
        result[0][image] = np.where(shown, boxes[image][nearest], expected[0][image])
        result[1][image] = np.where(shown, scores[image][nearest], expected[1][image])
    return result


def score_floor(evaluation: Evaluation) -> float:
    """Least score of a box in `model-nms.onnx`: low, and never over the job's own."""
    return min(NMS_SCORE, evaluation.score_threshold_percent / 100)


def with_suppression(model: Any, evaluation: Evaluation) -> Any:
    """The raw graph with non-maximum suppression behind it: one output, `detections` `[n, 7]` with the columns image, x1, y1, x2,
    y2, score, label; all images of the batch together."""
    from onnx import TensorProto, checker, helper

    graph = model.graph

    def constant(name: str, kind: int, values: Sequence[float]) -> None:
        graph.initializer.append(helper.make_tensor(name, kind, [len(values)], values))

    constant("nms_most", TensorProto.INT64, [evaluation.max_detections])
    constant("nms_iou", TensorProto.FLOAT, [evaluation.iou_threshold_percent / 100])
    constant("nms_score", TensorProto.FLOAT, [score_floor(evaluation)])
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


def onnx_description(
    size: tuple[int, int], resize: str, labels: Sequence[str], outputs: Sequence[str], evaluation: Evaluation
) -> dict[str, Any]:
    """What a program needs to know to feed the graphs and read their outputs; part of the manifest."""
    told: dict[str, Any] = {
        "opset": OPSET,
        "input": {
            "name": "images", "layout": "NCHW", "width": size[0], "height": size[1], "resize": resize, "padValue": 114,
            "channelOrder": "RGB", "range": [0.0, 1.0], "exifOrientation": "applied", "transparentValue": 255, "sixteenBits": "highByte",
        },
        "model.onnx": {"outputs": {"scores": list(labels)}},
    }  # fmt: skip
    if "boxes" in outputs:
        told["model.onnx"] = {
            "outputs": {"boxes": ["x1", "y1", "x2", "y2"], "scores": list(labels)},
            "unit": "pixels of the input",
        }
        told["model-nms.onnx"] = {
            "outputs": {"detections": ["image", "x1", "y1", "x2", "y2", "score", "label"]},
            "scoreThreshold": score_floor(evaluation),
            "iouThreshold": evaluation.iou_threshold_percent / 100,
            "maxDetectionsPerLabel": evaluation.max_detections,
        }  # fmt: skip
    return told


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
