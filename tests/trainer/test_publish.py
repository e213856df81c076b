"""What becomes a version, and what is left out of one."""

import io
import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch
from lxml import html
from safetensors.torch import load_file
from torch import Tensor, nn
from trainyard_api.report import ExitCode
from trainyard_api.run import RunSpec
from trainyard_trainer import __main__ as trainer
from trainyard_trainer.detector import Detector
from trainyard_trainer.image_task import ImageTask
from trainyard_trainer.loop import Loop
from trainyard_trainer.state import copied

from tests.commands import trainyard
from tests.trainer.runs import dataset, publish_untrained, run_spec

pytestmark = pytest.mark.training

GRAPHS = {"model.onnx", "model-nms.onnx"}


def local(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))


def manifest_of(spec: RunSpec) -> dict[str, Any]:
    return json.loads(local(f"{spec.version_uri}manifest.json").read_text())


class OtherwiseWhenTraced(nn.Module):
    """The graph that is exported says something else than the network does."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.graph = graph

    def forward(self, images: Tensor) -> tuple[Tensor, ...] | Tensor:
        found = self.graph(images)
        off = 0.25 if torch.jit.is_tracing() else 0.0
        return found + off if isinstance(found, Tensor) else (*found[:-1], found[-1] + off)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [(Detector, {}), (ImageTask, {"architecture": "mobilenet-v3-small", "task": "Tagging"})],
    ids=["detector", "tagger"],
)
def test_onnx_files_that_compute_something_else_are_left_out_and_said(
    kind: type, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = dataset(tmp_path, images=12)
    out = io.StringIO()
    same = publish_untrained(tmp_path / "same", data, out, **changes)
    assert "ONNXDiffers" not in out.getvalue()
    graphs = GRAPHS if kind is Detector else {"model.onnx"}
    names = {file["name"] for file in manifest_of(same)["files"]}
    assert graphs <= names

    right = kind.raw_graph
    monkeypatch.setattr(kind, "raw_graph", lambda self, size: OtherwiseWhenTraced(right(self, size)))
    other = publish_untrained(tmp_path / "other", data, out, **changes)
    (warning,) = [line for line in map(json.loads, out.getvalue().splitlines()) if line.get("reason") == "ONNXDiffers"]
    assert "the ONNX file was left out: " in warning["message"]
    assert "its scores are up to 0.25 off" in warning["message"]
    manifest = manifest_of(other)
    assert {file["name"] for file in manifest["files"]} == names - graphs
    assert "onnx" not in manifest
    assert not list(local(other.version_uri).rglob("*.onnx"))
    assert "ONNXDiffers" in (local(other.run_uri) / "report.html").read_text()
    done = trainyard("model", "evaluate", local(other.version_uri), "--dataset", data, "--to", tmp_path / "out")
    assert (done.returncode, "has no ONNX file" in done.stderr) == (1, True), done.stderr


@pytest.mark.parametrize("test_percent", [10, 0])
def test_without_validation_images_the_last_average_is_published(
    test_percent: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("TRAINYARD_ONNX", "0")
    data = dataset(tmp_path)
    split = {"trainPercent": 100 - test_percent, "validationPercent": 0, "testPercent": test_percent}
    spec = run_spec(
        tmp_path,
        data,
        dataset={"sources": [{"uri": data.as_uri()}], "split": split, "imageSize": 64},
        training={"steps": 12, "batchSize": 4, "emaDecay": 0.9},
    )
    last: dict[str, Tensor] = {}
    raw: dict[str, Tensor] = {}
    run = Loop.run

    def running(loop: Loop) -> Any:
        ending = run(loop)
        last.update(copied(loop.average.state_dict()))
        raw.update(copied(loop.network.state_dict()))
        return ending

    monkeypatch.setattr(Loop, "run", running)
    result = trainer.run(spec, lambda: False)
    assert (result.exit_code, result.reason) == (ExitCode.DONE, "Completed"), result.message
    manifest = manifest_of(spec)
    assert (manifest["bestStep"], manifest["step"]) == (12, 12)
    assert ("validation" in manifest, "test" in manifest) == (False, test_percent > 0)
    folder = local(spec.version_uri) / "a1"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert ("validation" in metrics, "test" in metrics) == (False, test_percent > 0)
    published = load_file(folder / "model.safetensors")
    assert [name for name, tensor in last.items() if not torch.equal(tensor, raw[name])]
    assert [name for name, tensor in last.items() if not torch.equal(tensor, published[name])] == []
    page = html.fromstring((local(spec.run_uri) / "report.html").read_text())
    scored = page.xpath("//section[@id='scores']//table[1]/tbody/tr/td[1]")[0].text_content()
    assert scored == ("test" if test_percent else "training")
    lines = [json.loads(line) for line in (local(spec.run_uri) / "metrics.jsonl").read_text().splitlines()]
    assert {line["kind"] for line in lines} == {"step"}
