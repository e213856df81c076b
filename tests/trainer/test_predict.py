"""`model predict` and the example without Trainyard: they see what a training sees, of every kind of picture and for every task."""

import json
import runpy
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from PIL import Image
from trainyard_api.architectures import Task
from trainyard_api.training import Evaluation
from trainyard_cli.errors import CLIError
from trainyard_cli.predict import PICTURES, Wish, panel, run
from trainyard_trainer.export import OPSET, onnx_description
from trainyard_trainer.picture import COLOURS as REPORT_COLOURS
from trainyard_trainer.predictor import Predictor
from trainyard_trainer.voc_image import EXTENSIONS

from tests.trainer.vocfiles import encoded, good, load_uri, obj, picture, prepared, xml

EXAMPLE = Path(__file__).parents[2] / "examples" / "predict.py"
WIDTH, HEIGHT = 48, 32
COLOURS = ("red", "green", "blue")


def drawn(mode: str, form: str, orientation: int | None = None, **options: Any) -> bytes:
    """A picture with something of everything: dark, bright, colours, and where the mode has it transparent parts."""
    pixels = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
    pixels[:16, :, 3], pixels[16:24, :, 3] = 0, 255
    pixels[:8, :8, :3] = 0
    image = Image.fromarray(pixels, "RGBA")
    if mode == "I;16":
        image = Image.fromarray(np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH))
    elif mode == "F":
        image = Image.fromarray(np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.float32).reshape(HEIGHT, WIDTH))
    else:
        image = image.convert(mode)
    return encoded(image, form, orientation, **options)


PIXELS = {
    "RGB.jpg": drawn("RGB", "JPEG"),
    "RGB.jfif": drawn("RGB", "JPEG"),
    "grey.png": drawn("L", "PNG"),
    "grey-alpha.png": drawn("LA", "PNG"),
    "bits.png": drawn("1", "PNG"),
    "sixteen.png": drawn("I;16", "PNG"),
    "sixteen.tif": drawn("I;16", "TIFF"),
    "float.tif": drawn("F", "TIFF"),
    "alpha.png": drawn("RGBA", "PNG"),
    "alpha.webp": drawn("RGBA", "WEBP", lossless=True),
    "palette.png": drawn("P", "PNG"),
    "palette-transparent.png": drawn("P", "PNG", transparency=3),
    "palette-transparent.gif": drawn("P", "GIF", transparency=3),
    "one-colour-transparent.png": drawn("RGB", "PNG", transparency=(0, 0, 0)),
    "CMYK.jpg": drawn("CMYK", "JPEG"),
    "half-turn.jpg": drawn("RGB", "JPEG", orientation=3),
    "turned.jpg": drawn("RGB", "JPEG", orientation=6),
    "turned.tif": drawn("RGB", "TIFF", orientation=8),
    "turned-alpha.png": drawn("RGBA", "PNG", orientation=5),
    "senseless.jpg": drawn("RGB", "JPEG", orientation=42),
}


