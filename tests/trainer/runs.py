"""Real attempts in processes of their own: small generated data, small pictures, a dozen steps."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainyard_api.run import RunSpec
from trainyard_trainer.synth import write_zip

TIMEOUT = 240.0


def dataset(folder: Path, images: int = 40) -> Path:
    path = folder / "shapes.zip"
    if not path.exists():
        write_zip(path, images=images, size=(96, 64), labels=2, objects=(1, 3))
    return path


def run_spec(folder: Path, data: Path, **changes: Any) -> RunSpec:
    """A training of 12 steps on 64 px, evaluated every 5 and saved every 3 steps."""
    values: dict[str, Any] = {
        "job": "shapes",
        "namespace": "tests",
        "uid": "0123456789abcdef0123456789abcdef",
        "architecture": "yard-nano",
        "task": "Detection",
        "model": "shapes",
        "dataset": {"sources": [{"uri": data.as_uri()}], "split": {}, "imageSize": 64},
        "training": {"steps": 12, "batchSize": 4, "evaluateEverySteps": 5, "checkpointEverySteps": 3},
        "outputURI": (folder / "output").as_uri(),
        "cachePath": str(folder / "cache"),
        "timeoutSeconds": 3600,
        "drainSeconds": 60,
    }
    return RunSpec.model_validate(values | changes)


@dataclass
class Trainer:
    """`python -m trainyard_trainer` on a spec; its lines as they come."""

    spec: RunSpec
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)
    program: tuple[str, ...] = ("-m", "trainyard_trainer")

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"run-{self.spec.attempt}.json"
        path.write_text(json.dumps(self.spec.to_dict()))
        self.message_path = self.folder / f"termination-{self.spec.attempt}"
        environment = os.environ | {
            "OMP_NUM_THREADS": "1",
            "TRAINYARD_RUN_SPEC": str(path),
            "TRAINYARD_TERMINATION_LOG": str(self.message_path),
            "TRAINYARD_SECONDS_BETWEEN_LINES": "0",
            "TRAINYARD_ONNX": "0",
            **self.environment,
        }
        self.process = subprocess.Popen(
            [sys.executable, *self.program],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._came = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first line that is wanted; fails after a while, or when the process ends without it."""
        deadline = time.monotonic() + TIMEOUT
        with self._came:
            while True:
                for line in self.lines:
                    if wanted(line):
                        return line
                if not self._reader.is_alive() or time.monotonic() > deadline:
                    raise AssertionError(f"the line never came; the last were {self.lines[-3:]}")
                self._came.wait(1.0)

    def reached(self, step: int) -> dict[str, Any]:
        return self.wait_for(lambda line: line.get("event") == "step" and line["step"] >= step)

    def end(self) -> int:
        """Exit code, once the process is over."""
        code = self.process.wait(TIMEOUT)
        self._reader.join(10)
        return code

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    @property
    def result(self) -> dict[str, Any]:
        return json.loads(self.message_path.read_text())

    def errors(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._came:
                self.lines.append(json.loads(line))
                self._came.notify_all()
