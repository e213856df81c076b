"""The ONNX graphs say what torch says, for any batch."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from trainyard_api.training import Evaluation
from trainyard_trainer import export
from trainyard_trainer.box_task import select
from trainyard_trainer.detector import Detector

SIZE = (96, 64)
LABELS = 3


@pytest.fixture(scope="module")
def detector() -> Detector:
    """With scores and boxes all over, as after some training."""
    torch.manual_seed(3)
    made = Detector.build("yard-nano", LABELS)
    for level in made.network.head.levels:
        torch.nn.init.normal_(level.classify.weight, std=0.5)
        torch.nn.init.constant_(level.classify.bias, -1.0)
    made.network.eval()
    return made


@pytest.fixture(scope="module")
def folder(detector: Detector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("onnx")
    differences = export.write_onnx(detector, SIZE, made, torch.rand(3, 3, SIZE[1], SIZE[0]), Evaluation())
    assert differences["boxes"] < 1e-3
    assert differences["scores"] < 1e-5
    return made


def session(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("images", [1, 5])
def test_any_number_of_images_goes_in_and_every_shape_is_declared(images: int, folder: Path) -> None:
    graph = session(folder / "model.onnx")
    points = sum(SIZE[0] // stride * (SIZE[1] // stride) for stride in (8, 16, 32))
    boxes, scores = graph.run(None, {"images": np.zeros((images, 3, SIZE[1], SIZE[0]), np.float32)})
    assert np.shape(boxes) == (images, points, 4)
    assert np.shape(scores) == (images, points, LABELS)
    assert [output.shape for output in graph.get_outputs()] == [["batch", points, 4], ["batch", points, LABELS]]


def test_the_graph_has_the_opset_that_the_manifest_names(detector: Detector, folder: Path) -> None:
    model = onnx.load(str(folder / "model.onnx"))
    onnx.checker.check_model(model)
    assert [entry.version for entry in model.opset_import] == [export.OPSET]
    told = export.onnx_description(SIZE, "Letterbox", ["a", "b", "c"], detector.outputs, Evaluation())
    assert told["opset"] == export.OPSET


@pytest.mark.parametrize(
    ("evaluation", "score", "iou", "most"),
    [
        (Evaluation(), 0.05, 0.6, 100),
        (Evaluation(iou_threshold_percent=30, max_detections=4), 0.05, 0.3, 4),
        (Evaluation(score_threshold_percent=2, iou_threshold_percent=95), 0.02, 0.95, 100),
    ],
    ids=["default", "few boxes", "overlapping boxes"],
)
def test_suppression_in_the_graph_keeps_what_the_job_says(
    evaluation: Evaluation, score: float, iou: float, most: int, detector: Detector, folder: Path, tmp_path: Path
) -> None:
    images = torch.rand(2, 3, SIZE[1], SIZE[0], generator=torch.Generator().manual_seed(1))
    onnx.save(export.with_suppression(onnx.load(folder / "model.onnx"), evaluation), tmp_path / "model-nms.onnx")
    (found,) = session(tmp_path / "model-nms.onnx").run(None, {"images": images.numpy()})
    found = np.asarray(found)
    with torch.no_grad():
        boxes, scores = detector.raw_graph(SIZE)(images)
    expected = select(boxes, scores, score=score, iou=iou, most=most, candidates=9999)
    for image, count in enumerate(expected.counts):
        own = found[found[:, 0] == image]
        assert len(own) == count > 10
        order = np.argsort(-own[:, 5], kind="stable")
        np.testing.assert_allclose(own[order, 5], expected.scores[image, :count].numpy(), atol=1e-5)
        np.testing.assert_allclose(own[order, 1:5], expected.boxes[image, :count].numpy(), atol=1e-2)
        assert own[order, 6].tolist() == expected.labels[image, :count].tolist()
    told = export.onnx_description(SIZE, "Letterbox", ["a", "b", "c"], detector.outputs, evaluation)["model-nms.onnx"]
    assert (told["scoreThreshold"], told["iouThreshold"], told["maxDetectionsPerLabel"]) == (score, iou, most)