def version(
    folder: Path, task: Task, size: tuple[int, int] = (WIDTH, HEIGHT), labels: tuple[str, ...] = COLOURS
) -> Path:
    """A version, as it is downloaded, that answers with the mean of red, of green and of blue; a detector finds one box."""
    folder.mkdir(exist_ok=True)
    width, height = size
    picture = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, height, width])

    def write(name: str, nodes: list[Any], outputs: dict[str, list[Any]], constants: list[Any]) -> None:
        told = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()]
        graph = helper.make_graph(nodes, "colours", [picture], told, constants)
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10), folder / name
        )

    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    mean = helper.make_node("ReduceMean", ["images", "axes"], ["scores"], keepdims=0)
    outputs = ["scores"]
    write("model.onnx", [mean], {"scores": ["batch", 3]}, [axes])
    if task is Task.DETECTION:
        outputs = ["boxes", "scores"]
        one = helper.make_tensor("box", TensorProto.FLOAT, [1, 1, 4], [4, 4, 20, 20])
        last = helper.make_tensor("last", TensorProto.INT64, [1], [1])
        nodes = [
            helper.make_node("ReduceMean", ["images", "axes"], ["means"], keepdims=0),
            helper.make_node("Unsqueeze", ["means", "last"], ["scores"]),
            helper.make_node("Identity", ["box"], ["boxes"]),
        ]
        write("model.onnx", nodes, {"boxes": [1, 1, 4], "scores": ["batch", 1, 3]}, [axes, one, last])
        row = helper.make_tensor("row", TensorProto.FLOAT, [1, 7], [0, 4, 4, 20, 20, 0.9, 0])
        write("model-nms.onnx", [helper.make_node("Identity", ["row"], ["detections"])], {"detections": [1, 7]}, [row])
    manifest = {
        "name": "colours-v1", "task": task.value, "labels": labels, "evaluation": {"scoreThresholdPercent": 30},
        "onnx": onnx_description(size, "Letterbox", labels, outputs, Evaluation()),
    }  # fmt: skip
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def opened(folder: Path) -> Predictor:
    return Predictor(json.loads((folder / "manifest.json").read_text()), folder / "model.onnx")


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[list[str]]]:
    """Runs the example and returns the columns of its lines."""

    def run_it(*arguments: object) -> list[list[str]]:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *map(str, arguments)])
        runpy.run_path(str(EXAMPLE))
        return [line.split("\t") for line in capsys.readouterr().out.splitlines()]

    return run_it


def colours(folder: Path) -> list[Path]:
    """A red picture, one of red and blue, and a dark one."""
    folder.mkdir()
    for name, colour in (("a red one", (250, 20, 10)), ("both", (240, 10, 250)), ("dark", (3, 2, 1))):
        Image.new("RGB", (WIDTH, HEIGHT), colour).save(folder / f"{name}.png")
    return sorted(folder.iterdir())


@pytest.mark.parametrize("name", PIXELS)
def test_prediction_example_and_training_see_the_same_pixels(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, example: Callable[..., list[list[str]]]
) -> None:
    turned = name.startswith("turned")
    width, height = (HEIGHT, WIDTH) if turned else (WIDTH, HEIGHT)
    suffix = Path(name).suffix
    files = good()
    del files["JPEGImages/img_00.jpg"]
    files[f"JPEGImages/img_00{suffix}"] = PIXELS[name]
    files["Annotations/img_00.xml"] = xml(obj(box=(2, 2, 20, 20)), name=f"img_00{suffix}", size=(width, height))
    trained = prepared(files, tmp_path)
    index = next(i for i, record in enumerate(trained.dataset.records) if record.name == "img_00")
    expected = trained.pixels.image(index)
    assert expected.shape == (height, width, 3)

    seen: list[np.ndarray] = []
    plain = onnxruntime.InferenceSession.run

    def watched(self: Any, outputs: Any, inputs: Any) -> Any:
        seen.append(inputs["images"])
        return plain(self, outputs, inputs)

    monkeypatch.setattr(onnxruntime.InferenceSession, "run", watched)
    file = tmp_path / name
    file.write_bytes(PIXELS[name])
    folder = version(tmp_path / "version", Task.TAGGING, (width, height))
    run([opened(folder)], Wish((file,), tmp_path / "drawn"), quiet=True)
    example(folder, file)
    for images in seen:
        assert (np.round(images[0].transpose(1, 2, 0) * 255).astype(np.uint8) == expected).all()
    assert len(seen) == 2


