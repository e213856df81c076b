"""The example of a private architecture, as its image would run it: stopped, resumed, exported, reported."""

import json
import signal
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from trainyard_api.architectures import Architecture, Task
from trainyard_api.report import ExitCode
from trainyard_trainer import private
from trainyard_trainer.synth import write_zip

from tests.trainer.runs import Trainer, run_spec

EXAMPLE = Path(__file__).parents[2] / "examples" / "private" / "train.py"


def local(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))


@pytest.mark.training
@pytest.mark.timeout(900)
def test_a_network_and_two_functions_get_everything_else_from_the_package(tmp_path: Path) -> None:
    data = tmp_path / "shapes.zip"
    write_zip(data, images=40, size=(96, 64), labels=2, objects=(1, 3))
    changes = {
        "architecture": "private/centers",
        "training": {"steps": 120, "batchSize": 8, "evaluateEverySteps": 60, "checkpointEverySteps": 20},
        "augmentation": {"preset": "None"},
    }
    first = Trainer(run_spec(tmp_path, data, **changes), tmp_path, program=EXAMPLE)
    first.reached(25)
    first.send(signal.SIGTERM)
    assert first.end() == ExitCode.INTERRUPTED, first.errors()
    stopped_at = first.result["checkpointStep"]
    assert stopped_at >= 25

    again = run_spec(tmp_path, data, **changes, attempt=2, resumeFrom=[first.spec.attempt_uri])
    second = Trainer(again, tmp_path, {"TRAINYARD_ONNX": "1"}, program=EXAMPLE)
    assert second.end() == ExitCode.DONE, second.errors()
    assert (second.result["resumedFromStep"], second.result["step"]) == (stopped_at, 120)
    manifest = json.loads(local(f"{again.version_uri}manifest.json").read_text())
    assert {"model.safetensors", "model.onnx", "model-nms.onnx"} <= {file["name"] for file in manifest["files"]}
    assert manifest["validation"]["mAP50"] > 0.1, "it has learnt something"
    lines = [json.loads(line) for line in local(f"{again.run_uri}metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if line["kind"] == "step"]
    assert len(losses) == 120
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    assert "private/centers" in local(f"{again.run_uri}report.html").read_text()


def test_only_a_private_name_can_be_added_to_the_catalogue() -> None:
    with pytest.raises(ValueError, match="no private architecture"):
        private.register(
            Architecture("yard-nano", (Task.DETECTION,), 320, 8, 32, 1e-3), lambda wanted: pytest.fail("never built")
        )
