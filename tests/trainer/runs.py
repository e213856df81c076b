"""Real attempts in processes of their own: small generated data, small pictures, a dozen steps.

They are forked from one that has imported PyTorch, as the imports are most of what such an attempt costs.
"""

import io
import json
import multiprocessing
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TextIO

from trainyard_api.run import RunSpec
from trainyard_trainer.synth import write_zip

TIMEOUT = 240.0
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["trainyard_trainer.assemble", "trainyard_trainer.publish"])


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


def publish_untrained(folder: Path, data: Path, out: TextIO | None = None, **changes: Any) -> RunSpec:
    """A version with fresh weights, and all that a training leaves; `out` gets the lines."""
    import torch
    from trainyard_api.report import Outcome
    from trainyard_trainer.prepare import prepare
    from trainyard_trainer.publish import Model, Publishing, publish
    from trainyard_trainer.report import Reporter
    from trainyard_trainer.store import Storage
    from trainyard_trainer.task import build_task

    folder.mkdir(parents=True, exist_ok=True)
    spec, size = run_spec(folder, data, **changes), (64, 64)
    prepared = prepare(spec.dataset, spec.task, Storage(), folder / "cache", image_size=size)
    torch.manual_seed(0)
    task = build_task(spec, prepared.dataset.labels, prepared.dataset.records, size)
    reporter = Reporter(spec, folder / "metrics.jsonl", out=out or io.StringIO())
    publish(
        Model(task, 1, 1, 1, Outcome.COMPLETED, "done."),
        Publishing(
            spec, prepared, size, Storage(), reporter, folder / "version", torch.device("cpu"), time.monotonic() + 600, 1,
        ),
    )  # fmt: skip
    return spec


@dataclass
class Trainer:
    """`python -m trainyard_trainer` on a spec; its lines as they come."""

    spec: RunSpec
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)
    program: Path | None = None
    """What a private image starts instead of the package."""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"run-{self.spec.attempt}.json"
        path.write_text(json.dumps(self.spec.to_dict()))
        self.message_path = self.folder / f"termination-{self.spec.attempt}"
        self.errors_path = self.folder / f"stderr-{self.spec.attempt}"
        environment = os.environ | {
            "TRAINYARD_RUN_SPEC": str(path),
            "TRAINYARD_TERMINATION_LOG": str(self.message_path),
            "TRAINYARD_SECONDS_BETWEEN_LINES": "0",
            "TRAINYARD_ONNX": "0",
            **self.environment,
        }
        output, writer = FORKS.Pipe(duplex=False)
        self.process = FORKS.Process(target=_program, args=(self.program, environment, writer, self.errors_path))
        self.process.start()
        writer.close()
        self._came = threading.Condition()
        self._reader = threading.Thread(target=self._read, args=(output,), daemon=True)
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
        self.process.join(TIMEOUT)
        self._reader.join(10)
        assert self.process.exitcode is not None, "it runs on"
        return self.process.exitcode

    def send(self, number: signal.Signals) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    @property
    def result(self) -> dict[str, Any]:
        return json.loads(self.message_path.read_text())

    def errors(self) -> str:
        return self.errors_path.read_text()

    def _read(self, output: Connection) -> None:
        with output, os.fdopen(os.dup(output.fileno())) as lines:
            for line in lines:
                with self._came:
                    self.lines.append(json.loads(line))
                    self._came.notify_all()


def _program(program: Path | None, environment: dict[str, str], output: Connection, errors: Path) -> None:
    """Becomes `python -m trainyard_trainer`, or `python program`."""
    with errors.open("w") as file:
        os.dup2(file.fileno(), sys.stderr.fileno())
    os.dup2(output.fileno(), sys.stdout.fileno())
    output.close()
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["trainyard_trainer"] if program is None else [str(program)]
    sys.orig_argv = [sys.executable, *(["-m", "trainyard_trainer"] if program is None else sys.argv)]
    if program is None:
        runpy.run_module("trainyard_trainer", run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(str(program), run_name="__main__")