def test_a_prediction_takes_every_kind_of_file_that_a_training_takes() -> None:
    assert set(PICTURES) == EXTENSIONS


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"\xff\xd8\xff nothing more", "is no picture that can be read"),
        (b"....ftypheic", r"is no picture that can be read \(HEIC\); save it as JPEG or PNG"),
        (picture(0)[:900], "cannot be read as a picture: image file is truncated"),
    ],
)
def test_what_cannot_be_decoded_is_said_with_its_file(data: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(data)
    folder = version(tmp_path / "version", Task.TAGGING)
    with pytest.raises(CLIError, match=rf"broken\.jpg {sentence}"):
        run([opened(folder)], Wish((tmp_path / "broken.jpg",), tmp_path / "drawn"), quiet=True)


SAID = {
    Task.CLASSIFICATION: [("a red one", ["red"]), ("both", ["blue"]), ("dark", ["red"])],
    Task.TAGGING: [("a red one", ["red"]), ("both", ["blue", "red"]), ("dark", [])],
    Task.DETECTION: [("a red one", ["red"]), ("both", ["red"]), ("dark", ["red"])],
}


@pytest.mark.parametrize("task", Task)
def test_the_example_knows_all_three_tasks(task: Task, tmp_path: Path, example: Callable[..., list[list[str]]]) -> None:
    rows = example(version(tmp_path / "version", task), *colours(tmp_path / "pictures"))
    assert [(Path(row[0]).stem, row[1]) for row in rows] == [
        (name, label) for name, labels in SAID[task] for label in labels
    ]
    assert {len(row) for row in rows} == {7 if task is Task.DETECTION else 3}


@pytest.mark.parametrize("task", [Task.CLASSIFICATION, Task.TAGGING])
def test_a_class_and_tags_are_written_as_the_lists_that_a_training_reads(task: Task, tmp_path: Path) -> None:
    folder = version(tmp_path / "version", task)
    (tmp_path / "more").mkdir()
    Image.new("RGB", (WIDTH, HEIGHT), (0, 250, 0)).save(tmp_path / "more" / "a_red_one.png")
    colours(tmp_path / "pictures")
    places = (tmp_path / "pictures", tmp_path / "more")
    run([opened(folder)], Wish(places, tmp_path / "drawn", voc=tmp_path / "review.zip"), quiet=True)
    dataset = load_uri((tmp_path / "review.zip").as_uri(), tmp_path, task, strict=False)
    assert dataset.labels == ("blue", "green", "red")
    assert {record.name: sorted(record.labels) for record in dataset.records} == {
        **{name.replace(" ", "_"): labels for name, labels in SAID[task]}, "a_red_one_": ["green"]
    }  # fmt: skip


def test_of_several_versions_the_first_one_annotates(tmp_path: Path) -> None:
    versions = [opened(version(tmp_path / task.value, task)) for task in (Task.DETECTION, Task.TAGGING)]
    colours(tmp_path / "pictures")
    run(versions, Wish((tmp_path / "pictures",), tmp_path / "drawn", voc=tmp_path / "review.zip"), quiet=True)
    with zipfile.ZipFile(tmp_path / "review.zip") as archive:
        assert not [name for name in archive.namelist() if name.startswith("ImageSets")]
    dataset = load_uri((tmp_path / "review.zip").as_uri(), tmp_path, strict=False)
    assert next(item.box for record in dataset.records for item in record.objects) == (4, 4, 20, 20)


def test_a_label_that_cannot_name_a_list_is_refused_before_any_work(tmp_path: Path) -> None:
    folder = version(tmp_path / "version", Task.TAGGING, labels=("red", "green/blue", "blue"))
    colours(tmp_path / "pictures")
    with pytest.raises(CLIError, match="'green/blue' cannot be part of a file's name: leave --voc out"):
        run([opened(folder)], Wish((tmp_path / "pictures",), tmp_path / "drawn", voc=tmp_path / "review.zip"))
    assert not (tmp_path / "drawn").exists()
    assert not (tmp_path / "review.zip").exists()


def test_every_label_has_the_colour_that_it_has_in_the_report() -> None:
    """Also labels whose letters add up to the same."""
    labels = ("ab", "ba", "c")
    found = [
        {"label": label, "score": 0.5, "box": [10, 20 + 50 * i, 60, 60 + 50 * i]} for i, label in enumerate(labels)
    ]
    picture = np.asarray(panel(np.zeros((200, 200, 3), np.uint8), found, labels, None))
    for i, colour in enumerate(REPORT_COLOURS[:3]):
        assert tuple(picture[40 + 50 * i, 10]) == tuple(bytes.fromhex(colour[1:]))
