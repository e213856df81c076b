"""`make bench-life`: the moments of an attempt that people wait for, of a real trainer on one thread with its output on a real S3 server.

    start       process start to first step (files in page cache)                                        <= 3 s
    evaluation  one pass over the validation images against training on as many, in CPU time             <= 0.3x with bf16
    stop        SIGTERM to exit 75 with the checkpoint on S3, less one step                              <= 2 s

Start and stop are wall time, and on a busy machine measure its neighbours: the CPU time of the same stretch is printed beside them.
Prints a table and, as its last line, one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset import server  # the bench beside this one
from trainyard_api.report import ExitCode
from trainyard_api.run import RunSpec
from trainyard_trainer.device import cpu_has_bf16
from trainyard_trainer.synth import write_zip

IMAGES, BATCH, EVERY = 120, 8, 6
START_GOAL, EVALUATION_GOAL, STOP_GOAL = 3.0, 0.3, 2.0
BUCKET = "bench"


@dataclass(frozen=True)
class Moment:
    """A line of the trainer's, when it came, and the CPU time that its process had used by then."""

    line: dict[str, Any]
    at: float
    cpu: float


@dataclass(frozen=True)
class Life:
    """What one trainer was seen doing: seconds of wall time, and of CPU time where it says so."""

    start: float
    start_cpu: float
    step: float
    evaluated_cpu: float
    """Per image."""
    trained_cpu: float
    stop: float
    stop_cpu: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--architecture", default="yard-nano")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, server() as (client, storage, keys):
        folder = Path(name)
        write_zip(folder / "shapes.zip", images=IMAGES, size=(arguments.size, arguments.size))
        client.create_bucket(Bucket=BUCKET)
        lives = []
        for round_ in range(1, arguments.rounds + 1):
            spec = run_spec(folder, round_, arguments)
            lives.append(lived(spec, folder, keys))
            assert storage.head(f"{spec.attempt_uri}checkpoints/latest.json") is not None, "no checkpoint on S3"
            print(
                f"round {round_}: first step after {lives[-1].start:.1f} s, stopped in {lives[-1].stop:.1f} s",
                flush=True,
            )

    def median(name: str) -> float:
        return statistics.median(getattr(life, name) for life in lives)

    evaluation = median("evaluated_cpu") / median("trained_cpu")
    stop = median("stop") - median("step")
    print(
        f"{'':<12}{'measured':>10}{'CPU':>8}{'goal':>8}   ({arguments.architecture}, {arguments.size} px, median of {len(lives)})"
    )
    print(f"{'start':<12}{median('start'):>8.2f} s{median('start_cpu'):>6.1f} s{START_GOAL:>6} s")
    print(
        f"{'evaluation':<12}{evaluation:>8.2f} x{'':>8}{EVALUATION_GOAL:>6} x{'' if cpu_has_bf16() else '   (this CPU has no bf16)'}"
    )
    print(
        f"{'stop':<12}{stop:>8.2f} s{median('stop_cpu'):>6.1f} s{STOP_GOAL:>6} s   (beyond one step of {median('step'):.2f} s)"
    )
    told = {
        "bench": "life", "startSeconds": round(median("start"), 2), "startCPUSeconds": round(median("start_cpu"), 2),
        "startGoal": START_GOAL, "evaluationRatio": round(evaluation, 3), "evaluationGoal": EVALUATION_GOAL,
        "stopSecondsBeyondAStep": round(stop, 2), "stopCPUSeconds": round(median("stop_cpu"), 2), "stopGoal": STOP_GOAL,
        "cpuHasBF16": cpu_has_bf16(), "load": round(os.getloadavg()[0], 1),
    }  # fmt: skip
    print(json.dumps(told))
    sys.exit(0 if median("start") <= START_GOAL and evaluation <= EVALUATION_GOAL and stop <= STOP_GOAL else 1)


def run_spec(folder: Path, round_: int, arguments: argparse.Namespace) -> RunSpec:
    """Half of the images to train on, half to evaluate, every few steps."""
    return RunSpec.model_validate({
        "job": f"life-{round_}", "namespace": "bench", "uid": "0" * 32, "architecture": arguments.architecture,
        "task": "Detection", "model": "life",
        "dataset": {
            "sources": [{"uri": (folder / "shapes.zip").as_uri()}], "imageSize": arguments.size,
            "split": {"trainPercent": 50, "validationPercent": 50, "testPercent": 0},
        },
        "training": {"steps": 1000, "batchSize": BATCH, "evaluateEverySteps": EVERY, "checkpointEverySteps": 1000},
        "start": {"weights": "None"}, "outputURI": f"s3://{BUCKET}/models", "cachePath": str(folder / f"cache-{round_}"),
        "gpus": 0,
    })  # fmt: skip


def lived(spec: RunSpec, folder: Path, keys: dict[str, str]) -> Life:
    """A trainer from its start to its first evaluation, some steps more, and its stop."""
    path = folder / f"{spec.job}.json"
    path.write_text(json.dumps(spec.to_dict()))
    environment = os.environ | keys | {
        "TRAINYARD_RUN_SPEC": str(path), "TRAINYARD_ALLOW_CPU": "1", "OMP_NUM_THREADS": "1", "TRAINYARD_SECONDS_BETWEEN_LINES": "0",
        "TRAINYARD_TERMINATION_LOG": str(folder / f"{spec.job}.end"),
    }  # fmt: skip
    began = time.monotonic()
    with subprocess.Popen(
        [sys.executable, "-m", "trainyard_trainer"], env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        seen: list[Moment] = []
        for text in process.stdout:
            seen.append(Moment(json.loads(text), time.monotonic(), cpu_seconds(process.pid)))
            if seen[-1].line["event"] == "step" and seen[-1].line["step"] >= EVERY + 4:
                break
        process.send_signal(signal.SIGTERM)
        asked, used = time.monotonic(), cpu_seconds(process.pid)
        # Its last line is told when all is saved.
        last = [cpu_seconds(process.pid) for _ in process.stdout][-1]
        code = process.wait(120)
        ended = time.monotonic()
    assert code == ExitCode.INTERRUPTED, f"exit code {code}"
    training, evaluating, again = phases(seen)
    steps = [moment for moment in seen if moment.line["event"] == "step"]
    before = [moment for moment in steps if moment.at < evaluating.at]
    each = (before[-1].cpu - before[0].cpu) / (before[-1].line["step"] - before[0].line["step"])
    wall = (before[-1].at - before[0].at) / (before[-1].line["step"] - before[0].line["step"])
    return Life(
        start=training.at - began, start_cpu=training.cpu, step=wall,
        evaluated_cpu=(again.cpu - evaluating.cpu) / (IMAGES / 2), trained_cpu=each / BATCH,
        stop=ended - asked, stop_cpu=last - used,
    )  # fmt: skip


def phases(seen: list[Moment]) -> tuple[Moment, Moment, Moment]:
    """The beginning of the training, of the first evaluation, and of what follows."""
    told = [moment for moment in seen if moment.line["event"] == "phase"]
    names = [moment.line["phase"] for moment in told]
    first = names.index("Training")
    evaluating = names.index("Evaluating", first)
    return told[first], told[evaluating], told[names.index("Training", evaluating)]


def cpu_seconds(process: int) -> float:
    """User and system time; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
